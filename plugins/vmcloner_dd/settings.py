"""Settings of a pool of copies: the table ``[hosts.HOST.storage.POOL]``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs

from vmcloner_core.errors import InvalidRequest
from vmcloner_core.units import Size
from vmcloner_lvm.settings import check_name


def _check_absolute(
    _instance: object, _attribute: attrs.Attribute[Any], value: Path | None
) -> None:
    if value is not None and not value.is_absolute():
        raise InvalidRequest(f"path of a pool must be absolute, not {str(value)!r}")


def _check_group(_instance: object, _attribute: attrs.Attribute[Any], value: str | None) -> None:
    if value is not None:
        check_name(value, "volume group")


@attrs.frozen(kw_only=True)
class DdSettings:
    """Where copies are stored, and how they are made.

    :param vg: the volume group in which copies are logical volumes.
    :param path: the folder in which copies are files, if there is no ``vg``; None for ``dd`` in the
        host's state folder.
    :param qemu_user: who runs guests, as in pools of ``files``; only with a folder.
    :param bandwidth: default of ``--bwlimit``: bytes per second that copies and imports may write;
        None for no limit.
    :param verify: verify every copy and import, even without ``--verify``.
    """

    vg: str | None = attrs.field(default=None, validator=_check_group)
    path: Path | None = attrs.field(default=None, validator=_check_absolute)
    qemu_user: str | None = None
    bandwidth: Size | None = None
    verify: bool = False

    def __attrs_post_init__(self) -> None:
        if self.vg is not None and self.path is not None:
            raise InvalidRequest("a dd pool has either a vg or a path, not both")
        if self.vg is not None and self.qemu_user is not None:
            raise InvalidRequest("qemu_user: only for a dd pool in a folder")
