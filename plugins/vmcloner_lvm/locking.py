"""Hold LVM's own lock of a volume group: its commands wait for us, and we for them.

Source: lvm2's ``lib/misc/lvm-flock.c``: an flock(2) on ``V_GROUP`` in the locking folder. The
previous holder may have unlinked the file, so after locking it is checked that the file still has
its name.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from vmcloner_core.cancelling import pause
from vmcloner_core.errors import BackendError, DeadlineExceeded

LOCKS = Path("/run/lock/vmcloner")
"""Where imports are locked: one folder per host, for controllers of any state folder."""
TIMEOUT = 600.0
"""Seconds; a batch of 10,000 takes a minute or two, and several may be waiting."""
_POLL = 0.02


@contextlib.contextmanager
def group_lock(
    folder: Path, group: str, timeout: float = TIMEOUT, *, shared: bool = False
) -> Iterator[None]:
    """Hold the lock of a volume group.

    :param folder: LVM's setting ``global/locking_dir``.
    :param shared: only for reading; other readers may hold it as well.
    :raises DeadlineExceeded: another process held it until the deadline.
    :raises BackendError: the folder is not writable.
    """
    path = folder / f"V_{group}"
    deadline = time.monotonic() + timeout
    while (fd := _take(path, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)) is None:
        if time.monotonic() > deadline:
            raise DeadlineExceeded(
                f"volume group {group} is locked by another process",
                hint=f"find that process: fuser {path}",
            )
        pause(_POLL)
    try:
        yield
    finally:
        os.close(fd)


def _take(path: Path, how: int) -> int | None:
    """Return the locked file, None if another process holds the lock."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(path, flags, 0o600)
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
    except OSError as error:
        os.close(fd)
        raise BackendError(
            f"can't lock {path}: {error.strerror}",
            hint="set global/locking_dir in lvm.conf to a local file system",
        ) from error
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    return None
