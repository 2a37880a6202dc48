"""PXELINUX's configuration files: what they say a machine boots.

The grammar: https://wiki.syslinux.org/wiki/index.php?title=Config and the PXELINUX page beside
it. Files come from the network: all that is read is bounded, and nothing of it is evaluated.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address

import attrs

from vmcloner_pxe.errors import NetbootError, shown

MAX_CONFIG = 1024**2
"""Bytes of a configuration, with what it includes."""
MAX_LINE = 4096
MAX_DEPTH = 16
MAX_INCLUDES = 64
MAX_INITRDS = 16

IP, BOOTIF, SYSUUID = 1, 2, 4
"""Bits of SYSAPPEND."""

_SILENT = {
    *(f"f{n}" for n in range(13)),
    "allowoptions", "autoboot", "console", "display", "font", "implicit", "include", "kbdmap",
    "localboot", "menu", "nocomplete", "noescape", "nohalt", "onerror", "prompt", "say", "serial",
    "timeout", "totaltimeout", "ui",
}  # fmt: skip
"""Keywords of PXELINUX that decide nothing here, or are dealt with elsewhere."""
_OTHER_KINDS = {"boot", "bss", "pxe", "fdimage", "comboot", "com32", "config"}
_NO_KERNELS = (".c32", ".0", ".bin", ".bs", ".bss", ".img", ".cbt", ".com")
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_MENU = re.compile(r"(?:.*/)?(?:menu|[a-z]*menu\.c32)", re.IGNORECASE)
_CHAIN = re.compile(r"(?:.*/)?chain\.c32", re.IGNORECASE)
_LOCAL_DISK = re.compile(r"hd[0-9]+|mbr(?:[:=].*)?|boot", re.IGNORECASE)


class ConfigError(NetbootError):
    """A configuration can't be read, or names nothing that can be booted here."""


@attrs.define(kw_only=True)
class Entry:
    """A LABEL. ``append`` is None where it has none; ``kind`` is the keyword of its kernel."""

    name: str
    kernel: str = ""
    kind: str = "kernel"
    append: str | None = None
    initrds: tuple[str, ...] = ()
    sysappend: int | None = None
    local: bool = False
    menu_default: bool = False


@attrs.define(kw_only=True)
class Config:
    """A configuration with all that it includes. ``ui`` is the program that would show a menu."""

    default: str | None = None
    ontimeout: str | None = None
    ui: str | None = None
    append: str | None = None
    sysappend: int = 0
    initrds: tuple[str, ...] = ()
    entries: dict[str, Entry] = attrs.field(factory=dict)
    warnings: list[str] = attrs.field(factory=list)


@attrs.frozen(kw_only=True)
class Kernel:
    """A kernel to boot; names are as the configuration has them. ``label`` is for people."""

    label: str
    kernel: str
    arguments: str = ""
    initrds: tuple[str, ...] = ()
    sysappend: int = 0


@attrs.frozen(kw_only=True)
class LocalBoot:
    """The machine is to boot from its own disk."""

    label: str


Choice = Kernel | LocalBoot


def search_names(mac: str, address: IPv4Address, machine: uuid.UUID | None) -> tuple[str, ...]:
    """Return the names under which a machine's configuration may lie, the first that counts."""
    hexadecimal = f"{int(address):08X}"
    names = [str(machine)] if machine is not None else []
    names.append(f"01-{mac.lower().replace(':', '-')}")
    names += [hexadecimal[:length] for length in range(8, 0, -1)]
    return tuple(f"pxelinux.cfg/{name}" for name in [*names, "default"])


def parse(text: bytes, include: Callable[[str], bytes]) -> Config:
    """Return what a configuration says.

    :param include: returns the content of a file that is included by that name.
    :raises ConfigError: names the line and the reason; and whatever ``include`` raises.
    """
    parser = _Parser(include)
    parser.read(text, "configuration", depth=0)
    config = parser.config
    if not (config.entries or config.default or config.ontimeout):
        raise ConfigError("the configuration names nothing to boot")
    return config


class _Parser:
    """Reads one configuration; keeps where it is in it."""

    def __init__(self, include: Callable[[str], bytes]) -> None:
        self.config = Config()
        self._include = include
        self._entry: Entry | None = None
        self._size = 0
        self._includes = 0

    def read(self, text: bytes, name: str, *, depth: int) -> None:
        """Read one file."""
        self._size += len(text)
        if self._size > MAX_CONFIG:
            raise ConfigError(f"{name}: more than {MAX_CONFIG} bytes of configuration")
        for number, line in _lines(text, name):
            keyword, _, value = line.partition(" ")
            keyword, value = keyword.lower(), value.strip()
            place = f"{name}:{number}"
            if keyword == "menu":
                keyword, value = self._menu(value)
            if keyword == "include":
                self._read_included(value, place, depth)
            elif not self._line(keyword, value, place):
                self.config.warnings.append(f"{place}: unknown keyword {shown(keyword)!r}")

    def _read_included(self, value: str, place: str, depth: int) -> None:
        words = value.split()  # a tag may follow the name: a menu's, of no meaning here
        self._includes += 1
        if not words:
            raise ConfigError(f"{place}: INCLUDE without a file's name")
        if depth >= MAX_DEPTH or self._includes > MAX_INCLUDES:
            raise ConfigError(f"{place}: too many INCLUDEs: do they go round in a circle?")
        self.read(self._include(words[0]), shown(words[0]), depth=depth + 1)

    def _menu(self, value: str) -> tuple[str, str]:
        """Return what a MENU line says as a keyword and a value."""
        word, _, rest = value.partition(" ")
        if word.lower() == "include":
            return "include", rest.strip()
        if word.lower() == "default" and self._entry is not None:
            self._entry.menu_default = True
        return "menu", ""

    def _line(self, keyword: str, value: str, place: str) -> bool:
        """Take one line in; tell whether its keyword is known."""
        config, entry = self.config, self._entry
        target: Config | Entry = config if entry is None else entry
        if keyword == "label":
            self._entry = config.entries.setdefault(value, Entry(name=value))
        elif keyword in ("default", "ontimeout", "ui"):
            setattr(config, keyword, value)
        elif keyword == "append":
            target.append = "" if value == "-" else value
        elif keyword == "initrd":
            target.initrds = _split_initrds(value)
        elif keyword in ("ipappend", "sysappend"):
            target.sysappend = self._bits(value, place)
        elif entry is not None and (keyword in ("kernel", "linux") or keyword in _OTHER_KINDS):
            entry.kernel, entry.kind = value, keyword
        elif entry is not None and keyword == "localboot":
            entry.local = True
        else:
            return keyword in _SILENT
        return True

    def _bits(self, value: str, place: str) -> int:
        try:
            bits = int(value[:10], 0)
        except ValueError as error:
            raise ConfigError(f"{place}: not a number: {shown(value)!r}") from error
        if bits & ~(IP | BOOTIF | SYSUUID):
            self.config.warnings.append(f"{place}: only the bits 1, 2 and 4 of SYSAPPEND are known")
        return bits


def _lines(text: bytes, name: str) -> Iterator[tuple[int, str]]:
    """Yield number and content of the lines that say something."""
    if b"\0" in text:
        raise ConfigError(f"{name}: not a text file: it has NUL bytes")
    in_help = False
    for number, raw in enumerate(text.splitlines(), 1):
        if len(raw) > MAX_LINE:
            raise ConfigError(f"{name}:{number}: a line of {len(raw)} bytes, of {MAX_LINE} at most")
        line = raw.decode("utf-8", "replace").replace("\t", " ").strip()
        if CONTROL.search(line):
            raise ConfigError(f"{name}:{number}: a control character")
        lowered = line.lower()
        if in_help:
            in_help = lowered != "endtext"
        elif re.match(r"text +help\b", lowered):
            in_help = True
        elif line and not line.startswith("#"):
            yield number, line


def _split_initrds(value: str) -> tuple[str, ...]:
    return tuple(filter(None, (name.strip() for name in value.split(","))))


# --- what is chosen -----------------------------------------------------------------------------


def choose(config: Config) -> Choice:
    """Return what a machine boots that nobody sits at.

    :raises ConfigError: nothing, or nothing that can be booted here; names the label.
    """
    return _command(config, _unattended(config))


def _unattended(config: Config) -> str:
    """Return the command (a label or a kernel, with arguments) that is run without anybody."""
    default = (config.default or "").strip()
    word = default.partition(" ")[0]
    menu = not default or (word not in config.entries and bool(_MENU.fullmatch(word)))
    if default and not menu:
        return default
    if config.ontimeout:
        return config.ontimeout
    for entry in config.entries.values():
        if entry.menu_default:
            return entry.name
    if config.entries:
        return next(iter(config.entries))
    raise ConfigError(f"DEFAULT {shown(default)}: the configuration has no LABEL to boot")


def _command(config: Config, command: str) -> Choice:
    # A label may have spaces; then there is no room for arguments.
    word, _, arguments = (command, "", "") if command in config.entries else command.partition(" ")
    entry = config.entries.get(word)
    if entry is None:
        entry = Entry(name=word, kernel=word)
        return _kernel(config, entry, arguments.strip())
    if entry.local:
        return LocalBoot(label=entry.name)
    return _kernel(config, entry, arguments.strip())


def _kernel(config: Config, entry: Entry, arguments: str) -> Choice:
    append = config.append if entry.append is None else entry.append
    words = [*(append or "").split(), *arguments.split()]
    kernel, what = entry.kernel, f"label {shown(entry.name)}"
    if not kernel:
        raise ConfigError(f"{what}: no KERNEL, LINUX or LOCALBOOT")
    if _CHAIN.fullmatch(kernel) and words and _LOCAL_DISK.fullmatch(words[0]):
        return LocalBoot(label=entry.name)
    if entry.kind in _OTHER_KINDS or (
        entry.kind != "linux" and kernel.lower().endswith(_NO_KERNELS)
    ):
        raise ConfigError(
            f"{what}: {shown(kernel)} is no Linux kernel",
            hint="only KERNEL or LINUX with a kernel, LOCALBOOT, and chain.c32 hd0 can be booted",
        )
    initrds = entry.initrds or config.initrds
    kept = []
    for word in words:
        if word.startswith("initrd="):
            initrds = _split_initrds(word.removeprefix("initrd="))
        else:
            kept.append(word)
    if len(initrds) > MAX_INITRDS:
        raise ConfigError(f"{what}: {len(initrds)} initrds, of {MAX_INITRDS} at most")
    return Kernel(
        label=entry.name,
        kernel=kernel,
        arguments=" ".join(kept),
        initrds=initrds,
        sysappend=config.sysappend if entry.sysappend is None else entry.sysappend,
    )
