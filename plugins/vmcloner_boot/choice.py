"""What a disk boots: files of its file systems, and who says so."""

from __future__ import annotations

import attrs

from vmcloner_boot.disk_image import Unreadable
from vmcloner_boot.trees import Node, Tree
from vmcloner_core.errors import shown

MAX_INITRDS = 16


@attrs.frozen
class Found:
    """A file on one of the disk's file systems."""

    tree: Tree
    node: Node
    path: str

    def __str__(self) -> str:
        return shown(f"{self.path} on {self.tree.place}")


def located(tree: Tree, path: str) -> Found:
    """Return the file at a path.

    :raises Unreadable: there is none.
    """
    node = tree.file(path)
    if node is None:
        raise Unreadable(f"{path} isn't a file on {tree.place}")
    return Found(tree, node, path)


@attrs.frozen(kw_only=True)
class Choice:
    """What is to be booted. ``source`` says where that is written, fit to be shown."""

    kernel: Found
    initrds: tuple[Found, ...] = ()
    cmdline: str = ""
    source: str = attrs.field(converter=shown)
