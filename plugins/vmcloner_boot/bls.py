"""Entries of the Boot Loader Specification: as GRUB's ``blscfg`` reads them, and as systemd-boot.

https://uapi-group.org/specifications/specs/boot_loader_specification/; blscfg is Fedora's.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable

import attrs

from vmcloner_boot.choice import MAX_INITRDS, Choice, Found, located
from vmcloner_boot.disk_image import MIB, Unreadable
from vmcloner_boot.trees import Tree, pair

MAX_FILES = 1000
"""Entries of the Boot Loader Specification in one folder."""
MAX_FILE = 65536
"""Bytes of one."""
MAX_TOGETHER = MIB
"""Bytes of all in one folder."""
MAX_PATTERN = 255
"""Characters of the pattern for the default entry's name, as long as a name may be."""
MAX_SCRIPT = 65536
"""Characters of an entry whose variables are filled in."""
_KEYS = {"title", "version", "linux", "initrd", "options", "sort-key", "machine-id",
         "architecture", "efi", "uki", "uki-url"}  # fmt: skip
BLS_FOLDERS = ("/boot/loader/entries", "/loader/entries")
_TRIES = re.compile(r"\+(\d+)(-\d+)?$")


@attrs.frozen
class BlsEntry:
    """An entry: a file of ``folder`` on a file system; the keys that count, with all values.

    :param name: the file's name without ``.conf``; the number of tries may be part of it.
    """

    tree: Tree
    folder: str
    name: str
    keys: dict[str, list[str]]

    @property
    def identifier(self) -> str:
        """The name without the number of tries."""
        return _TRIES.sub("", self.name)

    @property
    def title(self) -> str:
        """What menus show."""
        return self.first("title") or self.first("linux") or self.name

    @property
    def exhausted(self) -> bool:
        """Whether it was tried in vain as often as it may be."""
        match = _TRIES.search(self.name)
        return match is not None and not match[1].strip("0")

    def first(self, key: str) -> str:
        """Return a key's first value, "" where it has none."""
        return self.keys.get(key, [""])[0]

    def path(self, name: str) -> str:
        """Return the path of a file that it names.

        It is relative to the file system. Where ``/boot`` is none of its own, some leave it out.
        """
        path = "/" + name.lstrip("/")
        own = self.folder.removesuffix("/loader/entries") + path
        there = self.tree.file(path) is None and self.tree.file(own) is not None
        return own if there else path

    def script(self, variable: Callable[[str], str]) -> str:
        """Return the script that blscfg makes of it.

        :param variable: the value of a variable of GRUB's.
        """
        device = f"(hd0,{self.tree.table}{self.tree.partition})" if self.tree.partition else "(hd0)"

        def placed(value: str) -> str:
            """Put the device before a value; what follows a blank in it is another argument."""
            name, *more = value.split(None, 1) or [""]
            return " ".join([device + self.path(name) if "$" not in name else device + name, *more])

        options = filled(self.first("options") or variable("default_kernelopts"), variable)
        images = self.keys.get("initrd", [])
        early = variable("early_initrd").split()
        beside = (images[0].split() or [""])[0] if images else self.first("linux")
        folder = beside.rpartition("/")[0]
        initrds = [placed(f"{folder}/{name}") for name in early] + list(map(placed, images))
        linux = f"linux {placed(self.first('linux'))} {options}\n"
        script = linux + (f"initrd {' '.join(initrds)}\n" if initrds else "")
        if len(script) > MAX_SCRIPT:
            raise Unreadable(f"the entry {self.name!r} has more than {MAX_SCRIPT} characters")
        return script


def filled(text: str, variable: Callable[[str], str]) -> str:
    """Return a text with the values of its variables, as blscfg fills them in.

    :raises Unreadable: it gets too long.
    """
    left = MAX_SCRIPT

    def value(match: re.Match[str]) -> str:
        nonlocal left
        found = variable(match[1] or match[2])
        left -= len(found)
        if left < 0:
            raise Unreadable(f"variables fill in more than {MAX_SCRIPT} characters")
        return found

    return re.sub(r"\$(?:\{(\w+)\}|(\w+))", value, text, flags=re.ASCII)


def bls_entries(tree: Tree, folder: str) -> list[BlsEntry]:
    """Return a folder's entries in the order that GRUB has them in, the newest first.

    :raises Unreadable: they are too large.
    """
    left = MAX_TOGETHER
    names = [n for n in tree.names(folder) if n.endswith(".conf") and not n.startswith(".")]
    entries = []
    for name in names[:MAX_FILES]:
        text = tree.text(f"{folder}/{name}", MAX_FILE)
        if text is None:
            continue
        left -= len(text)
        if left < 0:
            raise Unreadable(f"{folder!r} on {tree.place} holds more than {MAX_TOGETHER} bytes")
        keys: dict[str, list[str]] = {}
        for line in text.splitlines():
            key, value = pair(line)
            if key in _KEYS and value:
                keys.setdefault(key, []).append(value)
        entries.append(BlsEntry(tree, folder, name.removesuffix(".conf"), keys))
    return sorted(entries, key=lambda entry: _package(entry.identifier), reverse=True)


def _package(identifier: str) -> tuple[tuple[tuple[int, int, str], ...], ...]:
    """Return a key that sorts identifiers as packages: by name, version and release."""
    *name, version, release = ["", "", *identifier.rsplit("-", 2)][-3:]
    if not name[0]:
        name, version, release = [version or release], release if version else "", ""
    return _version(name[0]), _version(version), _version(release)


def _version(text: str) -> tuple[tuple[int, int, str], ...]:
    """Return a key that sorts versions: numbers by value, ``~`` before the end of the text."""
    found = []
    for number, letters, tilde in re.findall(r"([0-9]+)|([A-Za-z]+)|(~)", text):
        if tilde:
            found.append((-1, 0, ""))
        elif number:
            digits = number.lstrip("0")
            found.append((2, len(digits), digits))
        else:
            found.append((1, 0, letters))
    return (*found, (0, 0, ""))


# --- systemd-boot -------------------------------------------------------------------------------


def bls_menu(tree: Tree) -> Choice | None:
    """Return what systemd-boot chooses among a file system's entries, None where there are none.

    :raises Unreadable: it isn't a kernel, or a file isn't there.
    """
    for folder in BLS_FOLDERS:
        entries = [entry for entry in bls_entries(tree, folder) if _is_ours(entry)]
        if not entries:
            continue
        source = f"{folder} on {tree.place}"
        try:
            return _choice(_chosen(entries, tree, folder), source)
        except Unreadable as error:
            raise Unreadable(f"{source}: {error.message}", hint=error.hint) from error
    return None


def _is_ours(entry: BlsEntry) -> bool:
    starts = any(key in entry.keys for key in ("linux", "efi", "uki", "uki-url"))
    return starts and entry.first("architecture").lower() in ("", "x64")


def _chosen(entries: list[BlsEntry], tree: Tree, folder: str) -> BlsEntry:
    ordered = sorted(entries, key=lambda entry: _version(entry.first("version")), reverse=True)
    if any("sort-key" in entry.keys for entry in entries):
        ordered.sort(key=lambda entry: entry.first("machine-id"))
        ordered.sort(key=lambda entry: ("sort-key" not in entry.keys, entry.first("sort-key")))
    elif not all("version" in entry.keys for entry in entries):
        ordered = entries
    ordered.sort(key=lambda entry: entry.exhausted)
    above = folder.removesuffix("/entries")
    images = [n for n in tree.names("/EFI/Linux") if n.lower().endswith(".efi")]
    lines = map(pair, (tree.text(f"{above}/loader.conf") or "").splitlines())
    default = next(iter([value for key, value in lines if key == "default"][-1:]), "")
    if default == "@saved":
        raise Unreadable("its default is the entry booted last, which only the firmware knows")
    if len(default) > MAX_PATTERN:
        raise Unreadable(f"its default has more than {MAX_PATTERN} characters")
    pattern = default.removesuffix(".conf")
    matching = [e for e in ordered if pattern and fnmatch.fnmatchcase(e.identifier, pattern)]
    if matching:
        return matching[0]
    if images:
        raise Unreadable(f"/EFI/Linux/{images[0]} is a unified kernel image, which isn't read here")
    return ordered[0]


def _choice(entry: BlsEntry, source: str) -> Choice:
    if "linux" not in entry.keys:
        raise Unreadable(f"its entry {entry.title!r} names no kernel")

    def file(name: str) -> Found:
        return located(entry.tree, entry.path(name))

    initrds = [name for value in entry.keys.get("initrd", []) for name in value.split()]
    if len(initrds) > MAX_INITRDS:
        raise Unreadable(f"it names more than {MAX_INITRDS} initrds")
    options = " ".join(entry.keys.get("options", []))
    if "$" in options or any("$" in name for name in initrds):
        raise Unreadable(f"its entry {entry.title!r} has variables of GRUB, which has no menu")
    return Choice(
        kernel=file(entry.first("linux")),
        initrds=tuple(map(file, initrds)),
        cmdline=" ".join(options.split()),
        source=f"entry {entry.title!r} of {source}",
    )
