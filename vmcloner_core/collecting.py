"""Collect garbage on a host: what killed runs left, and on request clones whose
leases have ended or that lack a part."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import attrs

from vmcloner_core.local_host import LocalHost
from vmcloner_core.model import Clone, Lease, Leftover, State, Volume
from vmcloner_core.os_errors import allocated
from vmcloner_core.plugins import PluginHost
from vmcloner_core.request import TargetRequest
from vmcloner_core.steps.action import active
from vmcloner_core.survey import Survey, Unseen, owners
from vmcloner_core.warm_leftovers import LOCK, parents

if TYPE_CHECKING:
    from vmcloner_core.plan import Plan, RunResult
    from vmcloner_core.planning import Planning

log = logging.getLogger(__name__)
OnFound = Callable[[Sequence[Leftover]], None]


@attrs.frozen
class _Unwanted:
    """A clone to delete: one whose lease has ended, or that who made it was killed, or else one
    that lacks a part.

    :param killed: what was killed that would have deleted it.
    """

    clone: Clone
    lease: Lease | None = None
    killed: str = ""

    @property
    def why(self) -> str | None:
        """Why all of it is deleted, None if it lacks a part."""
        if self.killed:
            return f"its {self.killed} was killed"
        return f"its lease ended {self.lease.expires}" if self.lease is not None else None


@attrs.frozen
class Collector:
    """Collects garbage on one host.

    :param carry_out: carries out a plan whose fleets are locked.
    :param warning: seconds before a lease's end from which observers are warned of it.
    """

    host: LocalHost
    planning: Planning
    carry_out: Callable[[Plan], RunResult]
    plugins: PluginHost
    warning: int

    def __call__(
        self,
        *,
        expired: bool,
        orphans: bool,
        dry_run: bool,
        on_found: OnFound,
        on_unseen: Callable[[Unseen], None],
    ) -> tuple[Leftover, ...]:
        """See :meth:`Engine.gc`."""
        with contextlib.ExitStack() as stack:
            held = stack.enter_context(self._held_making())
            found = self._found(held=held)
            for unseen in found.unseen:
                on_unseen(unseen)
            warm = self.host.unfinished.keys(found) if held else ()
            find = functools.partial(self._unwanted, warm, expired=expired, orphans=orphans)
            unwanted = find(found)
            if not dry_run:
                self._warn(found)
            fleets: frozenset[str] = frozenset()
            if unwanted:
                wanted = {each.clone.fleet for each in unwanted}
                fleets = stack.enter_context(self._held(wanted))
                found = self._found(held=held)  # a run that held a lock may have ended
                unwanted = tuple(each for each in find(found) if each.clone.fleet in fleets)
            plan = self._plan([each.clone for each in unwanted], found)
            parts = {each.clone.name: tuple(self._parts(each)) for each in unwanted}
            left = self.host.collect(fleets, found, remove=False)
            left = (*self.host.unfinished.parts(warm), *left)
            whole = (*(part for own in parts.values() for part in own), *left)
            if dry_run or not whole:
                return whole
            on_found(whole)
            removed = self._deleted(plan, parts) if plan is not None else ()
            removed = (*removed, *self._made_warm(warm))
            return (*removed, *self.host.collect(fleets, found, remove=True))

    @contextlib.contextmanager
    def _held_making(self) -> Iterator[bool]:
        """Keep others from making warm origins if some may be left; yields whether that is so.

        If it isn't, what is there from now on may be made by somebody.
        """
        if not any(self.host.warm.drafts()):
            yield False
            return
        with self.host.hold_free([LOCK]) as free:
            yield LOCK in free

    def _found(self, *, held: bool) -> Survey:
        """Return what is on the host.

        :param held: nobody makes warm origins now: what looks so is left.
        """
        found = self.host.survey()
        clones = tuple(attrs.evolve(clone, making=False) for clone in found.clones)
        return attrs.evolve(found, clones=clones) if held else found

    def _made_warm(self, keys: Sequence[str]) -> tuple[Leftover, ...]:
        """Remove what is left of warm origins, except those whose parents are still there."""
        there = {clone.fleet for clone in self.host.survey().clones} if keys else set()
        return tuple(self.host.unfinished.collect([k for k in keys if parents(k) not in there]))

    def _unwanted(
        self, warm: Sequence[str], found: Survey, *, expired: bool, orphans: bool
    ) -> tuple[_Unwanted, ...]:
        """Return the clones to delete, each once.

        :param warm: the keys of warm origins that nobody makes any more.
        """
        abandoned = dict.fromkeys(self.host.benchmarks.abandoned(), "benchmark")
        abandoned |= {parents(key): "making of a warm origin" for key in warm}
        ours = self._ours(found) if abandoned else ()
        killed = [_Unwanted(c, killed=abandoned[c.fleet]) for c in ours if c.fleet in abandoned]
        names = {each.clone.name for each in killed}
        expiring = self._expired(found) if expired else ()
        ended = [*killed, *(each for each in expiring if each.clone.name not in names)]
        names |= {each.clone.name for each in ended}
        lack = self._orphans(found) if orphans else ()
        return (*ended, *(_Unwanted(clone) for clone in lack if clone.name not in names))

    def _expired(self, found: Survey) -> tuple[_Unwanted, ...]:
        """Return the clones whose leases have ended and that are certainly this state folder's.

        :raises WrongState: the host's clock is plainly wrong.
        """
        now, ours = self.host.now(), self._ours(found)
        leases = self.host.records.leases([clone.name for clone in ours])
        self.host.check_clock(now, leases)
        ended = [c for c in ours if c.name in leases and leases[c.name].left(now) <= 0]
        used = self.host.claims.held([clone.name for clone in ended])
        ended = [clone for clone in ended if clone.name not in used]
        unwanted = []
        for clone in ended:
            record = self.host.records.find(clone.name)
            if record is not None and record.labels.same_clone(clone.labels):
                unwanted.append(_Unwanted(clone, record.lease))
        return tuple(unwanted)

    def _warn(self, found: Survey) -> None:
        """Tell observers of leases that end soon."""
        now, clones = self.host.now(), {clone.name: clone for clone in self._ours(found)}
        soon = {n: e for n, e in self.host.records.leases(clones).items() if e.left(now) > 0}
        soon = {name: lease for name, lease in soon.items() if lease.left(now) <= self.warning}
        if soon:
            self.plugins.load_observers()
        for name, lease in soon.items():
            self.plugins.lease_expiring(clones[name], lease, lease.left(now))

    def _ours(self, found: Survey) -> list[Clone]:
        """Return the clones that are certainly this state folder's, and were seen whole."""
        return [
            clone
            for clone in found.clones
            if owners(clone) == {self.host.state_id}
            and clone.moving is None
            and not clone.making
            and not any(each.holds(clone.labels) for each in found.unseen)
        ]

    @contextlib.contextmanager
    def _held(self, fleets: set[str]) -> Iterator[frozenset[str]]:
        """Hold the locks of those fleets that no run works on; yields their names."""
        with self.host.hold_free([f"fleet/{fleet}" for fleet in fleets]) as free:
            held = frozenset(fleet for fleet in fleets if f"fleet/{fleet}" in free)
            for fleet in sorted(fleets - held):
                log.warning("fleet %s is left alone: another run works on it", fleet)
            yield held

    def _orphans(self, found: Survey) -> tuple[Clone, ...]:
        """Return the clones that lack a part and are certainly this state folder's.

        A part counts as missing only if the backend that the labels name was read. Guests that run
        are left, and domains whose disks are there but in no pool of the settings.
        """
        drivers = self.host.drivers
        hypervisors, pools = set(drivers.names("hypervisor")), set(drivers.names("storage"))

        def lacks_a_part(clone: Clone) -> bool:
            if clone.state is State.ALLOCATED:
                return clone.labels.hypervisor in hypervisors
            if clone.state is not State.ORPHAN or clone.domain is None or active(clone):
                return False
            there = any(os.path.lexists(disk) for disk in clone.domain.disks)
            return clone.labels.storage in pools and not there

        return tuple(filter(lacks_a_part, self._ours(found)))

    def _plan(self, clones: Sequence[Clone], found: Survey) -> Plan | None:
        if not clones:
            return None
        names = tuple(clone.name for clone in clones)
        return self.planning.plan(TargetRequest(action="delete", targets=names), found, None)

    def _parts(self, unwanted: _Unwanted) -> Iterator[Leftover]:
        """Yield the parts of a clone to delete."""
        clone, lease = unwanted.clone, unwanted.lease
        if clone.domain is not None:
            why = unwanted.why or "its disks are gone"
            yield Leftover(kind="domain", name=clone.name, size=0, why=why)
        why = f"clone {clone.name} has no domain"
        if lease is not None:
            why = f"the lease of {clone.name} ended {lease.expires}"
        elif unwanted.killed:
            why = f"the {unwanted.killed} of {clone.name} was killed"
        for volume in clone.volumes:
            yield Leftover(kind="disk", name=str(volume.path), size=_size(volume), why=why)
        for kept in clone.kept:
            yield Leftover(kind="snapshot", name=kept.key, size=allocated(kept.path), why=why)
        if clone.recorded:
            home = self.host.host.records / clone.name
            yield Leftover(kind="record", name=str(home), size=allocated(home), why=why)

    def _deleted(self, plan: Plan, parts: Mapping[str, Sequence[Leftover]]) -> tuple[Leftover, ...]:
        """Delete clones; returns their parts, with errors where that failed."""
        result = self.carry_out(plan)
        errors = {clone.name: clone.error for clone in result.results}
        return tuple(
            attrs.evolve(part, error=errors.get(name))
            for name, own in parts.items()
            for part in own
        )


def _size(volume: Volume) -> int:
    """Return the bytes that a volume takes; for one in LVM at most its size."""
    return allocated(volume.path) if volume.kind == "file" else volume.size
