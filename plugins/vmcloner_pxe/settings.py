"""iPXE's settings: what ``${NAME}`` stands for (https://ipxe.org/cfg).

A setting is bytes with a type, by which it is shown; ``${NAME:TYPE}`` shows them by another one.
"""

from __future__ import annotations

import base64
import binascii
import re
import uuid
from collections.abc import Callable, Mapping
from ipaddress import IPv4Address
from urllib.parse import quote, unquote_to_bytes

from vmcloner_pxe.errors import shown
from vmcloner_syslinux.config import MAX_LINE, ConfigError

MAX_EXPANSIONS = 1000
_INNERMOST = re.compile(r"\$\{((?:(?!\$\{)[^}])*)\}")
_CARD = re.compile(r"(?:net0|netX)(?:\.dhcp)?/")
_OPTIONS = {
    "1": "netmask", "3": "gateway", "6": "dns", "12": "hostname", "15": "domain",
    "54": "dhcp-server", "67": "filename",
}  # fmt: skip
"""Settings that go by the number of their DHCP option too."""
_KNOWN = {
    "ip": "ipv4", "netmask": "ipv4", "gateway": "ipv4", "dns": "ipv4", "next-server": "ipv4",
    "dhcp-server": "ipv4", "mac": "hex", "uuid": "uuid",
}  # fmt: skip
"""Types of settings that aren't strings."""
_NUMBER = re.compile(r"([+-]?)(?:0[xX]([0-9a-fA-F]{1,8})|(0[0-7]{0,11})|([1-9][0-9]{0,9}))")
_DOTTED = re.compile(r"\d{1,3}(?:\.\d{1,3}){3}")


class Settings:
    """A machine's settings and those that scripts make; what isn't set is empty.

    A script's own settings hide those of the card, which go by a name with the card before it too.
    """

    def __init__(self, values: Mapping[str, str]) -> None:
        self._card: dict[str, tuple[str, bytes]] = {}
        self._own: dict[str, tuple[str, bytes]] = {}
        for name, value in values.items():
            self.set(f"net0/{name}", value)

    def set(self, name: str, value: str) -> bool:
        """Give a setting a value, as its type says; an empty one removes it.

        :return: False where the value isn't one of that type. :raises ConfigError: no such type.
        """
        name, _, kind = name.partition(":")
        plain, on_card = _plain(name)
        settings = self._card if on_card else self._own
        kind = kind or _KNOWN.get(plain, "string")
        raw = _type(kind)[0](value) if value else b""
        if raw is None:
            return False
        settings.pop(plain, None)
        if raw:
            settings[plain] = kind, raw
        return True

    def increase(self, name: str, by: int) -> bool:
        """Add to a number, which is 0 where it isn't set; tell whether it is one."""
        name, _, kind = name.partition(":")
        found = self._found(name)
        kind = kind or (found[0] if found else "int32")
        if "int" not in kind:
            return False
        value = _number(found[1]) if found else 0
        return value is not None and self.set(f"{name}:{kind}", str(value + by))

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
        name, _, kind = name.partition(":")
        found = self._found(name)
        if found is None:
            return ""
        return _type(kind or found[0])[1](found[1])

    def _found(self, name: str) -> tuple[str, bytes] | None:
        plain, on_card = _plain(name)
        return (None if on_card else self._own.get(plain)) or self._card.get(plain)


def _plain(name: str) -> tuple[str, bool]:
    """Return a name without the card, and whether it had one."""
    plain = _CARD.sub("", name, count=1)
    return _OPTIONS.get(plain, plain), plain != name


# --- types: how a text becomes bytes, None where it can't, and how bytes are shown ----------------

_Type = tuple[Callable[[str], bytes | None], Callable[[bytes], str]]


def _type(kind: str) -> _Type:
    if kind not in _TYPES:
        raise ConfigError(f"the format {shown(kind)!r} of iPXE's settings isn't known here")
    return _TYPES[kind]


def _text(raw: bytes) -> str:
    return raw.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _number(raw: bytes, *, signed: bool = True) -> int | None:
    """Return what bytes are as a number, None where it is too large for iPXE."""
    return int.from_bytes(raw, "big", signed=signed) if len(raw) <= 4 else None


def _integer(size: int, show: str) -> _Type:
    def parse(text: str) -> bytes | None:
        match = _NUMBER.fullmatch(text)
        if match is None:
            return None
        sign, hexadecimal, octal, decimal = match.groups()
        value = int(hexadecimal, 16) if hexadecimal else int(octal, 8) if octal else int(decimal)
        value = -value if sign == "-" else value
        return (value & (1 << 8 * size) - 1).to_bytes(size, "big")

    def shown_number(raw: bytes) -> str:
        value = _number(raw, signed="x" not in show)
        return "" if value is None else show.format(value)

    return parse, shown_number


def _hexadecimal(separator: str) -> _Type:
    pair = "[0-9a-fA-F]{2}"
    valid = re.compile(f"(?:{pair}(?:{separator}{pair})*)?")

    def parse(text: str) -> bytes | None:
        return bytes.fromhex(text.replace(separator, "")) if valid.fullmatch(text) else None

    return parse, lambda raw: separator.join(f"{byte:02x}" for byte in raw)


def _address(text: str) -> bytes | None:
    if not _DOTTED.fullmatch(text) or max(map(int, text.split("."))) > 255:
        return None
    return bytes(map(int, text.split(".")))


def _from_base64(text: str) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None


def _uuid(text: str) -> bytes | None:
    try:
        return uuid.UUID(text).bytes
    except ValueError:
        return None


_TYPES: dict[str, _Type] = {
    "string": (_encoded, _text),
    "uristring": (unquote_to_bytes, lambda raw: quote(raw, safe="")),
    "ipv4": (_address, lambda raw: str(IPv4Address(raw[:4])) if len(raw) >= 4 else ""),
    "uuid": (_uuid, lambda raw: str(uuid.UUID(bytes=raw)) if len(raw) == 16 else ""),
    "base64": (_from_base64, lambda raw: base64.b64encode(raw).decode()),
    "hex": _hexadecimal(":"),
    "hexhyp": _hexadecimal("-"),
    "hexraw": _hexadecimal(""),
    **{f"int{8 * size}": _integer(size, "{}") for size in (1, 2, 4)},
    **{f"uint{8 * size}": _integer(size, "{:#x}") for size in (1, 2, 4)},
}
