"""What a configuration boots while nobody is at the keyboard.

What waits for a key is answered at once: by what its time-out would do, else by what Enter would.
"""

from __future__ import annotations

import re

import attrs

from vmcloner_syslinux.config import (
    CONTROL,
    MAX_DEPTH,
    Config,
    ConfigError,
    Entry,
    read_into,
    shown,
    split,
)

MAX_INITRDS = 16

_EXTENSIONS = {
    ".c32": "com32", ".img": "fdimage", ".bss": "bss", ".bin": "boot", ".bs": "boot", ".0": "pxe",
    ".com": "comboot", ".cbt": "comboot",
}  # fmt: skip
_MENUS = ("menu", "vesamenu")
_LOCAL_DISK = re.compile(r"hd[0-9]+|mbr(?:[:=].*)?|boot", re.IGNORECASE)
_INITRD = re.compile(r"(?:^|(?<=\s))initrd=(\S*)\s*", re.ASCII)
_HINT = "only KERNEL or LINUX with a kernel, LOCALBOOT, menus, and chain.c32 hd0 can be booted"


@attrs.frozen(kw_only=True)
class Kernel:
    """A kernel to boot; names are as the configuration has them. ``label`` is for people.

    :param archived: for each initrd the path that it is to have in an archive, "" for none; empty
        where no initrd has one. Only iPXE's scripts ask for that.
    """

    label: str
    kernel: str
    arguments: str = ""
    initrds: tuple[str, ...] = ()
    sysappend: int = 0
    archived: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class LocalBoot:
    """The machine is to boot from its own disk."""

    label: str


Choice = Kernel | LocalBoot


def choose(config: Config) -> Choice:
    """Return what a machine boots that nobody sits at.

    :raises ConfigError: nothing, or nothing that can be booted here; names the label.
    """
    return _start(config, 0)


def _start(config: Config, depth: int) -> Choice:
    asks = not config.noescape and (config.prompt or not config.default)
    if config.ui is None and config.ontimeout and asks:
        return _run(config, config.ontimeout, depth)
    command = config.ui or config.default
    if not command:
        raise ConfigError(
            "the configuration names nothing to boot", hint="it needs DEFAULT, UI or ONTIMEOUT"
        )
    return _run(config, command, depth)


def _run(config: Config, command: str, depth: int) -> Choice:
    """Return what a command starts: a label or a file, with arguments."""
    word, arguments = split(command)
    arguments = arguments.lstrip(CONTROL)
    if word in config.labels:
        return _entry(config, config.labels[word], arguments, depth)
    if not config.implicit:
        raise ConfigError(f"{shown(word)}: no such label, and IMPLICIT 0 allows nothing else")
    kind = "com32" if word in _MENUS else "kernel"
    entry = Entry(label=word, kernel=word, kind=kind, sysappend=config.sysappend)
    return _entry(config, entry, arguments, depth)


def _entry(config: Config, entry: Entry, arguments: str, depth: int) -> Choice:
    if depth > MAX_DEPTH:
        raise ConfigError(f"{entry}: menus that start each other: do they go round in a circle?")
    if entry.leads:
        raise ConfigError(
            f"{entry}: leads {entry.leads}, and boots nothing",
            hint="mark another label with MENU DEFAULT, or name one by ONTIMEOUT",
        )
    append = "" if entry.append is None or entry.append == "-" else entry.append
    initrd = f"initrd={entry.initrd}" if entry.initrd is not None else ""
    words = " ".join(filter(None, (entry.kernel, append, initrd, arguments)))
    name, rest = split(words)
    rest = rest.lstrip(CONTROL)
    kind = entry.kind
    if kind == "kernel":
        kind = next((k for end, k in _EXTENSIONS.items() if name.lower().endswith(end)), "linux")
    if kind == "linux":
        return _kernel(config, entry, name, rest)
    if kind == "localboot":
        return LocalBoot(label=entry.label or "")
    if kind == "config":
        return _configuration(config, entry, name, rest, depth)
    if kind == "com32":
        return _module(config, entry, name, rest, depth)
    raise ConfigError(f"{entry}: {shown(name)} is no Linux kernel", hint=_HINT)


def _kernel(config: Config, entry: Entry, name: str, arguments: str) -> Kernel:
    first = _INITRD.search(arguments)  # the manual says the last: PXELINUX 6.04 loads the first
    names = first[1].split(",") if first else []
    if not all(names):
        raise ConfigError(f"{entry}: an initrd without a name")
    initrds = tuple(map(config.files.located, names))
    if len(initrds) > MAX_INITRDS:
        raise ConfigError(f"{entry}: {len(initrds)} initrds, of {MAX_INITRDS} at most")
    kept = _INITRD.sub("", arguments).replace("\t", " ").strip(" ")
    if not name or not (name + kept).isprintable():
        raise ConfigError(f"{entry}: a control character in its command line")
    return Kernel(
        label=entry.label or "",
        kernel=config.files.located(name),
        arguments=kept,
        initrds=initrds,
        sysappend=entry.sysappend,
    )


def _module(config: Config, entry: Entry, name: str, arguments: str, depth: int) -> Choice:
    """Return what a COM32 module boots, where it is one that is known here."""
    program = name.rpartition("/")[2].lower().removesuffix(".c32")
    word, rest = split(arguments)
    if program in _MENUS:
        return _menu(config, arguments, depth)
    if program == "chain" and _LOCAL_DISK.fullmatch(word):
        return LocalBoot(label=entry.label or "")
    if program == "linux" and word and not word.startswith("-"):
        return _kernel(config, entry, word, rest)
    raise ConfigError(f"{entry}: {shown(name)} is no Linux kernel", hint=_HINT)


# --- menus and other configurations ---------------------------------------------------------------


def _menu(config: Config, arguments: str, depth: int) -> Choice:
    """Return what a menu boots when its time is over."""
    if arguments:
        config = _other_menu(config, arguments)
    if config.ontimeout:
        return _run(config, config.ontimeout, depth + 1)
    return _entry(config, _preselected(config), "", depth + 1)


def _preselected(config: Config) -> Entry:
    """Return the entry that a menu's bar stands on: it passes over what can't be chosen."""
    named = config.labels.get(split(config.default or "")[0])
    if named is not None and config.ui is not None and not named.hidden:
        return named
    menu = config.start
    for entry in menu.entries[menu.default :]:
        if entry.selectable:
            return entry
    raise ConfigError("the menu has no LABEL to boot")


def _other_menu(config: Config, arguments: str) -> Config:
    """Read the files that a menu was given instead of the configuration's own labels."""
    texts = []
    for name in arguments.split():
        text = config.files.own if name == "~" else config.files.text(name, "menu")
        if text is not None:
            texts.append((shown(name), text))
    new = Config(files=config.files, warnings=config.warnings)
    return read_into(new, texts)


def _configuration(config: Config, entry: Entry, name: str, folder: str, depth: int) -> Choice:
    """Start again with another configuration, in another folder if one is named."""
    files = config.files
    text = files.text(name, str(entry))
    if text is None:
        raise ConfigError(f"{entry}: no configuration {shown(name)}")
    if folder:
        files.folder = files.located(folder if folder.endswith("/") else f"{folder}/")
    new = Config(files=files, warnings=config.warnings)
    return _start(read_into(new, [(shown(name), text)]), depth + 1)
