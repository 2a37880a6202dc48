"""ext2, ext3 and ext4, read only and in this process.

Format: https://docs.kernel.org/filesystems/ext4/. The journal isn't replayed: like GRUB, this sees
what a guest that was stopped at once had written back. Every number in it is checked before it is
used; every walk is bounded.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Iterator

import attrs

from vmcloner_boot.disk_image import MIB, Bytes, Unreadable
from vmcloner_boot.trees import FileSystem, Kind, Node

ROOT = 2
MAX_FOLDER = 16 * MIB
"""Bytes of a folder: a hundred thousand names."""
MAX_NODES = 65536
"""Nodes of one file's extent tree."""
CHUNK = MIB

# Incompatible features (s_feature_incompat): those that change nothing for who only reads.
_FILETYPE, _RECOVER, _META_BG, _EXTENTS, _64BIT = 0x2, 0x4, 0x10, 0x40, 0x80
_KNOWN = (
    _FILETYPE | _RECOVER | _META_BG | _EXTENTS | _64BIT
    | 0x100  # multiple mount protection
    | 0x200  # flexible block groups
    | 0x400  # extended attributes in inodes of their own
    | 0x2000  # checksum seed
    | 0x4000  # large folders
    | 0x8000  # inline data
    | 0x10000  # encryption, of files that aren't read here
    | 0x20000  # folders without regard to case, read with
)  # fmt: skip
_EXTENTS_FL, _INLINE_FL, _ENCRYPT_FL = 0x80000, 0x10000000, 0x800
_KINDS = {0x8000: Kind.FILE, 0x4000: Kind.FOLDER, 0xA000: Kind.LINK}


@attrs.frozen
class _Inode:
    number: int
    flags: int
    block: bytes
    tail: bytes
    """What follows the fields of the inode: extended attributes."""


def is_ext(data: Bytes) -> bool:
    """Tell whether there is a file system of this family."""
    return data.read(1024 + 0x38, 2) == b"\x53\xef"


class Ext(FileSystem):
    """An ext2, ext3 or ext4 file system.

    :raises Unreadable: it is damaged, or has a feature that isn't understood.
    """

    kind = "ext4"

    def __init__(self, data: Bytes) -> None:
        self._data = data
        block = data.exactly(1024, 1024)
        self._first = _int(block, 0x14)
        log = _int(block, 0x18)
        features = _int(block, 0x60)
        if log > 6 or not is_ext(data):
            raise Unreadable("its file system (ext4) is damaged")
        if features & ~_KNOWN:
            raise Unreadable(f"its ext4 has features that can't be read here: {features:#x}")
        self._block = 1024 << log
        self._per_group, self._inodes_per_group = _int(block, 0x20), _int(block, 0x28)
        self._inodes = _int(block, 0)
        modern = _int(block, 0x4C) >= 1
        self._inode_size = struct.unpack_from("<H", block, 0x58)[0] if modern else 128
        self._wide = bool(features & _64BIT)
        self._entry = struct.unpack_from("<H", block, 0xFE)[0] if self._wide else 32
        self._first_meta = _int(block, 0x104) if features & _META_BG else None
        self._sparse = bool(_int(block, 0x64) & 1)
        self.uuid = str(uuid.UUID(bytes=block[0x68:0x78]))
        self.label = block[0x78:0x88].split(b"\0")[0].decode("utf-8", "replace")
        if (
            not self._per_group
            or not 0 < self._inodes_per_group <= self._block * 8
            or not _power_of_two(self._inode_size, 128, self._block)
            or not _power_of_two(self._entry, 32, 1024)
        ):
            raise Unreadable("its file system (ext4) is damaged")

    # --- the contract -------------------------------------------------------------------------

    def root(self) -> Node:
        """See :meth:`FileSystem.root`."""
        return self._node(ROOT)

    def find(self, folder: Node, name: bytes) -> Node | None:
        """See :meth:`FileSystem.find`."""
        for number, found in self._entries(folder):
            if found == name:
                return self._node(number)
        return None

    def names(self, folder: Node) -> Iterator[bytes]:
        """See :meth:`FileSystem.names`."""
        return (name for _, name in self._entries(folder))

    def content(self, node: Node) -> Iterator[bytes]:
        """See :meth:`FileSystem.content`."""
        inode = node.key
        assert isinstance(inode, _Inode)  # noqa: S101 - nodes are our own
        if inode.flags & _ENCRYPT_FL:
            raise Unreadable("a file that it boots is encrypted")
        if inode.flags & _INLINE_FL:
            yield self._inline(inode, node.size)
        elif node.kind is Kind.LINK and node.size < 60:
            yield inode.block[: node.size]
        else:
            yield from self._blocks(inode, node.size)

    # --- inodes -------------------------------------------------------------------------------

    def _node(self, number: int) -> Node:
        if not 0 < number <= self._inodes:
            raise Unreadable("its file system (ext4) is damaged: an inode out of range")
        group, index = divmod(number - 1, self._inodes_per_group)
        offset = self._table(group) * self._block + index * self._inode_size
        raw = self._data.exactly(offset, self._inode_size)
        kind = _KINDS.get(struct.unpack_from("<H", raw)[0] & 0xF000, Kind.OTHER)
        size = _int(raw, 4) | (_int(raw, 0x6C) << 32 if kind is Kind.FILE else 0)
        extra = struct.unpack_from("<H", raw, 0x80)[0] if self._inode_size > 128 else 0
        inode = _Inode(number, _int(raw, 0x20), raw[0x28:0x64], raw[128 + extra :])
        return Node(kind, size, inode)

    def _table(self, group: int) -> int:
        """Return the block where a group's inodes are."""
        per_block = self._block // self._entry
        index, within = divmod(group, per_block)
        if self._first_meta is None or index < self._first_meta:
            # Behind the superblock, which is in block 1 where blocks are that small: with bigalloc,
            # the first group may begin at block 0 all the same.
            block = 1024 // self._block + 1 + index
        else:
            first = index * per_block
            at = self._first + first * self._per_group
            block = (at or 1024 // self._block) + self._has_super(first)
        entry = self._data.exactly(block * self._block + within * self._entry, self._entry)
        high = _int(entry, 0x28) if self._wide and self._entry >= 64 else 0
        return _int(entry, 8) | high << 32

    def _has_super(self, group: int) -> int:
        if not self._sparse or group <= 1:
            return 1
        return int(any(_power(group, base) for base in (3, 5, 7)))

    # --- folders ------------------------------------------------------------------------------

    def _entries(self, folder: Node) -> Iterator[tuple[int, bytes]]:
        """Yield (inode, name). Hashed folders hold the same entries in the same form."""
        if folder.size > MAX_FOLDER:
            raise Unreadable("a folder on its disk is larger than any should be")
        inode = folder.key
        assert isinstance(inode, _Inode)  # noqa: S101 - nodes are our own
        if inode.flags & _INLINE_FL:
            data = self._inline(inode, folder.size)
            # The parent's number stands before the entries of the first part.
            yield from _directory(data[4:60])
            yield from _directory(data[60:])
            return
        for part in self._blocks(inode, folder.size):
            for start in range(0, len(part), self._block):
                yield from _directory(part[start : start + self._block])

    # --- blocks -------------------------------------------------------------------------------

    def _inline(self, inode: _Inode, size: int) -> bytes:
        """Return what lies in the inode itself, and in its attribute ``system.data``."""
        data = inode.block
        if size > len(data):
            data += _attribute(inode.tail)
        return data[:size]

    def _blocks(self, inode: _Inode, size: int) -> Iterator[bytes]:
        """Yield a file's bytes, its holes as zeros."""
        runs = self._extents(inode) if inode.flags & _EXTENTS_FL else self._map(inode, size)
        at = 0
        for first, physical, count in runs:
            if at >= size:
                return
            start = first * self._block
            if start < at:
                raise Unreadable("its file system (ext4) is damaged: a file's parts overlap")
            yield from _zeros(min(start, size) - at)
            at = max(at, min(start, size))
            length = min(count * self._block, size - at)
            offset = physical * self._block
            for done in range(0, length, CHUNK):
                step = min(CHUNK, length - done)
                if physical:
                    yield self._data.exactly(offset + done, step)
                else:
                    yield bytes(step)
            at += max(length, 0)
        yield from _zeros(size - at)

    def _extents(self, inode: _Inode) -> Iterator[tuple[int, int, int]]:
        """Yield (logical block, physical block or 0, blocks) in their order."""
        # Where nodes are, not what they hold: a damaged one may name thousands of others.
        waiting: list[tuple[int | None, int]] = [(None, 6)]
        visited = 0
        while waiting:
            at, below = waiting.pop()
            node = inode.block if at is None else self._data.exactly(at, self._block)
            visited += 1
            magic, count, _, depth = struct.unpack_from("<HHHH", node)
            if magic != 0xF30A or depth >= below or visited > MAX_NODES:
                raise Unreadable("its file system (ext4) is damaged: a file's extents")
            entries = [node[12 + 12 * i : 24 + 12 * i] for i in range(count)]
            if any(len(entry) < 12 for entry in entries):
                raise Unreadable("its file system (ext4) is damaged: a file's extents")
            if depth == 0:
                for entry in entries:
                    logical, length, high, low = struct.unpack("<IHHI", entry)
                    unwritten = length > 32768
                    physical = 0 if unwritten else high << 32 | low
                    yield logical, physical, length - 32768 if unwritten else length
                continue
            for entry in reversed(entries):
                _, low, high = struct.unpack("<IIH", entry[:10])
                waiting.append(((high << 32 | low) * self._block, depth))

    def _map(self, inode: _Inode, size: int) -> Iterator[tuple[int, int, int]]:
        """Yield the same of a file with block pointers (ext2, ext3)."""
        left = (size + self._block - 1) // self._block
        at = 0
        pointers = struct.unpack("<15I", inode.block)
        for index, pointer in enumerate(pointers):
            for physical, count in self._pointed(pointer, max(0, index - 11)):
                if at >= left:
                    return
                yield at, physical, min(count, left - at)
                at += count

    def _pointed(self, pointer: int, level: int) -> Iterator[tuple[int, int]]:
        """Yield (physical block or 0, blocks) of what a pointer leads to."""
        per_block = self._block // 4
        if level == 0 or pointer == 0:
            yield pointer, per_block**level
            return
        data = self._data.exactly(pointer * self._block, self._block)
        table = struct.unpack(f"<{per_block}I", data)
        if level > 1:
            for entry in table:
                yield from self._pointed(entry, level - 1)
            return
        start = 0
        while start < per_block:
            end = start + 1
            while end < per_block and table[start] and table[end] == table[start] + end - start:
                end += 1
            yield table[start], end - start
            start = end


def _int(data: bytes, offset: int) -> int:
    return int(struct.unpack_from("<I", data, offset)[0])


def _power_of_two(number: int, least: int, most: int) -> bool:
    return least <= number <= most and number & (number - 1) == 0


def _power(number: int, base: int) -> bool:
    power = base
    while power < number:
        power *= base
    return power == number


def _zeros(count: int) -> Iterator[bytes]:
    while count > 0:
        yield bytes(min(count, CHUNK))
        count -= CHUNK


def _directory(block: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (inode, name) of one block of a folder, but for ``.`` and ``..``."""
    at = 0
    while at + 8 <= len(block):
        inode, length, size = struct.unpack_from("<IHB", block, at)
        if length in (0, 65535) and len(block) == 65536:
            length = 65536
        if length < 8 or at + length > len(block) or size > length - 8:
            return  # the rest of an inline part, or damage: what came before is still good
        name = block[at + 8 : at + 8 + size]
        if inode and name not in (b".", b"..", b""):
            yield inode, name
        at += length


def _attribute(tail: bytes) -> bytes:
    """Return the value of ``system.data`` among the attributes in an inode."""
    if tail[:4] != b"\x00\x00\x02\xea":
        return b""
    entries = tail[4:]
    at = 0
    while at + 16 <= len(entries):
        length, index, offset = struct.unpack_from("<BBH", entries, at)
        if length == 0 and index == 0:
            break
        name = entries[at + 16 : at + 16 + length]
        if index == 7 and name == b"data":
            size = _int(entries, at + 8)
            return entries[offset : offset + size]
        at += (16 + length + 3) & ~3
    return b""
