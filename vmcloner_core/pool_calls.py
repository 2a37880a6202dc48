"""What an engine does with pools: a part of the engine's API. See docs/pools.md."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import random
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import attrs

from vmcloner_core.cancelling import Cancellation
from vmcloner_core.claims import Claim, Membership
from vmcloner_core.errors import (
    DeadlineExceeded,
    Interrupted,
    InvalidRequest,
    NotFound,
    PartialFailure,
    VmclonerError,
    WrongState,
)
from vmcloner_core.local_host import LocalHost
from vmcloner_core.model import Access, Clone, Lease, Moment, Outcome, State, check_ttl
from vmcloner_core.plan import check_timeout
from vmcloner_core.pools import Pool, PoolReset
from vmcloner_core.records import Record
from vmcloner_core.settings import Settings
from vmcloner_core.units import counted, format_seconds
from vmcloner_core.warm_origins import WarmOrigin

if TYPE_CHECKING:
    from vmcloner_core.machine import Machine
    from vmcloner_core.pool_filling import Held
    from vmcloner_core.pool_keeper import Keeper

log = logging.getLogger(__name__)
CLAIM_TTL = 300
"""Seconds of a claim where nothing else is asked for."""
MAX_USERS = 256
"""Engines that use one pool at once."""
_POLL = 0.05
_CONTENDED = 0.005


@attrs.frozen(kw_only=True)
class PoolMember:
    """A clone of a pool.

    :param state: ``ready``, ``taken``, or ``used``: it will be reset, or it isn't ready yet.
    :param who: who has taken it; empty if nobody has. :param left: seconds that its claim lasts,
        None if it isn't taken.
    :param address: where it was reached when it got ready.
    """

    name: str
    state: str
    who: str = ""
    left: float | None = None
    address: str | None = None


class PoolCalls(ABC):
    """The calls of :class:`~vmcloner_core.Engine` that are about pools."""

    settings: Settings

    def __init__(self) -> None:
        self._keepers: dict[str, Keeper] = {}
        self._keepers_lock = threading.Lock()

    @property
    @abstractmethod
    def _host(self) -> LocalHost:
        """The host that the engine works on."""

    @abstractmethod
    def hold(self, *fleets: str) -> AbstractContextManager[Held]:
        """Hold fleets against other runs; see :meth:`Engine.hold`."""

    @abstractmethod
    def warm_template(self, name: str, *, identical: bool = False) -> Outcome[WarmOrigin]:
        """Make a template's warm origin; see :meth:`WarmCalls.warm_template`."""

    @abstractmethod
    def _cancellable(self) -> AbstractContextManager[Cancellation]:
        """Yield what ends the calls in the block."""

    @abstractmethod
    def list(self, *targets: str) -> tuple[Clone, ...]:
        """Return clones; see :meth:`Engine.list`."""

    def machines(self, *targets: str) -> tuple[Machine, ...]:
        """Return clones as tests use them. :raises NotFound: a target names no clone."""
        from vmcloner_core.machine import Machine

        return tuple(Machine(self, clone.name) for clone in self.list(*targets))  # type: ignore[arg-type]

    # --- pools ----------------------------------------------------------------------------------

    def pools(self) -> tuple[Pool, ...]:
        """Return the pools of the host's state folder."""
        known = self._host.pools
        found = (known.find(name) for name in known.names())
        return tuple(pool for pool in found if pool is not None)

    def pool(self, name: str) -> Pool:
        """Return one pool. :raises NotFound: there is none of that name."""
        return self._host.pools.get(name)

    def pool_members(self, name: str) -> tuple[PoolMember, ...]:
        """Return the clones of a pool; asks no hypervisor."""
        claims, now = self._host.claims, self._host.now()
        return tuple(_member(clone, claims.find(clone), now) for clone in claims.names(name))

    def fill_pool(self, pool: Pool | str) -> tuple[PoolMember, ...]:
        """Bring a pool to its size, with all clones ready that nobody uses; returns its clones.

        Idempotent. Clones that are taken aren't touched. What was used is reset, also that of
        users that died; clones that can't be made ready are deleted, and made anew the next time.

        :param pool: a new pool, or the name of one. One that exists gets this definition.
        :raises Conflict: the fleet of that name isn't a pool, or has another template.
        :raises PartialFailure: some clones failed.
        """
        from vmcloner_core.pool_filling import PoolFilling

        wanted = self._defined(pool)

        def warmed() -> str:
            origin = self.warm_template(wanted.template, identical=wanted.identical)
            return origin.unwrap().key

        with self.hold(wanted.name) as held:
            PoolFilling(wanted, self._host, held, warmed).fill()
        return self.pool_members(wanted.name)

    def empty_pool(self, name: str, *, force: bool = False) -> tuple[PoolMember, ...]:
        """Delete a pool's clones that nobody uses; returns those that are left. Idempotent.

        :param force: delete those that are taken, too.
        :raises NotFound: there is no pool of that name.
        """
        from vmcloner_core.pool_filling import PoolFilling

        with self.hold(name) as held:
            PoolFilling(self.pool(name), self._host, held).empty(force=force)
        return self.pool_members(name)

    @contextlib.contextmanager
    def use_pool(self, pool: Pool | str, *, keep: bool = False) -> Iterator[Pool]:
        """Keep a pool filled during a block. Its last user on the host removes it at the end.

        Clones that are still taken then are left to the ends of their claims and leases.

        :param keep: leave the pool at the end: others may use it until its clones' leases end.
        """
        wanted, host = self._defined(pool), self._host
        slots = [f"pool/{wanted.name}/{n}" for n in range(MAX_USERS)]
        with contextlib.ExitStack() as slot:
            slot.enter_context(_one_of(host, slots))
            self._keeper(wanted).ask()
            try:
                yield wanted
            finally:
                self._let_go(wanted.name)
                if not keep:
                    with _one_of(host, [f"pool/{wanted.name}"]):  # one user leaves at a time
                        slot.close()
                        self._leave(wanted.name, slots)

    def _leave(self, name: str, slots: Collection[str]) -> None:
        """Remove a pool unless somebody uses it."""
        with self._host.hold_free(slots) as free:
            if len(free) == len(slots) and self._host.pools.find(name):
                self.empty_pool(name)

    def acquire(
        self,
        pool: Pool | str,
        n: int = 1,
        *,
        ttl: int = CLAIM_TTL,
        timeout: float = 600.0,
        who: str | None = None,
    ) -> tuple[Machine, ...]:
        """Take ready clones of a pool, all or none; waits until there are so many.

        From then on until this engine is closed, a thread of it keeps the pool filled.

        :param pool: the name of a pool, or a definition; the pool is made if there is none. Or the
            name of a template: then a pool of it, ``TEMPLATE-pool``, with the defaults.
        :param ttl: seconds after which they are taken back unless :meth:`renew` is called.
        :param timeout: seconds to wait. :param who: who takes them, for people.
        :raises DeadlineExceeded: there were not so many in time.
        :raises Interrupted: :meth:`cancel` was called. :raises VmclonerError: the pool can't be
            filled.
        """
        wanted = self._wanted(pool, n)
        check_ttl(ttl)
        check_timeout(timeout)
        if not 1 <= n <= wanted.size:
            raise InvalidRequest(f"{n} clones of a pool of {wanted.size}")
        with self._cancellable() as ending:
            return self._waited_for(
                wanted, n, timeout, ending, who or f"process {os.getpid()}", ttl
            )

    def _waited_for(
        self, pool: Pool, n: int, timeout: float, ending: Cancellation, who: str, ttl: int
    ) -> tuple[Machine, ...]:
        """Return clones once there are so many that can be taken."""
        keeper, end, asked = self._keeper(pool), time.monotonic() + timeout, False
        while not (taken := self._take(pool, n, ttl, who)):
            if asked and not keeper.busy and keeper.error is not None:
                if not isinstance(keeper.error, PartialFailure):
                    raise keeper.error
                asked = False
            if time.monotonic() > end:
                raise self._late(pool, n, timeout, keeper)
            lacking = self._lacking(pool)
            if lacking and not keeper.busy:
                keeper.ask()
                asked = True
            if ending.event.wait(_POLL if lacking else _CONTENDED):
                raise Interrupted(f"stopped while waiting for pool {pool.name}")
        if ending.asked:  # nobody is there to give them back
            self.release(*taken)
            raise Interrupted(f"stopped while taking from pool {pool.name}")
        return taken

    def renew(self, *machines: Machine, ttl: int = CLAIM_TTL) -> None:
        """Let claims end ``ttl`` seconds from now.

        :raises WrongState: one has ended, and the clone may be somebody else's; the others were
            renewed.
        """
        check_ttl(ttl)
        lost = [machine.name for machine in machines if not self._renewed(machine, ttl)]
        if lost:
            raise WrongState(
                f"the claim on {lost[0]} has ended", hint="take another one, with a longer ttl"
            )

    def release(self, *machines: Machine, failed: bool = False) -> None:
        """Give clones back. What must be reset is reset by a thread of this engine. Idempotent.

        Claims that have ended are fine: their clones are others' by now.

        :param failed: whether what they were used for failed; see :class:`PoolReset`.
        """
        for machine in machines:
            if machine.pool is None or machine.holder is None:
                raise InvalidRequest(f"{machine.name} wasn't taken from a pool")
            pool = self._host.pools.find(machine.pool)
            if pool is not None and self._clean(pool, machine, failed=failed):
                self._host.claims.change(machine.name, machine.holder, lambda _claim: None)
                continue
            end = functools.partial(attrs.evolve, lease=Lease(granted=self._host.now(), ttl=0))
            self._host.claims.change(machine.name, machine.holder, end)
            if pool is not None:  # else somebody has deleted it
                self._keeper(pool).ask()

    # --- how ------------------------------------------------------------------------------------

    def _defined(self, pool: Pool | str) -> Pool:
        return pool if isinstance(pool, Pool) else self.pool(pool)

    def _wanted(self, pool: Pool | str, n: int) -> Pool:
        """Return the pool that clones are taken of; by a template's name, the pool of that."""
        try:
            return self._defined(pool)
        except NotFound as error:
            assert isinstance(pool, str)  # noqa: S101 - a definition is always found
            try:
                template = self._host.catalog.template(pool).name
            except VmclonerError:
                raise error from None
            made = Pool(template=template)
            made = attrs.evolve(made, size=max(made.size, n))
            return self._host.pools.find(made.name) or made

    def _take(self, pool: Pool, n: int, ttl: int, who: str) -> tuple[Machine, ...]:
        """Take clones that are ready, without asking anybody but their files."""
        claims, host = self._host.claims, self._host

        def wanted(record: Record) -> bool:
            return record.labels.template == pool.template

        if host.pools.find(pool.name) is None:
            return ()  # nobody has made it yet
        names = claims.names(pool.name)
        random.shuffle(names)  # so that several who look at once don't get in each other's way
        claim = Claim.new(Lease(granted=host.now(), ttl=ttl), who)
        taken = claims.take(names, n, claim, wanted)
        return tuple(self._machine(pool, claim, record, own) for record, own in taken)

    def _machine(self, pool: Pool, claim: Claim, record: Record, own: Membership) -> Machine:
        host, name = self._host, record.labels.clone

        def reach() -> Access:
            if own.address is None:
                raise WrongState(
                    f"{name}: no address is known",
                    hint="give its template a card with an address, or wait for ssh",
                )
            return host.access(record.labels, own.address)

        from vmcloner_core.machine import Machine

        return Machine(self, name, pool=pool.name, holder=claim.holder, reach=reach)  # type: ignore[arg-type]

    def _lacking(self, pool: Pool) -> bool:
        """Tell whether a pool has clones to be made or reset."""
        members = self.pool_members(pool.name)
        return len(members) < pool.size or any(each.state == "used" for each in members)

    def _late(self, pool: Pool, n: int, timeout: float, keeper: Keeper) -> VmclonerError:
        states = [member.state for member in self.pool_members(pool.name)]
        there = ", ".join(f"{states.count(s)} {s}" for s in ("ready", "taken", "used"))
        why = f"; {keeper.error.message}" if keeper.error is not None else ""
        return DeadlineExceeded(
            f"pool {pool.name}: not {counted(n, 'ready clone')} within {format_seconds(timeout)}: "
            f"{there}{why}",
            hint="make it larger, or wait longer",
        )

    def _clean(self, pool: Pool, machine: Machine, *, failed: bool) -> bool:
        """Tell whether the next one may have a machine as it is."""
        stays = pool.reset is PoolReset.NEVER or (pool.reset is PoolReset.ON_FAILURE and not failed)
        return stays and self._runs(machine.name)

    def _renewed(self, machine: Machine, ttl: int) -> bool:
        if machine.holder is None:
            raise InvalidRequest(f"{machine.name} wasn't taken from a pool")
        lease = Lease(granted=self._host.now(), ttl=ttl)
        renewed = functools.partial(attrs.evolve, lease=lease)
        return self._host.claims.change(machine.name, machine.holder, renewed)

    def _runs(self, clone: str) -> bool:
        """Tell whether a clone runs; False if that can't be known."""
        record = self._host.records.find(clone)
        try:
            if record is None:
                return False
            states = self._host.drivers.ask(
                "hypervisor",
                record.labels.hypervisor,
                "states",
                lambda d: d.states(),
                Mapping,  # type: ignore[type-abstract]
            )
            return states.get(clone) is State.RUNNING
        except VmclonerError as error:
            log.warning("%s", error)
            return False

    def _keeper(self, pool: Pool) -> Keeper:
        from vmcloner_core.pool_keeper import Keeper

        with self._keepers_lock:
            if pool.name not in self._keepers:
                fill = functools.partial(self.fill_pool, pool)
                self._keepers[pool.name] = Keeper(pool.name, fill, pool.ttl / 3)
            return self._keepers[pool.name]

    def _let_go(self, name: str) -> None:
        """Stop filling a pool."""
        with self._keepers_lock:
            keeper = self._keepers.pop(name, None)
        if keeper is not None:
            keeper.close()

    def _let_all_go(self) -> None:
        for name in tuple(self._keepers):
            self._let_go(name)


@contextlib.contextmanager
def _one_of(host: LocalHost, slots: Collection[str]) -> Iterator[None]:
    """Hold one of some locks; waits while others hold all."""
    while True:
        for slot in slots:
            with host.hold_free([slot]) as held:
                if held:
                    yield
                    return
        time.sleep(_POLL)


def _member(name: str, own: Membership | None, now: Moment) -> PoolMember:
    if own is None or not (own.free(now) or own.held(now)):
        return PoolMember(name=name, state="used", address=own.address if own else None)
    if own.claim is None:
        return PoolMember(name=name, state="ready", address=own.address)
    left = own.claim.lease.left(now)
    return PoolMember(name=name, state="taken", who=own.claim.who, left=left, address=own.address)
