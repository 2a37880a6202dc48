"""Convert sizes and times between text and the model's units (integer bytes, seconds)."""

from __future__ import annotations

import re
from typing import Annotated

from vmcloner_core.errors import InvalidRequest

Size = Annotated[int, "bytes"]
"""Type of a field whose value in TOML files is parsed by :func:`parse_size`."""
Duration = Annotated[int, "seconds"]
"""Type of a field whose value in TOML files is parsed by :func:`parse_duration`."""

_FACTORS = {
    "": 1,
    "B": 1,
    "K": 1024,
    "M": 1024**2,
    "G": 1024**3,
    "T": 1024**4,
    "KIB": 1024,
    "MIB": 1024**2,
    "GIB": 1024**3,
    "TIB": 1024**4,
    "KB": 1000,
    "MB": 1000**2,
    "GB": 1000**3,
    "TB": 1000**4,
}
_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,6})?)\s*([A-Za-z]{0,3})")
MAX_SIZE = 2**60
"""Bytes; a larger size must be a mistake."""


def parse_size(value: str | int) -> int:
    """Return the bytes of ``128MiB``, ``4G`` (as in LVM: binary), ``10GB`` (decimal) or a number.

    :raises InvalidRequest: not a size, not positive, or larger than :data:`MAX_SIZE`.
    """
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise InvalidRequest(f"not a size: {value!r}", hint="write it like 512MiB or 10GiB")
    match = _SIZE.fullmatch(str(value).strip())
    factor = _FACTORS.get(match[2].upper()) if match else None
    if match is None or factor is None:
        raise InvalidRequest(f"not a size: {value!r}", hint="write it like 512MiB or 10GiB")
    size = int(float(match[1]) * factor) if "." in match[1] else int(match[1]) * factor
    if not 0 < size <= MAX_SIZE:
        raise InvalidRequest(f"size out of range: {value!r}", hint="1 byte to 1 EiB")
    return size


_SECONDS = {"s": 1, "min": 60, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_DURATION = re.compile(r"([0-9]{1,12})\s*([a-z]{0,3})")
_DURATION_HINT = "write it like 30min, 4h or 2d"


def parse_duration(value: str | int) -> int:
    """Return the seconds of ``30s``, ``15min`` (or ``15m``), ``4h``, ``2d``, ``1w`` or a number.

    :raises InvalidRequest: not a duration.
    """
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise InvalidRequest(f"not a duration: {value!r}", hint=_DURATION_HINT)
    match = _DURATION.fullmatch(str(value).strip())
    factor = _SECONDS.get(match[2] or "s") if match else None
    if match is None or factor is None:
        raise InvalidRequest(f"not a duration: {value!r}", hint=_DURATION_HINT)
    return int(match[1]) * factor


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: ``1 clone``, ``3 clones``, ``2 copies``."""
    if number == 1:
        return f"1 {noun}"
    ies = noun.endswith("y") and noun[-2:-1] not in "aeiou"
    return f"{number} {noun[:-1]}ies" if ies else f"{number} {noun}s"


def format_size(size: int) -> str:
    """Return ``size`` (bytes) for display: a binary unit, at most one decimal."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:.0f} {unit}" if value == int(value) else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def format_age(seconds: float) -> str:
    """Return an age for display, in its largest unit: ``45 s``, ``12 min``, ``5 h``, ``3 d``."""
    for limit, unit, size in ((60, "s", 1), (3600, "min", 60), (86400, "h", 3600)):
        if seconds < limit:
            return f"{max(0, int(seconds)) // size} {unit}"
    return f"{int(seconds) // 86400} d"


def format_seconds(seconds: float, *, digits: int = 1) -> str:
    """Return a duration for display: ``740 ms``, ``3.2 s``, ``2 min 5 s``.

    :param digits: decimals of seconds.
    """
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 100:
        return f"{seconds:.{digits}f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"
