"""Collect garbage on a host: what killed runs left, and on request clones that lack a part."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import attrs

from vmcloner_core.local_host import LocalHost
from vmcloner_core.model import Clone, Leftover, State, Volume
from vmcloner_core.os_errors import allocated
from vmcloner_core.request import TargetRequest
from vmcloner_core.steps.action import active
from vmcloner_core.survey import Survey, owners

if TYPE_CHECKING:
    from vmcloner_core.plan import Plan, RunResult
    from vmcloner_core.planning import Planning

log = logging.getLogger(__name__)
OnFound = Callable[[Sequence[Leftover]], None]


@attrs.frozen
class Collector:
    """Collects garbage on one host.

    :param carry_out: carries out a plan whose fleets are locked.
    """

    host: LocalHost
    planning: Planning
    carry_out: Callable[[Plan], RunResult]

    def __call__(self, *, orphans: bool, dry_run: bool, on_found: OnFound) -> tuple[Leftover, ...]:
        """See :meth:`Engine.gc`."""
        found = self.host.survey()
        clones = self._orphans(found) if orphans else ()
        with contextlib.ExitStack() as stack:
            fleets: frozenset[str] = frozenset()
            if clones:
                fleets = stack.enter_context(self._held({clone.fleet for clone in clones}))
                found = self.host.survey()  # a run that held a lock may have ended
                clones = tuple(c for c in self._orphans(found) if c.fleet in fleets)
            plan = self._plan(clones, found)
            parts = {clone.name: tuple(self._parts(clone)) for clone in clones}
            left = self.host.collect(fleets, found, remove=False)
            whole = (*(part for own in parts.values() for part in own), *left)
            if dry_run or not whole:
                return whole
            on_found(whole)
            removed = self._deleted(plan, parts) if plan is not None else ()
            return (*removed, *self.host.collect(fleets, found, remove=True))

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
            unseen = any(each.holds(clone.labels) for each in found.unseen)
            if unseen or owners(clone) != {self.host.state_id}:
                return False
            if clone.state is State.ALLOCATED:
                return clone.labels.hypervisor in hypervisors
            if clone.state is not State.ORPHAN or clone.domain is None or active(clone):
                return False
            there = any(os.path.lexists(disk) for disk in clone.domain.disks)
            return clone.labels.storage in pools and not there

        return tuple(filter(lacks_a_part, found.clones))

    def _plan(self, clones: Sequence[Clone], found: Survey) -> Plan | None:
        if not clones:
            return None
        names = tuple(clone.name for clone in clones)
        return self.planning.plan(TargetRequest(action="delete", targets=names), found, None)

    def _parts(self, clone: Clone) -> Iterator[Leftover]:
        """Yield the parts of a clone that lacks another."""
        if clone.domain is not None:
            yield Leftover(kind="domain", name=clone.name, size=0, why="its disks are gone")
        why = f"clone {clone.name} has no domain"
        for volume in clone.volumes:
            yield Leftover(kind="disk", name=str(volume.path), size=_size(volume), why=why)
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
