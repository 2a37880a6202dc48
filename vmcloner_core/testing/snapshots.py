"""Conformance tests for snapshots: parts of the suites for storage and hypervisor backends.

They are skipped, with the reason, where a driver declares that it has no snapshots.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import attrs
import pytest

from vmcloner_core.drivers import (
    DiskSnapshotInterface,
    HypervisorDriver,
    MachineInterface,
    MemoryInterface,
    StorageDriver,
)
from vmcloner_core.errors import Conflict, InvalidRequest, NotFound, WrongState
from vmcloner_core.model import (
    CloneMode,
    CloneRequest,
    DiskSnapshot,
    DomainSpec,
    Origin,
    Outcome,
    SnapshotLabels,
    SnapshotRequest,
    State,
    Volume,
)
from vmcloner_core.testing.suite import by_key, differs

T = TypeVar("T")
TAKEN = "2026-01-01T00:00:00+00:00"
LATER = "2026-01-02T00:00:00+00:00"


def snapshot_of(volume: Volume, name: str = "ready", taken: str = TAKEN) -> SnapshotRequest:
    """Return the request for a snapshot of a clone's only disk."""
    labels = SnapshotLabels(labels=volume.labels, name=name, taken=taken, disk=volume.disk, disks=1)
    return SnapshotRequest(volume=volume, labels=labels)


def done(outcomes: Iterator[Outcome[T]]) -> list[Outcome[T]]:
    """Return outcomes, none of which has failed."""
    found = list(outcomes)
    for outcome in found:
        assert outcome.ok, f"{outcome.key}: {outcome.error}"
    return found


class DiskSnapshotConformance:
    """The tests of :class:`DiskSnapshotInterface`; the storage suite has the methods they use."""

    def requests(self, origin: Origin, count: int, mode: CloneMode) -> list[CloneRequest]:
        """Return requests for clones."""
        raise NotImplementedError

    def make(self, driver: StorageDriver, requests: Sequence[CloneRequest]) -> list[Volume]:
        """Make volumes."""
        raise NotImplementedError

    def content(self, driver: StorageDriver, volume: Volume) -> bytes:
        """Return the bytes of a volume."""
        raise NotImplementedError

    def write(self, volume: Volume, offset: int, data: bytes) -> None:
        """Write to an active volume."""
        raise NotImplementedError

    def active(
        self, driver: StorageDriver, volume: Volume
    ) -> contextlib.AbstractContextManager[None]:
        """Activate a volume."""
        raise NotImplementedError

    def busy(self, volume: Volume) -> contextlib.AbstractContextManager[int]:
        """Keep an active volume open in another process."""
        raise NotImplementedError

    @pytest.fixture
    def snapshots(self, driver: StorageDriver) -> DiskSnapshotInterface:
        """Return the pool's snapshots."""
        if driver.snapshots is None:
            pytest.skip("the backend declares that it has no snapshots")
        return driver.snapshots

    def take(
        self, snapshots: DiskSnapshotInterface, volumes: Sequence[Volume], name: str = "ready"
    ) -> list[DiskSnapshot]:
        """Take snapshots; returns them in the order of the volumes."""
        wanted = [snapshot_of(volume, name) for volume in volumes]
        made = {outcome.key: outcome.unwrap() for outcome in snapshots.create(wanted)}
        return [made[request.key] for request in wanted]

    def change(self, driver: StorageDriver, volume: Volume) -> None:
        """Write something to a volume."""
        with self.active(driver, volume):
            self.write(volume, 4096, b"changed " * 512)

    def test_a_volume_reverts_to_its_snapshot(
        self,
        driver: StorageDriver,
        snapshots: DiskSnapshotInterface,
        origin: Origin,
        mode: CloneMode,
    ) -> None:
        """What was written since is gone, as often as one likes; others keep theirs."""
        volumes = self.make(driver, self.requests(origin, 2, mode))
        self.change(driver, volumes[0])
        before = [self.content(driver, volume) for volume in volumes]
        taken = self.take(snapshots, volumes)
        for _ in range(2):
            with self.active(driver, volumes[0]):
                self.write(volumes[0], 0, b"broken")
            assert self.content(driver, volumes[0]) != before[0]
            [outcome] = done(snapshots.revert(taken[:1]))
            assert outcome.key == volumes[0].name
            assert outcome.unwrap() == volumes[0]
            for volume, old in zip(volumes, before, strict=True):
                assert differs(self.content(driver, volume), old) is None
        assert set(driver.volumes()) == set(volumes)

    def test_snapshots_of_one_volume_are_independent(
        self,
        driver: StorageDriver,
        snapshots: DiskSnapshotInterface,
        origin: Origin,
        mode: CloneMode,
    ) -> None:
        """Each can be reverted to and removed, in any order."""
        [volume] = self.make(driver, self.requests(origin, 1, mode))
        old = self.content(driver, volume)
        [first] = self.take(snapshots, [volume], "first")
        self.change(driver, volume)
        new = self.content(driver, volume)
        [second] = self.take(snapshots, [volume], "second")
        done(snapshots.revert([first]))
        assert differs(self.content(driver, volume), old) is None
        done(snapshots.delete([first]))
        assert differs(self.content(driver, volume), old) is None
        done(snapshots.revert([second]))
        assert differs(self.content(driver, volume), new) is None
        assert snapshots.found() == (second,)

    def test_snapshots_are_found_with_their_labels(
        self,
        driver: StorageDriver,
        open_driver: Callable[[], StorageDriver],
        snapshots: DiskSnapshotInterface,
        origin: Origin,
        mode: CloneMode,
    ) -> None:
        """Every driver of the pool finds them; they are not volumes."""
        volumes = self.make(driver, self.requests(origin, 20, mode))
        taken = self.take(snapshots, volumes)
        assert [each.labels for each in taken] == [snapshot_of(v).labels for v in volumes]
        again = open_driver()
        assert again.snapshots is not None
        assert set(again.snapshots.found()) == set(snapshots.found()) == set(taken)
        assert set(again.volumes()) == set(volumes)
        again.close()

    def test_taking_twice_changes_nothing(
        self,
        driver: StorageDriver,
        snapshots: DiskSnapshotInterface,
        origin: Origin,
        mode: CloneMode,
    ) -> None:
        """The same labels are the same snapshot; another run's is a Conflict, and stays."""
        volumes = self.make(driver, self.requests(origin, 2, mode))
        [taken] = self.take(snapshots, volumes[:1])
        [outcome] = done(snapshots.create([snapshot_of(volumes[0])]))
        assert (outcome.changed, outcome.value) == (False, taken)
        later = [snapshot_of(volume, taken=LATER) for volume in volumes]
        outcomes = by_key(snapshots.create(later))
        assert isinstance(outcomes[later[0].key].error, Conflict)
        assert outcomes[later[1].key].ok
        assert taken in snapshots.found()

    def test_snapshots_need_their_volumes(
        self,
        driver: StorageDriver,
        snapshots: DiskSnapshotInterface,
        origin: Origin,
        mode: CloneMode,
    ) -> None:
        """A missing volume is NotFound, and the others' are taken."""
        volumes = self.make(driver, self.requests(origin, 2, mode))
        done(driver.delete(volumes[:1]))
        wanted = [snapshot_of(volume) for volume in volumes]
        outcomes = by_key(snapshots.create(wanted))
        assert isinstance(outcomes[wanted[0].key].error, NotFound)
        assert outcomes[wanted[1].key].ok
        assert [each.key for each in snapshots.found()] == [wanted[1].key]

    def test_a_lost_volume_is_made_again(
        self,
        driver: StorageDriver,
        snapshots: DiskSnapshotInterface,
        origin: Origin,
        mode: CloneMode,
    ) -> None:
        """Snapshots outlive their volumes, and nothing below them is removed."""
        [volume] = self.make(driver, self.requests(origin, 1, mode))
        self.change(driver, volume)
        before = self.content(driver, volume)
        taken = self.take(snapshots, [volume])
        done(driver.delete([volume]))
        assert snapshots.found() == tuple(taken)
        with contextlib.suppress(WrongState):
            driver.delete_origin(origin.template)
        [outcome] = done(snapshots.revert(taken))
        assert outcome.unwrap().name == volume.name
        assert outcome.unwrap().labels == volume.labels
        assert differs(self.content(driver, outcome.unwrap()), before) is None

    def test_a_volume_gets_its_old_size(
        self,
        driver: StorageDriver,
        snapshots: DiskSnapshotInterface,
        origin: Origin,
        mode: CloneMode,
    ) -> None:
        """A volume that was made larger since has its old size again."""
        [volume] = self.make(driver, self.requests(origin, 1, mode))
        taken = self.take(snapshots, [volume])
        [grown] = driver.grow([volume], 2 * volume.size)
        if isinstance(grown.error, InvalidRequest):
            pytest.skip("the backend declares that its volumes don't grow")
        assert grown.unwrap().size >= 2 * volume.size
        [outcome] = done(snapshots.revert(taken))
        assert outcome.unwrap().size == taken[0].size == volume.size
        assert {each.size for each in driver.volumes()} == {volume.size}

    def test_a_volume_in_use_is_left(
        self,
        driver: StorageDriver,
        snapshots: DiskSnapshotInterface,
        origin: Origin,
        mode: CloneMode,
    ) -> None:
        """A revert of a volume in use is WrongState, and the others are reverted."""
        volumes = self.make(driver, self.requests(origin, 2, mode))
        taken = self.take(snapshots, volumes)
        for volume in volumes:
            self.change(driver, volume)
        before = self.content(driver, volumes[0])
        with self.active(driver, volumes[0]), self.busy(volumes[0]):
            outcomes = by_key(snapshots.revert(taken))
        assert isinstance(outcomes[volumes[0].name].error, WrongState)
        assert outcomes[volumes[1].name].ok
        assert differs(self.content(driver, volumes[0]), before) is None

    def test_removing_snapshots(
        self,
        driver: StorageDriver,
        snapshots: DiskSnapshotInterface,
        origin: Origin,
        mode: CloneMode,
    ) -> None:
        """Removed ones are gone, missing ones a success, another clone's a Conflict."""
        [volume] = self.make(driver, self.requests(origin, 1, mode))
        before = self.content(driver, volume)
        [taken] = self.take(snapshots, [volume])
        other = attrs.evolve(taken.labels.labels, template="other")
        foreign = attrs.evolve(taken, labels=attrs.evolve(taken.labels, labels=other))
        [outcome] = snapshots.delete([foreign])
        assert isinstance(outcome.error, Conflict)
        assert [o.changed for o in done(snapshots.delete([taken]))] == [True]
        assert [o.changed for o in done(snapshots.delete([taken]))] == [False]
        assert snapshots.found() == ()
        assert differs(self.content(driver, volume), before) is None
        [outcome] = snapshots.revert([taken])  # type: ignore[assignment]
        assert isinstance(outcome.error, NotFound)
        assert differs(self.content(driver, volume), before) is None

    def test_needs_and_empty_batches_of_snapshots(
        self,
        driver: StorageDriver,
        snapshots: DiskSnapshotInterface,
        origin: Origin,
        mode: CloneMode,
    ) -> None:
        """Empty batches yield nothing and need nothing."""
        volumes = self.make(driver, self.requests(origin, 2, mode))
        assert snapshots.need([]) == 0
        assert snapshots.need(volumes) >= snapshots.need(volumes[:1]) >= 0
        assert not list(snapshots.create([]))
        assert not list(snapshots.revert([]))
        assert not list(snapshots.delete([]))
        assert snapshots.found() == ()


class MachineConformance:
    """The tests of :class:`MachineInterface`; the hypervisor suite has the fixtures they use."""

    @pytest.fixture
    def machines(self, driver: HypervisorDriver) -> MachineInterface:
        """Return the driver's interface for snapshots."""
        if driver.snapshots is None:
            pytest.skip("the driver declares that it has no snapshots")
        return driver.snapshots

    @pytest.fixture
    def saver(self, driver: HypervisorDriver) -> MemoryInterface:
        """Return the driver's interface for memory."""
        if driver.memory is None:
            pytest.skip("the driver declares that it has no memory states")
        return driver.memory

    @pytest.fixture
    def folders(self, tmp_path: Path, specs: tuple[DomainSpec, ...]) -> dict[str, Path]:
        """Return an empty folder for each clone."""
        found = {spec.name: tmp_path / f"machine-{spec.name}" for spec in specs}
        for folder in found.values():
            folder.mkdir()
        return found

    def test_machines_that_are_off(
        self,
        driver: HypervisorDriver,
        machines: MachineInterface,
        specs: tuple[DomainSpec, ...],
        folders: dict[str, Path],
    ) -> None:
        """They are off when they are put back; a missing one is NotFound."""
        done(driver.define(specs[:2]))
        outcomes = by_key(machines.keep(folders, memory=False))
        assert isinstance(outcomes.pop(specs[2].name).error, NotFound)
        assert all(outcome.ok for outcome in outcomes.values())
        kept = {name: folders[name] for name in outcomes}
        assert not any(o.changed for o in done(machines.check(kept)))
        for _ in range(2):
            done(machines.put_back(kept))
            assert {driver.states()[name] for name in kept} == {State.STOPPED}

    def test_machines_go_on_from_where_they_were(
        self,
        driver: HypervisorDriver,
        machines: MachineInterface,
        saver: MemoryInterface,
        specs: tuple[DomainSpec, ...],
        folders: dict[str, Path],
    ) -> None:
        """Kept memory is put back as often as one likes; who was paused is paused again."""
        ran, paused = specs[0].name, specs[1].name
        both = {name: folders[name] for name in (ran, paused)}
        states = {ran: State.RUNNING, paused: State.PAUSED}
        done(driver.define(specs[:2]))
        done(driver.start([ran, paused]))
        done(saver.pause([paused]))
        done(saver.save([ran, paused]))
        done(machines.keep(both, memory=True))
        assert {driver.states()[name] for name in both} == {State.SAVED}
        assert all(o.changed for o in done(machines.resume([ran, paused])))
        assert {name: driver.states()[name] for name in both} == states
        assert not any(o.changed for o in done(machines.resume([ran, paused, "gone-1"])))
        for _ in range(2):
            outcomes = list(machines.put_back(both))
            assert all(isinstance(o.error, WrongState) for o in outcomes), "they run"
            done(driver.destroy([ran, paused]))
            done(machines.put_back(both))
            assert {name: driver.states()[name] for name in both} == states

    def test_memory_is_kept_of_saved_machines_only(
        self,
        driver: HypervisorDriver,
        machines: MachineInterface,
        specs: tuple[DomainSpec, ...],
        folders: dict[str, Path],
    ) -> None:
        """One that is off has none."""
        done(driver.define(specs[:1]))
        name = specs[0].name
        [outcome] = machines.keep({name: folders[name]}, memory=True)
        assert isinstance(outcome.error, WrongState)
        assert driver.states()[name] is State.STOPPED

    def test_a_folder_that_is_damaged(
        self,
        driver: HypervisorDriver,
        machines: MachineInterface,
        specs: tuple[DomainSpec, ...],
        folders: dict[str, Path],
    ) -> None:
        """It is refused, and nothing changes."""
        done(driver.define(specs[:1]))
        name = specs[0].name
        for outcome in (
            *machines.check({name: folders[name]}),
            *machines.put_back({name: folders[name]}),
        ):
            assert isinstance(outcome.error, WrongState)
        assert driver.states()[name] is State.STOPPED

    def test_memory_that_is_cut_short(
        self,
        driver: HypervisorDriver,
        machines: MachineInterface,
        saver: MemoryInterface,
        specs: tuple[DomainSpec, ...],
        folders: dict[str, Path],
    ) -> None:
        """A kept file that is shorter or longer than it was is refused."""
        name = specs[0].name
        own = {name: folders[name]}
        done(driver.define(specs[:1]))
        done(driver.start([name]))
        done(saver.save([name]))
        done(machines.keep(own, memory=True))
        largest = max(folders[name].iterdir(), key=lambda file: file.stat().st_size)
        with largest.open("r+b") as stream:
            stream.truncate(largest.stat().st_size // 2)
        done(saver.discard([name]))
        for outcome in (*machines.check(own), *machines.put_back(own)):
            assert isinstance(outcome.error, WrongState)
        assert driver.states()[name] is State.STOPPED

    def test_devices_that_have_changed(
        self,
        driver: HypervisorDriver,
        machines: MachineInterface,
        saver: MemoryInterface,
        specs: tuple[DomainSpec, ...],
        folders: dict[str, Path],
    ) -> None:
        """Memory does not fit a machine of another size."""
        if driver.sizes is None:
            pytest.skip("the driver declares that its domains don't change")
        name = specs[0].name
        own = {name: folders[name]}
        done(driver.define(specs[:1]))
        done(driver.start([name]))
        done(saver.save([name]))
        done(machines.keep(own, memory=True))
        done(saver.discard([name]))
        done(driver.sizes.resize([name], 2 * specs[0].memory, None))
        for outcome in (*machines.check(own), *machines.put_back(own)):
            assert isinstance(outcome.error, WrongState)
            assert "memory" in outcome.error.message
        assert driver.states()[name] is State.STOPPED

    def test_guests_without_agents(
        self, driver: HypervisorDriver, machines: MachineInterface, specs: tuple[DomainSpec, ...]
    ) -> None:
        """Those that are off can't be quiesced, and need no release."""
        done(driver.define(specs[:1]))
        name = specs[0].name
        [outcome] = machines.quiesce([name])
        assert isinstance(outcome.error, WrongState)
        assert not any(o.changed for o in done(machines.release([name, "gone-1"])))
        assert driver.states()[name] is State.STOPPED
