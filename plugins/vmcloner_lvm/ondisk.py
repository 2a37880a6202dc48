"""Read a volume group's metadata from its physical volumes, without a command of LVM.

Source: lvm2's ``lib/format_text/layout.h``, ``lib/label/label.h`` and ``lib/misc/crc.c``. One of
the first four sectors of a physical volume contains its label: its UUID, and the location of its
metadata areas. An area begins with a header that locates the text in it; the rest is a ring buffer,
so that a new text never overwrites the valid one.

Nothing is guessed. If anything is not exactly as LVM writes it, the result is None; the caller then
uses LVM, which repairs it or reports the error. The caller holds the group's lock.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import stat
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise, takewhile
from pathlib import Path

import attrs

_SECTOR = 512
_LABEL_SECTORS = 4
_LABEL = struct.Struct("<8sQII8s")  # struct label_header
_PV = struct.Struct("<32sQ")  # struct pv_header
_DISK_LOCN = struct.Struct("<QQ")
_MDA = struct.Struct("<I16sIQQ")  # struct mda_header
_RAW_LOCN = struct.Struct("<QQII")
_MAGIC = b" LVM2 x[5A%r0N*>"
_IGNORED = 1
_MAX_AREA = 2 * 1024**3
_BLOCK = 4096
_DASHES = (6, 10, 14, 18, 22, 26)
_DEVICES = re.compile(r'^[ \t]*id = "([^"\n]+)"\n[ \t]*device = "([^"\n]+)"', re.MULTILINE)
"""In a physical volume's section; tags and names contain no quotation marks."""


class _OddError(Exception):
    """Something is not as LVM writes it."""


@attrs.frozen(kw_only=True)
class Metadata:
    """A group's metadata. ``text``: as stored on disk; ``area``: bytes of the smallest area."""

    text: str
    area: int


def read_metadata(devices: Sequence[Path]) -> Metadata | None:
    """Return the metadata, if all of a group's physical volumes hold the same.

    :param devices: at least one of the physical volumes; the text names the others.
    :return: None if the areas differ, or an area or a physical volume is not readable.
    """
    try:
        found = _first(devices)
        return None if found is None else _agreed(found)
    except (_OddError, OSError, ValueError, OverflowError, struct.error):  # offsets over 2^63
        return None


def _first(devices: Sequence[Path]) -> Mapping[str, Sequence[Metadata]] | None:
    """Return the metadata of the first device that is a physical volume with metadata."""
    for path in devices:
        uuid, copies = _copies(path)
        if copies:
            return {uuid: copies}
    return None


def _agreed(found: Mapping[str, Sequence[Metadata]]) -> Metadata:
    [(known, copies)] = found.items()
    text = copies[0].text
    places = dict(_DEVICES.findall(text[: text.find("\nlogical_volumes {")]))
    if known not in places:
        raise _OddError  # a physical volume that was removed from its group
    every = list(copies)
    for uuid, hint in places.items():
        if uuid != known:
            name, more = _copies(Path(hint))
            if name != uuid:
                raise _OddError
            every += more
    if any(each.text != text for each in every):
        raise _OddError
    return Metadata(text=text, area=min(each.area for each in every))


def _copies(path: Path) -> tuple[str, Sequence[Metadata]]:
    """Return a physical volume's UUID and the metadata in its areas, without unused ones."""
    with _opened(path) as fd:
        uuid, areas = _label(_read(fd, 0, _LABEL_SECTORS * _SECTOR))
        found = [_area(fd, offset, size) for offset, size in areas]
    return uuid, [each for each in found if each is not None]


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    mode = path.stat().st_mode
    if not (stat.S_ISBLK(mode) or stat.S_ISREG(mode)):  # the text may name a pipe, which blocks
        raise _OddError
    # Read the device itself: the page cache may hold older data.
    direct = os.O_DIRECT if stat.S_ISBLK(mode) else 0
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | direct)
    try:
        yield fd
    finally:
        os.close(fd)


def _read(fd: int, offset: int, size: int) -> bytes:
    """Return bytes of a file, by an aligned read."""
    start = offset - offset % _BLOCK
    length = offset + size - start
    with mmap.mmap(-1, length + -length % _BLOCK) as buffer:
        if os.preadv(fd, [buffer], start) < length:
            raise _OddError
        return buffer[offset - start : length]


def checksum(data: bytes) -> int:
    """Return LVM's checksum of bytes: a CRC-32 with another start value, not inverted."""
    return zlib.crc32(data, 0xF597A6CF ^ 0xFFFFFFFF) ^ 0xFFFFFFFF


def _label(head: bytes) -> tuple[str, Sequence[tuple[int, int]]]:
    """Return the UUID in a label, and the offsets and sizes of the metadata areas."""
    for number in range(_LABEL_SECTORS):
        sector = head[number * _SECTOR : (number + 1) * _SECTOR]
        mark, place, crc, start, kind = _LABEL.unpack_from(sector)
        if mark != b"LABELONE":
            continue
        if (place, crc, kind) != (number, checksum(sector[20:]), b"LVM2 001"):
            raise _OddError
        uuid, _ = _PV.unpack_from(sector, start)
        lists = sector[start + _PV.size :]
        entries = _DISK_LOCN.iter_unpack(lists[: len(lists) - len(lists) % _DISK_LOCN.size])
        for _ in takewhile(_used, entries):
            pass  # skip the data areas; an entry of zeros ends each list
        return _dashed(uuid.decode("ascii")), list(takewhile(_used, entries))
    raise _OddError


def _used(entry: tuple[int, int]) -> bool:
    return entry[0] != 0


def _dashed(uuid: str) -> str:
    """Return a UUID with hyphens, as in the metadata."""
    return "-".join(uuid[start:end] for start, end in pairwise((0, *_DASHES, len(uuid))))


def _area(fd: int, offset: int, size: int) -> Metadata | None:
    """Return the contents of a metadata area, None if it is not used."""
    header = _read(fd, offset, _SECTOR)
    crc, magic, version, start, length = _MDA.unpack_from(header)
    if (crc, magic, version, start) != (checksum(header[4:]), _MAGIC, 1, offset):
        raise _OddError
    if not _SECTOR < length <= min(size or _MAX_AREA, _MAX_AREA):
        raise _OddError
    committed, pending = (
        _RAW_LOCN.unpack_from(header, _MDA.size + number * _RAW_LOCN.size) for number in (0, 1)
    )
    if committed[3] & _IGNORED:
        return None
    if committed[3] or pending[0]:  # an interrupted write: LVM has to decide
        raise _OddError
    at, taken, crc, _ = committed
    if not (_SECTOR <= at < length and 0 < taken <= length - _SECTOR):
        raise _OddError
    first = _read(fd, offset + at, min(taken, length - at))
    wrapped = _read(fd, offset + _SECTOR, taken - len(first)) if len(first) < taken else b""
    text = first + wrapped
    if checksum(text) != crc or text[-1:] != b"\0":
        raise _OddError
    return Metadata(text=text[:-1].decode(), area=length)
