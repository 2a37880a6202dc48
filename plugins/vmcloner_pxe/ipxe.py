"""iPXE scripts of the simplest kind: a kernel, its initrds, and ``boot`` (https://ipxe.org/scripting).

Conditions, menus, downloads into variables and whatever else iPXE can do are refused by name:
a script that is understood by half boots the wrong thing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from vmcloner_pxe.errors import CONTROL, shown
from vmcloner_pxe.pxelinux import (
    MAX_CONFIG,
    MAX_DEPTH,
    MAX_INITRDS,
    MAX_LINE,
    Choice,
    ConfigError,
    Kernel,
    LocalBoot,
)

MAGIC = b"#!ipxe"
_VARIABLE = re.compile(r"\$\{([^}$]*)\}")
_IGNORED = {"dhcp", "echo", "ifopen", "imgfree"}
"""Commands of which nothing is left to do once there is a lease."""


def parse(
    text: bytes, variables: Mapping[str, str], chain: Callable[[str], bytes], *, depth: int = 0
) -> Choice:
    """Return what a script boots.

    :param variables: what ``${NAME}`` stands for; others are refused.
    :param chain: returns the content of the script that is chained to by that name.
    :raises ConfigError: names the line and the reason; and whatever ``chain`` raises.
    """
    if not text.startswith(MAGIC) or len(text) > MAX_CONFIG or b"\0" in text:
        raise ConfigError("not an iPXE script (or too long to be one)")
    kernel: Kernel | None = None
    initrds: list[str] = []
    for number, raw in enumerate(text.splitlines(), 1):
        place = f"iPXE script, line {number}"
        command, words = _words(raw, place, variables)
        if command in _IGNORED or not command:
            continue
        if command == "kernel":
            kernel, initrds = _kernel(words, place), []
        elif command in ("initrd", "module"):
            initrds.append(_one(words, place))
        elif command == "boot" and kernel is not None:
            return _bootable(kernel, initrds, place)
        elif command == "exit" or (command == "sanboot" and _first_disk(words)):
            return LocalBoot(label=command)
        elif command == "chain" and depth < MAX_DEPTH:
            script = chain(_one(words, place))
            return parse(script, variables, chain, depth=depth + 1)
        else:
            raise ConfigError(
                f"{place}: can't do {shown(raw.decode('utf-8', 'replace'))!r}",
                hint="kernel, initrd, boot, chain to such a script, exit and sanboot 0x80 it can",
            )
    raise ConfigError("the iPXE script ends without boot")


def _words(raw: bytes, place: str, variables: Mapping[str, str]) -> tuple[str, list[str]]:
    """Return a line's command and its words; no command where it says nothing."""
    if len(raw) > MAX_LINE:
        raise ConfigError(f"{place}: {len(raw)} bytes, of {MAX_LINE} at most")
    line = raw.decode("utf-8", "replace").replace("\t", " ").strip()
    if not line or line.startswith("#"):
        return "", []
    if CONTROL.search(line):
        raise ConfigError(f"{place}: a control character")
    if "||" in line or "&&" in line or line.endswith("\\") or line.startswith(":"):
        raise ConfigError(f"{place}: can't do conditions, labels and continued lines")

    def value(match: re.Match[str]) -> str:
        if match[1] not in variables:
            raise ConfigError(f"{place}: unknown variable {shown(match[0])}")
        return variables[match[1]]

    filled = line if "${" not in line else _VARIABLE.sub(value, line)
    if "${" in filled:
        raise ConfigError(f"{place}: a variable in a variable")
    command, *words = filled.split()
    return command.lower(), words


def _kernel(words: list[str], place: str) -> Kernel:
    name, *arguments = _without_options(words, place)
    kept = [word for word in arguments if not word.startswith("initrd=")]
    return Kernel(label=name, kernel=name, arguments=" ".join(kept))


def _bootable(kernel: Kernel, initrds: list[str], place: str) -> Kernel:
    if len(initrds) > MAX_INITRDS:
        raise ConfigError(f"{place}: {len(initrds)} initrds, of {MAX_INITRDS} at most")
    return Kernel(
        label=kernel.label,
        kernel=kernel.kernel,
        arguments=kernel.arguments,
        initrds=tuple(initrds),
    )


def _one(words: list[str], place: str) -> str:
    return _without_options(words, place)[0]


def _without_options(words: list[str], place: str) -> list[str]:
    """Return a command's words from its image's name on."""
    while words and words[0].startswith("-"):
        words = words[2 if words[0] in ("--name", "-n", "--timeout", "-t") else 1 :]
    if not words:
        raise ConfigError(f"{place}: no image's name")
    return words


def _first_disk(words: list[str]) -> bool:
    kept = [word for word in words if word != "--no-describe"]
    return kept in (["--drive", "0x80"], ["-d", "0x80"], ["--drive=0x80"])
