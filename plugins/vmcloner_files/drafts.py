"""Write files under no name first, so that they appear complete and labelled.

A draft has no name (``O_TMPFILE``, open(2)): if its process dies, the kernel removes it. On
file systems without O_TMPFILE it is a file in ``.tmp``, locked while its process lives.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import attrs

MODE = 0o600


@attrs.frozen
class Draft:
    """A file, open for reading and writing (``fd``), that has no final name yet."""

    fd: int
    name: Path | None

    @property
    def path(self) -> Path:
        """A path by which other processes of this user can open it while it is open here."""
        return self.name or Path(f"/proc/{os.getpid()}/fd/{self.fd}")

    def publish(self, path: Path) -> None:
        """Give it its name.

        :raises FileExistsError: the name is taken.
        """
        if self.name is not None:
            os.fsync(self.fd)  # NFS says only then that the server is full
            try:
                os.link(self.name, path)
            except FileExistsError:  # on NFS also if the answer was lost and the call repeated
                if not os.path.samestat(os.fstat(self.fd), path.lstat()):
                    raise
            return
        # The directory descriptor is not used with an absolute path, but makes os.link() call
        # linkat(2) with AT_SYMLINK_FOLLOW. Without that, the link in /proc would be linked.
        os.link(f"/proc/self/fd/{self.fd}", path, dst_dir_fd=self.fd, follow_symlinks=True)

    def replace(self, path: Path, folder: Path) -> None:
        """Replace an existing file by it, in one step.

        :param folder: in the same file system, for a temporary name.
        """
        name = self.name
        if name is None:
            name = folder / f"{uuid.uuid4().hex}.tmp"
            fcntl.flock(self.fd, fcntl.LOCK_EX)  # sweep() skips locked files
            self.publish(name)
        else:
            os.fsync(self.fd)  # as in publish()
        name.replace(path)


@contextlib.contextmanager
def unnamed(folder: Path) -> Iterator[Draft]:
    """Yield a draft without a name, in the file system of ``folder``; closes it."""
    fd = os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, MODE)
    try:
        yield Draft(fd, None)
    finally:
        os.close(fd)


@contextlib.contextmanager
def named(folder: Path) -> Iterator[Draft]:
    """Yield a draft that has a name in ``folder``; closes it and removes that name."""
    path = folder / f"{uuid.uuid4().hex}.tmp"
    fd = _open_locked(path)
    try:
        yield Draft(fd, path)
    finally:
        # In this order: NFS keeps a file that is removed while it is open, under another name.
        try:
            os.close(fd)
        finally:
            path.unlink(missing_ok=True)


def _open_locked(path: Path) -> int:
    while True:
        fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, MODE)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            if _has_name(fd):
                return fd
        except BaseException:
            os.close(fd)
            path.unlink(missing_ok=True)
            raise
        os.close(fd)  # sweep() removed it before it was locked


def _has_name(fd: int) -> bool:
    try:
        return os.fstat(fd).st_nlink > 0
    except OSError as error:
        if error.errno == errno.ESTALE:  # removed by another host, on NFS
            return False
        raise


def sweep(folder: Path) -> None:
    """Remove named drafts of processes that died."""
    for path in left(folder):
        with contextlib.suppress(FileNotFoundError):
            path.unlink()


def left(folder: Path) -> Iterator[Path]:
    """Yield the named drafts of processes that died; each is locked until the next."""
    with os.scandir(folder) as entries:
        paths = [Path(entry.path) for entry in entries if entry.name.endswith(".tmp")]
    for path in paths:
        # For writing: NFS has no other exclusive locks.
        with contextlib.suppress(FileNotFoundError, BlockingIOError), path.open("r+b") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield path
