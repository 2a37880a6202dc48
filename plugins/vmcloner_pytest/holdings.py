"""The machines that a pytest process has, and how it holds on to them."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import threading
from collections.abc import Iterator

import attrs

from vmcloner_core import Engine, Machine, Readiness
from vmcloner_core.errors import VmclonerError
from vmcloner_pytest.settings import Wanted

log = logging.getLogger(__name__)
KEPT = 8 * 3600
"""Seconds for which the machines of a failed test are kept."""


@attrs.define(eq=False)
class Group:
    """Machines that were taken or made together.

    :param fleet: the fleet that was made for them; None if they are a pool's.
    :param failed: whether a test failed that used them. :param kept: whether they stay.
    """

    machines: tuple[Machine, ...]
    fleet: str | None = None
    failed: bool = False
    kept: bool = False


class Holdings:
    """The machines of one process. Their leases are extended until they are given back.

    If the process is killed, they end: a pool's machines are reset by its next user, and all are
    removed by ``vmcloner gc --expired``.
    """

    def __init__(self, engine: Engine, wanted: Wanted, *, keep_pool: bool) -> None:
        self.engine = engine
        self.wanted = wanted
        self._groups: set[Group] = set()
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._stack = contextlib.ExitStack()
        if wanted.pool is not None:
            self._stack.enter_context(engine.use_pool(wanted.pool, keep=keep_pool))
        self._thread = threading.Thread(target=self._hold_on, name="vmcloner leases", daemon=True)
        self._thread.start()

    def take(self, count: int, timeout: float) -> Group:
        """Take machines from the pool; waits until there are so many."""
        assert self.wanted.pool is not None  # noqa: S101 - callers have looked
        worker = os.environ.get("PYTEST_XDIST_WORKER", "")
        who = f"pytest {os.getpid()} {worker}".strip()
        pool = self.wanted.pool
        taken = self.engine.acquire(pool, count, ttl=self.wanted.ttl, timeout=timeout, who=who)
        return self._held(Group(taken))

    def make(self, template: str, count: int, ready: str | bool, timeout: float | None) -> Group:
        """Make a fleet with a name of its own.

        :param ready: what to wait for; True for what the template says, False for nothing.
        """
        fleet = f"pytest{secrets.token_hex(4)}x"
        wait = Readiness.parse(ready, timeout=timeout) if isinstance(ready, str) else None
        try:
            self.engine.create(
                fleet,
                template,
                count=count,
                start=True,
                ready=ready is True,
                wait=wait,
                timeout=timeout,
                ttl=self.wanted.ttl,
            )
        except BaseException:
            with contextlib.suppress(VmclonerError):
                self.engine.delete(fleet)
            raise
        return self._held(Group(self.engine.machines(fleet), fleet))

    def end(self, group: Group) -> None:
        """Give machines back, or remove those that were made; unless they are kept."""
        with self._lock:
            self._groups.discard(group)
        if group.kept:
            self._extend(group, KEPT)
        elif group.fleet is not None:
            self.engine.delete(group.fleet)
        else:
            self.engine.release(*group.machines, failed=group.failed)

    def close(self) -> None:
        """End all; the last user of the pool removes that."""
        self._ended.set()
        self._thread.join()
        for group in tuple(self._groups):
            self.end(group)
        self._stack.close()

    def _held(self, group: Group) -> Group:
        with self._lock:
            self._groups.add(group)
        return group

    def _hold_on(self) -> None:
        while not self._ended.wait(self.wanted.ttl / 3):
            for group in self._all():
                try:
                    self._extend(group, self.wanted.ttl)
                except VmclonerError as error:
                    log.warning("%s", error)

    def _all(self) -> Iterator[Group]:
        with self._lock:
            groups = tuple(self._groups)
        yield from groups

    def _extend(self, group: Group, ttl: int) -> None:
        if group.fleet is not None:
            self.engine.extend_lease(group.fleet, ttl=ttl)
        else:
            self.engine.renew(*group.machines, ttl=ttl)
