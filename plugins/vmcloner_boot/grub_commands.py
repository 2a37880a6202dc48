"""The commands of GRUB that read a disk or boot from it."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from vmcloner_boot.bls import BlsEntry, bls_entries
from vmcloner_boot.choice import MAX_INITRDS, Found
from vmcloner_boot.disk_image import Budget, Unreadable
from vmcloner_boot.grub_conditions import evaluate, number
from vmcloner_boot.grub_devices import Devices, device_name
from vmcloner_boot.grub_environment import Environment, environment_block
from vmcloner_boot.grub_interpreter import (
    BAD_ARGUMENT,
    FALSE,
    NO_KERNEL,
    NOT_FOUND,
    SUCCESS,
    Call,
    Handler,
    Interpreter,
    Option,
    options,
)
from vmcloner_boot.grub_menu import Entry, Menus, find_entry, split_default
from vmcloner_boot.posix_regex import BadExpression, search
from vmcloner_boot.trees import Tree

_LINUX = ("linux", "linux16", "linuxefi")
_INITRD = ("initrd", "initrd16", "initrdefi")
_OTHERS = (
    "appleloader", "chainloader", "freedos", "kfreebsd", "knetbsd", "kopenbsd", "multiboot",
    "multiboot2", "ntldr", "plan9", "pxechainloader", "truecrypt", "xen_hypervisor", "xnu_kernel",
    "xnu_kernel64",
)  # fmt: skip
_MODULES = ("module", "module2", "xen_module")
_ENDINGS = ("exit", "halt", "normal_exit", "reboot")
_FEATURES = (
    "menuentry_id", "menuentry_options", "platform_search_hint", "timeout_style",
    "default_font_path", "all_video_module", "chainloader_bpb", "native_disk", "ntldr", "200_final",
)  # fmt: skip
_SET = Option(long="set", short="s", value=True, optional=True)
_SEARCH = (
    Option(long="file", short="f"), Option(long="label", short="l"),
    Option(long="fs-uuid", short="u"), _SET, Option(long="no-floppy", short="n"),
    Option(long="efidisk-only"), Option(long="root-dev-only", short="r"),
    Option(long="cryptodisk-only"), Option(long="hint", short="h", value=True),
    *(Option(long=f"hint-{name}", value=True)
      for name in ("ieee1275", "bios", "baremetal", "efi", "arc")),
)  # fmt: skip
_PROBE = (
    attrs.evolve(_SET, optional=False), Option(long="driver", short="d"),
    Option(long="partmap", short="p"), Option(long="fs", short="f"),
    Option(long="fs-uuid", short="u"), Option(long="label", short="l"), Option(long="part-uuid"),
)  # fmt: skip
_LOAD_ENV = (Option(long="file", short="f", value=True), Option(long="skip-sig", short="s"))
_REGEXP = (Option(long="set", short="s", value=True),)
_FILE_SYSTEMS = {"ext4": "ext2", "vfat": "fat"}
"""Names of GRUB's for file systems, where they are others."""


@attrs.define
class Loaded:
    """What the next ``boot`` starts: a kernel, or ``other``, which isn't Linux."""

    kernel: Found | None = None
    cmdline: str = ""
    initrds: tuple[Found, ...] = ()
    other: str = ""
    missing: tuple[str, ...] = ()
    """initrds that aren't there: GRUB says so, and boots without"""


class Booted(Exception):
    """Something is booted; the script ends."""


class Machine:
    """A machine for GRUB's scripts whose disk has these file systems.

    :param home: the file system that GRUB's configuration is on.
    :param prefix: the folder there.
    :param platform: ``pc`` or ``efi``.
    """

    def __init__(
        self,
        trees: Sequence[Tree],
        home: Tree,
        prefix: str,
        budget: Budget,
        platform: str = "pc",
    ) -> None:
        self.environment = Environment()
        self.devices = Devices(trees, self.environment.get, budget)
        self.menus = Menus()
        self.loaded: Loaded | None = None
        self.booted_entry = ""
        self.remark = ""
        self.problem = ""
        """the first reason why an entry can't be booted"""
        self.bls_files: set[tuple[str, str]] = set()
        self._home = home
        self._script = ""
        self.interpreter = Interpreter(
            self._commands(), self.environment, budget, self.devices.expand
        )
        device = device_name(home)
        values = {f"feature_{name}": "y" for name in _FEATURES} | {
            "root": device,
            "prefix": f"({device}){prefix}",
            "cmdpath": f"({device}){prefix}",
            "grub_platform": platform,
            "grub_cpu": "x86_64" if platform == "efi" else "i386",
        }
        for name, value in values.items():
            self.environment.put(name, value)
            if name in ("root", "prefix"):
                self.environment.export(name)

    # --- configurations and menus ---

    def configure(self, text: str, path: str, name: str) -> None:
        """Run a configuration file; ``path`` is where it is, ``name`` what messages call it."""
        if not path.startswith("("):
            path = f"({self.environment.get('root')}){path}"
        names = ("config_file", "config_directory")
        before = [self.environment.get(key) for key in names]
        for key, value in zip(names, (path, path.rpartition("/")[0]), strict=True):
            self.environment.put(key, value)
            self.environment.export(key)
        script, self._script = self._script, name
        self.interpreter.run(text, name)
        self._script = script
        for key, value in zip(names, before, strict=True):
            self.environment.put(key, value)

    def show_menu(self) -> None:
        """Boot the default of the menu as it is now; where that fails, those to fall back to.

        :raises Booted: something is booted. :raises Unreadable: nothing is: GRUB would wait.
        """
        self.problem = ""
        self._try_menu()
        raise Unreadable(self.problem or f"its entry {self.booted_entry!r} names no kernel")

    def _try_menu(self) -> None:
        """Do so, and return where nothing is booted."""
        menu = self.menus.current
        wanted = self.environment.get("default")
        entry = find_entry(menu, wanted) if wanted else menu[0]
        if entry is None:
            self.remark += f", for its default {wanted!r} isn't in its menu"
            entry = menu[0]
        self._execute(entry)
        self.problem = self.problem or f"its entry {self.booted_entry!r} names no kernel"
        for name in self._fallbacks():
            other = find_entry(menu, name)
            if other is None:
                break
            remark = self.remark
            self.remark += f", for entry {entry.title!r} fails ({self.problem})"
            self._execute(other)
            self.remark = remark

    def _fallbacks(self) -> list[str]:
        """Return the entries to fall back to: a list, or one whose name may have blanks."""
        value = self.environment.get("fallback")
        named = any(value in (entry.title, entry.identifier) for entry in self.menus.current)
        return [value] if named else value.split()[:16]

    def _execute(self, entry: Entry) -> None:
        default = self.environment.get("default")
        chosen = self.environment.get("chosen")
        if entry.submenu:
            self.environment.open()
            self.menus.open()
        identifier = entry.identifier.replace(">", ">>")
        self.environment.put("chosen", f"{chosen}>{identifier}" if chosen else identifier)
        self.environment.export("chosen")
        rest = split_default(default)[1]
        if rest:
            self.environment.put("default", rest)
        else:
            self.environment.unset("default")
        self.booted_entry = entry.title
        script, self._script = self._script, entry.script
        self.interpreter.execute(entry.body, entry.script, entry.arguments)
        self._script = script
        if self.loaded is not None:
            raise Booted
        if entry.submenu:
            if self.menus.current:
                self._try_menu()
            self.menus.close()
            self.environment.close()
        self.environment.put("chosen", chosen)
        self.environment.put("default", default)

    # --- the table of commands ---

    def _commands(self) -> dict[str, Handler]:
        return {
            **dict.fromkeys(_LINUX, self._linux),
            **dict.fromkeys(_INITRD, self._initrd),
            **dict.fromkeys(_OTHERS, self._other),
            **dict.fromkeys(_MODULES, lambda _call: SUCCESS if self.loaded else NO_KERNEL),
            **dict.fromkeys(_ENDINGS, self._ending),
            **dict.fromkeys(("menuentry", "submenu"), self._menu_entry),
            **dict.fromkeys(("test", "["), self._test),
            **dict.fromkeys(("source", "."), self._source),
            **dict.fromkeys(("blscfg", "bls_import"), self._blscfg),
            **dict.fromkeys(("increment", "decrement"), self._count),
            **dict.fromkeys(("cat", "ls"), self._list),
            "boot": self._boot,
            "btrfs-mount-subvol": self._mount_subvolume,
            "configfile": self._configfile,
            "cpuid": lambda _call: SUCCESS,  # both its questions: 64 bits and PAE
            "file_env": self._file_env,
            "fwsetup": self._firmware,
            "hwmatch": self._hardware,
            "keystatus": lambda call: FALSE if call.arguments else SUCCESS,
            "load_env": self._load_env,
            "probe": self._probe,
            "regexp": self._regexp,
            "search": self._search,
            "search.file": self._search_short,
            "search.fs_label": self._search_short,
            "search.fs_uuid": self._search_short,
            "uki": self._uki,
        }

    def _menu_entry(self, call: Call) -> int:
        return self.menus.command(call, self._script)

    def _test(self, call: Call) -> int:
        return SUCCESS if evaluate(call.arguments, self.devices) else FALSE

    # --- booting ---

    def _fail(self, why: str) -> int:
        self.problem = self.problem or why
        return NOT_FOUND

    def _found(self, path: str) -> Found | None:
        """Return a file; where there is none, that is why the entry fails."""
        found = self.devices.file(path)
        if found is not None:
            return Found(*found)
        device, tree, rest = self.devices.place(path)
        if tree is None:
            self._fail(f"{path!r} is on ({device}), which isn't on its disk or can't be read")
        else:
            self._fail(f"{rest} isn't a file on {tree.place}")
        return None

    def _linux(self, call: Call) -> int:
        if not call.arguments:
            return BAD_ARGUMENT
        self.loaded = None
        kernel = self._found(call.arguments[0])
        if kernel is None:
            return NOT_FOUND
        self.loaded = Loaded(kernel, " ".join(map(_cmdline_word, call.arguments[1:])))
        return SUCCESS

    def _initrd(self, call: Call) -> int:
        if not call.arguments:
            return BAD_ARGUMENT
        if self.loaded is None or self.loaded.kernel is None:
            return NO_KERNEL
        if len(call.arguments) > MAX_INITRDS:
            raise Unreadable(f"it names more than {MAX_INITRDS} initrds")
        if any(path.startswith("newc:") for path in call.arguments):
            raise self.interpreter.refused(f"an initrd that {call.name} makes (newc:)")
        found = [self.devices.file(path) for path in call.arguments]
        self.loaded.missing = tuple(
            path for path, file in zip(call.arguments, found, strict=True) if file is None
        )
        if self.loaded.missing:
            return NOT_FOUND
        self.loaded.initrds = tuple(Found(*file) for file in found if file is not None)
        return SUCCESS

    def _other(self, call: Call) -> int:
        self.loaded = Loaded(other=call.name)
        return SUCCESS

    def _boot(self, _call: Call) -> int:
        if self.loaded is None:
            return NO_KERNEL
        raise Booted

    def _ending(self, call: Call) -> int:
        raise Unreadable(f"its script ends with {call.name}")

    def _firmware(self, call: Call) -> int:
        if call.arguments:  # --is-supported
            return FALSE
        self.loaded = Loaded(other=call.name)
        raise Booted

    # --- other files ---

    def _source(self, call: Call) -> int:
        if not call.arguments:
            return BAD_ARGUMENT
        text = self.devices.text(call.arguments[0])
        if text is not None:
            self.configure(text, call.arguments[0], call.arguments[0])
        return SUCCESS  # for a file that isn't there, too

    def _configfile(self, call: Call) -> int:
        """Run another configuration; where it has a menu, there is no way back from that."""
        if not call.arguments:
            return BAD_ARGUMENT
        path = call.arguments[0]
        text = self.devices.text(path)
        if text is None:
            self._found(path)
            return SUCCESS
        self.environment.open()
        self.menus.open()
        self.configure(text, path, path)
        if self.menus.current:
            self.show_menu()
        self.menus.close()
        self.environment.close()
        return SUCCESS

    def _load_env(self, call: Call) -> int:
        given = options(call.arguments, _LOAD_ENV)
        if given is None:
            return BAD_ARGUMENT
        file = given.last("file") or f"{self.environment.get('prefix')}/grubenv"
        if not file.startswith(("/", "(")):
            file = f"{self.environment.get('prefix')}/{file}"
        text = self.devices.text(file)
        values = None if text is None else environment_block(text)
        if values is None:
            return NOT_FOUND
        for name, value in values.items():
            if not given.rest or name in given.rest:
                self.environment.put(name, value)
        return SUCCESS

    def _file_env(self, call: Call) -> int:
        """Home Assistant's: make what a file says a variable."""
        given = options(call.arguments, _LOAD_ENV)
        if given is None or len(given.rest) != 1 or "file" not in given:
            return BAD_ARGUMENT
        text = self.devices.text(given.last("file"))
        if text is None:
            return NOT_FOUND
        self.environment.put(given.rest[0], text.rstrip("\n"))
        return SUCCESS

    def _list(self, call: Call) -> int:
        paths = [word for word in call.arguments if not word.startswith("-")]
        if call.name == "cat" and not paths:
            return BAD_ARGUMENT
        there = all(self.devices.is_there(path) for path in paths)
        return SUCCESS if there else NOT_FOUND

    # --- devices ---

    def _search(self, call: Call) -> int:
        given = options(call.arguments, _SEARCH, dashes=True)
        if given is None:
            return BAD_ARGUMENT
        words = [word for word in given.rest if not word.startswith("--hint")]
        if unknown := [word for word in words if word.startswith("--")]:
            raise self.interpreter.refused(f"{call.name} {unknown[0]}")
        variable = (given.last("set") or "root") if "set" in given else ""
        if not words and given.last("set"):
            words, variable = [given.last("set")], "root"
        by = next((name for name in ("label", "fs-uuid", "file") if name in given), "")
        if not words or not by:
            return BAD_ARGUMENT
        firmware = "efi" if self.environment.get("grub_platform") == "efi" else "bios"
        hints = [
            hint
            for name in ("hint", f"hint-{firmware}", "hint-baremetal")
            for hint in given.given.get(name, [])
        ]
        return self._found_by(by, words[0], variable, hints)

    def _search_short(self, call: Call) -> int:
        if not call.arguments:
            return BAD_ARGUMENT
        by = {"search.file": "file", "search.fs_label": "label"}.get(call.name, "fs-uuid")
        value, variable, *hints = *call.arguments, *([""] if len(call.arguments) < 2 else [])
        return self._found_by(by, value, variable, hints)

    def _found_by(self, by: str, value: str, variable: str, hints: Sequence[str]) -> int:
        """Look for a file system, on the devices that hints name first."""
        hinted = [self.devices.tree(hint.rstrip(",")) for hint in hints]
        for tree in (*(tree for tree in hinted if tree is not None), *self.devices.trees):
            if by == "fs-uuid":
                there = tree.system.uuid.lower() == value.lower()
            elif by == "label":
                there = tree.system.label == value
            else:
                there = tree.file(value) is not None
            if there:
                if variable:
                    self.environment.put(variable, device_name(tree))
                return SUCCESS
        return NOT_FOUND

    def _probe(self, call: Call) -> int:
        given = options(call.arguments, _PROBE)
        if given is None or not given.rest:
            return BAD_ARGUMENT
        tree = self.devices.tree(given.rest[0].removeprefix("(").removesuffix(")"))
        if tree is None:
            return NOT_FOUND
        kind = tree.system.kind
        values = {
            "driver": "biosdisk",
            "partmap": {"gpt": "gpt", "msdos": "msdos"}.get(tree.table, "none"),
            "fs": _FILE_SYSTEMS.get(kind, kind),
            "fs-uuid": tree.system.uuid,
            "label": tree.system.label,
            "part-uuid": tree.uuid,
        }
        asked = next((name for name in values if name in given), None)
        if asked is None:
            return BAD_ARGUMENT
        if asked == "driver" and self.environment.get("grub_platform") == "efi":
            raise self.interpreter.refused("probe --driver")
        if not values[asked]:
            return NOT_FOUND
        if "set" in given:
            self.environment.put(given.last("set"), values[asked])
        return SUCCESS

    def _mount_subvolume(self, call: Call) -> int:
        """Accept openSUSE's way to have GRUB's modules outside of snapshots."""
        if len(call.arguments) == 3 and call.arguments[1].endswith(("-pc", "-efi", "-xen")):
            return SUCCESS
        raise self.interpreter.refused(f"{call.name} of other folders than that of GRUB's modules")

    # --- texts and numbers ---

    def _regexp(self, call: Call) -> int:
        given = options(call.arguments, _REGEXP)
        if given is None or len(given.rest) != 2:
            return BAD_ARGUMENT
        try:
            groups = search(*given.rest)
        except BadExpression:
            return FALSE
        if groups is None:
            return FALSE
        for word in given.given.get("set", []):
            index, colon, name = word.partition(":")
            if colon and not (index.isascii() and index.isdigit() and len(index) < 5):
                return BAD_ARGUMENT
            at, name = (int(index), name) if colon else (1, word)
            value = groups[at] if at < len(groups) else None
            if value is None:
                self.environment.unset(name)
            else:
                self.environment.put(name, value)
        return SUCCESS

    def _count(self, call: Call) -> int:
        """Fedora's: add one to a variable, or take one away."""
        if len(call.arguments) != 1:
            return BAD_ARGUMENT
        value = number(self.environment.get(call.arguments[0]))
        value += 1 if call.name == "increment" else -1
        self.environment.put(call.arguments[0], str(max(value, 0)))
        return SUCCESS

    def _hardware(self, _call: Call) -> int:
        """Ubuntu's: no virtual graphics card is in the list of those that don't work."""
        self.environment.put("match", "0")
        return SUCCESS

    # --- Boot Loader Specification ---

    def _blscfg(self, call: Call) -> int:
        """Fedora's: make entries of the Boot Loader Specification's."""
        argument = call.arguments[0] if call.arguments else ""
        default = self.environment.get("default")
        for number_, entry in enumerate(self._bls_entries(argument)):
            key = (entry.tree.place, f"{entry.folder}/{entry.identifier}")
            is_default = default in (entry.identifier, entry.title, str(number_))
            wanted = {"default": is_default, "non-default": not is_default}.get(
                argument, argument.startswith("(") or argument in ("", entry.identifier)
            )
            if not wanted or key in self.bls_files:
                continue
            self.bls_files.add(key)
            self.menus.add(self.bls_entry(entry))
        return SUCCESS

    def bls_entry(self, entry: BlsEntry) -> Entry:
        """Return an entry of GRUB's menu for one of the Boot Loader Specification."""
        name = f"{entry.folder}/{entry.identifier}.conf"
        body = self.interpreter.parsed(entry.script(self.environment.get), name)
        arguments = (entry.title,)
        return Entry(entry.title, entry.identifier, body, False, arguments, name, bls=True)

    def _bls_entries(self, argument: str) -> list[BlsEntry]:
        """Return the entries of the folder that GRUB would look in."""
        if argument.startswith("("):
            path, file = argument, ""
            if argument.endswith(".conf"):
                path, _, file = argument.rpartition("/")
            _, tree, folder = self.devices.place(path)
            found = [] if tree is None else bls_entries(tree, folder)
            return [e for e in found if not file or f"{e.identifier}.conf" == file]
        own = self.environment.get("blsdir")
        folders = (own or "/loader/entries", "/boot/loader/entries")
        named = [self.devices.tree(self.environment.get(name)) for name in ("boot", "root")]
        for tree in (*named, self._home):
            for folder in folders if tree is not None else ():
                if tree is not None and (found := bls_entries(tree, folder)):
                    return [entry for entry in found if "linux" in entry.keys]
        everywhere = [
            found for tree in self.devices.trees if (found := bls_entries(tree, "/loader/entries"))
        ]
        if len(everywhere) > 1:
            raise self.interpreter.refused("blscfg without a device")
        return [entry for entry in everywhere[0] if "linux" in entry.keys] if everywhere else []

    def _uki(self, _call: Call) -> int:
        """Refuse unified kernel images where there are any: they would be entries of the menu."""
        for tree in self.devices.trees:
            if any(name.lower().endswith(".efi") for name in tree.names("/EFI/Linux")):
                raise self.interpreter.refused("its command 'uki' (a unified kernel image)")
        return SUCCESS


def _cmdline_word(word: str) -> str:
    """Return a word as GRUB puts it on a command line (``grub_create_loader_cmdline``)."""
    text = "".join(f"\\{char}" if char in "\\'\"" else char for char in word)
    return f'"{text}"' if " " in text else text
