"""Folders for the boot files of clones: one folder per clone, emptied at each start."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

from vmcloner_core.errors import BackendError, InvalidRequest
from vmcloner_core.names import split_clone
from vmcloner_core.os_errors import of_state
from vmcloner_core.trusted_files import make_folder

MODE = 0o711
"""The user that runs guests can open a file by its path, but cannot list the folder."""


def fresh(folder: Path, clone: str) -> Path:
    """Return a clone's folder under ``folder``, newly created and empty.

    For a clone that is not running. Safe for several clones at the same time.

    :raises BackendError: it cannot be created.
    """
    own = _own(folder, clone)
    try:
        make_folder(folder)
        folder.chmod(MODE)  # regardless of the umask
        _remove(own)
        own.mkdir()
        own.chmod(MODE)
    except OSError as error:
        raise BackendError(
            f"{clone}: cannot create the folder for its boot files, {own}: {error.strerror}",
            hint="set hosts.HOST.state to a folder that you can write to, or run it as root (sudo)",
        ) from error
    return own


def clear(folder: Path, clone: str) -> None:
    """Remove a clone's folder and its contents; succeeds if the folder does not exist.

    :raises BackendError: it cannot be removed.
    """
    own = _own(folder, clone)
    try:
        _remove(own)
    except OSError as error:
        raise BackendError(
            f"{clone}: cannot remove {own}: {error.strerror}", hint=of_state(error, own).hint
        ) from error


def _own(folder: Path, clone: str) -> Path:
    if split_clone(clone) is None:  # it becomes part of a path
        raise InvalidRequest(f"not a clone name: {clone!r}")
    return folder / clone


def _remove(own: Path) -> None:
    if own.is_symlink():
        raise OSError(errno.ELOOP, "is a symbolic link, which nothing here makes")
    if own.exists():
        shutil.rmtree(own)
