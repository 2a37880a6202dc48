"""The machines that a pytest process has, and how it holds on to them."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence

import attrs

from vmcloner_core import Engine, Machine, Readiness
from vmcloner_core.errors import PartialFailure, VmclonerError
from vmcloner_pytest.settings import Wanted

log = logging.getLogger(__name__)
KEPT = 8 * 3600
"""Seconds for which the machines of a failed test are kept."""


@attrs.define(eq=False)
class Group:
    """Machines that were taken or made together; none yet while they are made.

    :param fleet: the fleet that was made for them; None if they are a pool's.
    :param failed: whether a test failed that used them. :param kept: whether they stay.
    """

    machines: tuple[Machine, ...]
    fleet: str | None = None
    failed: bool = False
    kept: bool = False

    @property
    def names(self) -> list[str]:
        """The names of the machines."""
        return [machine.name for machine in self.machines]


class Extending:
    """A thread that extends a lease, again and again. It may wait long for a run on its fleet."""

    def __init__(self, extend: Callable[[], None], every: float) -> None:
        self._extend = extend
        self._every = every
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="vmcloner leases", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Stop; returns once nothing is extended any more."""
        self._ended.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._ended.wait(self._every):
            try:
                self._extend()
            except VmclonerError as error:
                log.warning("%s", error)


class Holdings:
    """The machines of one process. Their leases are extended until they are given back.

    If the process is killed, they end: a pool's machines are reset by its next user, and all are
    removed by ``vmcloner gc --expired``.
    """

    def __init__(self, engine: Engine, wanted: Wanted, *, keep_pool: bool) -> None:
        self.engine = engine
        self.wanted = wanted
        self._groups: dict[Group, Extending] = {}
        self._stack = contextlib.ExitStack()
        if wanted.pool is not None:
            self._stack.enter_context(engine.use_pool(wanted.pool, keep=keep_pool))

    def names(self) -> list[str]:
        """Return the names of all machines: those taken or made, and the pool's."""
        names = {name for group in self._groups for name in group.names}
        if self.wanted.pool is not None:
            names |= {each.name for each in self.engine.pool_members(self.wanted.pool.name)}
        return sorted(names)

    def take(self, count: int, timeout: float) -> Group:
        """Take machines from the pool; waits until there are so many."""
        assert self.wanted.pool is not None  # noqa: S101 - callers have looked
        worker = os.environ.get("PYTEST_XDIST_WORKER", "")
        who = f"pytest {os.getpid()} {worker}".strip()
        pool = self.wanted.pool
        taken = self.engine.acquire(pool, count, ttl=self.wanted.ttl, timeout=timeout, who=who)
        return self._held(Group(taken))

    def make(self, template: str, count: int, ready: str | bool, timeout: float | None) -> Group:
        """Make a fleet with a name of its own; its leases begin anew when it is ready.

        :param ready: what to wait for; True for what the template says, False for nothing.
        :raises BackendError: this host can't make it. :raises PartialFailure: it was made in part,
            or can't be used.
        """
        fleet = f"pytest{secrets.token_hex(4)}x"
        wait = Readiness.parse(ready, timeout=timeout) if isinstance(ready, str) else None
        group = self._held(Group((), fleet))
        try:
            made = self.engine.create(
                fleet,
                template,
                count=count,
                start=True,
                ready=ready is True,
                wait=wait,
                timeout=timeout,
                ttl=self.wanted.ttl,
            )
            with _there([clone.name for clone in made.results]):
                self._extend(group, self.wanted.ttl)  # it began before the boot
                group.machines = self.engine.machines(fleet)
        except BaseException:
            with contextlib.suppress(VmclonerError):
                self.end(group)
            raise
        return group

    def end(self, group: Group) -> None:
        """Give machines back, or remove those that were made; unless they are kept."""
        self._groups.pop(group).end()
        if group.kept:
            self._extend(group, KEPT)
        elif group.fleet is not None:
            self.engine.delete(group.fleet)
        else:
            self.engine.release(*group.machines, failed=group.failed)

    def close(self) -> None:
        """End all; the last user of the pool removes that."""
        with self._stack:
            for group in tuple(self._groups):
                self._stack.callback(self.end, group)  # each, also if another one fails

    def _held(self, group: Group) -> Group:
        extend = functools.partial(self._extend, group, self.wanted.ttl)
        self._groups[group] = Extending(extend, self.wanted.ttl / 3)
        return group

    def _extend(self, group: Group, ttl: int) -> None:
        if group.fleet is not None:
            self.engine.extend_lease(group.fleet, ttl=ttl)
        else:
            self.engine.renew(*group.machines, ttl=ttl)


@contextlib.contextmanager
def _there(names: Sequence[str]) -> Iterator[None]:
    """Name machines that are there, but of no use: not what a host lacks.

    :raises PartialFailure: there was an error in the block.
    """
    try:
        yield
    except VmclonerError as error:
        failures = [(name, error) for name in names]
        raise PartialFailure("machines were made, but lost", failures=failures) from error
