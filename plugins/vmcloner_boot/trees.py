"""File systems as trees of nodes, and paths that never lead out of them."""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Iterator

import attrs

from vmcloner_boot.disk_image import MIB, Unreadable

MAX_LINKS = 16
"""Symbolic links on the way to one file."""
MAX_PATH = 4096
MAX_DEPTH = 64
"""Names in one path."""
MAX_TEXT = MIB
"""Bytes of a configuration file."""


class Kind(enum.Enum):
    """What a node is."""

    FILE = "file"
    FOLDER = "folder"
    LINK = "link"
    OTHER = "other"


@attrs.frozen
class Node:
    """A file, folder or link of a file system; ``key`` is the file system's own. Bytes."""

    kind: Kind
    size: int
    key: object


class FileSystem(ABC):
    """A file system that is read only. Names are bytes as they are on the disk."""

    kind = ""
    uuid = ""
    label = ""

    @abstractmethod
    def root(self) -> Node:
        """Return the root folder."""

    @abstractmethod
    def find(self, folder: Node, name: bytes) -> Node | None:
        """Return the node of that name in a folder, None where there is none."""

    @abstractmethod
    def names(self, folder: Node) -> Iterator[bytes]:
        """Yield the names in a folder, but for ``.`` and ``..``."""

    @abstractmethod
    def content(self, node: Node) -> Iterator[bytes]:
        """Yield what a file holds, in parts of at most a MiB, or where a link leads."""


@attrs.frozen
class Tree:
    """A file system whose paths stay inside it: ``..`` ends at its root, links begin there.

    :param place: what it is called in messages, "partition 2".
    :param partition: its number, 0 where it is the whole disk; with ``table``, ``gpt`` or
        ``msdos``, that is how GRUB names it.
    :param uuid: the partition's own.
    :param subvolume: of btrfs, the path of this subvolume from the top level; "" for the top level.
    :param default: whether it is the subvolume that is mounted where none is named.
    """

    system: FileSystem
    place: str
    partition: int = 0
    table: str = ""
    uuid: str = ""
    subvolume: str = ""
    default: bool = False

    def find(self, path: str) -> Node | None:
        """Return what a path leads to through all its links, None where that isn't there.

        :raises Unreadable: too many links, or names.
        """
        trail = [self.system.root()]
        waiting = _names(path)[::-1]
        links = steps = 0
        while waiting:
            name = waiting.pop()
            steps += 1
            if steps > MAX_DEPTH * MAX_LINKS:
                raise Unreadable(f"{path!r} on {self.place} is too long")
            if name == b"..":
                trail = trail[:-1] or trail
                continue
            if trail[-1].kind is not Kind.FOLDER:
                return None
            node = self.system.find(trail[-1], name)
            if node is None:
                return None
            if node.kind is not Kind.LINK:
                trail.append(node)
                continue
            links += 1
            if links > MAX_LINKS:
                raise Unreadable(f"{path!r} on {self.place} leads through too many links")
            target = self._target(node)
            if target.startswith("/"):
                trail = trail[:1]
            waiting.extend(_names(target)[::-1])
        return trail[-1]

    def file(self, path: str) -> Node | None:
        """Return the file that a path leads to; None where there is none, or something else."""
        node = self.find(path)
        return node if node is not None and node.kind is Kind.FILE else None

    def folder(self, path: str) -> Node | None:
        """Return the folder that a path leads to, likewise."""
        node = self.find(path)
        return node if node is not None and node.kind is Kind.FOLDER else None

    def text(self, path: str, limit: int = MAX_TEXT) -> str | None:
        """Return what a configuration file says, None where there is none.

        :raises Unreadable: it is larger than ``limit`` bytes.
        """
        node = self.file(path)
        if node is None:
            return None
        if node.size > limit:
            raise Unreadable(f"{path!r} on {self.place} is larger than {limit} bytes")
        data = b"".join(self.system.content(node))
        return data.decode("utf-8", "surrogateescape").replace("\r\n", "\n")

    def target(self, path: str) -> str | None:
        """Return where a link in the root folder leads, None where there is no such link."""
        (name,) = _names(path)[:1] or [b""]
        node = self.system.find(self.system.root(), name) if path.count("/") == 1 else None
        return self._target(node) if node is not None and node.kind is Kind.LINK else None

    def names(self, path: str) -> list[str]:
        """Return the names in a folder, none where there is no such folder."""
        node = self.folder(path)
        if node is None:
            return []
        return [name.decode("utf-8", "surrogateescape") for name in self.system.names(node)]

    def _target(self, node: Node) -> str:
        if not 0 < node.size <= MAX_PATH:
            raise Unreadable(f"a link on {self.place} is damaged")
        data = b"".join(self.system.content(node))
        return data.decode("utf-8", "surrogateescape")


def pair(line: str) -> tuple[str, str]:
    """Return the key that a line begins with and what follows, "" where there is nothing."""
    key, *value = line.split(None, 1) or [""]
    return key, value[0].strip() if value else ""


def _names(path: str) -> list[bytes]:
    if len(path) > MAX_PATH or "\0" in path:
        raise Unreadable(f"not a path: {path[:80]!r}")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if len(parts) > MAX_DEPTH:
        raise Unreadable(f"{path[:80]!r}… has more than {MAX_DEPTH} names")
    return [part.encode("utf-8", "surrogateescape") for part in parts]
