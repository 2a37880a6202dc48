"""Settings of a thin pool: the table ``[hosts.HOST.storage.POOL]``."""

from __future__ import annotations

import re
from typing import Any, Literal

import attrs

from vmcloner_core.errors import InvalidRequest

_NAME = re.compile(r"[A-Za-z0-9_+.][A-Za-z0-9_+.-]*")


def check_name(value: str, what: str) -> str:
    """Return a name if LVM allows it for a volume group or a logical volume.

    :raises InvalidRequest: LVM does not allow it.
    """
    if not _NAME.fullmatch(value) or value in (".", "..") or len(value) > 127:
        raise InvalidRequest(f"not a valid name of a {what}: {value!r}", hint="lvm(8), VALID NAMES")
    return value


def _check(_instance: object, attribute: attrs.Attribute[Any], value: str) -> None:
    check_name(value, {"vg": "volume group", "thinpool": "thin pool"}[attribute.name])


@attrs.frozen(kw_only=True)
class LvmThinSettings:
    """The thin pool, and how clones are made in it.

    :param vg: the volume group. :param thinpool: the pool's name in the group.
    :param strategy: ``transaction`` edits the group's metadata for a whole batch; ``lvcreate`` runs
        that command for each clone; ``auto`` is ``transaction`` where that is known to be safe.
    """

    vg: str = attrs.field(default="VG01", validator=_check)
    thinpool: str = attrs.field(default="thinpool", validator=_check)
    strategy: Literal["auto", "transaction", "lvcreate"] = "auto"
