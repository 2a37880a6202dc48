"""Snapshots: clones' disks, and on request their memory, as they were at one moment."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import attrs

from vmcloner_core.errors import InvalidRequest
from vmcloner_core.model.labels import Labels
from vmcloner_core.model.volume import Volume
from vmcloner_core.names import check_snapshot, snapshot_volume, volume_name

_KEYS = ("snapshot", "taken", "disk", "disks", "memory")


@attrs.frozen(kw_only=True)
class SnapshotLabels:
    """What a pool notes of a volume's snapshot, beside the labels of the clone.

    :param name: the snapshot's. :param taken: UTC in ISO 8601; the same for all disks of a clone.
    :param disk: the number of the volume. :param disks: how many disks the clone's snapshot has.
    :param memory: whether the machine's memory was kept too, by its hypervisor.
    """

    labels: Labels
    name: str = attrs.field(validator=lambda _i, _a, v: check_snapshot(v) and None)
    taken: str
    disk: int
    disks: int
    memory: bool = False

    @property
    def volume(self) -> str:
        """The name of the volume."""
        return volume_name(self.labels.clone, self.disk)

    @property
    def key(self) -> str:
        """Its name in the pool, and the key of its outcomes."""
        return snapshot_volume(self.volume, self.name)

    def same(self, other: SnapshotLabels) -> bool:
        """Tell whether both are of one snapshot of one volume: taken by the same run."""
        return (
            (self.name, self.disk, self.taken) == (other.name, other.disk, other.taken)
        ) and self.labels.same_clone(other.labels)

    def to_mapping(self) -> dict[str, str]:
        """Return them with the clone's labels, as short strings."""
        values = (self.name, self.taken, str(self.disk), str(self.disks), "yes")
        own = dict(zip(_KEYS if self.memory else _KEYS[:-1], values, strict=False))
        return {**self.labels.to_mapping(), **own}

    @classmethod
    def from_mapping(cls, values: Mapping[str, str]) -> SnapshotLabels | None:
        """Return the labels in ``values``, None if they are not those of a snapshot."""
        labels = Labels.from_mapping(values)
        if labels is None:
            return None
        try:
            return cls(
                labels=labels,
                name=values["snapshot"],
                taken=values["taken"],
                disk=int(values["disk"]),
                disks=int(values["disks"]),
                memory=values.get("memory") == "yes",
            )
        except (KeyError, ValueError, InvalidRequest):
            return None


@attrs.frozen(kw_only=True)
class DiskSnapshot:
    """A volume as it was at one moment, in the volume's pool. Nothing writes to it.

    :param path: absolute path on the host. :param size: virtual bytes of the volume then.
    """

    labels: SnapshotLabels
    pool: str
    path: Path
    size: int

    @property
    def key(self) -> str:
        """Its name in the pool, and the key of its outcomes."""
        return self.labels.key


@attrs.frozen(kw_only=True)
class SnapshotRequest:
    """Ask for a snapshot of one volume."""

    volume: Volume
    labels: SnapshotLabels

    @property
    def key(self) -> str:
        """The key of its outcomes."""
        return self.labels.key


@attrs.frozen(kw_only=True)
class SnapshotAim:
    """Which snapshot a run is about.

    :param memory: with the memory of running machines (create).
    :param force: stop machines that run, and lose what they do (revert).
    """

    name: str = attrs.field(validator=lambda _i, _a, v: check_snapshot(v) and None)
    memory: bool = False
    force: bool = False


@attrs.frozen(kw_only=True)
class Snapshot:
    """A clone as it was at one moment. ``disks`` in the order of their numbers."""

    name: str
    taken: str
    memory: bool
    disks: tuple[DiskSnapshot, ...]

    @property
    def complete(self) -> bool:
        """Whether all of its disks are there."""
        return len(self.disks) == self.disks[0].labels.disks and all(
            disk.labels.taken == self.taken for disk in self.disks
        )

    @classmethod
    def assembled(cls, disks: Iterable[DiskSnapshot]) -> tuple[Snapshot, ...]:
        """Return the snapshots that disks' snapshots of one clone make, the oldest first."""
        found: dict[str, list[DiskSnapshot]] = {}
        for disk in sorted(disks, key=lambda disk: disk.labels.disk):
            found.setdefault(disk.labels.name, []).append(disk)
        made = [
            cls(
                name=name,
                taken=own[0].labels.taken,
                memory=own[0].labels.memory,
                disks=tuple(own),
            )
            for name, own in found.items()
        ]
        return tuple(sorted(made, key=lambda snapshot: (snapshot.taken, snapshot.name)))
