"""The folders of the user who runs this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import platformdirs

from vmcloner_core.errors import InvalidRequest

_NAME = "vmcloner"


def home() -> Path:
    """Return the user's home folder.

    :raises InvalidRequest: there is none: no ``HOME``, and the user isn't among the system's.
    """
    return _found(Path.home)


def config() -> Path:
    """Return our folder for what the user has set up; raises as :func:`home`."""
    return _found(lambda: platformdirs.user_config_path(_NAME))


def cache() -> Path:
    """Return our folder for what can be made again; raises as :func:`home`."""
    return _found(lambda: platformdirs.user_cache_path(_NAME))


def state() -> Path:
    """Return our folder for all else; raises as :func:`home`."""
    return _found(lambda: platformdirs.user_state_path(_NAME))


def public_keys() -> tuple[Path, ...]:
    """Return the files with the user's own public keys for ssh; raises as :func:`home`."""
    return tuple(sorted((home() / ".ssh").glob("id_*.pub")))


def expanded(path: str | Path) -> Path:
    """Return a path with the home folder that it begins with.

    :raises InvalidRequest: that is of a user who isn't there, or has none.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise InvalidRequest(f"{path}: {error}") from error


def _found(folder: Callable[[], Path]) -> Path:
    try:
        path = folder()
    except RuntimeError:
        path = Path("~")
    if path.parts[:1] == ("~",):  # what older versions of platformdirs return
        raise InvalidRequest("this user has no home folder", hint="set HOME")
    return path
