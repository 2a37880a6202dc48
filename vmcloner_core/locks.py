"""Locks between runs on one host: one file, one byte of it per name.

These are open file description locks (fcntl(2), ``F_OFD_SETLK``). They work between threads as well
as between processes, the kernel releases them however their holder dies, and no lock files of old
fleets are left behind.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from vmcloner_core.errors import BackendError, Interrupted
from vmcloner_core.trusted_files import check_folder, make_folder

_POLL = 0.1
_FLOCK = "hhqqi"
"""``struct flock``: type, whence, start, length, process."""


@contextlib.contextmanager
def hold(
    folder: Path,
    names: Sequence[str],
    *,
    cancelled: Callable[[], bool] = lambda: False,
    waiting: Callable[[str], None] = lambda _name: None,
) -> Iterator[None]:
    """Hold the locks of ``names``; wait for other holders, without a time limit.

    Locks are always taken in the same order, so holders cannot deadlock.

    :param folder: folder of the lock file; created if it does not exist.
    :param waiting: called once for each name that another run holds.
    :raises Interrupted: ``cancelled`` returned true while waiting.
    :raises BackendError: the folder cannot be written, or its file system has no locks.
    :raises InvalidRequest: another user could have written it, and hold its locks for ever.
    """
    with _opened(folder) as descriptor:
        for name in sorted(set(names)):
            _wait_for(descriptor, folder, name, cancelled, waiting)
        yield


@contextlib.contextmanager
def hold_free(folder: Path, names: Iterable[str]) -> Iterator[frozenset[str]]:
    """Hold those locks of ``names`` that nobody holds, without waiting; yields their names.

    :raises BackendError: as :func:`hold`.
    """
    with _opened(folder) as descriptor:
        yield frozenset(name for name in sorted(set(names)) if _take(descriptor, folder, name))


def is_held(folder: Path, name: str) -> bool:
    """Tell whether somebody holds a lock, this process too. Takes none, and makes no file."""
    try:
        descriptor = os.open(folder / "lock", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        found = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, _byte(name))
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return bool(struct.unpack(_FLOCK, found)[0] != fcntl.F_UNLCK)


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[int]:
    try:
        make_folder(folder)
        check_folder(folder)
        descriptor = os.open(
            folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
        )
    except OSError as error:
        raise BackendError(
            f"can't write {folder}: {error.strerror}", hint="run as root, or set hosts.local.state"
        ) from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _wait_for(
    descriptor: int,
    folder: Path,
    name: str,
    cancelled: Callable[[], bool],
    waiting: Callable[[str], None],
) -> None:
    announced = False
    while not _take(descriptor, folder, name):
        if not announced:
            waiting(name)
            announced = True
        if cancelled():
            raise Interrupted(f"stopped while waiting for another run on {name}")
        time.sleep(_POLL)


def _take(descriptor: int, folder: Path, name: str) -> bool:
    """Take a lock; False if somebody else holds it."""
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _byte(name))
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        raise BackendError(
            f"can't lock {folder / 'lock'}: {error.strerror}",
            hint="set hosts.local.state to a folder on a file system that supports locks",
        ) from error
    return True


def _byte(name: str) -> bytes:
    """Return the lock of a name, as fcntl(2) has it."""
    start = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")
    return struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, start, 1, 0)
