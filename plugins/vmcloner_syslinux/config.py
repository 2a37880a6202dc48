"""Reads a configuration of PXELINUX or extlinux, with all that it includes, as version 6.04 does.

The rules are those of ldlinux.c32 (com32/elflink/ldlinux/readconfig.c), which differ in places
from the manual (doc/syslinux.cfg.txt, doc/menu.txt). Configurations come from the network or from a
guest's disk: all that is read is bounded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import attrs

from vmcloner_core import errors
from vmcloner_core.errors import HostCommandError

MAX_CONFIG = 1024**2
"""Bytes of a configuration, with what it includes."""
MAX_LINE = 4096
MAX_DEPTH = 16
MAX_FILES = 64
MAX_WARNINGS = 16
MAX_SHOWN = 200

BLANK = " \t\v\f\r"
CONTROL = "".join(map(chr, range(0x21)))
_WORD = re.compile(r"[ \t-\r]*([^\x00-\x20]*)[ \t-\r]*(.*)", re.DOTALL)
_NUMBER = re.compile(r"0[xX]([0-9a-fA-F]{1,16})|0([0-7]{1,20})|([0-9]{1,20})")
_HELP_KEY = re.compile(r"f(?:[0-9]|1[0-2])")

_OTHER_KINDS = ("boot", "bss", "pxe", "fdimage", "comboot", "com32", "config")
KINDS = ("kernel", "linux", "localboot", *_OTHER_KINDS)
"""Keywords that say what a LABEL starts."""
_NO_EFFECT = {
    "allowoptions", "console", "display", "endtext", "font", "kbdmap", "nocomplete", "nohalt",
    "onerror", "path", "pxeretry", "say", "sendcookies", "serial", "timeout",
    "totaltimeout",
}  # fmt: skip
"""Keywords that don't change what is booted while nobody is at the keyboard."""

Read = Callable[[str], bytes | None]
"""Returns the content of a file that a configuration names, None where there is no such file."""


class ConfigError(HostCommandError):
    """A configuration can't be read, or names nothing that can be booted here."""


def shown(text: str) -> str:
    """Return what a configuration says as it may be shown: on one line, and short."""
    return errors.shown(text, MAX_SHOWN)


def split(text: str) -> tuple[str, str]:
    """Return the first word and what follows it.

    Any control character ends a word, but only blanks are passed over before one: so a line that
    begins with another control character says nothing.
    """
    match = _WORD.match(text.rstrip(BLANK))
    return (match[1], match[2]) if match else ("", "")


@attrs.define(eq=False)
class Files:
    """The files that one boot may read, counted.

    :param own: the configuration itself, which a menu calls ``~``.
    :param folder: what names are relative to.
    """

    read: Read
    own: bytes = b""
    folder: str = ""
    size: int = 0
    count: int = 0

    def text(self, name: str, place: str) -> bytes | None:
        """Return a file's content, None where there is no such file.

        :raises ConfigError: too many files, or bytes; and whatever ``read`` raises.
        """
        self.count += 1
        if self.count > MAX_FILES:
            raise ConfigError(f"{place}: too many files: do they include each other in a circle?")
        return self.counted(self.read(self.located(name)), place)

    def counted(self, text: bytes | None, place: str) -> bytes | None:
        """Count what was read."""
        self.size += len(text or b"")
        if self.size > MAX_CONFIG:
            raise ConfigError(f"{place}: more than {MAX_CONFIG} bytes of configuration")
        return text

    def located(self, name: str) -> str:
        """Return a file's name with the folder before it, where it is relative to that."""
        return name if name.startswith("/") or ":" in name else self.folder + name


@attrs.define(kw_only=True, eq=False)
class Entry:
    """A line of a menu.

    :param label: None for what can't be started by name. :param kernel: with arguments, if it has
        any. :param kind: one of :data:`KINDS`. :param append: None where neither the label nor
        the file has an APPEND. :param leads: what choosing it does, where that isn't a boot.
    """

    label: str | None
    kernel: str = ""
    kind: str = "kernel"
    append: str | None = None
    initrd: str | None = None
    sysappend: int = 0
    leads: str = ""
    hidden: bool = False

    @property
    def selectable(self) -> bool:
        """Whether a menu's bar can stand on it."""
        return self.leads != "nowhere"

    def __str__(self) -> str:
        return "the menu's default" if self.label is None else f"label {shown(self.label)}"


@attrs.define(kw_only=True, eq=False)
class Menu:
    """A menu: the main one, or one that MENU BEGIN or MENU INCLUDE opened.

    :param at: where it stands in its parent. :param default: the entry that MENU DEFAULT marks.
    """

    parent: Menu | None = None
    at: int = 0
    entries: list[Entry] = attrs.field(factory=list)
    default: int = 0


@attrs.define(kw_only=True, eq=False)
class Config:
    """A configuration with all that it includes.

    :param labels: what can be started by name: the first of each name.
    :param ui: the program that shows a menu. :param noescape: nobody is asked, whatever ``prompt``
        says. :param start: the menu that is shown first.
    :param append, sysappend: for labels that follow.
    """

    files: Files
    default: str | None = None
    ui: str | None = None
    ontimeout: str | None = None
    prompt: bool = False
    noescape: bool = False
    implicit: bool = True
    append: str | None = None
    sysappend: int = 0
    root: Menu = attrs.field(factory=Menu)
    start: Menu = attrs.field(default=attrs.Factory(lambda self: self.root, takes_self=True))
    labels: dict[str, Entry] = attrs.field(factory=dict)
    warnings: list[str] = attrs.field(factory=list)


def parse(text: bytes, read: Read) -> Config:
    """Return what a configuration says.

    :raises ConfigError: names the line and the reason; and whatever ``read`` raises.
    """
    files = Files(read, own=text)
    files.counted(text, "configuration")
    return read_into(Config(files=files), [("configuration", text)])


def read_into(config: Config, texts: list[tuple[str, bytes]]) -> Config:
    """Read files, each with its name, as if they were one."""
    reader = _Reader(config)
    for name, text in texts:
        reader.read(text, name, depth=0)
    reader.close()
    return config


@attrs.define(kw_only=True, eq=False)
class _Label:
    """A LABEL whose lines are being read."""

    entry: Entry
    append: str | None = None
    disabled: bool = False
    default: bool = False


class _Reader:
    """Reads one configuration; keeps where it is in it.

    ``_menu`` is where the file that is being read puts its labels, ``_current`` what MENU END
    leaves: they differ behind an INCLUDE of a file that leaves a menu open.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._menu = self._current = config.root
        self._label: _Label | None = None
        self._place = ""
        self._depth = 0

    def read(self, text: bytes, name: str, *, depth: int) -> None:
        """Read one file."""
        if b"\0" in text:
            raise ConfigError(f"{name}: not a text file: it has NUL bytes")
        for number, line in _lines(text, name):
            self._place, self._depth = f"{name}:{number}", depth
            keyword, value = split(line)
            self._line(keyword.lower(), value)

    def close(self) -> None:
        """End with the last label."""
        self._menu = self._current
        self._record()

    def _line(self, keyword: str, value: str) -> None:
        if keyword == "menu":
            word, value = split(value)
            if handle := _MENU_LINES.get(word.lower()):
                handle(self, value)
        elif handle := _LINES.get(keyword):
            handle(self, value)
        elif keyword in KINDS:
            if self._label is not None:
                self._label.entry.kind, self._label.entry.kernel = keyword, value
        elif not (keyword in _NO_EFFECT or _HELP_KEY.fullmatch(keyword) or keyword[0] == "#"):
            self._warn(f"unknown keyword {shown(keyword)!r}")

    def _warn(self, message: str) -> None:
        if len(self._config.warnings) < MAX_WARNINGS:
            self._config.warnings.append(f"{self._place}: {message}")

    # --- labels and menus -------------------------------------------------------------------------

    def _record(self) -> None:
        """Put the open label into its menu; no label is open then."""
        label, self._label = self._label, None
        if label is None:
            return
        entry, config, menu = label.entry, self._config, self._menu
        entry.append = config.append if label.append is None else label.append
        if label.disabled:
            entry.leads, entry.label = "nowhere", None
        if not entry.hidden:
            menu.entries.append(entry)
            if label.default and not entry.leads:
                menu.default = len(menu.entries) - 1
        if entry.label is not None:
            config.labels.setdefault(entry.label, entry)

    def _open_label(self, value: str) -> None:
        self._record()
        name, _rest = split(value)
        entry = Entry(label=name, kernel=name, sysappend=self._config.sysappend)
        self._label = _Label(entry=entry)

    def _separator(self, _value: str = "") -> None:
        self._record()
        self._menu.entries.append(Entry(label=None, leads="nowhere"))

    def _begin(self, _value: str) -> None:
        self._record()
        parent = self._current
        parent.entries.append(Entry(label=None, leads="to a submenu"))
        self._menu = self._current = Menu(parent=parent, at=len(parent.entries) - 1)

    def _end(self, _value: str = "") -> None:
        self._record()
        self._menu = self._current = self._current.parent or self._current

    def _menu_default(self, _value: str) -> None:
        menu = self._menu
        if self._label is not None:
            self._label.default = True
        elif menu.parent is not None:
            menu.parent.default = menu.at

    def _hide(self, _value: str) -> None:
        if self._label is not None:
            self._label.entry.hidden = True

    def _disable(self, _value: str) -> None:
        if self._label is not None:
            self._label.disabled = True

    def _leave(self, where: str) -> None:
        if self._label is not None:
            self._label.entry.leads = where

    def _exit(self, _value: str) -> None:
        if self._menu.parent is not None:
            self._leave("out of its menu")

    def _start(self, _value: str) -> None:
        self._config.start = self._menu

    # --- files ------------------------------------------------------------------------------------

    def _include(self, value: str) -> None:
        name, tag = split(value)
        place, depth = self._place, self._depth
        if depth >= MAX_DEPTH:
            raise ConfigError(f"{place}: too many INCLUDEs: do they go round in a circle?")
        text = self._config.files.text(name, place) if name else None
        if text is None:
            return
        menu = self._menu
        if tag:
            self._begin(tag)
        self._menu = self._current
        self.read(text, shown(name), depth=depth + 1)
        if tag:
            self._end()
        self._menu = menu

    # --- what labels and the whole file have ------------------------------------------------------

    def _append(self, value: str) -> None:
        if self._label is not None:
            self._label.append = value
        else:
            self._config.append = value

    def _initrd(self, value: str) -> None:
        if self._label is not None:
            self._label.entry.initrd = value

    def _sysappend(self, value: str) -> None:
        bits = number(value)
        if self._label is not None:
            self._label.entry.sysappend = bits
        else:
            self._config.sysappend = bits


def _setting(name: str) -> Callable[[_Reader, str], None]:
    def put(reader: _Reader, value: str) -> None:
        setattr(reader._config, name, value)

    return put


def _flag(name: str) -> Callable[[_Reader, str], None]:
    def put(reader: _Reader, value: str) -> None:
        setattr(reader._config, name, number(value) != 0)

    return put


_LINES: dict[str, Callable[[_Reader, str], None]] = {
    "append": _Reader._append,
    "default": _setting("default"),
    "implicit": _flag("implicit"),
    "include": _Reader._include,
    "initrd": _Reader._initrd,
    "ipappend": _Reader._sysappend,
    "label": _Reader._open_label,
    "noescape": _flag("noescape"),
    "ontimeout": _setting("ontimeout"),
    "prompt": _flag("prompt"),
    "sysappend": _Reader._sysappend,
    "ui": _setting("ui"),
}
_MENU_LINES: dict[str, Callable[[_Reader, str], None]] = {
    "begin": _Reader._begin,
    "default": _Reader._menu_default,
    "disable": _Reader._disable,
    "disabled": _Reader._disable,
    "end": _Reader._end,
    "exit": _Reader._exit,
    "goto": lambda reader, _value: reader._leave("to another menu"),
    "hide": _Reader._hide,
    "include": _Reader._include,
    "quit": lambda reader, _value: reader._leave("to the prompt"),
    "separator": _Reader._separator,
    "start": _Reader._start,
}


def _lines(text: bytes, name: str) -> Iterator[tuple[int, str]]:
    """Yield number and content of the lines that say something."""
    in_text = False
    for at, raw in enumerate(text.split(b"\n"), 1):
        if len(raw) > MAX_LINE:
            raise ConfigError(f"{name}:{at}: a line of {len(raw)} bytes, of {MAX_LINE} at most")
        line = raw.partition(b"\r")[0].decode("utf-8", "surrogateescape").strip(BLANK)
        keyword = split(line)[0].lower()
        if in_text:
            in_text = keyword != "endtext"
        elif keyword == "text":
            in_text = True
        elif keyword:
            yield at, line


def number(value: str) -> int:
    """Return the number that a value begins with, as strtoul does; 0 where there is none."""
    match = _NUMBER.match(value)
    if match is None:
        return 0
    if match[1]:
        return int(match[1], 16)
    return int(match[2], 8) if match[2] else int(match[3])
