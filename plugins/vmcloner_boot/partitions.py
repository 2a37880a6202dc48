"""Where the file systems of a disk may be: GPT, MBR with logical partitions, or the whole disk.

Formats: UEFI Specification 2.10, section 5 (GPT); for MBR the layout that every PC uses.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Iterator

import attrs

from vmcloner_boot.disk_image import Bytes, Range, Unreadable

SECTORS = (512, 4096)
MAX_PARTITIONS = 128
_EXTENDED = {0x05, 0x0F, 0x85}


@attrs.frozen(kw_only=True)
class Partition:
    """A part of a disk. ``number`` as Linux counts them, 0 for the whole disk."""

    number: int
    data: Bytes
    table: str = ""
    uuid: str = ""

    @property
    def name(self) -> str:
        """What it is called in messages."""
        return f"partition {self.number}" if self.number else "the disk"


def partitions(disk: Bytes) -> tuple[Partition, ...]:
    """Return a disk's partitions in the order of their numbers; itself where there is no table.

    :raises Unreadable: it has a table that is damaged.
    """
    head = disk.read(0, 512)
    if len(head) < 512 or head[510:] != b"\x55\xaa":
        return (Partition(number=0, data=disk),)
    types = [head[446 + 16 * i + 4] for i in range(4)]
    if 0xEE in types:
        for sector in SECTORS:
            if disk.read(sector, 8) == b"EFI PART":
                return tuple(_gpt(disk, sector))
        raise Unreadable("its GUID partition table is damaged")
    found = tuple(_mbr(disk, head))
    # A boot sector without a table in it looks alike: that of a file system on the whole disk.
    return found or (Partition(number=0, data=disk),)


def _gpt(disk: Bytes, sector: int) -> Iterator[Partition]:
    header = disk.exactly(sector, 92)
    first, count, size = struct.unpack("<QII", header[72:88])
    if not 128 <= size <= 4096 or size % 8:
        raise Unreadable("its GUID partition table is damaged")
    for number in range(1, min(count, MAX_PARTITIONS) + 1):
        entry = disk.exactly(first * sector + (number - 1) * size, 128)
        if entry[:16] == bytes(16):
            continue
        start, end = struct.unpack("<QQ", entry[32:48])
        identifier = str(uuid.UUID(bytes_le=entry[16:32]))
        if start and start <= end and (part := _part(disk, start, end - start + 1, sector)):
            yield Partition(number=number, data=part, table="gpt", uuid=identifier)


def _mbr(disk: Bytes, head: bytes) -> Iterator[Partition]:
    signature = f"{int.from_bytes(head[440:444], 'little'):08x}"
    entries = [_entry(head, index) for index in range(4)]
    if any(entry[0] not in (0, 0x80) for entry in entries):
        return  # no table: code, or a file system's own fields
    extended = 0
    for number, (_, kind, start, size) in enumerate(entries, 1):
        if kind in _EXTENDED:
            extended = extended or start
        elif kind and start and size and (part := _part(disk, start, size)):
            yield Partition(
                number=number, data=part, table="msdos", uuid=f"{signature}-{number:02x}"
            )
    if extended:
        yield from _logical(disk, extended, signature)


def _logical(disk: Bytes, extended: int, signature: str) -> Iterator[Partition]:
    """Follow the chain of logical partitions, which may lead back on the disk but not in circles.

    As to Linux and GRUB, an empty link of the chain has no number.
    """
    at, number = extended, 5
    seen: set[int] = set()
    while at not in seen and len(seen) < MAX_PARTITIONS:
        seen.add(at)
        head = disk.read(at * 512, 512)
        if len(head) < 512 or head[510:] != b"\x55\xaa":
            return
        entries = [_entry(head, index) for index in range(4)]
        for _, kind, start, size in entries:
            if not kind or kind in _EXTENDED or not start or not size:
                continue
            if part := _part(disk, at + start, size):
                identifier = f"{signature}-{number:02x}"
                yield Partition(number=number, data=part, table="msdos", uuid=identifier)
            number += 1
        following = next((start for _, kind, start, _ in entries if kind in _EXTENDED), 0)
        if not following:
            return
        at = extended + following


def _entry(head: bytes, index: int) -> tuple[int, int, int, int]:
    """Return an entry of a table: (status, type, first sector, sectors)."""
    entry = head[446 + 16 * index : 462 + 16 * index]
    start, size = struct.unpack("<II", entry[8:])
    return entry[0], entry[4], start, size


def _part(disk: Bytes, start: int, count: int, sector: int = 512) -> Range | None:
    offset = start * sector
    size = min(count * sector, disk.size - offset)
    return Range(disk, offset, size) if size > 0 else None
