"""Share all blocks of a file with another: ``FICLONE``, ioctl_ficlone(2)."""

from __future__ import annotations

import errno
import fcntl

_FICLONE = 0x40049409  # _IOW(0x94, 9, int), include/uapi/linux/fs.h
_CANNOT = {errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.ENOSYS, errno.EXDEV}


def reflink(source: int, target: int) -> None:
    """Make ``target`` a copy of ``source`` that shares its blocks until they are written to.

    Both are open files in one file system. The time depends on the number of the source's extents,
    not on their length.

    :raises OSError: see ioctl_ficlone(2).
    """
    fcntl.ioctl(target, _FICLONE, source)


def cannot_reflink(error: OSError) -> bool:
    """Tell whether an error of :func:`reflink` means that the file system does not support it."""
    return error.errno in _CANNOT
