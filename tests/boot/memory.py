"""A file system in memory, for tests of what is built on file systems."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from vmcloner_boot.trees import FileSystem, Kind, Node, Tree


class Memory(FileSystem):
    """Texts and bytes are files, a Path is a link; folders are made as needed."""

    kind = "memory"

    def __init__(self, files: Mapping[str, object], uuid: str = "") -> None:
        self.uuid = uuid
        self.top: dict[bytes, object] = {}
        for name, content in files.items():
            *folders, last = name.strip("/").encode("utf-8", "surrogateescape").split(b"/")
            folder = self.top
            for part in folders:
                folder = folder.setdefault(part, {})  # type: ignore[assignment]
            folder[last] = content

    def root(self) -> Node:
        return self._node(self.top)

    def find(self, folder: Node, name: bytes) -> Node | None:
        found = folder.key.get(name)  # type: ignore[attr-defined]
        return None if found is None else self._node(found)

    def names(self, folder: Node) -> Iterator[bytes]:
        return iter(folder.key)  # type: ignore[call-overload, no-any-return]

    def content(self, node: Node) -> Iterator[bytes]:
        yield self._bytes(node.key)

    def _node(self, key: object) -> Node:
        if isinstance(key, dict):
            return Node(Kind.FOLDER, 0, key)
        kind = Kind.LINK if isinstance(key, Path) else Kind.FILE
        return Node(kind, len(self._bytes(key)), key)

    @staticmethod
    def _bytes(key: object) -> bytes:
        return key if isinstance(key, bytes) else str(key).encode("utf-8", "surrogateescape")


def tree(
    files: Mapping[str, object],
    partition: int = 0,
    table: str = "",
    uuid: str = "",
) -> Tree:
    place = f"partition {partition}" if partition else "the disk"
    return Tree(Memory(files, uuid), place, partition, table)
