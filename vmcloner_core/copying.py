"""Copy bytes: from one file to another in the kernel, or from one source to many targets at once.

:func:`copy_runs` goes through the page cache. It does not use ``copy_file_range``: on XFS, btrfs
and NFS that shares the blocks instead of copying them (copy_file_range(2), NOTES). sendfile(2)
always copies.

:func:`fan_out` reads its source once for any number of targets. It writes past the page cache
(``O_DIRECT``, open(2)) where the target supports that, with many large writes at once to keep the
device busy. It deallocates zeros instead of writing them where the target supports that.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import mmap
import os
import queue
import stat
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import attrs

from vmcloner_core.cancelling import pause
from vmcloner_core.extents import GRANULE, Run, data_runs, is_zero, length

CHUNK = 4 * 1024**2
_ALIGN = 4096
_BUFFERS = 8
_WRITERS = 8
_BLKZEROOUT = 0x127F  # _IO(0x12, 127), include/uapi/linux/fs.h
_KEEP_SIZE, _PUNCH_HOLE = 1, 2  # include/uapi/linux/falloc.h
_CANNOT = {errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOTTY, errno.EINVAL, errno.ENODEV}


class Pace:
    """Limits a copy's bandwidth: call it with the number of bytes to write next, and it waits.

    :param bandwidth: bytes per second, None for no limit. Not thread-safe.
    """

    def __init__(
        self,
        bandwidth: int | None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = pause,
    ) -> None:
        self.bandwidth = bandwidth
        self._clock = clock
        self._sleep = sleep
        self._due = 0.0

    def __call__(self, count: int) -> None:
        """Wait until ``count`` more bytes may be written.

        :raises Interrupted: the run is to end.
        """
        if self.bandwidth is None:
            self._sleep(0)
            return
        now = self._clock()
        if self._due > now:
            self._sleep(self._due - now)
        self._due = max(self._due, now) + count / self.bandwidth


def copy_runs(
    source: int,
    target: int,
    runs: Iterable[Run],
    done: Callable[[int], None] = lambda _count: None,
    pace: Callable[[int], None] | None = None,
) -> None:
    """Copy ``runs`` of one open file to the same places in another.

    :param done: called with the number of bytes of each chunk, once it is copied.
    :raises OSError: the source ends within a run (EIO), or reading or writing failed.
    """
    step = CHUNK if pace is not None else 16 * CHUNK
    for start, end in runs:
        os.lseek(target, start, os.SEEK_SET)
        position = start
        while position < end:
            if pace is not None:
                pace(min(step, end - position))
            count = os.sendfile(target, source, position, min(step, end - position))
            if count == 0:
                raise OSError(errno.EIO, "the source became shorter while it was copied")
            position += count
            done(count)


def flush(fd: int) -> None:
    """Wait until a file's data is on its device, and drop it from the page cache."""
    os.fdatasync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def check_same(source: int, target: int) -> None:
    """Check that two open files of one length hold the same bytes; ``target`` is flushed first.

    :raises OSError: they differ (EIO), or reading failed.
    """
    flush(target)
    for start, end in sorted([*data_runs(source), *data_runs(target)]):
        for offset in range(start, end, CHUNK):
            count = min(CHUNK, end - offset)
            if os.pread(source, count, offset) != os.pread(target, count, offset):
                raise _differs(offset)


def _differs(offset: int) -> OSError:
    return OSError(errno.EIO, f"the bytes read back differ from the source near offset {offset}")


# --- one source, many targets -------------------------------------------------------------------


@attrs.define(kw_only=True)
class Target:
    """A file or block device to copy to. Open it with :meth:`open`. Thread-safe.

    :param size: bytes to fill: after the end of the source, with zeros.
    :param blank: it reads as zeros, so zeros need not be written.
    :param resumed: parts of it may be correct already; only bytes that differ are written.
    :param progress: called with (bytes done, size).
    :param error: why the copy to it failed, None if it did not.
    """

    path: Path
    size: int
    blank: bool = False
    resumed: bool = False
    progress: Callable[[int, int], None] = lambda _done, _total: None
    error: OSError | None = None
    _done: int = 0
    _plain: int = -1
    _direct: int | None = None
    _is_block: bool = False

    @contextlib.contextmanager
    def open(self) -> Iterator[Target]:
        """Keep it open during a copy.

        :raises OSError: it cannot be opened.
        """
        flags = os.O_RDWR | os.O_CLOEXEC
        self._plain = os.open(self.path, flags)
        try:
            self._is_block = stat.S_ISBLK(os.fstat(self._plain).st_mode)
            with contextlib.suppress(OSError):  # not supported by tmpfs and others
                self._direct = os.open(self.path, flags | os.O_DIRECT)
            yield self
        finally:
            if self._direct is not None:
                os.close(self._direct)
            os.close(self._plain)
            self._plain, self._direct = -1, None

    def write(self, data: memoryview, offset: int) -> None:
        """Write bytes; those that are aligned bypass the page cache."""
        while data:
            whole = len(data) - len(data) % _ALIGN
            if self._direct is None or offset % _ALIGN or not whole:
                count = os.pwrite(self._plain, data, offset)
            else:
                count = self._write_directly(data[:whole], offset)
            data, offset = data[count:], offset + count

    def _write_directly(self, data: memoryview, offset: int) -> int:
        assert self._direct is not None  # noqa: S101
        try:
            return os.pwrite(self._direct, data, offset)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            # Some file systems accept O_DIRECT but need a larger alignment than ours.
            return os.pwrite(self._plain, data, offset)

    def zero(self, start: int, end: int) -> None:
        """Make a run of it read as zeros; deallocates where possible."""
        if _allocate(self._plain, _PUNCH_HOLE | _KEEP_SIZE, start, end - start):
            return
        if self._is_block and _zero_out(self._plain, start, end - start):
            return
        zeros = memoryview(mmap.mmap(-1, CHUNK))
        for offset in range(start, end, CHUNK):
            self.write(zeros[: min(CHUNK, end - offset)], offset)

    def read(self, into: memoryview, offset: int) -> memoryview:
        """Fill a buffer from the device, bypassing the cache; returns the part that was filled."""
        got = 0
        while got < len(into):
            rest = into[got:]
            aligned = not (offset + got) % _ALIGN and not len(rest) % _ALIGN
            direct = self._direct is not None and aligned
            count = os.preadv(
                self._direct if direct and self._direct is not None else self._plain,
                [rest],
                offset + got,
            )
            if not count:
                break
            got += count
        return into[:got]

    def count(self, bytes_: int) -> None:
        """Report that more bytes are done."""
        self._done += bytes_
        self.progress(self._done, self.size)

    def flush(self) -> None:
        """Wait until all of it is on the device."""
        flush(self._plain)


@attrs.define
class _Chunk:
    """A part of the source, with its runs of data and of zeros. ``view``: its bytes, if any."""

    start: int
    end: int
    view: memoryview | None
    data: list[Run]
    zeros: list[Run]
    digest: bytes | None = None
    left: int = 0

    @property
    def weight(self) -> int:
        return sum(end - start for start, end in self.data)


def fan_out(
    source: int,
    targets: Sequence[Target],
    *,
    pace: Callable[[int], None] | None = None,
    verify: bool = False,
) -> None:
    """Copy a source to open targets, reading it once.

    When a target fails, its ``error`` is set and the copies to the others continue. At the end the
    data is on the devices, not only in the page cache.

    :param source: an open file or block device; bytes beyond a target's size are not copied.
    :param pace: called with the number of bytes to write next, of all targets together.
    :param verify: read each target back from its device and compare checksums.
    :raises OSError: the source cannot be read, or became shorter.
    """
    _FanOut(source, targets, pace or Pace(None), verify).run()


class _FanOut:
    """One fan-out under way."""

    def __init__(
        self,
        source: int,
        targets: Sequence[Target],
        pace: Callable[[int], None],
        verify: bool,
    ) -> None:
        self._source = source
        self._targets = targets
        self._pace = pace
        self._verify = verify
        self._size = max((target.size for target in targets), default=0)
        self._lock = threading.Lock()
        self._buffers: queue.SimpleQueue[memoryview] = queue.SimpleQueue()
        self._chunks: list[_Chunk] = []

    @property
    def _live(self) -> list[Target]:
        return [target for target in self._targets if target.error is None]

    def run(self) -> None:
        for _ in range(_BUFFERS):
            self._buffers.put(memoryview(mmap.mmap(-1, CHUNK)))
        with ThreadPoolExecutor(_WRITERS, thread_name_prefix="copy") as pool:
            # Bounded, or the queue would grow to one job for each chunk of each target.
            jobs: deque[Future[None]] = deque()
            for chunk in self._read():
                if self._verify:
                    self._chunks.append(chunk)
                live = self._live
                chunk.left = len(live)
                self._pace(chunk.weight * len(live))
                jobs.extend(pool.submit(self._guarded, self._put, target, chunk) for target in live)
                while len(jobs) > _BUFFERS * len(live):
                    jobs.popleft().result()
                if not live:
                    break
            for job in jobs:
                job.result()
            self._each(pool, lambda target: target.flush())
            if self._verify:
                self._each(pool, self._check)

    def _each(self, pool: ThreadPoolExecutor, work: Callable[[Target], None]) -> None:
        jobs = [pool.submit(self._guarded, lambda t, _: work(t), t, None) for t in self._live]
        for job in jobs:
            job.result()

    def _guarded(
        self, work: Callable[[Target, _Chunk | None], None], target: Target, chunk: _Chunk | None
    ) -> None:
        """Run ``work`` unless the target has failed; an OSError becomes the target's error."""
        try:
            if target.error is None:
                work(target, chunk)
        except OSError as error:
            target.error = error
        finally:
            if chunk is not None:
                self._finished(target, chunk)

    def _finished(self, target: Target, chunk: _Chunk) -> None:
        with self._lock:
            chunk.left -= 1
            if chunk.left == 0 and chunk.view is not None:
                self._buffers.put(chunk.view)
                chunk.view = None
            if target.error is None:
                target.count(max(0, min(chunk.end, target.size) - chunk.start))

    # --- reading --------------------------------------------------------------------------------

    def _read(self) -> Iterator[_Chunk]:
        """Yield the source in chunks, with the zeros between and after its data."""
        size = min(self._size, length(self._source))
        position = 0
        for low, high in data_runs(self._source):
            start, end = max(position, low - low % _ALIGN), min(size, high + -high % _ALIGN)
            if start >= end:
                continue
            if start > position:
                yield _zeros(position, start)
            for offset in range(start, end, CHUNK):
                yield self._chunk(offset, min(end, offset + CHUNK))
            position = end
        if position < self._size:
            yield _zeros(position, self._size)

    def _chunk(self, start: int, end: int) -> _Chunk:
        buffer = self._buffers.get()
        view, got = buffer[: end - start], 0
        while got < end - start:
            count = os.preadv(self._source, [view[got:]], start + got)
            if not count:
                raise OSError(errno.EIO, "the source became shorter while it was copied")
            got += count
        digest = hashlib.sha256(view).digest() if self._verify else None
        data, zeros = _split(view, start)
        return _Chunk(start, end, buffer, data, zeros, digest)

    # --- writing --------------------------------------------------------------------------------

    def _put(self, target: Target, chunk: _Chunk | None) -> None:
        assert chunk is not None  # noqa: S101
        for start, end in _within(chunk.data, target.size):
            assert chunk.view is not None  # noqa: S101 - kept until all targets have it
            data = chunk.view[start - chunk.start : end - chunk.start]
            if not (target.resumed and _holds(target, start, end, data)):
                target.write(data, start)
        if target.blank and not target.resumed:
            return
        for start, end in _within(chunk.zeros, target.size):
            if not (target.resumed and _holds(target, start, end, None)):
                target.zero(start, end)

    def _check(self, target: Target) -> None:
        """Read a target back and compare it with the checksums of the source."""
        buffer = memoryview(mmap.mmap(-1, CHUNK))
        for chunk in self._chunks:
            if chunk.digest is not None and chunk.end <= target.size:
                found = target.read(buffer[: chunk.end - chunk.start], chunk.start)
                same = hashlib.sha256(found).digest() == chunk.digest
            else:
                [run] = _within([(chunk.start, chunk.end)], target.size) or [(0, 0)]
                same = _holds(target, *run, None)
            if not same:
                raise _differs(chunk.start)


def _zeros(start: int, end: int) -> _Chunk:
    return _Chunk(start, end, None, [], [(start, end)])


def _within(runs: Sequence[Run], size: int) -> list[Run]:
    """Return runs cut off at ``size``."""
    return [(start, min(end, size)) for start, end in runs if start < size]


def _split(view: memoryview, at: int) -> tuple[list[Run], list[Run]]:
    """Return a buffer's runs of data and its runs of zeros; ``at``: its offset in the source."""
    kinds: tuple[list[Run], list[Run]] = ([], [])
    for offset in range(0, len(view), GRANULE):
        piece = view[offset : offset + GRANULE]
        # A few bytes tell most data from zeros; the rest is copied to be compared.
        empty = is_zero(bytes(piece[:64])) and is_zero(bytes(piece))
        runs = kinds[empty]
        start, end = at + offset, at + offset + len(piece)
        if runs and runs[-1][1] == start:
            runs[-1] = (runs[-1][0], end)
        else:
            runs.append((start, end))
    return kinds


def _holds(target: Target, start: int, end: int, data: memoryview | None) -> bool:
    """Tell whether a target holds these bytes in a run; ``data`` is None for zeros."""
    buffer = memoryview(mmap.mmap(-1, CHUNK))
    for offset in range(start, end, CHUNK):
        size = min(CHUNK, end - offset)
        # Read up to an aligned length, as only aligned reads bypass the cache.
        found = target.read(buffer[: size + -size % _ALIGN], offset)[:size]
        expected = bytes(size) if data is None else bytes(data[offset - start :][:size])
        if bytes(found) != expected:
            return False
    return True


# --- system calls that Python lacks --------------------------------------------------------------


def _allocate(fd: int, mode: int, start: int, size: int) -> bool:
    """Call fallocate(2); returns whether the file or device supports it.

    On a block device, punching a hole writes zeros by deallocation, or is not supported.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    call = libc.fallocate64 if hasattr(libc, "fallocate64") else libc.fallocate
    call.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    if call(fd, mode, start, size) == 0:
        return True
    number = ctypes.get_errno()
    if number in _CANNOT:
        return False
    raise OSError(number, os.strerror(number))


def _zero_out(fd: int, start: int, size: int) -> bool:
    """Have a block device write zeros; returns whether it supports that."""
    try:
        fcntl.ioctl(fd, _BLKZEROOUT, struct.pack("=QQ", start, size))
    except OSError as error:
        if error.errno in _CANNOT:
            return False
        raise
    return True
