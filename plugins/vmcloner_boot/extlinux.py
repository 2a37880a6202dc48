"""What extlinux would boot from a disk: https://wiki.syslinux.org/wiki/index.php?title=Config"""

from __future__ import annotations

from collections.abc import Sequence

from vmcloner_boot.choice import MAX_INITRDS, Choice, Found
from vmcloner_boot.disk_image import Budget, Unreadable
from vmcloner_boot.trees import Tree, pair

EXTLINUX_FILES = (
    "/boot/extlinux/extlinux.conf",
    "/boot/extlinux.conf",
    "/boot/syslinux/syslinux.cfg",
    "/extlinux/extlinux.conf",
    "/extlinux.conf",
    "/syslinux/syslinux.cfg",
    "/syslinux.cfg",
)


def extlinux_menu(tree: Tree, _trees: Sequence[Tree], _budget: Budget) -> Choice | None:
    """Return what extlinux's menu on a file system chooses, None where there is none."""
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
        key, value = pair(line)
        key = key.upper()
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
