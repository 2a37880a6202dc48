"""The operating system's errors, said in vmcloner's."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from vmcloner_core.errors import (
    BackendError,
    HostCommandError,
    InvalidRequest,
    NotEnoughResources,
    VmclonerError,
)

_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}
_FULL = {errno.ENOSPC, errno.EDQUOT}


def translate(error: OSError, what: str) -> VmclonerError:
    """Return the vmcloner error for one of the system's, met while doing something to ``what``."""
    reason = error.strerror or str(error)
    if error.errno in _DENIED:
        return BackendError(f"{what}: {reason}", hint="run it as the pool's owner, or as root")
    if error.errno in _FULL:
        return NotEnoughResources(f"{what}: {reason}", hint="delete clones, or use another pool")
    if error.errno == errno.EFBIG:
        return InvalidRequest(f"{what}: larger than a file can be on this file system")
    return HostCommandError(f"{what}: {reason}")


@contextmanager
def translated(what: object) -> Iterator[None]:
    """Raise an OSError of the block as the vmcloner error that it amounts to."""
    try:
        yield
    except OSError as error:
        raise translate(error, str(what)) from error
