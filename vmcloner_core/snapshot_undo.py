"""Undo snapshots that killed or failed runs began, and finish removals that they began.

A run that is killed while it takes a snapshot leaves guests paused or saved, and snapshots of some
of their disks. Who works on the fleet next removes these, and lets the guests go on as they were.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

import attrs

from vmcloner_core.driver_registry import DriverRegistry
from vmcloner_core.drivers import HypervisorDriver
from vmcloner_core.errors import VmclonerError
from vmcloner_core.model import Clone, Leftover, Outcome, State
from vmcloner_core.os_errors import allocated
from vmcloner_core.outcomes import settled
from vmcloner_core.snapshot_folders import Draft, SnapshotFolders
from vmcloner_core.survey import Survey

log = logging.getLogger(__name__)


@attrs.frozen
class Undo:
    """Undoes what was begun, on one host. The caller holds the locks of the fleets."""

    folders: SnapshotFolders
    drivers: DriverRegistry

    def drafts(self, fleets: Collection[str]) -> tuple[Draft, ...]:
        """Return what was begun for the clones of these fleets."""
        return tuple(draft for draft in self.folders.drafts() if draft.fleet in fleets)

    def __call__(self, drafts: Iterable[Draft], found: Survey) -> tuple[Leftover, ...]:
        """Undo drafts; returns them, those that couldn't be undone with their errors.

        :param found: what was seen on the host under the fleets' locks.
        """
        clones = {clone.name: clone for clone in found.clones}
        done = []
        for draft in drafts:
            left = leftover(draft)
            try:
                self._undo(draft, clones.get(draft.clone), found)
            except VmclonerError as error:
                log.warning("%s: snapshot %s is unfinished: %s", draft.clone, draft.name, error)
                left = attrs.evolve(left, error=error)
            done.append(left)
        return tuple(done)

    def _undo(self, draft: Draft, clone: Clone | None, found: Survey) -> None:
        if clone is None:
            found.check_complete(f"{draft.clone}: snapshot {draft.name}")
        else:
            found.check_seen(f"{draft.clone}: snapshot {draft.name}", [clone.labels])
            self._remove_disks(draft, clone)
            if draft.was in (State.RUNNING, State.PAUSED):
                self._go_on(draft, clone)
        self.folders.drop(draft.clone, draft.name)

    def _remove_disks(self, draft: Draft, clone: Clone) -> None:
        begun = [each for each in clone.kept if each.labels.name == draft.name]
        for name in dict.fromkeys(each.pool for each in begun):
            interface = self.drivers.storage(name).snapshots
            if interface is not None:
                own = [each for each in begun if each.pool == name]
                backend = self.drivers.backend("storage", name, "snapshots.delete")
                delete = functools.partial(interface.delete, own)
                _check(settled(delete, [each.key for each in own], backend))

    def _go_on(self, draft: Draft, clone: Clone) -> None:
        """Let a guest go on as it was before the run."""
        driver = self.drivers.hypervisor(clone.labels.hypervisor)
        if driver.snapshots is None or clone.domain is None:
            return
        if not draft.memory:
            if draft.was is State.RUNNING:
                _check(self._told(clone, "release", driver.snapshots.release))
        elif clone.state in (State.SAVED, State.RUNNING, State.PAUSED):  # or its save goes on
            for name in dict.fromkeys(volume.pool for volume in clone.volumes):
                own = [volume for volume in clone.volumes if volume.pool == name]
                _check(self.drivers.activate(name, own))
            _check(self._told(clone, "resume", driver.snapshots.resume))
            if draft.was is State.RUNNING:
                set_clocks(driver, [clone.name])

    def _told(
        self, clone: Clone, what: str, call: Callable[[Sequence[str]], Iterator[Outcome[None]]]
    ) -> Sequence[Outcome[None]]:
        hypervisor = clone.labels.hypervisor
        backend = self.drivers.backend("hypervisor", hypervisor, f"snapshots.{what}")
        return settled(lambda: call([clone.name]), [clone.name], backend)


def leftover(draft: Draft) -> Leftover:
    """Return a draft as what a killed run left."""
    return Leftover(
        kind="snapshot",
        name=f"{draft.clone} {draft.name}",
        size=allocated(draft.folder),
        why="the run that took or removed it was killed",
    )


def set_clocks(driver: HypervisorDriver, names: Collection[str]) -> None:
    """Set the clocks of guests that stood still, where they have agents."""
    if driver.agents is not None and names:
        driver.agents.set_clocks(list(names))


def _check(outcomes: Sequence[Outcome[None]]) -> None:
    """Raise the first error of some outcomes."""
    for outcome in outcomes:
        outcome.unwrap()
