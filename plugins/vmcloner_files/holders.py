"""Tell whether a file is in use, and by whom.

A write lease (fcntl(2), ``F_SETLEASE``) is granted only where nobody else has the file open: one
system call, whatever the holder's own locks are. Where leases can't be had, and to name the
holder, ``/proc/PID/fd`` is read (proc(5)), once for all files.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
from collections.abc import Iterator
from pathlib import Path

from vmcloner_core.errors import WrongState
from vmcloner_core.process import open_files, process_shown

FileId = tuple[int, int]


class Holders:
    """The processes that hold files open, as of the first time that they are asked for."""

    def __init__(self) -> None:
        self._found: dict[FileId, int] | None = None

    def in_use(self, fd: int) -> bool:
        """Tell whether another than this one descriptor of a file is open anywhere on the host.

        While ``fd`` stays open, an open() by others waits until it is closed.
        """
        try:
            # The lease's breaking is announced by a signal: one that is ignored by default.
            fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        except OSError as error:
            return error.errno == errno.EAGAIN or self._pid(fd) is not None
        return False

    @contextlib.contextmanager
    def kept_out(self, path: Path) -> Iterator[None]:
        """Hold a file that nobody uses, for what nobody may see half done.

        :raises WrongState: it is in use.
        """
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            if self.in_use(fd):
                user = self.name(fd)
                raise WrongState(
                    f"volume {path} is in use" + (f" by {user}" if user else ""),
                    hint="stop the clone first",
                )
            yield
        finally:
            os.close(fd)

    def name(self, fd: int) -> str:
        """Return who holds the file, ``process 123 (qemu-system-x86)``, "" if it can't be told."""
        pid = self._pid(fd)
        return "" if pid is None else process_shown(pid)

    def _pid(self, fd: int) -> int | None:
        if self._found is None:
            self._found = _open_files()
        status = os.fstat(fd)
        return self._found.get((status.st_dev, status.st_ino))


def _open_files() -> dict[FileId, int]:
    """Return which process has a file open, by the file's identity; this one's are left out."""
    return {(file.st_dev, file.st_ino): pid for pid, file in open_files()}
