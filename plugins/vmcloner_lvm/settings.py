"""Settings of a thin pool: the table ``[hosts.HOST.storage.POOL]``."""

from __future__ import annotations

import re
from typing import Any, Literal

import attrs

from vmcloner_core.errors import InvalidRequest

_NAME = re.compile(r"[A-Za-z0-9_+.][A-Za-z0-9_+.-]*")


def check_name(value: str, what: str) -> str:
    """Return a name that LVM takes for a volume group or a logical volume.

    :raises InvalidRequest: it doesn't.
    """
    if not _NAME.fullmatch(value) or value in (".", "..") or len(value) > 127:
        raise InvalidRequest(f"not a name for a {what}: {value!r}", hint="lvm(8), VALID NAMES")
    return value


def _check(_instance: object, attribute: attrs.Attribute[Any], value: str) -> None:
    check_name(value, {"vg": "volume group", "thinpool": "thin pool"}[attribute.name])


@attrs.frozen(kw_only=True)
class LvmThinSettings:
    """Which thin pool, and how clones are made in it.

    :param vg: the volume group. :param thinpool: the pool's name in it.
    :param strategy: ``transaction`` edits the group's metadata, a whole batch at once;
        ``lvcreate`` runs that for each; ``auto`` is the first wherever it is provably safe.
    """

    vg: str = attrs.field(default="VG01", validator=_check)
    thinpool: str = attrs.field(default="thinpool", validator=_check)
    strategy: Literal["auto", "transaction", "lvcreate"] = "auto"
