"""Hold LVM's own lock of a volume group: its commands wait for us, and we for them.

Source: lvm2's ``lib/misc/lvm-flock.c``: an flock(2) on ``V_GROUP`` in the locking folder. Who gives
the lock back may unlink the file, so who gets it looks whether the file is still that one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from vmcloner_core.errors import BackendError, DeadlineExceeded

LOCKS = Path("/run/lock/vmcloner")
"""Where imports are locked: one place on the host, whatever state folder a controller has."""
TIMEOUT = 600.0
"""Seconds; a batch of ten thousand takes a minute or two, and others may be before us."""
_POLL = 0.02


@contextlib.contextmanager
def group_lock(
    folder: Path, group: str, timeout: float = TIMEOUT, *, shared: bool = False
) -> Iterator[None]:
    """Hold the lock of a volume group.

    :param folder: LVM's setting ``global/locking_dir``.
    :param shared: only for reading, beside others that read.
    :raises DeadlineExceeded: somebody else holds it, and goes on holding it.
    :raises BackendError: the folder can't be written.
    """
    path = folder / f"V_{group}"
    deadline = time.monotonic() + timeout
    while (fd := _take(path, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)) is None:
        if time.monotonic() > deadline:
            raise DeadlineExceeded(
                f"volume group {group} is locked by another process",
                hint=f"see who holds it: fuser {path}",
            )
        time.sleep(_POLL)
    try:
        yield
    finally:
        os.close(fd)


def _take(path: Path, how: int) -> int | None:
    """Return the locked file, None where another has it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise BackendError(f"{path}: {error.strerror}", hint="run as root") from error
    try:
        fcntl.flock(fd, how | fcntl.LOCK_NB)
        ours = os.fstat(fd)
        there = path.stat()
        if (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino):
            return fd
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    return None
