"""Copy bytes between files in the kernel, holes kept, no block shared.

``copy_file_range`` is not used on purpose: on XFS, btrfs and NFS it shares the blocks instead of
copying them (see copy_file_range(2), NOTES), and a full copy must be one. sendfile(2) goes
through the page cache and always copies.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable

from vmcloner_files.extents import Run

CHUNK = 64 * 1024**2


def copy_runs(
    source: int,
    target: int,
    runs: Iterable[Run],
    done: Callable[[int], None] = lambda _count: None,
) -> None:
    """Copy ``runs`` of one open file to the same places in another.

    :param done: called with the number of bytes of each chunk, once it is copied.
    :raises OSError: the source ends within a run (EIO), or reading or writing failed.
    """
    for start, end in runs:
        os.lseek(target, start, os.SEEK_SET)
        position = start
        while position < end:
            count = os.sendfile(target, source, position, min(CHUNK, end - position))
            if count == 0:
                raise OSError(errno.EIO, "the source became shorter while it was copied")
            position += count
            done(count)
