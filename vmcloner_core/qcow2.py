"""The image format qcow2: what a header says, which tables are sound, and an overlay's bytes.

The format: docs/interop/qcow2.txt in QEMU's source. An image may come from a stranger: every number
in it is checked before it is used, and nothing is opened that it names.

Writing an overlay's header here takes microseconds where ``qemu-img create`` takes a process.
Clusters are 64 KiB and refcounts 16 bits wide, as QEMU's own default. The file is laid out as:
header, refcount table, one refcount block, L1 table (a hole, since all of its entries are zero).
"""

from __future__ import annotations

import functools
import os
import struct
import sys
from array import array
from collections.abc import Callable
from pathlib import Path

import attrs

from vmcloner_core.errors import InvalidRequest
from vmcloner_core.units import format_size

MAGIC = b"QFI\xfb"
MAX_L1 = 4 * 1024**2
"""Entries of an L1 table: 32 MiB, QEMU's own limit."""
MAX_L2 = 256 * 1024**2
"""Bytes of all L2 tables of an image that is imported: they map 2 TiB in clusters of 64 KiB."""
MAX_HEADER = 65536
"""Bytes of a header with its extensions."""
OFFSET_MASK = (1 << 56) - 512
"""The bits of an L1 or L2 entry that are an offset in the file."""
COMPRESSED = 1 << 62

CLUSTER_BITS = 16
CLUSTER = 1 << CLUSTER_BITS
SECTOR = 512
MAX_BACKING = 1023
"""Bytes of a backing file's name."""
MAX_SIZE = MAX_L1 * (CLUSTER // 8) * CLUSTER
"""Bytes that the largest L1 table can map: 2 PiB."""

_REFCOUNT_ORDER = 4
_HEADER = struct.Struct(">4sIQIIQIIQQIIQQQQII")
_BACKING_FORMAT = 0xE2792ACA
_CORRUPT, _DATA_FILE, _ZSTD, _EXTENDED = 0b10, 0b100, 0b1000, 0b10000
_KNOWN = 0b11111  # these, and "dirty", which only concerns who writes

Read = Callable[[int, int], bytes]
"""Reads (offset, length) of a file: fewer bytes at its end, none beyond it."""


class Refused(ValueError):
    """An image that is damaged, or of a kind that isn't read. The message is the reason."""


@attrs.frozen(kw_only=True)
class Header:
    """What an image's header says of it.

    :param size: virtual bytes. :param refcounts: offset of the refcount table.
    :param backing: the file it is an overlay of, as the header spells it.
    :param backing_format: that file's format; None where the header doesn't say, and then nothing
        may guess it: its content is a guest's.
    """

    cluster_bits: int
    size: int
    l1_entries: int
    l1_offset: int
    refcounts: int
    zstd: bool = False
    extended_l2: bool = False
    corrupt: bool = False
    backing: str | None = None
    backing_format: str | None = None

    @property
    def cluster(self) -> int:
        """Bytes of a cluster."""
        return 1 << self.cluster_bits

    def packed(self, entry: int) -> tuple[int, int]:
        """Return (offset, bytes) of a compressed cluster, from its L2 entry."""
        shift = 62 - (self.cluster_bits - 8)
        offset = entry & ((1 << shift) - 1)
        sectors = ((entry & (COMPRESSED - 1)) >> shift) + 1
        return offset, sectors * SECTOR - offset % SECTOR


def read_header(read: Read) -> Header:
    """Return what an image's header says.

    :raises Refused: it is no qcow2 image, or one that is encrypted, keeps its data in another file
        or has features that aren't known.
    """
    content = read(0, MAX_HEADER)
    if not content.startswith(MAGIC):
        raise Refused("is not a qcow2 image")
    if len(content) <= _HEADER.size:
        raise Refused("truncated in its header")
    (_, version, backing_at, backing_size, bits, size, encrypted, l1_entries, l1_at, refcounts,
     _, _, _, features, _, _, _, length) = _HEADER.unpack_from(content)  # fmt: skip
    if version == 2:
        features, length = 0, 72
    compression = content[_HEADER.size] if features & _ZSTD and length > _HEADER.size else 0
    for wrong, reason in (
        (
            version not in (2, 3) or not 9 <= bits <= 21,
            "is of a kind that this version doesn't read",
        ),
        (encrypted, "is encrypted, which is not supported"),
        (features & _DATA_FILE, "keeps its data in another file, which is refused"),
        (features & ~_KNOWN or compression > 1, "uses features that this version doesn't know"),
        (l1_entries > MAX_L1 or size >= 1 << 63, "claims a size that is out of range"),
        (backing_size > MAX_BACKING, "has a backing file whose name is too long"),
    ):
        if wrong:
            raise Refused(reason)
    backing = backing_format = None
    if backing_at:
        name = read(backing_at, backing_size)
        if len(name) < backing_size:
            raise Refused("truncated: its backing file's name is cut off")
        backing = os.fsdecode(name)
        backing_format = _backing_format(content[length : min(backing_at, 1 << bits)])
    return Header(
        cluster_bits=bits,
        size=size,
        l1_entries=l1_entries,
        l1_offset=l1_at,
        refcounts=refcounts,
        zstd=compression == 1,
        extended_l2=bool(features & _EXTENDED),
        corrupt=bool(features & _CORRUPT),
        backing=backing,
        backing_format=backing_format,
    )


def _backing_format(extensions: bytes) -> str | None:
    """Return what a header's extensions say of its backing file's format."""
    at = 0
    while at + 8 <= len(extensions):
        kind, length = struct.unpack_from(">II", extensions, at)
        content = extensions[at + 8 : at + 8 + length]
        if kind == 0 or len(content) < length:
            break
        if kind == _BACKING_FORMAT:
            return content.decode("ascii", "replace")
        at += 8 + length + -length % 8
    return None


def backing_file(image: Path, header: Header) -> tuple[Path, str]:
    """Return the path and the format of the file that an image is an overlay of.

    :raises Refused: its format isn't said, or isn't raw or qcow2, or its name is no file's.
    """
    kind = header.backing_format
    if kind is None:
        raise Refused("doesn't say which format its backing file has")
    if kind not in ("raw", "qcow2"):
        raise Refused(f"has a backing file of format {kind!r}, not raw or qcow2")
    name = (header.backing or "").removeprefix("file:")
    if not name or "\0" in name or ":" in name.partition("/")[0]:  # json:, nbd: and the like
        raise Refused(f"has a backing file that is no plain file: {name[:80]!r}")
    return image.parent / name, kind


# --- tables -------------------------------------------------------------------------------------


def check_tables(header: Header, read: Read, length: int) -> None:
    """Check that all clusters are in the file, and that no two places of the disk share one.

    An image that some megabytes describe can't then take terabytes, or days, to convert.

    :param length: bytes of the file. :raises Refused: they aren't, or do.
    """
    if header.refcounts >= length:
        raise Refused(f"truncated: its tables point beyond its {length} bytes")
    l1 = entries(read, header.l1_offset, header.l1_entries)
    if sum(1 for entry in l1 if entry & OFFSET_MASK) * header.cluster > MAX_L2:
        raise Refused(f"has more than {format_size(MAX_L2)} of tables")
    tables = [entry & OFFSET_MASK for entry in l1 if entry & OFFSET_MASK]
    if len(set(tables)) < len(tables):
        raise Refused("is damaged: two parts of the disk share one table")
    highest, plain = header.l1_offset, 0
    for offset in tables:
        values = entries(read, offset, header.cluster // 8)[:: 2 if header.extended_l2 else 1]
        packed = [header.packed(value)[0] for value in values if value & COMPRESSED]
        whole = [value & OFFSET_MASK for value in values if not value & COMPRESSED]
        whole = [place for place in whole if place]
        plain += len(whole)
        shared = len(set(whole)) < len(whole) or len(set(packed)) < len(packed)
        if shared or plain * header.cluster > length + header.cluster:
            raise Refused("is damaged: parts of the disk share their clusters")
        highest = max([highest, *whole, *packed])
    if highest >= length:
        raise Refused(f"truncated: its tables point beyond its {length} bytes")


def entries(read: Read, offset: int, count: int) -> array[int]:
    """Return the entries of a table.

    :raises Refused: there aren't so many.
    """
    content = read(offset, count * 8)
    if len(content) < count * 8:
        raise Refused("truncated: its tables are cut off")
    values = array("Q", content)
    if sys.byteorder == "little":
        values.byteswap()
    return values


# --- overlays -----------------------------------------------------------------------------------


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
        MAGIC,
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
