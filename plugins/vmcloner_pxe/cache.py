"""A cache of fetched files, shared by all clones and safe for many at once.

A folder of files whose names are hashes of their keys. One who wants a file that isn't there
fetches it under a lock, which others of the same key wait for; it appears under its name whole.
Nobody is handed a name: a reader gets an open file, so it may be removed at any moment.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import attrs

from vmcloner_pxe.errors import NetbootError, reason

MAX_AGE = 600.0
"""Seconds. A server that tells no version could have another file of the same size by then."""
MAX_SIZE = 4 * 1024**3
_POLL = 0.02


@attrs.frozen(kw_only=True)
class Cache:
    """A cache in a folder that is this process's user's own. Thread-safe.

    :param max_size: bytes, above which the files that were fetched first are removed.
    :param max_age: seconds.
    """

    folder: Path
    max_size: int = MAX_SIZE
    max_age: float = MAX_AGE

    def get(
        self, key: tuple[str, ...], fetch: Callable[[BinaryIO], object], *, deadline: float
    ) -> BinaryIO:
        """Return an open file with what ``key`` stands for; ``fetch`` writes it if need be.

        :raises NetbootError: the cache can't be written, or another process holds its lock for
            too long; and whatever ``fetch`` raises. Nothing stays in the cache then.
        """
        name = hashlib.sha256("\0".join(key).encode(errors="surrogatepass")).hexdigest()
        path = self.folder / name
        try:
            if found := self._fresh(path):
                return found
            with self._lock(name, deadline):
                return self._fresh(path) or self._fetched(path, fetch)
        except OSError as error:
            raise NetbootError(f"cache {self.folder}: {reason(error)}") from error

    def _fresh(self, path: Path) -> BinaryIO | None:
        try:
            stream = path.open("rb")
        except FileNotFoundError:
            return None
        if abs(time.time() - os.fstat(stream.fileno()).st_mtime) < self.max_age:
            return stream
        stream.close()
        return None

    def _fetched(self, path: Path, fetch: Callable[[BinaryIO], object]) -> BinaryIO:
        with os.fdopen(self._draft(), "wb", buffering=1024**2) as stream:
            fetch(stream)
            stream.flush()
            source = f"/proc/self/fd/{stream.fileno()}"
            with contextlib.suppress(FileNotFoundError):
                path.unlink()  # it was too old; who reads it goes on reading
            # A directory descriptor makes os.link() follow the link that /proc has for the draft.
            os.link(source, path, dst_dir_fd=stream.fileno(), follow_symlinks=True)
            result = open(source, "rb")  # noqa: PTH123, SIM115 - the caller's to close
        self._evict()
        return result

    def _draft(self) -> int:
        """Return an open file without a name: if its writer is killed, the kernel forgets it."""
        try:
            return os.open(self.folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as error:
            if error.errno in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
                raise NetbootError(
                    f"cache {self.folder}: its file system has no files without names",
                    hint="--cache on another one, or --no-cache",
                ) from error
            raise

    def _evict(self) -> None:
        """Remove the oldest files while there is too much."""
        files = []
        with os.scandir(self.folder) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    status = entry.stat(follow_symlinks=False)
                    files.append((status.st_mtime, status.st_size, entry.path, entry.name))
        total = sum(size for _time, size, _path, _name in files)
        for _modified, size, path, name in sorted(files):
            if name.startswith("lock-") or total <= self.max_size:
                continue
            with contextlib.suppress(FileNotFoundError):
                Path(path).unlink()
            total -= size

    @contextlib.contextmanager
    def _lock(self, name: str, deadline: float) -> Iterator[None]:
        # A fixed set of lock files, never removed: a lock on a removed file protects nothing.
        fd = os.open(self.folder / f"lock-{name[:2]}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            while True:
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise NetbootError(
                            "timeout: another download of the same file goes on for too long"
                        ) from None
                    time.sleep(_POLL)
            yield
        finally:
            os.close(fd)
