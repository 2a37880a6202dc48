"""Share all blocks of one file with another: ``FICLONE``, see ioctl_ficlone(2)."""

from __future__ import annotations

import errno
import fcntl

_FICLONE = 0x40049409  # _IOW(0x94, 9, int), include/uapi/linux/fs.h
_CANNOT = {errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.ENOSYS, errno.EXDEV}


def reflink(source: int, target: int) -> None:
    """Make the open file ``target`` a copy of ``source`` that shares its blocks until written to.

    Both are descriptors in one file system. It costs what the source's extents cost, whatever
    their length.

    :raises OSError: as ioctl_ficlone(2) says.
    """
    fcntl.ioctl(target, _FICLONE, source)


def cannot_reflink(error: OSError) -> bool:
    """Tell whether an error of :func:`reflink` means that the file system can't share blocks."""
    return error.errno in _CANNOT
