"""Entries of the Boot Loader Specification, as entries of a menu of GRUB's.

https://uapi-group.org/specifications/specs/boot_loader_specification/; ``blscfg`` as Fedora has it.
"""

from __future__ import annotations

import re

import attrs

from vmcloner_boot.disk_image import MIB, Unreadable
from vmcloner_boot.grubscript import Command, Entry, Word
from vmcloner_boot.trees import Tree, pair

MAX_FILES = 1000
"""Entries of the Boot Loader Specification in one folder."""
MAX_FILE = 65536
"""Bytes of one."""
MAX_TOGETHER = MIB
"""Bytes of all in one folder."""
_KEYS = {"title", "version", "linux", "initrd", "options", "sort-key"}
BLS_FOLDERS = ("/boot/loader/entries", "/loader/entries")


@attrs.frozen
class BlsEntry:
    """An entry: a file of ``folder`` on a file system; the keys that count, with all values."""

    tree: Tree
    folder: str
    identifier: str
    keys: dict[str, list[str]]

    def first(self, key: str) -> str:
        """Return a key's first value, "" where it has none."""
        return self.keys.get(key, [""])[0]

    def menu_entry(self) -> Entry:
        """Return it as an entry of GRUB's menu."""
        device = grub_device(self.tree)

        def path(name: str) -> str:
            # Relative to the file system; where /boot is none of its own, some leave it out.
            own = self.folder.removesuffix("/loader/entries") + "/" + name.lstrip("/")
            there = self.tree.file(name) is None and self.tree.file(own) is not None
            return f"({device}){own if there else '/' + name.lstrip('/')}"

        def command(name: str, words: list[str]) -> Command:
            return Command(0, tuple(map(_expanded, [name, *words])))

        options = " ".join(self.keys.get("options", [])).split()
        images = " ".join(self.keys.get("initrd", [])).split()
        initrds = [path(name) for name in images if not name.startswith("$")]
        body = [command("linux", [path(self.first("linux")), *options])]
        if initrds:
            body.append(command("initrd", initrds))
        title = self.first("title") or self.identifier
        return Entry(title, self.identifier, tuple(body) if self.first("linux") else ())


def _expanded(text: str) -> Word:
    """Return a word in which ``$name`` and ``${name}`` are variables."""
    pieces: list[tuple[str, bool, bool]] = []
    for plain, braced, name in re.findall(r"([^$]+|\$(?![{\w]))|\$\{(\w+)\}|\$(\w+)", text):
        pieces.append((plain, False, True) if plain else (braced or name, True, False))
    return Word(tuple(pieces) or (("", False, True),))


def bls_entries(tree: Tree, folder: str) -> list[BlsEntry]:
    """Return a folder's entries, the one to prefer first.

    :raises Unreadable: they are too large.
    """
    left = MAX_TOGETHER
    names = [name for name in tree.names(folder) if name.endswith(".conf")][:MAX_FILES]
    entries = []
    for name in names:
        text = tree.text(f"{folder}/{name}", MAX_FILE)
        if text is None:
            continue
        left -= len(text)
        if left < 0:
            raise Unreadable(f"{folder!r} on {tree.place} holds more than {MAX_TOGETHER} bytes")
        keys: dict[str, list[str]] = {}
        for line in text.splitlines():
            key, value = pair(line)
            if key in _KEYS:
                keys.setdefault(key, []).append(value)
        identifier = re.sub(r"\+\d+(-\d+)?$", "", name.removesuffix(".conf"))
        entries.append(BlsEntry(tree, folder, identifier, keys))
    by_file = sorted(entries, key=lambda entry: _version(entry.identifier), reverse=True)
    if not any("sort-key" in entry.keys for entry in entries):
        return by_file
    newest = sorted(by_file, key=lambda entry: _version(entry.first("version")), reverse=True)
    return sorted(newest, key=lambda entry: ("sort-key" not in entry.keys, entry.first("sort-key")))


def _version(text: str) -> tuple[tuple[int, int, str], ...]:
    """Return a key that sorts versions: numbers by value, ``~`` before the end of the text."""
    found = []
    for number, letters, tilde in re.findall(r"(\d+)|([A-Za-z]+)|(~)", text):
        if tilde:
            found.append((-1, 0, ""))
        else:
            found.append((2, int(number[:18]), "") if number else (1, 0, letters))
    return (*found, (0, 0, ""))


def grub_device(tree: Tree) -> str:
    """Return what GRUB calls the device that a file system is on."""
    table = {"gpt": "gpt", "msdos": "msdos"}.get(tree.table, "")
    return f"hd0,{table}{tree.partition}" if tree.partition else "hd0"
