"""iPXE's settings: what ``${NAME}`` stands for (https://ipxe.org/cfg)."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from urllib.parse import quote

from vmcloner_pxe.errors import shown
from vmcloner_syslinux.config import MAX_LINE, ConfigError

MAX_EXPANSIONS = 1000
_INNERMOST = re.compile(r"\$\{((?:(?!\$\{)[^}])*)\}")
_MAC = re.compile(r"[0-9a-f]{2}(?::[0-9a-f]{2}){5}", re.IGNORECASE)
_ADDRESS = re.compile(r"\d{1,3}(?:\.\d{1,3}){3}")
_CARD = re.compile(r"(?:net0|netX)(?:\.dhcp)?/|dhcp/")
_HEX = re.compile(r"(?:[0-9a-fA-F]{2})*")
_NUMBER = re.compile(r"-?[0-9]{1,10}")
_INTEGER = re.compile(r"u?int(?:8|16|32)")


class Settings:
    """A machine's settings and those that scripts make; what isn't set is empty."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = dict(values)

    def set(self, name: str, value: str) -> None:
        """Give a setting a value, as its type says; an empty one removes it."""
        kind = name.partition(":")[2]
        if kind.startswith("hex"):
            digits = value.replace(":", "").replace("-", "")
            if not _HEX.fullmatch(digits):
                raise ConfigError(f"not hexadecimal: {shown(value)!r}")
            value = bytes.fromhex(digits).decode("latin-1")
        self._values[_plain(name)] = value

    def increase(self, name: str, by: int) -> bool:
        """Add to a number; tell whether it is one."""
        value = self._values.get(_plain(name)) or "0"
        if not _NUMBER.fullmatch(value):
            return False
        self.set(name, str(int(value) + by))
        return True

    def expand(self, word: str) -> str:
        """Return a word with all settings in it replaced, innermost first.

        :raises ConfigError: it becomes too long, or names a format that isn't known.
        """
        for _ in range(MAX_EXPANSIONS):
            word, found = _INNERMOST.subn(lambda match: self._value(match[1]), word, count=1)
            if not found:
                return word
            if len(word) > MAX_LINE:
                break
        raise ConfigError(f"{shown(word)}: settings without end")

    def _value(self, name: str) -> str:
        """Return a setting in the format behind its name."""
        whole = self._values.get(name)
        if whole is not None:
            return whole
        name, _, kind = name.partition(":")
        value = self._values.get(_plain(name), "")
        if not (value and kind):
            return value
        return _formatted(value, kind)


def _plain(name: str) -> str:
    """Return a name without its type and without the card, of which there is one."""
    return _CARD.sub("", name.partition(":")[0], count=1)


def _formatted(value: str, kind: str) -> str:
    if kind in ("string", "ipv4", "uuid") or _INTEGER.fullmatch(kind):
        return value
    if kind == "uristring":
        return quote(value, safe="")
    raw = _raw(value)
    if kind == "base64":
        return base64.b64encode(raw).decode()
    if kind in ("hex", "hexhyp", "hexraw"):
        digits = raw.hex()
        separator = {"hex": ":", "hexhyp": "-", "hexraw": ""}[kind]
        return separator.join(digits[at : at + 2] for at in range(0, len(digits), 2))
    raise ConfigError(f"the format {shown(kind)!r} of iPXE's settings isn't known here")


def _raw(value: str) -> bytes:
    """Return the bytes of a hardware address, an IP address, or text."""
    if _MAC.fullmatch(value):
        return bytes.fromhex(value.replace(":", ""))
    if _ADDRESS.fullmatch(value):
        return bytes(int(part) & 0xFF for part in value.split("."))
    return value.encode()
