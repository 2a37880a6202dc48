"""A cache of fetched files, shared by all clones and safe for many at once.

A folder of files whose names are hashes of their keys. One who wants a file that isn't there
fetches it under a lock, which others of the same key wait for; it appears under its name whole.
Nobody is handed a name: a reader gets an open file, so it may be removed at any moment.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import tempfile
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
        # A draft has no name until it is whole; one that is left behind is swept as too old.
        fd, name = tempfile.mkstemp(prefix=".draft-", dir=self.folder)
        draft = Path(name)
        try:
            with os.fdopen(fd, "wb", buffering=1024**2) as stream:
                fetch(stream)
            result = draft.open("rb")
            draft.replace(path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                draft.unlink()
            raise
        self._evict()
        return result

    def _evict(self) -> None:
        """Remove drafts of the dead, and the oldest files while there is too much."""
        files = []
        with os.scandir(self.folder) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    status = entry.stat(follow_symlinks=False)
                    files.append((status.st_mtime, status.st_size, entry.path, entry.name))
        total = sum(size for _time, size, _path, _name in files)
        for modified, size, path, name in sorted(files):
            dead = name.startswith(".draft-") and time.time() - modified > self.max_age
            if name.startswith("lock-") or not (dead or total > self.max_size):
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
