"""What clones were started from: a folder of a clone's own, from one start to the next."""

from __future__ import annotations

import shutil
from pathlib import Path

from vmcloner_core.errors import BackendError, InvalidRequest
from vmcloner_core.names import split_clone

MODE = 0o711
"""The user that runs guests gets through to a file that it knows; nobody lists what is there."""


def fresh(folder: Path, clone: str) -> Path:
    """Return a clone's folder under ``folder``, made anew and empty.

    For a clone that doesn't run. Safe for several clones at once.

    :raises BackendError: it can't be made.
    """
    own = _own(folder, clone)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(MODE)  # whatever the umask says
        _remove(own)
        own.mkdir()
        own.chmod(MODE)
    except OSError as error:
        raise BackendError(
            f"{clone}: can't make the folder for what it boots, {own}: {error.strerror}",
            hint="set hosts.HOST.state to a folder that you may write to, or run it as root (sudo)",
        ) from error
    return own


def clear(folder: Path, clone: str) -> None:
    """Remove a clone's folder with all that is in it; one that isn't there is a success.

    :raises BackendError: it can't be removed.
    """
    own = _own(folder, clone)
    try:
        _remove(own)
    except OSError as error:
        raise BackendError(
            f"{clone}: can't remove {own}: {error.strerror}", hint="run it as root (sudo)"
        ) from error


def _own(folder: Path, clone: str) -> Path:
    if split_clone(clone) is None:  # it becomes part of a path
        raise InvalidRequest(f"not a clone's name: {clone!r}")
    return folder / clone


def _remove(own: Path) -> None:
    if own.is_symlink() or own.exists():
        shutil.rmtree(own)
