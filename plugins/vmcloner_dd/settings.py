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
    """Where copies are, and how they are made.

    :param vg: the volume group whose logical volumes the copies are.
    :param path: without one, the pool's folder; None for ``dd`` in the host's state folder.
    :param bandwidth: bytes a second that a copy or an import may write, where a command says
        nothing; None for as many as can be.
    :param verify: read every copy back, whether or not a command asks for it.
    """

    vg: str | None = attrs.field(default=None, validator=_check_group)
    path: Path | None = attrs.field(default=None, validator=_check_absolute)
    bandwidth: Size | None = None
    verify: bool = False

    def __attrs_post_init__(self) -> None:
        if self.vg is not None and self.path is not None:
            raise InvalidRequest("a pool of copies is in a vg or in a path, not in both")
