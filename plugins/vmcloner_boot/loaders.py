"""What a disk's own boot loader would boot: BLS entries, GRUB's menu, extlinux's, or plain links.

Boot Loader Specification: https://uapi-group.org/specifications/specs/boot_loader_specification/;
GRUB: its manual, and ``blscfg`` as Fedora has it; extlinux: https://wiki.syslinux.org/wiki/
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterator, Sequence

import attrs

from vmcloner_boot.grubscript import Command, Entry, Word, World, parse
from vmcloner_boot.reading import Unreadable
from vmcloner_boot.trees import Node, Tree

MAX_FILES = 1000
"""Entries of the Boot Loader Specification in one folder."""
MAX_INITRDS = 16
GRUB_FILES = ("/boot/grub/grub.cfg", "/boot/grub2/grub.cfg", "/grub/grub.cfg", "/grub2/grub.cfg")
BLS_FOLDERS = ("/boot/loader/entries", "/loader/entries")
EXTLINUX_FILES = (
    "/boot/extlinux/extlinux.conf",
    "/boot/extlinux.conf",
    "/boot/syslinux/syslinux.cfg",
    "/extlinux/extlinux.conf",
    "/extlinux.conf",
    "/syslinux/syslinux.cfg",
    "/syslinux.cfg",
)
LINKS = (
    ("/vmlinuz", "/initrd.img"),
    ("/boot/vmlinuz", "/boot/initrd.img"),
    ("/boot/vmlinuz", "/boot/initrd"),
)


@attrs.frozen
class Found:
    """A file on one of the disk's file systems."""

    tree: Tree
    node: Node
    path: str

    def __str__(self) -> str:
        return f"{self.path} on {self.tree.place}"


@attrs.frozen(kw_only=True)
class Choice:
    """What is to be booted. ``source`` says where that is written."""

    kernel: Found
    initrds: tuple[Found, ...] = ()
    cmdline: str = ""
    source: str


def choose(trees: Sequence[Tree]) -> Choice:
    """Return what a disk with these file systems boots.

    The first kind of menu that there is counts; one that is broken isn't passed over.

    :raises Unreadable: there is none, it is broken, or a file that it names isn't there.
    """
    for look in (_bls, _grub, _extlinux, _links):
        for tree in trees:
            choice = look(tree, trees)
            if choice is not None:
                return choice
    places = ", ".join(f"{tree.place} ({tree.system.kind})" for tree in trees) or "nothing readable"
    raise Unreadable(
        f"no boot menu and no kernel on its disk (looked at {places})",
        hint="boot = 'disk' lets the guest's firmware look",
    )


# --- GRUB ---------------------------------------------------------------------------------------

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

    def __init__(self, trees: Sequence[Tree], home: Tree, prefix: str) -> None:
        self.trees = trees
        self.home = home
        self.prefix = prefix
        self.kernel: Found | None = None
        self.initrds: list[Found] = []
        self.cmdline = ""
        self.other = ""
        self.uses_bls = False
        self.world = World(run=self.run)
        device = _device(home)
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
                self.world.variables[words[1] if len(words) > 1 else "root"] = _device(tree)
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
        self.world.variables.update(_environment(text))
        return True

    def _source(self, words: Sequence[str]) -> bool:
        text = self._text(words[0]) if words else None
        return text is not None and self.world.execute(parse(text, words[0]))

    def _configfile(self, words: Sequence[str]) -> bool:
        self.world.menu = []
        return self._source(words)

    def _blscfg(self, _words: Sequence[str]) -> bool:
        self.uses_bls = True
        for folder in BLS_FOLDERS:
            for tree in (self.home, *self.trees):
                if entries := _bls_entries(tree, folder):
                    self.world.menu.extend(entry.menu_entry() for entry in entries)
                    return True
        return False


def _grub(tree: Tree, trees: Sequence[Tree]) -> Choice | None:
    for path in GRUB_FILES:
        text = tree.text(path)
        if text is None:
            continue
        source = f"{path} on {tree.place}"
        grub = _Grub(trees, tree, path.rpartition("/")[0])
        try:
            grub.world.execute(parse(text, path))
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


def _device(tree: Tree) -> str:
    table = {"gpt": "gpt", "msdos": "msdos"}.get(tree.table, "")
    return f"hd0,{table}{tree.partition}" if tree.partition else "hd0"


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


# --- Boot Loader Specification ------------------------------------------------------------------


@attrs.frozen
class _BlsEntry:
    tree: Tree
    folder: str
    identifier: str
    keys: dict[str, list[str]]

    def first(self, key: str) -> str:
        """Return a key's first value, "" where it has none."""
        return self.keys.get(key, [""])[0]

    def menu_entry(self) -> Entry:
        """Return it as an entry of GRUB's menu."""
        device = _device(self.tree)

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


def _bls(tree: Tree, trees: Sequence[Tree]) -> Choice | None:
    for folder in BLS_FOLDERS:
        entries = _bls_entries(tree, folder)
        if not entries:
            continue
        source = f"{folder} on {tree.place}"
        try:
            return _bls_choice(tree, trees, folder, entries, source)
        except Unreadable as error:
            raise Unreadable(f"{source}: {error.message}", hint=error.hint) from error
    return None


def _bls_choice(
    tree: Tree, trees: Sequence[Tree], folder: str, entries: list[_BlsEntry], source: str
) -> Choice:
    for path in GRUB_FILES:
        text = tree.text(path)
        if text is None:
            continue
        grub = _Grub(trees, tree, path.rpartition("/")[0])
        grub.world.execute(parse(text, path))
        if grub.uses_bls:  # entries of both kinds in one menu, and GRUB's default
            return _carried_out(grub, source)
    above = folder.removesuffix("/loader/entries")
    grub = _Grub(trees, tree, f"{above}/grub2")
    if not grub.load_env([]):
        grub.load_env(["-f", f"({_device(tree)}){above}/grub/grubenv"])
    grub.world.menu = [entry.menu_entry() for entry in entries]
    default = grub.world.variables.get("saved_entry")
    for line in (tree.text(f"{above}/loader/loader.conf") or "").splitlines():
        key, _, value = line.strip().partition(" ")
        if key == "default":
            pattern = value.strip().removesuffix(".conf")
            matching = fnmatch.filter([entry.identifier for entry in entries], pattern)
            default = matching[0] if matching else default
    return _carried_out(grub, source, default)


def _bls_entries(tree: Tree, folder: str) -> list[_BlsEntry]:
    """Return a folder's entries, the one to prefer first."""
    names = [name for name in tree.names(folder) if name.endswith(".conf")][:MAX_FILES]
    entries = []
    for name in names:
        text = tree.text(f"{folder}/{name}")
        if text is None:
            continue
        keys: dict[str, list[str]] = {}
        for line in text.splitlines():
            key, _, value = line.strip().partition(" ")
            if key and not key.startswith("#"):
                keys.setdefault(key.rstrip("\t"), []).append(value.strip())
        identifier = re.sub(r"\+\d+(-\d+)?$", "", name.removesuffix(".conf"))
        entries.append(_BlsEntry(tree, folder, identifier, keys))
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


# --- extlinux -----------------------------------------------------------------------------------


def _extlinux(tree: Tree, _trees: Sequence[Tree]) -> Choice | None:
    for path in EXTLINUX_FILES:
        text = tree.text(path)
        if text is None:
            continue
        source = f"{path} on {tree.place}"
        labels, default = _extlinux_labels(text)
        label = next((name for name in labels if name.lower() == default.lower()), None)
        label = label or next(iter(labels), None)
        if label is None:
            continue
        try:
            return _extlinux_choice(tree, path, labels[label], f"label {label!r} of {source}")
        except Unreadable as error:
            raise Unreadable(f"{source}: {error.message}", hint=error.hint) from error
    return None


def _extlinux_labels(text: str) -> tuple[dict[str, dict[str, str]], str]:
    """Return the labels with their keys in upper case, and the default label."""
    labels: dict[str, dict[str, str]] = {}
    common: dict[str, str] = {}
    current = common
    default = chosen = ""
    for line in text.splitlines():
        key, _, value = line.strip().partition(" ")
        key, value = key.upper().rstrip("\t"), value.strip()
        if key == "LABEL":
            current = labels.setdefault(value, {})
        elif key in ("DEFAULT", "ONTIMEOUT"):
            default = default or value
        elif key == "MENU" and value.upper() == "DEFAULT" and current is not common:
            chosen = next(name for name, keys in labels.items() if keys is current)
        elif key in ("LINUX", "KERNEL", "INITRD", "APPEND"):
            current[key] = value
    for keys in labels.values():
        keys.setdefault("APPEND", common.get("APPEND", ""))
    return labels, default if default.lower() in map(str.lower, labels) else chosen


def _extlinux_choice(tree: Tree, config: str, keys: dict[str, str], source: str) -> Choice:
    folder = config.rpartition("/")[0]

    def file(path: str) -> Found:
        full = path if path.startswith("/") else f"{folder}/{path}"
        node = tree.file(full)
        if node is None:
            raise Unreadable(f"{full} isn't a file on {tree.place}")
        return Found(tree, node, full)

    kernel = keys.get("LINUX") or keys.get("KERNEL")
    if not kernel:
        raise Unreadable("its label names no kernel")
    words = [] if keys["APPEND"] == "-" else keys["APPEND"].split()
    initrds = keys.get("INITRD", "").split(",")
    initrds += [w.removeprefix("initrd=") for w in words if w.startswith("initrd=")]
    names = [name for part in initrds for name in part.split(",") if name]
    if len(names) > MAX_INITRDS:
        raise Unreadable(f"it names more than {MAX_INITRDS} initrds")
    return Choice(
        kernel=file(kernel),
        initrds=tuple(map(file, names)),
        cmdline=" ".join(word for word in words if not word.startswith("initrd=")),
        source=source,
    )


# --- links --------------------------------------------------------------------------------------


def _links(tree: Tree, trees: Sequence[Tree]) -> Choice | None:
    for kernel_path, initrd_path in LINKS:
        kernel = _linked(tree, kernel_path, trees)
        if kernel is None:
            continue
        initrd = _linked(tree, initrd_path, trees)
        is_root = tree.folder("/etc") is not None and tree.system.uuid
        return Choice(
            kernel=kernel,
            initrds=() if initrd is None else (initrd,),
            cmdline=f"root=UUID={tree.system.uuid} ro" if is_root else "",
            source=str(kernel),
        )
    return None


def _linked(tree: Tree, path: str, trees: Sequence[Tree]) -> Found | None:
    """Return the file that a path leads to, into a ``/boot`` of its own too."""
    node = tree.file(path)
    if node is not None:
        return Found(tree, node, path)
    target = tree.target(path)
    under = (target or "").lstrip("/")
    if under.startswith("boot/"):
        for other in _others(tree, trees):
            node = other.file(under.removeprefix("boot"))
            if node is not None:
                return Found(other, node, under.removeprefix("boot"))
    return None


def _others(tree: Tree, trees: Sequence[Tree]) -> Iterator[Tree]:
    return (other for other in trees if other is not tree)
