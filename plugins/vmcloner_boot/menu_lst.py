"""What GRUB Legacy would boot from a disk: its ``menu.lst``, which some call ``grub.conf``.

https://www.gnu.org/software/grub/manual/legacy/grub.html
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

import attrs

from vmcloner_boot.choice import Choice, Found
from vmcloner_boot.disk_image import Budget, Unreadable
from vmcloner_boot.trees import Tree

FILES = (
    "/boot/grub/menu.lst",
    "/boot/grub/grub.conf",
    "/grub/menu.lst",
    "/grub/grub.conf",
)
MAX_ENTRIES = 1000
MAX_MENUS = 8
"""Menus that lead from one to another by ``configfile``."""
_WITHOUT_EFFECT = frozenset(
    ("background", "bootp", "color", "debug", "device", "dhcp", "echo", "foreground", "gfxmenu",
     "hiddenmenu", "hide", "lock", "makeactive", "password", "pause", "quiet", "savedefault",
     "serial", "setkey", "shade", "splashimage", "terminal", "terminfo", "timeout", "unhide",
     "unlock", "viewport")
)  # fmt: skip


@attrs.frozen
class _Entry:
    title: str
    lines: list[tuple[int, str, str]] = attrs.field(factory=list)
    """(number of the line, command, arguments)"""


@attrs.frozen
class _Menu:
    path: str
    head: dict[str, str]
    entries: list[_Entry]


def legacy_menu(tree: Tree, trees: Sequence[Tree], budget: Budget) -> Choice | None:
    """Return what GRUB Legacy's menu on a file system chooses, None where there is none.

    :raises Unreadable: it can't be carried out, or boots no kernel of Linux.
    """
    for path in FILES:
        text = tree.text(path)
        if text is None:
            continue
        source = f"{path} on {tree.place}"
        try:
            return _Legacy(trees, tree, source, budget).choose(text, path)
        except Unreadable as error:
            raise Unreadable(f"{source}: {error.message}", hint=error.hint) from error
    return None


def _menu(text: str, path: str) -> _Menu:
    head: dict[str, str] = {}
    entries: list[_Entry] = []
    # A backslash at the end of a line joins it with the next.
    following = 1
    for line in text.replace("\\\n", "\v").split("\n"):
        number, following = following, following + 1 + line.count("\v")
        match = re.match(r"\s*([^\s=#]+)[\s=]*(.*)", line)
        if match is None:
            continue
        command, arguments = match[1], " ".join(match[2].split("\v")).strip()
        if command == "title":
            if len(entries) >= MAX_ENTRIES:
                raise Unreadable(f"it has more than {MAX_ENTRIES} entries")
            entries.append(_Entry(arguments))
        elif entries:
            entries[-1].lines.append((number, command, arguments))
        else:
            head[command] = arguments
    if not entries:
        raise Unreadable("it has no entry")
    return _Menu(path, head, entries)


@attrs.define(kw_only=True)
class _Machine:
    """What an entry has loaded so far, and the file system that its paths are on."""

    root: Tree | None
    kernel: Found | None = None
    cmdline: str = ""
    initrd: Found | None = None


class _Failed(Exception):
    """GRUB would say so, and go on with the entry to fall back to."""


class _Legacy:
    def __init__(self, trees: Sequence[Tree], home: Tree, source: str, budget: Budget) -> None:
        self._trees = [tree for tree in trees if not tree.subvolume]
        self._home = home
        self._source = source
        self._budget = budget
        self._menus = 0

    def choose(self, text: str, path: str) -> Choice:
        """Return what a menu chooses."""
        self._menus += 1
        if self._menus > MAX_MENUS:
            raise Unreadable(f"more than {MAX_MENUS} menus lead from one to another")
        menu = _menu(text, path)
        first = self._default(menu)
        others = itertools.takewhile(str.isdecimal, menu.head.get("fallback", "").split())
        numbers = [first, *map(_number, others)]
        reason = ""
        for number in numbers:
            if number >= len(menu.entries):
                break
            entry = menu.entries[number]
            try:
                choice = self._carried_out(entry, menu.path)
            except _Failed as failed:
                reason = reason or f"its entry {entry.title!r}: {failed}"
                continue
            if reason:
                choice = attrs.evolve(choice, source=f"{choice.source}, for {reason}")
            return choice
        raise Unreadable(reason)

    def _default(self, menu: _Menu) -> int:
        wanted = (menu.head.get("default", "").split() or ["0"])[0]
        if wanted == "saved":
            saved = self._home.text(f"{menu.path.rpartition('/')[0]}/default", 4096) or "0"
            wanted = saved.split()[0] if saved.split() else "0"
        number = _number(wanted)
        return number if number < len(menu.entries) else 0

    def _carried_out(self, entry: _Entry, path: str) -> Choice:
        machine = _Machine(root=self._home)
        for line, command, arguments in entry.lines:
            self._budget.spend(0)
            if command == "boot":
                break
            if command == "configfile":
                return self._other_menu(arguments, machine.root)
            if command in ("chainloader", "module", "modulenounzip"):
                raise Unreadable(f"its entry {entry.title!r} has {command}, and isn't Linux alone")
            if not self._known(command, arguments, machine):
                raise Unreadable(f"{path}:{line}: its command {command!r} isn't understood here")
        if machine.kernel is None:
            raise _Failed("it names no kernel")
        return Choice(
            kernel=machine.kernel,
            initrds=() if machine.initrd is None else (machine.initrd,),
            cmdline=machine.cmdline,
            source=f"entry {entry.title!r} of {self._source}",
        )

    def _known(self, command: str, arguments: str, machine: _Machine) -> bool:
        """Carry out a command; returns whether it is known."""
        if command in ("root", "rootnoverify"):
            machine.root = self._device(arguments)
        elif command == "uuid":
            machine.root = self._by_uuid(arguments)
        elif command == "find":
            machine.root = self._by_file(arguments, machine.root)
        elif command == "kernel":
            machine.kernel, machine.cmdline = self._kernel(arguments, machine.root)
            machine.initrd = None
        elif command == "initrd":
            machine.initrd = self._file(arguments, machine.root)
        else:
            return command in _WITHOUT_EFFECT
        return True

    def _kernel(self, arguments: str, root: Tree | None) -> tuple[Found, str]:
        words = arguments.split()
        while words and words[0].startswith("--"):
            option = words.pop(0)
            if option not in ("--no-mem-option", "--type=linux", "--type=biglinux"):
                raise Unreadable(f"kernel {option} isn't understood here")
        if not words:
            raise _Failed("it names no kernel")
        return self._file(words[0], root), " ".join(words[1:])

    def _other_menu(self, arguments: str, root: Tree | None) -> Choice:
        found = self._file(arguments, root)
        return self.choose(found.tree.text(found.path) or "", found.path)

    def _file(self, path: str, root: Tree | None) -> Found:
        match = re.match(r"(\([^)]*\))?(/.*)", path)
        tree = self._device(match[1]) if match is not None and match[1] else root
        if match is None or tree is None:
            raise _Failed(f"{path!r} isn't on its disk or can't be read")
        node = tree.file(match[2])
        if node is None:
            raise _Failed(f"{match[2]} isn't a file on {tree.place}")
        return Found(tree, node, match[2])

    def _device(self, text: str) -> Tree | None:
        """Return the file system on a device; GRUB Legacy counts partitions from 0."""
        match = re.match(r"\(hd0(?:,([0-9]{1,3}))?\)", text)
        if match is None:
            return None
        if self._home.partition == 0:  # a disk without partitions has but one
            return self._home
        number = int(match[1]) + 1 if match[1] else 0
        return next((tree for tree in self._trees if tree.partition == number), None)

    def _by_uuid(self, arguments: str) -> Tree | None:
        wanted = arguments.lower()
        return next((t for t in self._trees if t.system.uuid.lower() == wanted), None)

    def _by_file(self, arguments: str, root: Tree | None) -> Tree | None:
        words = [word for word in arguments.split() if not word.startswith("--")]
        if "--set-root" not in arguments.split() or not words:
            return root
        return next((tree for tree in self._trees if tree.file(words[0]) is not None), None)


def _number(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text):
        raise Unreadable(f"{text!r} isn't the number of an entry")
    return int(text)
