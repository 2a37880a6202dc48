"""Import an image into a pool: as an image of its own, with a protected snapshot for its clones."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from vmcloner_core.copying import Pace
from vmcloner_core.errors import HostCommandError
from vmcloner_core.extents import nonzero_runs
from vmcloner_core.model import Copying, Progress
from vmcloner_rbd.images import Image

CHUNK = 4 * 1024**2
"""Bytes of an object of an image, so that each write is to one object."""
WRITERS = 8


def data_in(fd: int, size: int) -> int:
    """Return the bytes of a file that hold data."""
    return sum(min(end, size) - start for start, end in nonzero_runs(fd) if start < size)


def fill(source: int, image: Image, size: int, copying: Copying, progress: Progress) -> None:
    """Write what isn't zeros of an open raw file to a new image.

    :raises OSError: reading or writing failed. :raises HostCommandError: the bytes that were read
        back differ.
    """
    pace, total, done = Pace(copying.bandwidth), data_in(source, size), 0
    with ThreadPoolExecutor(WRITERS, thread_name_prefix="import") as pool:
        jobs: deque[tuple[int, Future[None]]] = deque()

        def finish() -> None:
            nonlocal done
            count, job = jobs.popleft()
            job.result()
            done += count
            progress(done, total)

        for start, end in _chunks(source, size):
            pace(end - start)
            data = _read(source, start, end)
            jobs.append((len(data), pool.submit(image.write, start, data)))
            while len(jobs) > WRITERS:
                finish()
        while jobs:
            finish()
    image.flush()
    if copying.verify:
        verify(source, image, size)


def verify(source: int, image: Image, size: int) -> None:
    """Read an image back, and compare it with its source.

    :raises HostCommandError: they differ.
    """
    for start in range(0, size, CHUNK):
        end = min(start + CHUNK, size)
        read = hashlib.sha256(image.read(start, end - start)).digest()
        if read != hashlib.sha256(_read(source, start, end)).digest():
            raise HostCommandError(
                f"{image.name}: the bytes read back differ from the source near offset {start}",
                hint="check the cluster's disks (ceph health detail), then import it again",
            )


def _chunks(source: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield the runs of data, cut at the bounds of objects."""
    for low, high in nonzero_runs(source):
        start, end = low, min(high, size)
        while start < end:
            stop = min(end, start - start % CHUNK + CHUNK)
            yield start, stop
            start = stop


def _read(source: int, start: int, end: int) -> bytes:
    parts = []
    while start < end:
        part = os.pread(source, end - start, start)
        if not part:
            raise HostCommandError("the source became shorter while it was copied")
        parts.append(part)
        start += len(part)
    return b"".join(parts)
