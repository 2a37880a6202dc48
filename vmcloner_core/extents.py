"""Find the parts of a file or device that hold data, which are all that a copy has to move.

Holes are found by ``SEEK_DATA`` and ``SEEK_HOLE`` (lseek(2)). Block devices don't support these:
all of a device counts as data.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

Run = tuple[int, int]
"""Start and end offset of a range of bytes, the end excluded."""

GRANULE = 64 * 1024
"""Bytes; shorter ranges of zeros are treated as data."""
_ZEROS = bytes(GRANULE)


def length(fd: int) -> int:
    """Return the bytes of an open file or block device."""
    return os.lseek(fd, 0, os.SEEK_END)


def data_runs(fd: int) -> Iterator[Run]:
    """Yield the runs of a file that are not holes, in ascending order."""
    size = length(fd)
    position = 0
    while position < size:
        try:
            start = os.lseek(fd, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # a hole up to the end
                return
            if error.errno != errno.EINVAL:
                raise
            yield position, size  # a device, or a file system without SEEK_HOLE
            return
        position = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, position


def nonzero_pieces(fd: int) -> Iterator[tuple[int, bytes]]:
    """Yield the pieces of GRANULE bytes of a file that are not zeros, with their offsets."""
    position = 0
    for low, high in data_runs(fd):
        for offset in range(max(position, low - low % GRANULE), high, GRANULE):
            position = offset + GRANULE
            piece = os.pread(fd, GRANULE, offset)
            if not is_zero(piece):
                yield offset, piece


def nonzero_runs(fd: int) -> Iterator[Run]:
    """Yield the runs of a file that are not zeros, in steps of GRANULE."""
    start = end = 0
    for offset, piece in nonzero_pieces(fd):
        if offset != end:
            if end:
                yield start, end
            start = offset
        end = offset + len(piece)
    if end:
        yield start, end


def is_zero(piece: bytes) -> bool:
    """Tell whether at most GRANULE bytes are all zero."""
    return piece == _ZEROS[: len(piece)]
