"""Where a file's bytes are: in which runs, and in how many pieces on the disk.

``SEEK_DATA`` and ``SEEK_HOLE``: lseek(2). FIEMAP: Documentation/filesystems/fiemap.rst in the
kernel's source.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterable, Iterator

Run = tuple[int, int]
"""Start and end of a stretch of bytes, the end excluded."""

GRANULE = 64 * 1024
"""Bytes; shorter stretches of zeros are not looked for."""
MAX_RUNS = 32
"""A reflink's cost grows with the extents of what it copies (about 20 us each)."""
_ZEROS = bytes(GRANULE)
_FIEMAP = struct.Struct("=QQIIII")
_FS_IOC_FIEMAP = 0xC020660B  # _IOWR('f', 11, struct fiemap)
_FIEMAP_FLAG_SYNC = 1


def data_runs(fd: int) -> Iterator[Run]:
    """Yield the runs of a file that aren't holes, ascending; the last ends at the file's end."""
    size = os.fstat(fd).st_size
    position = 0
    while position < size:
        try:
            start = os.lseek(fd, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # a hole up to the end
                return
            if error.errno != errno.EINVAL:
                raise
            yield position, size  # the file system doesn't tell holes
            return
        position = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, position


def nonzero_runs(fd: int) -> Iterator[Run]:
    """Yield the runs of a file that hold something other than zeros, in steps of GRANULE."""
    start = end = 0
    for low, high in data_runs(fd):
        for offset in range(low - low % GRANULE, high, GRANULE):
            if offset < end or _is_zero(os.pread(fd, GRANULE, offset)):
                continue
            if offset != end:
                if end:
                    yield start, end
                start = offset
            end = offset + GRANULE
    if end:
        yield start, min(end, os.fstat(fd).st_size)


def _is_zero(chunk: bytes) -> bool:
    return chunk == _ZEROS[: len(chunk)]


def coalesce(runs: Iterable[Run], limit: int = MAX_RUNS) -> list[Run]:
    """Return ``runs`` with their smallest gaps filled until at most ``limit`` remain.

    Gaps are filled only while they add up to no more than half of the data: a template is stored
    once, its extents are paid for with each clone.
    """
    joined = list(runs)
    excess = len(joined) - limit
    if excess <= 0:
        return joined
    budget = sum(end - start for start, end in joined) // 2
    gaps = sorted((joined[i + 1][0] - joined[i][1], i) for i in range(len(joined) - 1))
    filled = set()
    for gap, index in gaps[:excess]:
        budget -= gap
        if budget < 0:
            break
        filled.add(index)
    result: list[Run] = []
    for index, (start, end) in enumerate(joined):
        if index - 1 in filled:
            result[-1] = (result[-1][0], end)
        else:
            result.append((start, end))
    return result


def count_extents(fd: int) -> int | None:
    """Return in how many pieces a file lies on the disk, None where that can't be told.

    What isn't written out yet is written first.
    """
    request = bytearray(_FIEMAP.pack(0, 2**64 - 1, _FIEMAP_FLAG_SYNC, 0, 0, 0))
    try:
        fcntl.ioctl(fd, _FS_IOC_FIEMAP, request)
    except OSError:
        return None
    return int(_FIEMAP.unpack(request)[3])
