"""Translate the operating system's errors about storage into vmcloner's."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from stat import S_ISDIR

from vmcloner_core.errors import (
    BackendError,
    HostCommandError,
    InvalidRequest,
    NotEnoughResources,
    VmclonerError,
)

_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}
_FULL = {errno.ENOSPC, errno.EDQUOT}
_NOT_TO_ROOT = "root may not do that there: export it with no_root_squash, if it is on NFS"


def of_state(error: OSError, what: object) -> VmclonerError:
    """Return the vmcloner error for an OSError of a file of vmcloner's own."""
    message = f"{what}: {error.strerror or error}"
    if error.errno == errno.EROFS:
        hint = "remount it writable; dmesg may say why it isn't"
    elif error.errno in _DENIED:
        return BackendError(message, hint="run it as root (sudo), or as the owner of that file")
    elif error.errno in _FULL:
        hint = "free space there, then run the same command again"
    else:
        hint = "see dmesg, then run the same command again"
    return HostCommandError(message, hint=hint)


def translate(error: OSError, what: object) -> VmclonerError:
    """Return the vmcloner error for an OSError that an operation on ``what`` raised."""
    reason = error.strerror or str(error)
    if error.errno == errno.EROFS:
        return BackendError(f"{what}: {reason}", hint="remount it writable")
    if error.errno in _DENIED:
        own = "run as the pool's owner or as root"
        return BackendError(f"{what}: {reason}", hint=own if os.geteuid() else _NOT_TO_ROOT)
    if error.errno in _FULL:
        return NotEnoughResources(f"{what}: {reason}", hint="delete clones or use another pool")
    if error.errno == errno.EFBIG:
        return InvalidRequest(f"{what}: too large for this file system")
    if error.errno == errno.ESTALE:
        hint = "run the same command again; if that fails too, mount it again"
        return HostCommandError(f"{what}: {reason}", hint=hint)
    return HostCommandError(f"{what}: {reason}")


def allocated(path: Path) -> int:
    """Return the bytes that a file or a folder takes on the disk; 0 for what is gone meanwhile."""
    size = 0
    with suppress(OSError):
        status = path.lstat()
        size = status.st_blocks * 512
        if S_ISDIR(status.st_mode):
            size += sum(allocated(path / name) for name in os.listdir(path))  # noqa: PTH208
    return size


@contextmanager
def translated(what: object) -> Iterator[None]:
    """Translate an OSError that the block raises."""
    try:
        yield
    except OSError as error:
        raise translate(error, what) from error
