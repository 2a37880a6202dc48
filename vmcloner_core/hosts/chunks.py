"""Parts of files that cross between hosts: only what isn't zeros, compressed."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import attrs

from vmcloner_core.errors import BackendError
from vmcloner_core.extents import GRANULE, Run, is_zero

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

if TYPE_CHECKING:
    pass

CHUNK = 64 * GRANULE
"""Bytes of a file that cross in one call, before they are compressed: 4 MiB."""
LEVEL = 1
"""Of zstd: images that compress at all do so at this level, at several hundred MiB/s."""


@attrs.frozen(kw_only=True)
class Chunk:
    """A part of a file: the first at or after an offset that has data, or the file's end.

    :param octets: the data, packed (:func:`packed`); empty at the file's end.
    :param data: bytes of it that aren't zeros, about.
    """

    at: int
    data: int = 0
    octets: bytes = attrs.field(default=b"", repr=False)

    def end(self, size: int) -> int:
        """Return how much of a file of that size is there when this part is."""
        return min(self.at + CHUNK, size) if self.octets else size


def packed(fd: int, at: int, end: int) -> Chunk:
    """Return the bytes of a file from ``at`` to ``end``, at most CHUNK, without runs of zeros."""
    bitmap, pieces = 0, []
    for number, offset in enumerate(range(at, end, GRANULE)):
        piece = os.pread(fd, min(GRANULE, end - offset), offset)
        if not is_zero(piece):
            bitmap |= 1 << number
            pieces.append(piece)
    octets = zstd.compress(bitmap.to_bytes(8, "little") + b"".join(pieces), LEVEL)
    return Chunk(at=at, octets=octets, data=len(pieces) * GRANULE)


def next_chunk(fd: int, runs: Sequence[Run], size: int, offset: int) -> Chunk:
    """Return the first part of a file at or after ``offset`` that has data.

    :param runs: where the file has data. :param size: its bytes.
    """
    start = next((max(a, offset) for a, b in runs if b > offset), size)
    if start >= size:
        return Chunk(at=size)
    at = start - start % CHUNK
    return packed(fd, at, min(at + CHUNK, size))


def written(octets: bytes, fd: int, at: int, end: int) -> None:
    """Write what :func:`packed` returned.

    :raises BackendError: it is nothing of that kind.
    """
    wrong = BackendError("what arrived is no part of a file")
    try:
        plain = zstd.ZstdDecompressor().decompress(octets, max_length=CHUNK + 9)
    except zstd.ZstdError as error:
        raise wrong from error
    bitmap, position = int.from_bytes(plain[:8], "little"), 8
    present = [o for number, o in enumerate(range(at, end, GRANULE)) if bitmap >> number & 1]
    if len(plain) != 8 + sum(min(GRANULE, end - offset) for offset in present):
        raise wrong
    for offset in present:
        piece = plain[position : position + min(GRANULE, end - offset)]
        os.pwrite(fd, piece, offset)
        position += len(piece)
