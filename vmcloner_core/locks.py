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
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from vmcloner_core.errors import BackendError, Interrupted

_POLL = 0.1


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
    :raises BackendError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(
            folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
        )
    except OSError as error:
        raise BackendError(
            f"can't write {folder}: {error.strerror}", hint="run as root, or set hosts.local.state"
        ) from error
    try:
        for name in sorted(set(names)):
            _take(descriptor, name, cancelled, waiting)
        yield
    finally:
        os.close(descriptor)


def _take(
    descriptor: int, name: str, cancelled: Callable[[], bool], waiting: Callable[[str], None]
) -> None:
    start = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")
    wanted = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, start, 1, 0)
    announced = False
    while True:
        try:
            fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, wanted)
            return
        except (BlockingIOError, PermissionError):
            if not announced:
                waiting(name)
                announced = True
            if cancelled():
                raise Interrupted(f"stopped while waiting for another run on {name}") from None
            time.sleep(_POLL)
