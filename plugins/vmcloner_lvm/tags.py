"""Labels as LVM tags.

A tag may hold ``A-Z a-z 0-9 _ + . - / = ! : & #`` and has at most 1,024 characters (lvm(8)). There
are two of ours: ``vmcloner``, to select by (``lvs @vmcloner``), and one with all labels::

    vmcloner/version=1/fleet=web/index=7/template=tiny/owner=Zo&C3&AB/…

Characters that are not allowed in a value are ``&`` and two hexadecimal digits per UTF-8 byte.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from vmcloner_core.errors import InvalidRequest

MARK = "vmcloner"
DRAFT = "vmcloner-draft"
"""Tag of a clone's volume that is unfinished: it is removed if its process has died."""
MAX_TAG = 1024
_OTHER = re.compile(r"[^A-Za-z0-9_+.:-]")
_CODE = re.compile(rb"&([0-9A-F]{2})")


def encode(values: Mapping[str, str]) -> tuple[str, str]:
    """Return labels as tags.

    :raises InvalidRequest: they are too long for a tag.
    """
    tag = "/".join([MARK, *(f"{key}={_spell(value)}" for key, value in values.items())])
    if len(tag) > MAX_TAG:
        raise InvalidRequest(
            f"labels too long for an LVM tag: {len(tag)} of {MAX_TAG} characters",
            hint="shorten the owner's name",
        )
    return MARK, tag


def decode(tags: Iterable[str]) -> dict[str, str] | None:
    """Return the labels in a volume's tags, None if it has none of ours."""
    tag = next((tag for tag in tags if tag.startswith(f"{MARK}/")), None)
    if tag is None:
        return None
    values = {}
    for part in tag.split("/")[1:]:
        key, separator, value = part.partition("=")
        if not separator:
            return None
        try:
            values[key] = _read(value)
        except UnicodeError:
            return None
    return values


def _spell(value: str) -> str:
    return _OTHER.sub(_coded, value)


def _coded(match: re.Match[str]) -> str:
    return "".join(f"&{byte:02X}" for byte in match[0].encode())


def _read(text: str) -> str:
    if "&" not in text:
        return text
    return _CODE.sub(lambda match: bytes([int(match[1], 16)]), text.encode()).decode()
