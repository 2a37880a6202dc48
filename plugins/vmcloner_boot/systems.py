"""Which file systems a disk has: those that are read here, and the names of the others."""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from vmcloner_boot import ext
from vmcloner_boot.partitions import Partition, partitions
from vmcloner_boot.reading import Bytes, Unreadable
from vmcloner_boot.trees import Tree

_MAGIC = (
    (0, b"XFSB", "xfs"),
    (0x10040, b"_BHRfS_M", "btrfs"),
    (0x36, b"FAT", "vfat"),
    (0x52, b"FAT", "vfat"),
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
            found = _tree(partition)
        except Unreadable as error:
            found = Skipped(partition.name, error.message)
        if found is not None:
            yield found


def _tree(partition: Partition) -> Tree | Skipped | None:
    if ext.is_ext(partition.data):
        system = ext.Ext(partition.data)
        return Tree(system, partition.name, partition.number, partition.table)
    for offset, magic, kind in _MAGIC:
        if partition.data.read(offset, len(magic)) == magic:
            return Skipped(partition.name, kind)
    return None
