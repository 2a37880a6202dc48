"""dissect's reader of btrfs, within bounds: its own trusts what the disk says.

A node of a tree may lead back to itself, a tree may be read from memory for ever, and 128 KiB may
unpack to gigabytes. What is put in its place here refuses what no btrfs has.
"""

from __future__ import annotations

import functools
import zlib
from typing import Any

from vmcloner_boot.disk_image import Bytes, Unreadable, unzstd

MAX_NODE = 65536
"""Bytes: BTRFS_MAX_METADATA_BLOCKSIZE."""
MAX_DEPTH = 8
"""BTRFS_MAX_LEVEL."""
MAX_EXTENT = 128 * 1024
"""Bytes of a compressed extent, packed and unpacked: BTRFS_MAX_COMPRESSED, _MAX_UNCOMPRESSED."""
_SUPER = 0x10000


def check_superblock(data: Bytes) -> None:
    """Check the sizes that all else is read by.

    :raises Unreadable: no btrfs has them.
    """
    block = data.exactly(_SUPER, 160)
    sector, node = (int.from_bytes(block[at : at + 4], "little") for at in (144, 148))
    if any(size & (size - 1) or not 512 <= size <= MAX_NODE for size in (sector, node)):
        raise Unreadable("its file system (btrfs) is damaged: the size of its blocks")


def check_extents(stream: Any) -> None:
    """Check the extents of a file that was opened, before any is read.

    :raises Unreadable: a compressed one is larger than any.
    """
    for extent in getattr(stream, "extents", ()):
        if extent.compression and extent.disk_length > MAX_EXTENT:
            raise Unreadable("its file system (btrfs) is damaged: a compressed extent is too large")


@functools.cache
def library() -> Any:
    """Return dissect's class for a file system, with its parts that trust a disk replaced.

    :raises ImportError: it isn't installed.
    """
    from dissect.btrfs import Btrfs, btrfs, stream, tree

    class Cursor(tree.Cursor):  # type: ignore[misc, name-defined, unused-ignore]
        """A cursor that can't go round in a tree."""

        def push(self, address: int, initial_index: int = 0) -> None:
            super().push(address, initial_index)
            self.btree.btrfs.fhs[0].raw.alive()
            count = self._header.nritems
            if len(self._path) > MAX_DEPTH or not 0 < count * 25 < MAX_NODE:
                raise Unreadable("its file system (btrfs) is damaged: a tree of it")

    class BTree(tree.BTree):  # type: ignore[misc, name-defined, unused-ignore]
        """A tree with such cursors."""

        def cursor(self) -> Any:
            return Cursor(self)

    unpack = stream.decode_extent

    def decode_extent(buf: bytes, compression: int, encryption: int, sector_size: int) -> bytes:
        if len(buf) > MAX_EXTENT:
            raise Unreadable("its file system (btrfs) is damaged: a compressed extent is too large")
        if encryption == 0 and compression == stream.c_btrfs.BTRFS_COMPRESS_ZLIB:
            return zlib.decompressobj().decompress(buf, MAX_EXTENT)
        if encryption == 0 and compression == stream.c_btrfs.BTRFS_COMPRESS_ZSTD:
            return unzstd(buf, MAX_EXTENT)
        return bytes(unpack(buf, compression, encryption, sector_size))

    btrfs.BTree = BTree
    btrfs.decode_extent = stream.decode_extent = decode_extent
    # It would look for another copy of what is on a device that isn't there, for ever.
    stream.BTRFS_RAID_ATTRIBUTES = {
        profile: (copies, parity, 0)
        for profile, (copies, parity, _) in stream.BTRFS_RAID_ATTRIBUTES.items()
    }
    return Btrfs
