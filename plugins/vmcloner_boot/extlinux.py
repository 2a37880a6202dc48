"""What extlinux would boot from a disk."""

from __future__ import annotations

from collections.abc import Sequence

from vmcloner_boot.choice import Choice, Found, located
from vmcloner_boot.disk_image import Budget, Unreadable
from vmcloner_boot.trees import Tree
from vmcloner_syslinux.choice import Kernel, choose
from vmcloner_syslinux.config import ConfigError, parse

_FOLDERS = ("/boot/extlinux", "/boot", "/boot/syslinux", "/extlinux", "", "/syslinux")
EXTLINUX_FILES = tuple(
    f"{folder}/{name}" for folder in _FOLDERS for name in ("extlinux.conf", "syslinux.cfg")
)


def extlinux_menu(tree: Tree, _trees: Sequence[Tree], _budget: Budget) -> Choice | None:
    """Return what extlinux's menu on a file system chooses, None where there is none.

    :raises Unreadable: there is one, but it boots nothing that can be booted here.
    """
    for path in EXTLINUX_FILES:
        text = tree.text(path)
        if text is None:
            continue
        source = f"{path} on {tree.place}"
        try:
            return _choice(tree, path, text, source)
        except (ConfigError, Unreadable) as error:
            raise Unreadable(f"{source}: {error.message}", hint=error.hint) from error
    return None


def _choice(tree: Tree, path: str, text: str, source: str) -> Choice:
    folder = path.rpartition("/")[0]

    def full(name: str) -> str:
        return name if name.startswith("/") else f"{folder}/{name}"

    def read(name: str) -> bytes | None:
        included = tree.text(full(name))
        return None if included is None else _encoded(included)

    def file(name: str) -> Found:
        return located(tree, full(name))

    chosen = choose(parse(_encoded(text), read))
    if not isinstance(chosen, Kernel):
        raise Unreadable(
            f"label {chosen.label} starts another boot loader by LOCALBOOT or chain.c32",
            hint="boot = 'disk' lets the guest's firmware start it",
        )
    return Choice(
        kernel=file(chosen.kernel),
        initrds=tuple(map(file, chosen.initrds)),
        cmdline=chosen.arguments,
        source=f"label {chosen.label!r} of {source}",
    )


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
