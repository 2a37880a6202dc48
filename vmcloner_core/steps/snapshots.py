"""Snapshots: take, revert to and remove them."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path

from vmcloner_core.driver_registry import DriverRegistry
from vmcloner_core.drivers import (
    DiskSnapshotInterface,
    HypervisorDriver,
    Lane,
    MachineInterface,
    StorageDriver,
)
from vmcloner_core.errors import BackendError, Conflict, NotFound, VmclonerError, WrongState
from vmcloner_core.model import (
    Clone,
    DiskSnapshot,
    Outcome,
    Snapshot,
    SnapshotAim,
    SnapshotLabels,
    SnapshotRequest,
    State,
    Volume,
)
from vmcloner_core.names import volume_name
from vmcloner_core.outcomes import settled
from vmcloner_core.pipeline import More, Work
from vmcloner_core.plan import ClonePlan
from vmcloner_core.request import TargetRequest
from vmcloner_core.snapshot_folders import MACHINE
from vmcloner_core.snapshot_undo import set_clocks
from vmcloner_core.steps.action import TargetAction, active
from vmcloner_core.steps.change import keep_values
from vmcloner_core.steps.step import HypervisorStep, Run, StorageStep, switched, together

log = logging.getLogger(__name__)


class CreateSnapshot(TargetAction):
    """Take snapshots of clones' disks, and on request of their memory."""

    name = "snapshot-create"
    past = "snapshotted"
    order = ("check", "note", "save", "quiesce", "keep", "snapshot", "continue", "commit")

    def steps(self, request: TargetRequest, clone: Clone) -> tuple[str, ...]:
        """See :meth:`TargetAction.steps`.

        :raises Conflict: the clone has another snapshot of that name.
        :raises WrongState: its state doesn't allow it, or it lacks a disk.
        """
        aim = aim_of(request.snapshot)
        found = _named(clone, aim.name)
        if found is not None:
            _check_same(clone, found, aim)
            return ()
        if clone.state is State.UNKNOWN:
            return ("check",)  # which the plan refuses: its hypervisor can't be read
        _check_whole(clone)
        stop, go_on = _silenced(clone, memory=aim.memory)
        return ("check", "note", *stop, "keep", "snapshot", *go_on, "commit")


class RevertSnapshot(TargetAction):
    """Revert clones to snapshots; those with memory continue from there."""

    name = "snapshot-revert"
    past = "reverted"
    order = ("check", "verify", "destroy", "discard", "revert", "put-back", "start")
    lowest_first = False
    reverts = True

    def steps(self, request: TargetRequest, clone: Clone) -> tuple[str, ...]:
        """See :meth:`TargetAction.steps`.

        :raises NotFound: the clone has no such snapshot.
        :raises WrongState: it runs, or the snapshot is incomplete.
        """
        aim = aim_of(request.snapshot)
        found = _named(clone, aim.name)
        if clone.state is State.UNKNOWN:
            return ("check",)
        if found is None:
            others = ", ".join(snapshot.name for snapshot in clone.snapshots)
            raise NotFound(
                f"{clone.name} has no snapshot {aim.name!r}: nothing was reverted",
                hint=f"it has {others}" if others else f"vmcloner snapshot list {clone.fleet}",
            )
        if not found.complete:
            raise _incomplete(clone, found, WrongState)
        if clone.domain is None:
            raise WrongState(f"{clone.name} has no domain", hint="run its create again")
        saved = clone.state is State.SAVED
        runs = active(clone)  # an orphan's domain may run, whatever its disks are
        if (runs or saved) and not aim.force:
            what = "saved" if saved else clone.domain.state.value
            raise WrongState(
                f"{clone.name} is {what}: a revert loses what it is doing",
                hint="--force stops it; or take a snapshot of it first",
            )
        stop = ("destroy",) if runs else ("discard",) if saved else ()
        start = ("start",) if request.start and not found.memory else ()
        return ("check", "verify", *stop, "revert", "put-back", *start)


class DeleteSnapshot(TargetAction):
    """Remove snapshots; clones without one of that name are as asked."""

    name = "snapshot-delete"
    past = "cleaned"
    order = ("check", "drop")
    lowest_first = False

    def steps(self, request: TargetRequest, clone: Clone) -> tuple[str, ...]:
        """See :meth:`TargetAction.steps`."""
        found = _named(clone, aim_of(request.snapshot).name)
        return ("check", "drop") if found is not None else ()


def aim_of(aim: SnapshotAim | None) -> SnapshotAim:
    """Return which snapshot a request or a plan is about: those of these actions all have one."""
    assert aim is not None  # noqa: S101 - the request checks it
    return aim


def _named(clone: Clone, name: str) -> Snapshot | None:
    return next((each for each in clone.snapshots if each.name == name), None)


def _check_same(clone: Clone, found: Snapshot, aim: SnapshotAim) -> None:
    if not found.complete:
        raise _incomplete(clone, found, Conflict)
    if found.memory != aim.memory:
        how = "with" if found.memory else "without"
        raise Conflict(
            f"{clone.name} has a snapshot {aim.name!r} {how} memory",
            hint=f"choose another name, or vmcloner snapshot delete {clone.name} {aim.name}",
        )


def _incomplete(clone: Clone, found: Snapshot, kind: type[VmclonerError]) -> VmclonerError:
    there, wanted = len(found.disks), found.disks[0].labels.disks
    return kind(
        f"{clone.name}: snapshot {found.name!r} is incomplete: {there} of {wanted} disks",
        hint=f"vmcloner snapshot delete {clone.name} {found.name}",
    )


def _check_whole(clone: Clone) -> None:
    """Check that a clone has its domain and all of its disks.

    :raises WrongState: it lacks a part.
    """
    there = {volume.name for volume in clone.volumes if volume.complete}
    named = [path.name for path in clone.domain.disks] if clone.domain is not None else []
    wanted = [volume_name(clone.name, 0), *filter(clone.labels.has_volume, named)]
    lost = [name for name in dict.fromkeys(wanted) if name not in there]
    half = [volume.name for volume in clone.volumes if not volume.complete]
    if clone.domain is None or lost or half:
        what = ", ".join(dict.fromkeys([*lost, *half])) or "its domain"
        raise WrongState(f"{clone.name} lacks {what}", hint="run its create again")


def _silenced(clone: Clone, *, memory: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the steps after which nothing writes to a clone's disks, and those that undo them.

    :raises WrongState: its state doesn't allow that.
    """
    state, name = clone.state, clone.name
    if memory:
        if state is State.SAVED:
            return (), ()
        if state in (State.RUNNING, State.PAUSED):
            return ("save",), ("continue",)
        raise WrongState(
            f"{name} is {state.value}: it has no memory to keep",
            hint=f"leave out --memory, or vmcloner start {name}",
        )
    if state is State.RUNNING:
        return ("quiesce",), ("continue",)
    if state is State.STOPPED:
        return (), ()
    raise WrongState(
        f"{name} is {state.value}: its disks alone aren't what its guest has written",
        hint=f"take the snapshot with --memory, or vmcloner stop {name}",
    )


# --- what steps share ---------------------------------------------------------------------------


def disk_snapshots(driver: StorageDriver, what: str) -> DiskSnapshotInterface:
    """Return a pool's interface for snapshots.

    :raises BackendError: it has none.
    """
    if driver.snapshots is None:
        raise BackendError(
            f"{what}: storage {driver.name!r} has no snapshots",
            hint="create the clones in a pool of files or lvm-thin",
        )
    return driver.snapshots


def machines(driver: HypervisorDriver, what: str) -> MachineInterface:
    """Return a hypervisor's interface for machines.

    :raises BackendError: it has none.
    """
    if driver.snapshots is None:
        raise BackendError(
            f"{what}: hypervisor {driver.name!r} can't keep the state of running machines",
            hint=f"vmcloner stop {what}, and take the snapshot without --memory",
        )
    return driver.snapshots


def _own(plan: ClonePlan, aim: SnapshotAim) -> tuple[DiskSnapshot, ...]:
    """Return the parts of the snapshot that a plan's clone has."""
    return tuple(each for each in plan.kept if each.labels.name == aim.name)


class _MachineStep(HypervisorStep):
    """A step done by a driver's :class:`MachineInterface`."""

    lane = "stop_lane"

    def outcomes(
        self,
        run: Run,
        driver: HypervisorDriver,
        names: Sequence[str],
        what: str,
        call: Callable[[], Iterator[Outcome[None]]],
    ) -> Sequence[Outcome[None]]:
        """Return the checked outcomes of a driver's method."""
        backend = run.host.drivers.backend("hypervisor", driver.name, f"snapshots.{what}")
        return settled(call, names, backend)


class _SnapshotStep(StorageStep):
    """A step done by a pool's :class:`DiskSnapshotInterface`; members are disks."""

    lane = "clone_lane"

    def lane_of(self, driver: StorageDriver) -> Lane:
        """Return the lane of the pool's snapshots."""
        return driver.snapshots.lane if driver.snapshots is not None else Lane()

    def members(self, work: Work) -> int:
        """Return its number of disks."""
        return max(1, len(work.volumes), len(work.plan.kept))


# --- taking -------------------------------------------------------------------------------------


class NoteSnapshot(_MachineStep):
    """Note what clones are doing, so that a killed run can be undone."""

    name = "note"
    past = "noted"

    def call(
        self, run: Run, _driver: HypervisorDriver, works: Sequence[Work], _more: More
    ) -> Iterator[Outcome[object]]:
        """See :meth:`Step.call`."""
        aim, waiting = aim_of(run.plan.snapshot), run.host.warm.waiting()
        for work in works:
            was = work.plan.state or State.STOPPED
            try:
                if aim.memory and work.name in waiting:
                    raise WrongState(
                        f"{work.name} has no memory of its own before its first start",
                        hint=f"vmcloner start {work.name}",
                    )
                run.host.snapshots.begin(work.name, aim.name, was, memory=aim.memory)
            except VmclonerError as error:
                yield Outcome(key=work.name, error=error)
            else:
                yield Outcome(key=work.name)


class Quiesce(_MachineStep):
    """Have running guests write everything to their disks, and pause them."""

    name = "quiesce"
    past = "quiesced"

    def call(
        self, run: Run, driver: HypervisorDriver, works: Sequence[Work], _more: More
    ) -> Iterator[Outcome[object]]:
        """See :meth:`Step.call`."""
        names = [work.name for work in works]
        quiesce = functools.partial(machines(driver, names[0]).quiesce, names)
        yield from self.outcomes(run, driver, names, "quiesce", quiesce)


class KeepMachine(_MachineStep):
    """Keep what clones are beside their disks."""

    name = "keep"
    past = "kept"

    def call(
        self, run: Run, driver: HypervisorDriver, works: Sequence[Work], _more: More
    ) -> Iterator[Outcome[object]]:
        """See :meth:`Step.call`."""
        aim, host = aim_of(run.plan.snapshot), run.host
        names = [work.name for work in works]
        if driver.snapshots is None and not aim.memory:
            yield from (Outcome(key=name, changed=False) for name in names)
            return
        folders = {name: host.snapshots.machine(name, aim.name) for name in names}
        keep = functools.partial(machines(driver, names[0]).keep, folders, memory=aim.memory)
        for outcome in self.outcomes(run, driver, names, "keep", keep):
            error = outcome.error
            if error is None and aim.memory:
                try:
                    host.snapshots.keep_boot(outcome.key, aim.name, host.host.boots)
                except VmclonerError as lost:
                    error = lost
            yield Outcome(key=outcome.key, error=error)


class SnapshotDisks(_SnapshotStep):
    """Take snapshots of clones' disks."""

    name = "snapshot"
    past = "snapshotted"

    def call(
        self, run: Run, driver: StorageDriver, works: Sequence[Work], _more: More
    ) -> Iterator[Outcome[object]]:
        """See :meth:`Step.call`."""
        aim = aim_of(run.plan.snapshot)
        taken = datetime.now(UTC).isoformat(timespec="seconds")
        requests = {
            request.key: (request, work)
            for work in works
            for request in self._requests(aim, work, taken)
        }
        create = functools.partial(
            disk_snapshots(driver, works[0].name).create, [each for each, _ in requests.values()]
        )
        backend = run.host.drivers.backend("storage", driver.name, "snapshots.create")
        members = {key: work for key, (_, work) in requests.items()}
        outcomes = (
            Outcome[None](key=made.key, error=made.error, changed=made.changed)
            for made in settled(create, list(requests), backend, DiskSnapshot)
        )
        yield from together(members, outcomes)

    @staticmethod
    def _requests(aim: SnapshotAim, work: Work, taken: str) -> Iterator[SnapshotRequest]:
        for volume in work.volumes:
            labels = SnapshotLabels(
                labels=volume.labels,
                name=aim.name,
                taken=taken,
                disk=volume.disk,
                disks=len(work.volumes),
                memory=aim.memory,
            )
            yield SnapshotRequest(volume=volume, labels=labels)


class GoOn(_MachineStep):
    """Let guests go on that were saved or quiesced for their snapshots: as they were."""

    name = "continue"
    past = "continued"
    lane = "start_lane"

    def call(
        self, run: Run, driver: HypervisorDriver, works: Sequence[Work], _more: More
    ) -> Iterator[Outcome[object]]:
        """See :meth:`Step.call`."""
        interface = machines(driver, works[0].name)
        ready = []
        for work, error in switched(run, works, DriverRegistry.activate):
            if error is not None:
                yield Outcome(key=work.name, error=error)
            else:
                ready.append(work.name)
        memory = aim_of(run.plan.snapshot).memory
        call = functools.partial(interface.resume if memory else interface.release, ready)
        ran = {work.name for work in works if work.plan.state is State.RUNNING}
        what = "resume" if memory else "release"
        for outcome in self.outcomes(run, driver, ready, what, call):
            if outcome.error is None and outcome.key in ran:
                set_clocks(driver, [outcome.key])
            yield outcome


class CommitSnapshot(_MachineStep):
    """Make snapshots complete, once the guests go on: until then a killed run is undone."""

    name = "commit"
    past = "snapshotted"

    def call(
        self, run: Run, _driver: HypervisorDriver, works: Sequence[Work], _more: More
    ) -> Iterator[Outcome[object]]:
        """See :meth:`Step.call`."""
        for work in works:
            try:
                record = run.host.records.find(work.name)
                ran = record.ran if record is not None else {}
                run.host.snapshots.commit(work.name, aim_of(run.plan.snapshot).name, ran)
            except VmclonerError as error:
                yield Outcome(key=work.name, error=error)
            else:
                yield Outcome(key=work.name)


# --- reverting ----------------------------------------------------------------------------------


class VerifySnapshot(_MachineStep):
    """Check that snapshots can be put back, before anything is stopped."""

    name = "verify"
    past = "verified"

    def call(
        self, run: Run, driver: HypervisorDriver, works: Sequence[Work], _more: More
    ) -> Iterator[Outcome[object]]:
        """See :meth:`Step.call`."""
        aim = aim_of(run.plan.snapshot)
        folders: dict[str, Path] = {}
        for work in works:
            folder = run.host.snapshots.find(work.name, aim.name)
            memory = any(each.labels.memory for each in _own(work.plan, aim))
            if folder is not None and (driver.snapshots is not None or memory):
                folders[work.name] = folder / MACHINE
            elif memory:
                lost = WrongState(
                    f"{work.name}: the memory of snapshot {aim.name!r} is gone from "
                    f"{run.host.snapshots.folder}",
                    hint=f"vmcloner snapshot delete {work.name} {aim.name}",
                )
                yield Outcome(key=work.name, error=lost)
            else:
                yield Outcome(key=work.name, changed=False)
        if folders:
            check = functools.partial(machines(driver, next(iter(folders))).check, folders)
            for outcome in self.outcomes(run, driver, list(folders), "check", check):
                yield Outcome(key=outcome.key, error=outcome.error, changed=False)


class RevertDisks(_SnapshotStep):
    """Give clones' disks the contents of their snapshots."""

    name = "revert"
    past = "reverted"

    def call(
        self, run: Run, driver: StorageDriver, works: Sequence[Work], _more: More
    ) -> Iterator[Outcome[object]]:
        """See :meth:`Step.call`."""
        aim = aim_of(run.plan.snapshot)
        own = [(each, work) for work in works for each in _own(work.plan, aim)]
        members = {each.labels.volume: work for each, work in own}
        revert = functools.partial(
            disk_snapshots(driver, works[0].name).revert, [each for each, _ in own]
        )
        backend = run.host.drivers.backend("storage", driver.name, "snapshots.revert")
        by_name = {work.name: work for work in works}
        for work in works:  # what has run on the disk that goes doesn't count, nor its memory
            run.host.warm.end(work.name)
            run.host.records.update(work.name, ran={}, reverting=aim.name)
        for outcome in together(members, settled(revert, members, backend, Volume)):
            yield self._recorded(run, aim, by_name[outcome.key], outcome)

    @staticmethod
    def _recorded(
        run: Run, aim: SnapshotAim, work: Work, outcome: Outcome[object]
    ) -> Outcome[object]:
        """Keep in the record what is true of the disk that a clone has again.

        Its size, since a reset makes it of that size, and the scripts that had run on it.
        """
        if outcome.error is not None:
            return outcome
        before = {volume.name: volume.size for volume in work.plan.volumes}
        first = next((volume for volume in work.volumes if volume.disk == 0), None)
        try:
            if first is not None and before.get(first.name) != first.size:
                keep_values(run, work, disk_size=first.size)
            run.host.records.update(work.name, ran=run.host.snapshots.ran(work.name, aim.name))
        except VmclonerError as error:
            return Outcome(key=outcome.key, error=error)
        return outcome


class PutBack(_MachineStep):
    """Make clones what they were beside their disks; those with memory continue."""

    name = "put-back"
    past = "reverted"
    lane = "start_lane"

    def call(
        self, run: Run, driver: HypervisorDriver, works: Sequence[Work], _more: More
    ) -> Iterator[Outcome[object]]:
        """See :meth:`Step.call`."""
        aim = aim_of(run.plan.snapshot)
        found = {work.name: run.host.snapshots.find(work.name, aim.name) for work in works}
        have = [work for work in works if found[work.name] is not None]
        with_memory = [w for w in have if any(e.labels.memory for e in _own(w.plan, aim))]
        if driver.snapshots is None:
            have = with_memory
        folders: dict[str, Path] = {
            work.name: folder / MACHINE for work in have if (folder := found[work.name]) is not None
        }
        others = [work for work in works if work.name not in folders]
        yield from (Outcome(key=work.name, changed=False) for work in others)
        for name, error in self._prepared(run, aim, with_memory).items():
            folders.pop(name, None)
            yield Outcome(key=name, error=error)
        if folders:
            yield from self._put_back(run, driver, folders, {w.name for w in with_memory})

    @staticmethod
    def _prepared(run: Run, aim: SnapshotAim, works: Sequence[Work]) -> Mapping[str, VmclonerError]:
        """Give clones with memory what they need to continue; returns the errors of others."""
        errors: dict[str, VmclonerError] = {}
        for work, inactive in switched(run, works, DriverRegistry.activate):
            try:
                if inactive is not None:
                    raise inactive
                run.host.snapshots.put_boot_back(work.name, aim.name, run.host.host.boots)
            except VmclonerError as error:
                errors[work.name] = error
        return errors

    def _put_back(
        self,
        run: Run,
        driver: HypervisorDriver,
        folders: Mapping[str, Path],
        with_memory: set[str],
    ) -> Iterator[Outcome[object]]:
        call = functools.partial(machines(driver, next(iter(folders))).put_back, folders)
        continued = []
        for outcome in self.outcomes(run, driver, list(folders), "put_back", call):
            if outcome.error is None and outcome.key in with_memory:
                continued.append(outcome.key)
            yield outcome
        if continued:
            states = driver.states()
            set_clocks(driver, [n for n in continued if states.get(n) is State.RUNNING])


# --- removing -----------------------------------------------------------------------------------


class DropSnapshot(_SnapshotStep):
    """Remove snapshots of clones."""

    name = "drop"
    past = "removed"

    def call(
        self, run: Run, _driver: StorageDriver, works: Sequence[Work], _more: More
    ) -> Iterator[Outcome[object]]:
        """See :meth:`Step.call`."""
        aim = aim_of(run.plan.snapshot)
        begun = []
        for work in works:
            try:
                run.host.snapshots.begin_removal(work.name, aim.name)
            except VmclonerError as error:
                yield Outcome(key=work.name, error=error)
            else:
                begun.append((work, _own(work.plan, aim)))
        for outcome in removed(run, begun):
            try:
                if outcome.error is None:
                    run.host.snapshots.drop(outcome.key, aim.name)
            except VmclonerError as left:
                yield Outcome(key=outcome.key, error=left)
            else:
                yield Outcome(key=outcome.key, error=outcome.error)


def removed(
    run: Run, own: Sequence[tuple[Work, Sequence[DiskSnapshot]]]
) -> Iterator[Outcome[object]]:
    """Remove snapshots of clones' disks; yields each clone's outcome."""
    drivers = run.host.drivers
    members = {each.key: work for work, kept in own for each in kept}
    pools: dict[str, list[DiskSnapshot]] = {}
    for _, kept in own:
        for each in kept:
            pools.setdefault(each.pool, []).append(each)
    outcomes = chain.from_iterable(
        settled(
            functools.partial(disk_snapshots(drivers.storage(name), kept[0].key).delete, kept),
            [each.key for each in kept],
            drivers.backend("storage", name, "snapshots.delete"),
        )
        for name, kept in pools.items()
    )
    yield from (Outcome(key=work.name, changed=False) for work, kept in own if not kept)
    yield from together(members, outcomes)
