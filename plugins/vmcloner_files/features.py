"""Find out what the file system of a folder supports, by trying it on temporary files."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import attrs

from vmcloner_core.model import Capacity
from vmcloner_core.units import MAX_SIZE
from vmcloner_files import drafts
from vmcloner_files.labelling import ATTRIBUTE
from vmcloner_files.reflink import cannot_reflink, reflink

_NO_TMPFILE = {errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT}  # open(2), under O_TMPFILE


@attrs.frozen(kw_only=True)
class Features:
    """What a file system supports: files without a name (O_TMPFILE), and reflinks."""

    unnamed: bool
    reflink: bool


def examine(folder: Path) -> Features:
    """Return what the file system of an existing folder supports. Leaves nothing there.

    :raises OSError: the folder is not writable.
    """
    unnamed = _can_unnamed(folder)
    draft = drafts.unnamed if unnamed else drafts.named
    return Features(unnamed=unnamed, reflink=_can_reflink(folder, draft))


def has_attributes(folder: Path) -> bool:
    """Tell whether files in an existing folder can have extended attributes of users."""
    try:
        os.getxattr(folder, ATTRIBUTE)
    except OSError as error:
        return error.errno != errno.EOPNOTSUPP
    return True


def space(path: Path) -> Capacity:
    """Return the space of the file system that holds, or will hold, ``path``.

    A file system that reports no size (FUSE's default, ramfs) is taken as unlimited.
    """
    status = os.statvfs(next(existing(path)))
    if status.f_blocks == 0:
        return Capacity(total=MAX_SIZE, free=MAX_SIZE)
    return Capacity(total=status.f_blocks * status.f_frsize, free=status.f_bavail * status.f_frsize)


def _can_unnamed(folder: Path) -> bool:
    try:
        with drafts.unnamed(folder):
            return True
    except OSError as error:
        if error.errno in _NO_TMPFILE and folder.is_dir():
            return False
        raise


def _can_reflink(
    folder: Path, draft: Callable[[Path], AbstractContextManager[drafts.Draft]]
) -> bool:
    with draft(folder) as source, draft(folder) as target:
        os.pwrite(source.fd, bytes(range(256)) * 256, 0)
        try:
            reflink(source.fd, target.fd)
        except OSError as error:
            if cannot_reflink(error):
                return False
            raise
        return True


def existing(path: Path) -> Iterator[Path]:
    """Yield those of ``path`` and its parents that exist, nearest first."""
    # Not Path.exists(): it raises if a parent must not be entered.
    return (place for place in (path, *path.parents) if os.path.exists(place))  # noqa: PTH110
