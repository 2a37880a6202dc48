"""Which file systems a disk has: those that are read here, and the names of the others."""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from vmcloner_boot import ext, fat
from vmcloner_boot.disk_image import Bytes, Unreadable
from vmcloner_boot.dissected import EXTRA, Dissected
from vmcloner_boot.partitions import Partition, partitions
from vmcloner_boot.trees import FileSystem, Tree

_MAGIC = (
    (0, b"XFSB", "xfs"),
    (0x10040, b"_BHRfS_M", "btrfs"),
    (0x200, b"LABELONE", "LVM"),
    (0, b"LUKS\xba\xbe", "LUKS"),
)


@attrs.frozen
class Skipped:
    """A part of a disk that isn't read, and why: what it is, or what is wrong with it."""

    place: str
    reason: str


def systems(disk: Bytes) -> tuple[tuple[Tree, ...], tuple[Skipped, ...]]:
    """Return the file systems on a disk, in its partitions' order, and what was passed over.

    :raises Unreadable: its table of partitions is damaged.
    """
    trees: list[Tree] = []
    skipped: list[Skipped] = []
    for found in _each(disk):
        (trees if isinstance(found, Tree) else skipped).append(found)  # type: ignore[arg-type]
    return tuple(trees), tuple(skipped)


def _each(disk: Bytes) -> Iterator[Tree | Skipped]:
    for partition in partitions(disk):
        try:
            yield from _trees(partition)
        except Unreadable as error:
            yield Skipped(partition.name, error.message)


def _trees(partition: Partition) -> Iterator[Tree | Skipped]:
    """Yield a partition's file system; behind it, its subvolumes that may be root file systems."""
    if ext.is_ext(partition.data):
        yield _tree(partition, ext.Ext(partition.data))
        return
    kind = _kind(partition.data)
    if kind in ("xfs", "btrfs"):
        try:
            system = Dissected(kind, partition.data)
        except ImportError:
            yield Skipped(partition.name, f"{kind}, which needs pip install '{EXTRA}'")
            return
        yield _tree(partition, system)
        for path, default, subvolume in system.subvolumes():
            tree = _tree(partition, subvolume)
            place = f"{tree.place}, subvolume {path}"
            yield attrs.evolve(tree, place=place, subvolume=path, default=default)
    elif kind:
        yield Skipped(partition.name, kind)
    elif fat.is_fat(partition.data):
        yield _tree(partition, fat.Fat(partition.data))


def _tree(partition: Partition, system: FileSystem) -> Tree:
    return Tree(system, partition.name, partition.number, partition.table, partition.uuid)


def _kind(data: Bytes) -> str:
    return next((kind for at, magic, kind in _MAGIC if data.read(at, len(magic)) == magic), "")
