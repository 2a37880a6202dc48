"""Bring a pool to its size: make what is missing, reset what was used, and say where it is."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

import attrs

from vmcloner_core.errors import Conflict, Interrupted, PartialFailure, VmclonerError
from vmcloner_core.local_host import LocalHost
from vmcloner_core.model import Clone, SnapshotAim, State
from vmcloner_core.names import clone_name
from vmcloner_core.plan import Plan, RunResult
from vmcloner_core.planner import check_ours, lowest_free
from vmcloner_core.pools import Pool
from vmcloner_core.request import CreateRequest, Request, TargetRequest
from vmcloner_core.results import check_result
from vmcloner_core.survey import Survey
from vmcloner_core.units import counted

log = logging.getLogger(__name__)
READY = "pool-ready"
"""The snapshot of a clone whose pool keeps the memory of when it got ready."""
Failures = list[tuple[str, VmclonerError]]


class Held(Protocol):
    """A fleet that is held against other runs; see :class:`vmcloner_core.engine.Held`."""

    @property
    def found(self) -> Survey:
        """Everything on the host."""
        ...

    @property
    def plan(self) -> Callable[[Request], Plan]:
        """Plans a request by what was found."""
        ...

    @property
    def carry_out(self) -> Callable[[Plan], RunResult]:
        """Carries out such a plan."""
        ...

    @property
    def again(self) -> Callable[[Request], RunResult]:
        """Carries out a request by what is there then."""
        ...


@attrs.frozen
class PoolFilling:
    """Fills a pool, or empties it. Used once, with the pool's fleet held.

    What it does to a clone can be cut off anywhere: until its end the clone's claim has ended, or
    is missing, and the next filling resets the clone again.

    :param warmed: returns the key of the warm origin of new clones, made if there is none.
    """

    pool: Pool
    host: LocalHost
    held: Held
    warmed: Callable[[], str] | None = None

    def fill(self) -> None:
        """Make and reset clones, and put off the end of their leases.

        :raises Conflict: the fleet isn't a pool of this template. :raises PartialFailure: clones
            failed; they were deleted, and are made anew by the next call.
        """
        self._check()
        self.host.pools.keep(self.pool)
        self._extend([clone.name for clone in self._there])
        gone = self._removed([clone for clone in self._there if _lacks_a_part(clone)])
        there = [clone for clone in self._there if clone.name not in gone]
        failures: Failures = []
        self._start(self._made(there, failures), failures)
        self._reset(self._used(there), failures)
        if failures:
            raise PartialFailure(
                f"pool {self.pool.name}: {counted(len(failures), 'clone')} failed: "
                f"{failures[0][1].message}",
                failures=failures,
                hint=failures[0][1].hint,
            )

    def empty(self, *, force: bool) -> None:
        """Delete the clones that nobody uses; with ``force`` all. The last takes the pool along."""
        wanted = self._there
        gone = self._delete([c.name for c in wanted]) if force else self._removed(wanted)
        if len(gone) == len(wanted):
            self.host.pools.remove([self.pool.name])

    @property
    def _there(self) -> tuple[Clone, ...]:
        return tuple(clone for clone in self.held.found.clones if clone.fleet == self.pool.name)

    def _check(self) -> None:
        name, there = self.pool.name, self._there
        check_ours(there)
        if there and self.host.pools.find(name) is None:
            raise Conflict(
                f"fleet {name!r} exists, and is no pool",
                hint="choose another name for the pool, or delete the fleet",
            )
        for clone in there:
            if clone.template != self.pool.template:
                raise Conflict(
                    f"pool {name!r} is made from template {clone.template!r}, not "
                    f"{self.pool.template!r}",
                    hint=f"choose another name, or vmcloner pool empty {name}",
                )

    def _extend(self, names: Sequence[str]) -> None:
        if names:
            lease = self.host.lease(self.pool.ttl)
            for name in names:
                self.host.records.update(name, lasting=False, lease=lease)

    def _removed(self, clones: Sequence[Clone]) -> frozenset[str]:
        """Delete those of these clones that nobody uses; returns their names."""
        return self._delete(self.host.claims.close([clone.name for clone in clones]))

    def _delete(self, names: Sequence[str]) -> frozenset[str]:
        if names:
            check_result(self._again("delete", names))
        return frozenset(names)

    def _made(self, there: Sequence[Clone], failures: Failures) -> list[str]:
        """Make the clones that are missing; returns the names of those that were made."""
        missing = lowest_free({c.index for c in there}, max(0, self.pool.size - len(there)))
        if not missing:
            return []
        request = CreateRequest(
            fleet=self.pool.name,
            template=self.pool.template,
            indices=tuple(missing),
            ttl=self.pool.ttl,
            warm=self.pool.warm,
            identical=self.pool.identical,
            origin=self.warmed() if self.pool.warm and self.warmed is not None else None,
        )
        if len(there) == len(self._there):
            result = self.held.carry_out(self.held.plan(request))
        else:  # some have just been deleted
            result = self.held.again(request)
        _check_whole(result)
        _note(result, failures)
        failed = {clone.name for clone in result.failures}
        names = [clone_name(self.pool.name, index) for index in missing]
        return [name for name in names if name not in failed]

    def _used(self, there: Sequence[Clone]) -> list[Clone]:
        """Return the clones to reset; nobody can take them."""
        now, wanted = self.host.now(), {}
        for clone in there:
            own = self.host.claims.find(clone.name)
            if own is not None and own.held(now):
                continue  # if it is given back from now on, it may well be as new
            if own is None or not (own.free(now) and clone.state is State.RUNNING):
                wanted[clone.name] = clone
        return [wanted[name] for name in self.host.claims.close(wanted)]

    def _start(self, names: Sequence[str], failures: Failures) -> None:
        if names:
            self._opened(names, self._ready("start", names), failures)

    def _reset(self, clones: Sequence[Clone], failures: Failures) -> None:
        """Make clones as new: from their memory where that is kept, else by a boot."""
        kept = [clone for clone in clones if self.pool.memory and _kept(clone)]
        self._forget_snapshots(kept, but=READY)
        reverted = self._reverted([clone.name for clone in kept])
        others = [clone for clone in clones if clone.name not in reverted]
        if others:
            self._forget_snapshots(others)
            names = [clone.name for clone in others]
            self._opened(names, self._ready("reset", names), failures)

    def _forget_snapshots(self, clones: Sequence[Clone], but: str = "") -> None:
        for name in sorted({each.name for clone in clones for each in clone.snapshots} - {but}):
            of = [c.name for c in clones if name in {each.name for each in c.snapshots}]
            check_result(self._again("snapshot-delete", of, snapshot=SnapshotAim(name=name)))

    def _reverted(self, names: Sequence[str]) -> frozenset[str]:
        """Revert clones to when they got ready; returns the names of those that can be taken.

        What a user has changed may stand against that: the others are to be reset.
        """
        if not names:
            return frozenset()
        aim = SnapshotAim(name=READY, force=True)
        try:
            result = self._again("snapshot-revert", names, snapshot=aim, start=True)
            _check_whole(result)
        except Interrupted:
            raise
        except VmclonerError as error:
            log.warning("pool %s: %s", self.pool.name, error)
            return frozenset()
        done = frozenset(names) - {clone.name for clone in result.failures}
        self._open(done)
        return done

    def _ready(self, action: str, names: Sequence[str]) -> RunResult:
        pool = self.pool
        result = self._again(
            action,
            names,
            start=True,
            ready=pool.ready is None,
            wait=pool.readiness,
            timeout=pool.timeout,
        )
        _check_whole(result)
        return result

    def _opened(self, names: Sequence[str], result: RunResult, failures: Failures) -> None:
        """Let clones be taken that got ready, and delete the others."""
        failed = {clone.name for clone in result.failures}
        _note(result, failures)
        ready = [name for name in names if name not in failed]
        if self.pool.memory and ready:
            aim = SnapshotAim(name=READY, memory=True)
            kept = self._again("snapshot-create", ready, snapshot=aim)
            _check_whole(kept)
            _note(kept, failures)
            failed |= {clone.name for clone in kept.failures}
        self._open(frozenset(names) - failed)
        self._delete(sorted(failed))

    def _open(self, names: Collection[str]) -> None:
        for name, address in self._addresses(names).items():
            self.host.claims.open(name, address)

    def _addresses(self, names: Collection[str]) -> dict[str, str | None]:
        found = [clone for clone in self.host.survey().clones if clone.name in names]
        return {clone.name: clone.ip for clone in self.host.located(found)}

    def _again(self, action: str, names: Sequence[str], **options: object) -> RunResult:
        return self.held.again(TargetRequest(action=action, targets=tuple(names), **options))  # type: ignore[arg-type]


def _kept(clone: Clone) -> bool:
    """Tell whether a clone's memory is kept, of when it got ready."""
    return any(each.name == READY and each.memory for each in clone.snapshots)


def _lacks_a_part(clone: Clone) -> bool:
    return clone.state in (State.ALLOCATED, State.ORPHAN)


def _check_whole(result: RunResult) -> None:
    """Check that a run was carried out to its end; failures of clones are no errors here.

    :raises VmclonerError: it was stopped, or could not be carried out.
    """
    if result.error is not None:
        raise result.error
    if result.interrupted:
        check_result(result)


def _note(result: RunResult, failures: Failures) -> None:
    failures += [(clone.name, clone.error) for clone in result.failures if clone.error is not None]
