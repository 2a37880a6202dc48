"""Names of our logical volumes, as LVM and the device-mapper allow them."""

from __future__ import annotations

import re

from vmcloner_core.errors import InvalidRequest
from vmcloner_lvm.devmapper import MAX_NAME, device_name

# lvm2's lib/metadata/metadata.c, apply_lvname_restrictions(): names that LVM reserves.
_RESERVED_START = re.compile(r"pvmove|snapshot")
_RESERVED_PART = re.compile(
    r"_(?:cdata|cmeta|corig|cpool|cvol|wcorig|iorig|mimage|mlog|rimage|rmeta|tdata|tmeta"
    r"|vdata|vorigin|imeta|pmspare)"
)


def origin_name(template: str) -> str:
    """Return the name of a template's volume; names of clones contain no dot.

    :raises InvalidRequest: LVM reserves such names.
    """
    return checked(f"template.{template}", f"template {template}")


def draft_name(template: str) -> str:
    """Return the name of the volume that a template is imported into."""
    return f"import.{template}"


def checked(name: str, what: str, group: str = "") -> str:
    """Return a name if LVM allows it.

    :param what: the object that is named, for the message. :param group: its volume group.
    :raises InvalidRequest: LVM does not allow it.
    """
    if _RESERVED_START.match(name) or _RESERVED_PART.search(name):
        raise InvalidRequest(f"{what}: LVM reserves names like {name}", hint="choose another name")
    if len(device_name(group, name)) > MAX_NAME:
        raise InvalidRequest(
            f"{what}: too long for the device-mapper, where each hyphen counts twice: {name}",
            hint="choose a shorter name, or one with fewer hyphens",
        )
    return name
