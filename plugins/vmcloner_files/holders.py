"""Tell whether a file is in use, and by which process.

A write lease (fcntl(2), ``F_SETLEASE``) is granted only if the file is not open elsewhere: one
system call, whatever locks the other process has. Where leases are not supported or not granted,
and to name the process, ``/proc/PID/fd`` is read (proc(5)), once for all files. Only root sees
these of other users, and not in a container. So the locks count too that QEMU has on its images:
``/proc/locks`` shows them to all.
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
    """The processes that have files open, read once when they are first needed.

    :param leases: whether the file system grants leases for that reason only; NFS does not.
    """

    def __init__(self, *, leases: bool = True) -> None:
        self._leases = leases
        self._found: dict[FileId, int] | None = None

    def in_use(self, fd: int) -> bool:
        """Tell whether the file of ``fd`` is open anywhere else on the host.

        While ``fd`` stays open, an open() by others waits until it is closed.
        """
        if not self._leases:
            return self._pid(fd) is not None or _is_locked(fd)
        try:
            # A lease is broken by a signal: choose one that is ignored by default.
            fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        except OSError as error:
            in_use = error.errno == errno.EAGAIN or self._pid(fd) is not None
            return in_use or _is_locked(fd)
        return False

    @contextlib.contextmanager
    def kept_out(self, path: Path) -> Iterator[None]:
        """Keep other processes from opening a file during the block, where there are leases.

        :raises WrongState: it is in use.
        """
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except PermissionError:  # QEMU's user has it, and did not give it back
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                if _is_locked(fd):
                    raise _in_use(path, "") from None
            finally:
                os.close(fd)
            yield
            return
        with contextlib.ExitStack() as stack:
            stack.callback(os.close, fd)
            if self.in_use(fd):
                raise _in_use(path, self.name(fd))
            if not self._leases:  # NFS would keep what is removed while it is open, as .nfs…
                stack.close()
            yield

    def name(self, fd: int) -> str:
        """Return its user, like ``process 123 (qemu-system-x86)``; "" if that is not known."""
        pid = self._pid(fd)
        return "" if pid is None else process_shown(pid)

    def _pid(self, fd: int) -> int | None:
        if self._found is None:
            self._found = _open_files()
        status = os.fstat(fd)
        return self._found.get((status.st_dev, status.st_ino))


def _in_use(path: Path, user: str) -> WrongState:
    by = f" by {user}" if user else ""
    return WrongState(f"volume {path} is in use{by}", hint="stop the clone first")


def _is_locked(fd: int) -> bool:
    """Tell whether any process has a lock on a file (proc_locks(5))."""
    device, inode = _device(fd), os.fstat(fd).st_ino
    with open("/proc/locks", encoding="ascii", errors="replace") as lines:  # noqa: PTH123
        for line in lines:
            for word in line.split():
                if word.count(":") == 2:
                    major, minor, number = word.split(":")
                    if (int(major, 16), int(minor, 16), int(number)) == (*device, inode):
                        return True
    return False


def _device(fd: int) -> tuple[int, int]:
    """Return the device number of a file's file system, as the kernel counts locks by it.

    On btrfs, stat(2) tells another one. On NFS, the server's locks on the files that it serves are
    those of another file system, with the same inode numbers.
    """
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as lines:  # noqa: PTH123
        mount = next(line.split()[1] for line in lines if line.startswith("mnt_id:"))
    with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as lines:  # noqa: PTH123
        for line in lines:
            words = line.split()
            if words[0] == mount:
                major, minor = words[2].split(":")
                return int(major), int(minor)
    status = os.fstat(fd)  # its mount is in no folder that we see
    return os.major(status.st_dev), os.minor(status.st_dev)


def _open_files() -> dict[FileId, int]:
    """Return which process has a file open, by the file's identity; leaves out this process."""
    return {(file.st_dev, file.st_ino): pid for pid, file in open_files()}
