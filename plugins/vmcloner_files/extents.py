"""Count a file's extents, and keep their number low.

FIEMAP: Documentation/filesystems/fiemap.rst in the kernel's source.
"""

from __future__ import annotations

import fcntl
import struct
from collections.abc import Iterable

from vmcloner_core.extents import Run

MAX_RUNS = 32
"""The time of a reflink grows with the number of extents (about 20 us each)."""
_FIEMAP = struct.Struct("=QQIIII")
_FS_IOC_FIEMAP = 0xC020660B  # _IOWR('f', 11, struct fiemap)
_FIEMAP_FLAG_SYNC = 1


def coalesce(runs: Iterable[Run], limit: int = MAX_RUNS) -> list[Run]:
    """Return ``runs`` with their smallest gaps filled until at most ``limit`` remain.

    The filled gaps add up to at most half of the data. Space is used once for a template, but time
    is used for its extents with each clone.
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
    """Return the number of a file's extents, None if the file system does not tell.

    Dirty pages are written first.
    """
    request = bytearray(_FIEMAP.pack(0, 2**64 - 1, _FIEMAP_FLAG_SYNC, 0, 0, 0))
    try:
        fcntl.ioctl(fd, _FS_IOC_FIEMAP, request)
    except OSError:
        return None
    return int(_FIEMAP.unpack(request)[3])
