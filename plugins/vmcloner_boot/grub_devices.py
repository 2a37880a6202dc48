"""What GRUB sees of a disk: its devices, paths on them, and patterns of file names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

from vmcloner_boot.disk_image import Budget
from vmcloner_boot.grub_interpreter import is_pattern, unescaped
from vmcloner_boot.trees import Kind, Node, Tree

MAX_MATCHES = 1000
"""Files that a pattern may stand for."""


def device_name(tree: Tree) -> str:
    """Return what GRUB calls the device that a file system is on."""
    return f"hd0,{tree.table}{tree.partition}" if tree.partition else "hd0"


def _named(device: str, tree: Tree) -> bool:
    match = re.fullmatch(
        r"(?:hd0|ahci0|ata0|xen/xvda|virtio0)(?:,(msdos|gpt)?([0-9]{1,4}))?", device
    )
    if match is None or int(match[2] or 0) != tree.partition:
        return False
    return not match[1] or match[1] == tree.table


class Devices:
    """A disk's file systems. On btrfs, paths begin at the top level, as upstream GRUB's do.

    :param variable: the value of a variable of the script, "" where it isn't set.
    """

    def __init__(
        self, trees: Sequence[Tree], variable: Callable[[str], str], budget: Budget
    ) -> None:
        self._all = trees
        self.trees = tuple(tree for tree in trees if not tree.subvolume)
        self._variable = variable
        self._budget = budget

    def tree(self, device: str) -> Tree | None:
        """Return the file system on a device, None where there is none that can be read."""
        found = next((tree for tree in self.trees if _named(device, tree)), None)
        # openSUSE's GRUB has a variable for paths that begin at the default subvolume.
        if found is not None and self._variable("btrfs_relative_path")[:1] in ("1", "y"):
            return self._default(found)
        return found

    def _default(self, top: Tree) -> Tree:
        there = (t for t in self._all if t.default and t.partition == top.partition)
        return next(there, top)

    def place(self, path: str) -> tuple[str, Tree | None, str]:
        """Return a path's device, the file system there, and the path on it."""
        match = re.match(r"\(([^)]*)\)(.*)", path, re.DOTALL)
        device, rest = match.groups() if match else (self._variable("root"), path)
        return device, self.tree(device), rest

    def file(self, path: str) -> tuple[Tree, Node, str] | None:
        """Return the file that a path leads to."""
        _, tree, rest = self.place(path)
        node = tree.file(rest) if tree is not None and rest.startswith("/") else None
        return None if tree is None or node is None else (tree, node, rest)

    def text(self, path: str) -> str | None:
        """Return what a file says, None where there is none."""
        found = self.file(path)
        return None if found is None else found[0].text(found[2])

    # --- tests (see Files of grub_conditions) ---

    def is_there(self, path: str) -> bool:
        """Tell whether there is anything of that name; a link counts as it is."""
        return self._entry(path) is not None

    def is_folder(self, path: str) -> bool:
        """Tell whether it is a folder; a link to one isn't."""
        node = self._entry(path)
        return node is not None and node.kind is Kind.FOLDER

    def has_content(self, path: str) -> bool:
        """Tell whether it is, or links to, a file that isn't empty."""
        found = self.file(path)
        return found is not None and found[1].size > 0

    def _entry(self, path: str) -> Node | None:
        _, tree, rest = self.place(path)
        if tree is None:
            return None
        above, _, name = rest.rstrip("/").rpartition("/")
        folder = tree.folder(above)
        if not name or folder is None:
            return folder
        return tree.system.find(folder, name.encode("utf-8", "surrogateescape"))

    # --- patterns ---

    def expand(self, pattern: str) -> list[str]:
        """Return the paths that a pattern stands for; ``*`` and ``?`` are any characters."""
        first, slash, rest = _split(pattern)
        found = [unescaped(first)]
        if is_pattern(first):
            names = [
                f"({name})" for name in self._device_names() if first[0] == "(" or "," not in name
            ]
            found = [name for name in names if _matches(first, name)]
        while slash:
            part, slash, rest = _split(rest)
            found = [path for above in found for path in self._within(f"{above}/", part)]
            if len(found) > MAX_MATCHES:
                found = found[:MAX_MATCHES]
        return found

    def _device_names(self) -> Iterator[str]:
        yield "hd0"
        yield from (device_name(tree) for tree in self.trees if tree.partition)

    def _within(self, above: str, part: str) -> Iterator[str]:
        """Yield the paths in a folder that a part of a pattern stands for."""
        if not is_pattern(part):
            if self.is_there(above + unescaped(part)):
                yield above + unescaped(part)
            return
        _, tree, folder = self.place(above)
        for name in tree.names(folder) if tree is not None else ():
            self._budget.spend(0)
            if _matches(part, name):
                yield above + name


def _split(pattern: str) -> tuple[str, str, str]:
    return pattern.partition("/")


def _matches(pattern: str, name: str) -> bool:
    """Compare without going back further than to the last asterisk."""
    parts = re.findall(r"\\[\s\S]|[\s\S]", pattern)
    at = here = 0
    star, resume = -1, 0
    while at < len(name):
        if here < len(parts) and parts[here] == "*":
            star, resume = here, at
            here += 1
        elif here < len(parts) and (parts[here] == "?" or parts[here][-1] == name[at]):
            here += 1
            at += 1
        elif star >= 0:
            resume += 1
            here, at = star + 1, resume
        else:
            return False
    return all(part == "*" for part in parts[here:])
