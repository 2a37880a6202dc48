"""Settings of a pool of files: the table ``[hosts.HOST.storage.POOL]``."""

from __future__ import annotations

import pwd
from pathlib import Path
from typing import Any, Literal

import attrs

from vmcloner_core.errors import InvalidRequest


def _check_absolute(
    _instance: object, _attribute: attrs.Attribute[Any], value: Path | None
) -> None:
    if value is not None and not value.is_absolute():
        raise InvalidRequest(f"path of a pool must be absolute, not {str(value)!r}")


def _check_user(_instance: object, _attribute: attrs.Attribute[Any], value: str | None) -> None:
    try:
        if value is not None:
            pwd.getpwnam(value)
    except KeyError as error:
        raise InvalidRequest(f"qemu_user: this host has no user {value!r}") from error


@attrs.frozen(kw_only=True)
class FilesSettings:
    """Where a pool of files is, and how LINKED clones are made in it.

    :param path: the pool's folder; None for ``pool`` in the host's state folder.
    :param clone: ``reflink`` or ``overlay`` requires that method; ``auto`` is reflink where the
        file system supports it, else overlay; ``copy`` allows only full clones.
    :param qemu_user: who runs guests, and so may own disks; needed only if libvirt's ``qemu.conf``
        names a user that is not a system account.
    :param shared: whether several hosts use the folder; without it, those on NFS.
    """

    path: Path | None = attrs.field(default=None, validator=_check_absolute)
    clone: Literal["auto", "reflink", "overlay", "copy"] = "auto"
    shared: bool | None = None
    qemu_user: str | None = attrs.field(default=None, validator=_check_user)
