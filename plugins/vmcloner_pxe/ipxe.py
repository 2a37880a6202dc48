"""iPXE scripts, run as far as they can be without their machine (https://ipxe.org/scripting).

What is left out could change what is booted: a command that isn't known here, a key that is waited
for, an answer of the network that isn't fetched. Such a script is refused by its line and command.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Mapping

import attrs

from vmcloner_pxe import cpio
from vmcloner_pxe.errors import CONTROL, shown
from vmcloner_pxe.settings import Settings
from vmcloner_syslinux.choice import MAX_INITRDS, Choice, Kernel, LocalBoot
from vmcloner_syslinux.config import MAX_CONFIG, MAX_DEPTH, MAX_LINE, ConfigError

MAGICS = (b"#!ipxe", b"#!gpxe")
MAX_STEPS = 100_000
"""Commands and words that are run."""
MAX_SCRIPTS = 64

_NO_EFFECT = {
    "colour", "console", "cpair", "echo", "ifstat", "imgstat", "ntp", "route", "sync",
}  # fmt: skip
"""Commands that change nothing of what is booted, and succeed."""
_WITH_VALUE = {
    "--name", "-n", "--timeout", "-t", "--menu", "-m", "--default", "-d", "--key", "-k",
    "--configurator", "-c",
}  # fmt: skip
_FLAGS = {"--autofree", "-a", "--replace", "-r", "--keep", "--gap", "-g", "--no-describe"}
_INCREMENT = re.compile(r"[0-9]{1,9}")
_FIRST_DISK = (["--drive", "0x80"], ["-d", "0x80"], ["--drive=0x80"])


@attrs.define(kw_only=True, eq=False)
class _Image:
    """What a command has named to be fetched. ``initrd`` tells whether a kernel is given it."""

    name: str
    uri: str
    arguments: str = ""
    initrd: bool = False


@attrs.define(kw_only=True)
class _Menu:
    """Labels of a menu's items, and which is marked."""

    labels: list[str] = attrs.field(factory=list)
    default: str | None = None


@attrs.frozen
class _Line:
    """A line of a script, with those that it goes on in."""

    place: str
    label: str
    command: str


class _Exit(Exception):
    """The script ends by itself."""

    def __init__(self, *, succeeded: bool = True) -> None:
        super().__init__()
        self.succeeded = succeeded


def parse(
    text: bytes, variables: Mapping[str, str], chain: Callable[[str], bytes | None]
) -> Choice:
    """Return what a script boots.

    :param variables: what ``${NAME}`` stands for; others are empty.
    :param chain: returns the content of the script that is chained to by that name, None where
        there is no such file.
    :raises ConfigError: names the line and the reason; and whatever ``chain`` raises.
    """
    machine = _Machine(variables, chain)
    machine.run(text, depth=0)
    if machine.choice is None:
        raise ConfigError("the iPXE script ends without boot")
    return machine.choice


class _Machine:
    """Runs scripts; keeps images and settings between them."""

    def __init__(self, variables: Mapping[str, str], chain: Callable[[str], bytes | None]) -> None:
        self.settings = Settings(variables)
        self.choice: Choice | None = None
        self._chain = chain
        self._images: list[_Image] = []
        self._selected: _Image | None = None
        self._menus: dict[str, _Menu] = {}
        self._steps = self._scripts = self._size = 0
        self._depth = 0
        self._place = ""
        self._goto: str | None = None

    # --- scripts, lines, conditions ---------------------------------------------------------------

    def run(self, text: bytes, *, depth: int) -> bool:
        """Run a script until something is booted; tell whether it succeeded."""
        self._scripts += 1
        if depth > MAX_DEPTH or self._scripts > MAX_SCRIPTS:
            raise ConfigError(f"{self._place}: too many scripts: do they chain in a circle?")
        self._size += len(text)
        if self._size > MAX_CONFIG:
            raise ConfigError(f"{self._place}: more than {MAX_CONFIG} bytes of scripts")
        lines = list(_lines(text))
        labels = {line.label: at for at, line in reversed(list(enumerate(lines))) if line.label}
        at = 0
        while at < len(lines) and self.choice is None:
            line = lines[at]
            at += 1
            self._place, self._depth = line.place, depth
            try:
                succeeded = self._line(line, labels)
            except _Exit as end:
                if depth == 0:
                    self.choice = LocalBoot(label="exit")
                return end.succeeded
            if self._goto is not None:
                at, self._goto = labels[self._goto], None
            elif not succeeded and self.choice is None:
                if depth:
                    return False
                raise ConfigError(f"{line.place}: fails, and ends the script: {_said(line)}")
        return True

    def _line(self, line: _Line, labels: Mapping[str, int]) -> bool:
        """Run a line's commands, as their conditions say; tell whether the last succeeded."""
        succeeded, wanted = True, True
        for words, condition in _commands(line.command.split()):
            if wanted:
                self._steps += 1 + len(words)
                if self._steps > MAX_STEPS:
                    raise ConfigError(f"{line.place}: the script goes on and on")
                try:
                    expanded = [self.settings.expand(word) for word in words]
                    if sum(map(len, expanded)) > MAX_LINE:
                        raise _Unsupported(f"more than {MAX_LINE} characters")
                    succeeded = self._command(expanded, labels)
                except _Unsupported as error:
                    raise ConfigError(
                        f"{line.place}: can't do {_said(line)}: {error}",
                        hint="docs/pxe.md says what is understood of iPXE scripts",
                    ) from error
                if self._goto is not None or self.choice is not None:
                    break
            wanted = condition == ";" or (condition == "&&") == succeeded
        return succeeded

    def _command(self, words: list[str], labels: Mapping[str, int]) -> bool:
        if not words or words[0] in _NO_EFFECT:
            return True
        name, words = words[0], words[1:]
        if name == "goto":
            if len(words) == 1 and words[0] in labels:
                self._goto = words[0]
                return True
            return False
        handle = _COMMANDS.get(name)
        if handle is None:
            raise _Unsupported(f"the command {shown(name)!r}")
        return handle(self, words)

    def _open(self, words: list[str]) -> bool:
        """Open or configure cards: there is one, and it has its lease."""
        return all(card in ("net0", "netX") for card in _options(words)[1])

    # --- settings and conditions ------------------------------------------------------------------

    def _set(self, words: list[str]) -> bool:
        if not words:
            return False
        return self.settings.set(words[0], " ".join(words[1:]))

    def _increase(self, words: list[str]) -> bool:
        if not words or not all(_INCREMENT.fullmatch(word) for word in words[1:]):
            return False
        return self.settings.increase(words[0], int(words[1]) if words[1:] else 1)

    def _is_equal(self, words: list[str]) -> bool:
        return len(words) == 2 and words[0] == words[1]

    def _show(self, words: list[str]) -> bool:
        return len(words) == 1 and self.settings.expand(f"${{{words[0]}}}") != ""

    def _is_set(self, words: list[str]) -> bool:
        return len(words) == 1 and words[0] != ""

    def _cpuid(self, words: list[str]) -> bool:
        if words != ["--ext", "29"]:
            raise _Unsupported("only --ext 29, a processor of 64 bits, is known")
        return True

    def _prompt(self, words: list[str]) -> bool:
        options, _rest = _options(words)
        if not _timeout(options):
            raise _Unsupported("it waits for a key")
        return False

    def _exit(self, words: list[str]) -> bool:
        raise _Exit(succeeded=not words or words[0].strip("0x") == "")

    # --- menus ------------------------------------------------------------------------------------

    def _menu(self, words: list[str]) -> bool:
        options, _title = _options(words)
        self._menus[_first(options, "--name", "-n")] = _Menu()
        return True

    def _item(self, words: list[str]) -> bool:
        marked = [word for word in words if word in ("--default", "-d")]
        options, rest = _options([word for word in words if word not in marked])
        menu = self._menus.get(_first(options, "--menu", "-m"))
        if menu is None:
            return False
        if rest and rest[0] and not ("--gap" in options or "-g" in options):
            menu.labels.append(rest[0])
            menu.default = rest[0] if marked else menu.default
        return True

    def _choose(self, words: list[str]) -> bool:
        options, rest = _options(["--keep" if word == "-k" else word for word in words])
        name = _first(options, "--menu", "-m")
        menu = self._menus.get(name)
        if menu is None or not menu.labels or len(rest) != 1:
            return False
        if not _timeout(options):
            raise _Unsupported("it waits for a key")
        if "--keep" not in options:
            del self._menus[name]
        asked = _first(options, "--default", "-d") or menu.default
        self.settings.set(rest[0], asked if asked in menu.labels else menu.labels[0])
        return True

    # --- images -----------------------------------------------------------------------------------

    def _fetch(self, words: list[str]) -> bool:
        options, rest = _options(words)
        if not rest or not rest[0]:
            return False
        image = self._added(rest[0], options)
        image.arguments, image.initrd = " ".join(rest[1:]), True
        return True

    def _select(self, words: list[str]) -> bool:
        image = self._acquired(words) if _options(words)[1] else None
        if image is not None:
            self._selected, image.initrd = image, False
        return image is not None

    def _set_arguments(self, words: list[str]) -> bool:
        if not _options(words)[1]:
            return False
        image = self._acquired(words)
        if image is not None:
            image.arguments = " ".join(_options(words)[1][1:])
        return image is not None

    def _boot(self, words: list[str]) -> bool:
        image = self._acquired(words)
        if image is None:
            return False
        self.choice = self._bootable(image)
        return True

    def _chain_to(self, words: list[str]) -> bool:
        options, rest = _options(words)
        if not rest or any(image.name == rest[0] for image in self._images):
            return self._boot(words)
        if "##" in rest[0]:
            raise _Unsupported("parameters that a server is sent")
        depth, place = self._depth, self._place
        text = self._chain(rest[0])
        if text is None:
            return False
        if not _is_script(text):
            raise _Unsupported(f"{shown(rest[0])} is no iPXE script")
        succeeded = self.run(text, depth=depth + 1)
        self._depth, self._place = depth, place
        if ("--replace" in options or "-r" in options) and self.choice is None:
            raise _Exit
        return succeeded

    def _digest(self, words: list[str]) -> bool:
        """Show checksums: nothing changes but that images are fetched that aren't there yet."""
        _, names = _options(words)
        found = [self._acquired([name]) is not None for name in names]
        return bool(found) and all(found)

    def _free(self, words: list[str]) -> bool:
        if not set(words) <= {image.name for image in self._images}:
            return False
        kept = [image for image in self._images if words and image.name not in words]
        self._images = kept
        self._selected = self._selected if self._selected in kept else None
        return True

    def _boot_disk(self, words: list[str]) -> bool:
        kept = [word for word in words if word not in ("--no-describe", "-n")]
        if kept not in _FIRST_DISK:
            raise _Unsupported("only the first disk can be booted, by --drive 0x80")
        self.choice = LocalBoot(label="sanboot")
        return True

    def _acquired(self, words: list[str]) -> _Image | None:
        """Return the image that words name, one that is new, or the one that is selected."""
        options, rest = _options(words)
        if not rest or not rest[0]:
            return None if rest else self._selected
        image = next((image for image in self._images if image.name == rest[0]), None)
        image = image or self._added(rest[0], options)
        if rest[1:]:
            image.arguments = " ".join(rest[1:])
        return image

    def _added(self, uri: str, options: Mapping[str, str]) -> _Image:
        name = _first(options, "--name", "-n") or uri.partition("?")[0].rpartition("/")[2]
        image = _Image(name=name, uri=uri)
        self._images.append(image)
        return image

    def _bootable(self, image: _Image) -> Kernel:
        parts = [other for other in self._images if other.initrd and other is not image]
        if len(parts) > MAX_INITRDS:
            raise ConfigError(f"{self._place}: {len(parts)} initrds, of {MAX_INITRDS} at most")
        for part in parts:
            if part.arguments and not cpio.understood(part.arguments):
                raise _Unsupported(
                    f"the initrd {shown(part.uri)} is to be archived as {shown(part.arguments)}"
                )
        archived = tuple(part.arguments for part in parts)
        kept = [word for word in image.arguments.split() if not word.startswith("initrd=")]
        arguments = " ".join(kept)
        if CONTROL.search(arguments):
            raise _Unsupported("a control character in its command line")
        return Kernel(
            label=image.uri,
            kernel=image.uri,
            arguments=arguments,
            initrds=tuple(part.uri for part in parts),
            archived=archived if any(archived) else (),
        )


class _Unsupported(Exception):
    """A command can't be done here."""


_COMMANDS: dict[str, Callable[[_Machine, list[str]], bool]] = {
    "boot": _Machine._boot,
    "chain": _Machine._chain_to,
    "choose": _Machine._choose,
    "clear": lambda machine, words: machine._set(words[:1]),
    "cpuid": _Machine._cpuid,
    "dhcp": _Machine._open,
    "exit": _Machine._exit,
    "ifconf": _Machine._open,
    "ifopen": _Machine._open,
    "imgargs": _Machine._set_arguments,
    "imgexec": _Machine._boot,
    "imgfetch": _Machine._fetch,
    "imgfree": _Machine._free,
    "imgload": _Machine._select,
    "imgselect": _Machine._select,
    "inc": _Machine._increase,
    "initrd": _Machine._fetch,
    "iseq": _Machine._is_equal,
    "isset": _Machine._is_set,
    "item": _Machine._item,
    "kernel": _Machine._select,
    "md5sum": _Machine._digest,
    "menu": _Machine._menu,
    "module": _Machine._fetch,
    "prompt": _Machine._prompt,
    "sanboot": _Machine._boot_disk,
    "set": _Machine._set,
    "sha1sum": _Machine._digest,
    "sha256sum": _Machine._digest,
    "sha512sum": _Machine._digest,
    "show": _Machine._show,
    "sleep": lambda _machine, words: len(words) == 1,
}


# --- texts ----------------------------------------------------------------------------------------


def _is_script(text: bytes) -> bool:
    return text.startswith(MAGICS) and text[6:7].isspace()


def _lines(text: bytes) -> Iterator[_Line]:
    """Yield the lines of a script that say something, continued ones as one."""
    if not _is_script(text) or len(text) > MAX_CONFIG or b"\0" in text:
        raise ConfigError("not an iPXE script (or too long to be one)")
    begun, first = "", 0
    for number, raw in enumerate(text.split(b"\n"), 1):
        first = first or number
        place = f"iPXE script, line {first}"
        begun += raw.removesuffix(b"\r").decode("utf-8", "replace")
        if len(begun) > MAX_LINE:
            raise ConfigError(f"{place}: {len(begun)} characters, of {MAX_LINE} at most")
        if begun.endswith("\\"):
            begun = begun[:-1]
            continue
        command, label = begun.strip(), ""
        begun, first = "", 0
        if command.startswith(":"):
            label, _, command = command[1:].partition(" ")
        if label or (command and not command.startswith("#")):
            yield _Line(place, label, command)


def _commands(words: list[str]) -> Iterator[tuple[list[str], str]]:
    """Yield commands, each with what stands behind it: ``&&``, ``||``, ``;`` or nothing."""
    command: list[str] = []
    for word in words:
        if word.startswith("#"):
            break
        if word in ("&&", "||", ";"):
            yield command, word
            command = []
        else:
            command.append(word)
    yield command, ""


def _options(words: list[str]) -> tuple[dict[str, str], list[str]]:
    """Return a command's options with their values, and the words behind them."""
    options: dict[str, str] = {}
    rest = list(words)
    while rest and rest[0].startswith("-") and rest[0] != "-":
        word = rest.pop(0)
        if word == "--":
            break
        name, equals, value = word.partition("=") if word[1] == "-" else (word[:2], "", word[2:])
        if name not in _WITH_VALUE | _FLAGS:
            raise _Unsupported(f"the option {shown(name)}")
        if name in _FLAGS and value:  # -ar is -a -r
            rest.insert(0, f"-{value}")
        elif name in _WITH_VALUE and not (equals or value):
            if not rest:
                raise _Unsupported(f"the option {shown(name)} without a value")
            value = rest.pop(0)
        options[name] = value
    return options, rest


def _first(options: Mapping[str, str], *names: str) -> str:
    return next((options[name] for name in names if name in options), "")


def _timeout(options: Mapping[str, str]) -> bool:
    return _first(options, "--timeout", "-t").strip("0") != ""


def _said(line: _Line) -> str:
    return shlex.quote(shown(line.command))
