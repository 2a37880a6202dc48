"""Write a qcow2 overlay: an image that is empty and reads from a backing file.

The format: docs/interop/qcow2.txt in QEMU's source. Writing it here takes microseconds, while
``qemu-img create`` is a process. Clusters are 64 KiB and refcounts 16 bits, as QEMU's default. The
file contains: header, refcount table, one refcount block, L1 table (a hole, as all entries are 0).
"""

from __future__ import annotations

import functools
import os
import struct

import attrs

from vmcloner_core.errors import InvalidRequest
from vmcloner_core.units import format_size

CLUSTER_BITS = 16
CLUSTER = 1 << CLUSTER_BITS
SECTOR = 512
MAX_BACKING = 1023
"""Bytes of a backing file's name."""
MAX_SIZE = (32 * 1024**2 // 8) * (CLUSTER // 8) * CLUSTER
"""Bytes that the largest L1 table in QEMU, 32 MiB, can map: 2 PiB."""

_REFCOUNT_ORDER = 4
_HEADER = struct.Struct(">4sIQIIQIIQQIIQQQQII")
_BACKING_FORMAT = 0xE2792ACA


@attrs.frozen(kw_only=True)
class Overlay:
    """The bytes of an empty overlay: (offset, bytes) of its pieces, with holes between them."""

    pieces: tuple[tuple[int, bytes], ...]
    length: int

    def blocks(self, size: int) -> int:
        """Return the number of file system blocks of ``size`` bytes that it takes."""
        return sum(-(-len(content) // size) for _offset, content in self.pieces)

    def write(self, fd: int) -> None:
        """Write it to an empty open file."""
        os.ftruncate(fd, self.length)
        for offset, content in self.pieces:
            os.pwrite(fd, content, offset)


@functools.lru_cache(maxsize=64)
def overlay(backing: str, size: int) -> Overlay:
    """Return an overlay over a raw file.

    :param backing: the file's absolute path. :param size: virtual bytes, whole sectors.
    :raises InvalidRequest: the path is too long, or the size is too large for qcow2.
    """
    name = os.fsencode(backing)
    if not backing.startswith("/") or len(name) > MAX_BACKING:
        raise InvalidRequest(
            f"{backing[:80]} cannot be the backing file of a qcow2 overlay",
            hint=f"the pool's path must be absolute and shorter than {MAX_BACKING} bytes",
        )
    if not 0 < size <= MAX_SIZE or size % SECTOR:
        raise InvalidRequest(f"a qcow2 overlay cannot have {format_size(size)}")
    mapped = (CLUSTER // 8) * CLUSTER  # bytes that one L1 entry maps
    l1_entries = -(-size // mapped)
    l1_clusters = -(-l1_entries * 8 // CLUSTER)
    table, block, l1 = CLUSTER, 2 * CLUSTER, 3 * CLUSTER
    clusters = 3 + l1_clusters

    extensions = struct.pack(">II8s", _BACKING_FORMAT, 3, b"raw") + struct.pack(">II", 0, 0)
    header = _HEADER.pack(
        b"QFI\xfb",
        3,
        _HEADER.size + len(extensions),
        len(name),
        CLUSTER_BITS,
        size,
        0,  # not encrypted
        l1_entries,
        l1,
        table,
        1,  # clusters of the refcount table
        0,  # no snapshots
        0,
        0,  # features: incompatible, compatible, autoclear
        0,
        0,
        _REFCOUNT_ORDER,
        _HEADER.size,
    )
    return Overlay(
        pieces=(
            (0, header + extensions + name),
            (table, struct.pack(">Q", block)),
            (block, struct.pack(">H", 1) * clusters),
        ),
        length=clusters * CLUSTER,
    )
