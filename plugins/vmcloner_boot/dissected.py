"""XFS and btrfs, read by the libraries of the dissect project, where these are installed.

They are an extra (``pip install 'vmcloner[filesystems]'``): their licence, AGPL-3.0, is not ours.
https://docs.dissect.tools/
"""

from __future__ import annotations

import io
import itertools
import stat
from collections.abc import Iterator
from typing import Any

from vmcloner_boot import btrfs
from vmcloner_boot.disk_image import MIB, Bytes, Unreadable
from vmcloner_boot.trees import FileSystem, Kind, Node
from vmcloner_core.errors import VmclonerError

MAX_NAMES = 100_000
MAX_READ = 4 * MIB
"""Bytes of what a library wants at once: more is the disk's say."""
ROOTS = ("@", "@rootfs", "root")
"""Subvolumes that are root file systems by their name: of Ubuntu and Arch, Debian, Fedora."""
MAX_SUBVOLUMES = 200
"""Subvolumes, and folders of the top level, that are looked at."""
EXTRA = "vmcloner[filesystems]"


class _Stream(io.RawIOBase):
    """Bytes as the stream that a library wants."""

    def __init__(self, data: Bytes) -> None:
        self._data = data
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._data.size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        part = self._data.read(self._at, min(len(buffer), MIB))
        buffer[: len(part)] = part
        self._at += len(part)
        return len(part)

    def alive(self) -> None:
        """Check that there is time left, for a library that goes on without reading."""
        self._data.read(0, 1)


class _Reader(io.BufferedReader):
    """A buffer over that which reads so much at once as a library may want."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= MAX_READ:
            raise Unreadable("its file system is damaged: a part of it is too large")
        return super().read(size)


def _opened(kind: str, data: Bytes) -> Any:
    stream = _Reader(_Stream(data), MIB // 16)
    if kind == "xfs":
        from dissect.xfs import XFS

        return XFS(stream)
    library = btrfs.library()
    btrfs.check_superblock(data)
    return library(stream)


class Dissected(FileSystem):
    """A file system that a library reads; its errors, of whatever kind, are ours.

    :raises Unreadable: it is damaged. :raises ImportError: the library isn't installed.
    """

    def __init__(self, kind: str, data: Bytes) -> None:
        self.kind = kind
        try:
            self._system = _opened(kind, data)
            self.uuid = str(self._system.uuid)
            self._root = self._top()
            self.label = self._label(data)
        except ImportError:
            raise
        except Exception as error:
            raise self._ours(error) from error

    def _top(self) -> Any:
        return self._system.root if self.kind == "xfs" else self._system.fs_tree.root

    def _label(self, data: Bytes) -> str:
        if self.kind == "xfs":
            return data.read(108, 12).split(b"\0")[0].decode("utf-8", "replace")
        return str(self._system.label)

    def subvolumes(self) -> Iterator[tuple[str, bool, FileSystem]]:
        """Yield subvolumes, and folders at the top, that may be the root of a system.

        Each with its path from the top level, and whether it is the default subvolume. A root has
        a folder ``boot``, be it empty.
        """
        if self.kind != "btrfs":
            return
        found: dict[str, tuple[bool, Any]] = {}
        try:
            default = self._system.default_subvolume.objectid
            top = self._system.fs_tree.objectid
            for subvolume in itertools.islice(self._system.subvolumes(), MAX_SUBVOLUMES):
                if subvolume.objectid != top:
                    found[subvolume.path] = subvolume.objectid == default, subvolume.root
            for name, inode in itertools.islice(self._entries(self.root()), MAX_SUBVOLUMES):
                found.setdefault(name.decode("utf-8", "surrogateescape"), (False, inode))
        except Exception as error:
            raise self._ours(error) from error
        for path, (is_default, inode) in sorted(found.items(), key=_order):
            node = self._node(inode)
            if node.kind is Kind.FOLDER and self.find(node, b"boot") is not None:
                yield path, is_default, Under(self, node)

    def _ours(self, error: Exception) -> VmclonerError:
        if isinstance(error, VmclonerError):
            return error
        return Unreadable(f"its file system ({self.kind}) is damaged: {error or type(error)}")

    def root(self) -> Node:
        """See :meth:`FileSystem.root`."""
        return self._node(self._root)

    def find(self, folder: Node, name: bytes) -> Node | None:
        """See :meth:`FileSystem.find`."""
        for found, inode in self._entries(folder):
            if found == name:
                return self._node(inode)
        return None

    def names(self, folder: Node) -> Iterator[bytes]:
        """See :meth:`FileSystem.names`."""
        return (name for name, _ in self._entries(folder))

    def content(self, node: Node) -> Iterator[bytes]:
        """See :meth:`FileSystem.content`."""
        inode: Any = node.key
        try:
            if node.kind is Kind.LINK:
                yield str(inode.link).encode("utf-8", "surrogateescape")
                return
            stream, left = inode.open(), node.size
            btrfs.check_extents(stream)
            while left > 0 and (part := stream.read(min(MIB, left))):
                yield part
                left -= len(part)
        except Exception as error:
            raise self._ours(error) from error

    def _node(self, inode: Any) -> Node:
        try:
            kind = inode.filetype if self.kind == "xfs" else inode.type
            kinds = {stat.S_IFREG: Kind.FILE, stat.S_IFDIR: Kind.FOLDER, stat.S_IFLNK: Kind.LINK}
            return Node(kinds.get(kind, Kind.OTHER), int(inode.size), inode)
        except Exception as error:
            raise self._ours(error) from error

    def _entries(self, folder: Node) -> Iterator[tuple[bytes, Any]]:
        inode: Any = folder.key
        try:
            for number, entry in enumerate(inode.iterdir()):
                if number > MAX_NAMES:
                    raise Unreadable("a folder on its disk is larger than any should be")
                name, found = (entry.filename, entry) if self.kind == "xfs" else entry
                if name not in (".", ".."):
                    yield name.encode("utf-8", "surrogateescape"), found
        except Exception as error:
            raise self._ours(error) from error


def _order(item: tuple[str, tuple[bool, Any]]) -> tuple[bool, bool, int, str]:
    """Sort subvolumes: the default one, roots by their name, and snapshots in folders last."""
    path, (default, _) = item
    return not default, path not in ROOTS, path.count("/"), path


class Under(FileSystem):
    """A folder of a file system, such as a subvolume, as a file system of its own."""

    def __init__(self, system: FileSystem, top: Node) -> None:
        self.kind, self.uuid, self.label = system.kind, system.uuid, system.label
        self._system, self._top = system, top

    def root(self) -> Node:
        """See :meth:`FileSystem.root`."""
        return self._top

    def find(self, folder: Node, name: bytes) -> Node | None:
        """See :meth:`FileSystem.find`."""
        return self._system.find(folder, name)

    def names(self, folder: Node) -> Iterator[bytes]:
        """See :meth:`FileSystem.names`."""
        return self._system.names(folder)

    def content(self, node: Node) -> Iterator[bytes]:
        """See :meth:`FileSystem.content`."""
        return self._system.content(node)
