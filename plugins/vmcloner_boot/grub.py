"""What GRUB would boot from a disk: its menu carried out, entries of the BLS among it.

Its manual: https://www.gnu.org/software/grub/manual/grub/grub.html
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Sequence

from vmcloner_boot.bls import BLS_FOLDERS, BlsEntry, bls_entries, grub_device
from vmcloner_boot.choice import MAX_INITRDS, Choice, Found
from vmcloner_boot.disk_image import Budget, Unreadable
from vmcloner_boot.grubscript import Entry, World
from vmcloner_boot.trees import Tree, pair

GRUB_FILES = ("/boot/grub/grub.cfg", "/boot/grub2/grub.cfg", "/grub/grub.cfg", "/grub2/grub.cfg")
_LINUX = ("linux", "linux16", "linuxefi")
_INITRD = ("initrd", "initrd16", "initrdefi")
_OTHERS = ("chainloader", "multiboot", "multiboot2", "xen_hypervisor", "kfreebsd", "ntldr")
_FALSE = ("keystatus", "regexp", "cryptomount", "fwsetup", "false")
_FEATURES = (
    "menuentry_id", "menuentry_options", "platform_search_hint", "timeout_style",
    "default_font_path", "all_video_module", "chainloader_bpb", "native_disk", "ntldr", "200_final",
)  # fmt: skip


class _Grub:
    """A machine for GRUB's scripts whose disk has these file systems."""

    def __init__(self, trees: Sequence[Tree], home: Tree, prefix: str, budget: Budget) -> None:
        self.trees = trees
        self.home = home
        self.prefix = prefix
        self.kernel: Found | None = None
        self.initrds: list[Found] = []
        self.cmdline = ""
        self.other = ""
        self.uses_bls = False
        self.world = World(run=self.run, budget=budget)
        device = grub_device(home)
        self.world.variables.update(
            {f"feature_{name}": "y" for name in _FEATURES}
            | {
                "root": device,
                "prefix": f"({device}){prefix}",
                "grub_platform": "pc",
                "grub_cpu": "i386",
            }
        )

    # --- choosing ---

    def chosen(self, default: str | None = None) -> tuple[str, str]:
        """Choose an entry and carry it out; returns its title, and a remark."""
        wanted = default or self.world.variables.get("default") or "0"
        remark = ""
        parts = [part.replace(">>", ">") for part in re.split(r"(?<!>)>(?!>)", wanted)]
        while True:
            menu = self.world.menu
            if not menu:
                raise Unreadable("it has no entry")
            entry = _entry(menu, parts[0]) if parts else menu[0]
            if entry is None:
                remark = f", for its default {wanted!r} isn't in its menu"
                entry, parts = menu[0], []
            self.world.variables["chosen"] = entry.title
            self.world.menu = []
            if not entry.submenu:
                self.world.execute(entry.body)
                return entry.title, remark
            self.world.execute(entry.body)
            parts = parts[1:]

    # --- commands ---

    def run(self, name: str, words: Sequence[str]) -> bool | None:
        """Carry out a command; see :class:`World`."""
        if name in _LINUX:
            if words:
                self.kernel = self._file(words[0])
                self.cmdline = " ".join(map(_escaped, words[1:]))
            return True
        if name in _INITRD:
            if len(words) > MAX_INITRDS:
                raise Unreadable(f"it names more than {MAX_INITRDS} initrds")
            self.initrds = [self._file(word) for word in words]
            return True
        if name in _OTHERS:
            self.other = self.other or name
            return True
        if name in _FALSE:
            return False
        command: Callable[[Sequence[str]], bool] | None = {
            "search": self._search,
            "search.fs_uuid": lambda words: self._found("--fs-uuid", words),
            "search.fs_label": lambda words: self._found("--label", words),
            "search.file": lambda words: self._found("--file", words),
            "load_env": self.load_env,
            "source": self._source,
            ".": self._source,
            "configfile": self._configfile,
            "blscfg": self._blscfg,
            "test-f": lambda words: self._is(words[0]),
            "test-e": lambda words: self._is(words[0]),
            "test-s": lambda words: self._is(words[0]),
            "test-d": lambda words: self._is(words[0], folder=True),
        }.get(name)
        return None if command is None else command(words)

    def _place(self, path: str) -> tuple[Tree, str]:
        """Return the file system that a path is on, and the path there.

        :raises Unreadable: GRUB would look on another disk.
        """
        match = re.match(r"\(([^)]*)\)(.*)", path, re.DOTALL)
        device, rest = match.groups() if match else (self.world.variables.get("root", ""), path)
        for tree in self.trees:
            if _same_device(device, tree):
                return tree, rest
        raise Unreadable(f"{path!r} is on ({device}), which isn't on its disk or can't be read")

    def _file(self, path: str) -> Found:
        tree, rest = self._place(path)
        node = tree.file(rest)
        if node is None:
            raise Unreadable(f"{rest} isn't a file on {tree.place}")
        return Found(tree, node, rest)

    def _text(self, path: str) -> str | None:
        try:
            tree, rest = self._place(path)
        except Unreadable:
            return None
        return tree.text(rest)

    def _is(self, path: str, *, folder: bool = False) -> bool:
        try:
            tree, rest = self._place(path)
        except Unreadable:
            return False
        if folder:
            return tree.folder(rest) is not None
        node = tree.file(rest)
        return node is not None and node.size > 0

    def _search(self, words: Sequence[str]) -> bool:
        by, rest, variable = "--file", [], "root"
        waiting = iter(words)
        for word in waiting:
            if word in ("--fs-uuid", "-u", "--label", "-l", "--file", "-f"):
                by = {"-u": "--fs-uuid", "-l": "--label", "-f": "--file"}.get(word, word)
            elif word in ("--set", "-s"):
                variable = next(waiting, "root")
            elif word.startswith("--set="):
                variable = word.removeprefix("--set=")
            elif word.startswith("--hint") and "=" not in word:
                next(waiting, "")
            elif not word.startswith("-"):
                rest.append(word)
        return self._found(by, [*rest[:1], variable])

    def _found(self, by: str, words: Sequence[str]) -> bool:
        if not words:
            return False
        for tree in self.trees:
            if (
                (by == "--fs-uuid" and tree.system.uuid.lower() == words[0].lower())
                or (by == "--label" and tree.system.label == words[0])
                or (by == "--file" and tree.file(words[0]) is not None)
            ):
                self.world.put(words[1] if len(words) > 1 else "root", grub_device(tree))
                return True
        return False

    def load_env(self, words: Sequence[str]) -> bool:
        """Take the variables of an environment block in; tell whether there is one."""
        file = f"{self.world.variables.get('prefix', '')}/grubenv"
        waiting = iter(words)
        for word in waiting:
            if word in ("-f", "--file"):
                file = next(waiting, file)
        text = self._text(file)
        if text is None:
            return False
        for name, value in _environment(text).items():
            self.world.put(name, value)
        return True

    def _source(self, words: Sequence[str]) -> bool:
        text = self._text(words[0]) if words else None
        return text is not None and self.world.source(text, words[0])

    def _configfile(self, words: Sequence[str]) -> bool:
        self.world.menu = []
        return self._source(words)

    def _blscfg(self, _words: Sequence[str]) -> bool:
        if self.uses_bls:
            return True  # its entries are in the menu, or would be there twice
        self.uses_bls = True
        for folder in BLS_FOLDERS:
            for tree in (self.home, *self.trees):
                if entries := bls_entries(tree, folder):
                    self.world.menu.extend(entry.menu_entry() for entry in entries)
                    return True
        return False


def grub_menu(tree: Tree, trees: Sequence[Tree], budget: Budget) -> Choice | None:
    """Return what GRUB's menu on a file system chooses, None where there is none."""
    for path in GRUB_FILES:
        text = tree.text(path)
        if text is None:
            continue
        source = f"{path} on {tree.place}"
        grub = _Grub(trees, tree, path.rpartition("/")[0], budget)
        try:
            grub.world.source(text, path)
            if not grub.world.menu and grub.kernel is None:
                continue  # it leads to another one, or to nothing
            return _carried_out(grub, source)
        except Unreadable as error:
            raise Unreadable(f"{source}: {error.message}", hint=error.hint) from error
    return None


def _carried_out(grub: _Grub, source: str, default: str | None = None) -> Choice:
    title, remark = grub.chosen(default) if grub.world.menu else ("", "")
    if grub.kernel is None:
        what = f"starts {grub.other}" if grub.other else "names no kernel"
        raise Unreadable(f"its entry {title!r} {what}")
    return Choice(
        kernel=grub.kernel,
        initrds=tuple(grub.initrds),
        cmdline=grub.cmdline,
        source=f"entry {title!r} of {source}{remark}",
    )


def _entry(menu: Sequence[Entry], wanted: str) -> Entry | None:
    for entry in menu:
        if wanted in (entry.identifier, entry.title):
            return entry
    if wanted.isascii() and wanted.isdigit() and len(wanted) < 6 and int(wanted) < len(menu):
        return menu[int(wanted)]
    return None


def _same_device(device: str, tree: Tree) -> bool:
    disk, _, part = device.partition(",")
    if not re.fullmatch(r"hd0|ahci0|ata0|xen/xvda|virtio0|proc", disk):
        return False
    number = re.sub(r"^[a-z]+", "", part.split(",")[-1]) or "0"
    return number == str(tree.partition)


def _escaped(word: str) -> str:
    """Return a word as GRUB puts it on a command line (``grub_create_loader_cmdline``)."""
    text = re.sub(r"([\\'\"])", r"\\\1", word)
    return f'"{text}"' if " " in text else text


def _environment(text: str) -> dict[str, str]:
    """Return the variables of an environment block, without those that count for one boot."""
    found: dict[str, str] = {}
    for line in text[:1024].splitlines()[:100]:
        key, equals, value = line.partition("=")
        if equals and not key.startswith("#"):
            found[key] = re.sub(r"\\(.)", r"\1", value)
    # GRUB takes it back as it boots it; who only reads would boot it for ever.
    found.pop("next_entry", None)
    return found


def bls_menu(tree: Tree, trees: Sequence[Tree], budget: Budget) -> Choice | None:
    """Return what is chosen among a file system's BLS entries, None where there are none."""
    for folder in BLS_FOLDERS:
        entries = bls_entries(tree, folder)
        if not entries:
            continue
        source = f"{folder} on {tree.place}"
        try:
            return _bls_choice(tree, trees, budget, folder, entries, source)
        except Unreadable as error:
            raise Unreadable(f"{source}: {error.message}", hint=error.hint) from error
    return None


def _bls_choice(
    tree: Tree,
    trees: Sequence[Tree],
    budget: Budget,
    folder: str,
    entries: list[BlsEntry],
    source: str,
) -> Choice:
    for path in GRUB_FILES:
        text = tree.text(path)
        if text is None:
            continue
        grub = _Grub(trees, tree, path.rpartition("/")[0], budget)
        grub.world.source(text, path)
        if grub.uses_bls:  # entries of both kinds in one menu, and GRUB's default
            return _carried_out(grub, source)
    above = folder.removesuffix("/loader/entries")
    grub = _Grub(trees, tree, f"{above}/grub2", budget)
    if not grub.load_env([]):
        grub.load_env(["-f", f"({grub_device(tree)}){above}/grub/grubenv"])
    grub.world.menu = [entry.menu_entry() for entry in entries]
    default = grub.world.variables.get("saved_entry")
    for line in (tree.text(f"{above}/loader/loader.conf") or "").splitlines():
        key, value = pair(line)
        if key == "default":
            pattern = value.removesuffix(".conf")
            matching = fnmatch.filter([entry.identifier for entry in entries], pattern)
            default = matching[0] if matching else default
    return _carried_out(grub, source, default)
