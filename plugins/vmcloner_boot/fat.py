"""FAT12, FAT16 and FAT32, read only: EFI system partitions.

Format: Microsoft's "FAT: General Overview of On-Disk Format", 1.03. Names are compared without
regard to case. Every walk is bounded.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import attrs

from vmcloner_boot.disk_image import MIB, Bytes, Unreadable
from vmcloner_boot.trees import FileSystem, Kind, Node

MAX_FOLDER = 2 * MIB
"""Bytes of a folder: what the format allows."""
_DAMAGED = "its file system (FAT) is damaged"
_READ_ONLY_HIDDEN_SYSTEM_LABEL = 0x0F
_LABEL, _FOLDER = 0x08, 0x10
_PAGE = 65536
"""Bytes of the table that are read at once."""


@attrs.frozen
class _Start:
    """Where a node's clusters begin; ``fixed`` for the root folder of FAT12 and FAT16."""

    cluster: int
    fixed: bool = False


def is_fat(data: Bytes) -> bool:
    """Tell whether there is a file system of this family."""
    head = data.read(0, 512)
    return len(head) == 512 and (head[0x36:0x39] == b"FAT" or head[0x52:0x55] == b"FAT")


class Fat(FileSystem):
    """A FAT file system.

    :raises Unreadable: it is damaged.
    """

    kind = "vfat"

    def __init__(self, data: Bytes) -> None:
        self._data = data
        head = data.exactly(0, 512)
        sector, self._per_cluster, reserved, tables, entries, small = struct.unpack(
            "<HBHBHH", head[11:21]
        )
        size16, large, size32 = (
            struct.unpack_from("<H", head, 22)[0],
            *struct.unpack_from("<II", head, 32),
        )
        size = size16 or size32
        if sector not in (512, 1024, 2048, 4096) or not self._per_cluster or not tables or not size:
            raise Unreadable(_DAMAGED)
        self._cluster = sector * self._per_cluster
        if self._cluster > MIB:
            raise Unreadable(_DAMAGED)
        self._table = reserved * sector
        self._root = (reserved + tables * size) * sector
        self._root_size = entries * 32
        self._first = self._root + -(-self._root_size // sector) * sector
        clusters = ((small or large) * sector - self._first) // self._cluster
        if clusters <= 0:
            raise Unreadable(_DAMAGED)
        self._bits = 12 if clusters < 4085 else 16 if clusters < 65525 else 32
        self._clusters = min(clusters, size * sector * 8 // self._bits)
        self._start = struct.unpack_from("<I", head, 44)[0] if self._bits == 32 else 0
        serial = struct.unpack_from("<I", head, 67 if self._bits == 32 else 39)[0]
        self.uuid = f"{serial >> 16:04X}-{serial & 0xFFFF:04X}"
        self._pages: dict[int, bytes] = {}
        self.label = self._label()

    def _label(self) -> str:
        for raw in self._records(self.root()):
            if raw[11] & 0x3F == _LABEL:
                return raw[:11].decode("cp437").rstrip(" ")
        return ""

    # --- the contract -------------------------------------------------------------------------

    def root(self) -> Node:
        """See :meth:`FileSystem.root`."""
        return Node(Kind.FOLDER, 0, _Start(self._start, fixed=self._bits != 32))

    def find(self, folder: Node, name: bytes) -> Node | None:
        """See :meth:`FileSystem.find`."""
        wanted = name.decode("utf-8", "surrogateescape").lower()
        return next((n for found, n in self._entries(folder) if found.lower() == wanted), None)

    def names(self, folder: Node) -> Iterator[bytes]:
        """See :meth:`FileSystem.names`."""
        return (name.encode("utf-8", "surrogatepass") for name, _ in self._entries(folder))

    def content(self, node: Node) -> Iterator[bytes]:
        """See :meth:`FileSystem.content`."""
        left = node.size
        for part in self._parts(node):
            yield part[:left]
            left -= len(part)
            if left <= 0:
                return
        if left > 0:
            raise Unreadable(f"{_DAMAGED}: a file's parts")

    # --- clusters -----------------------------------------------------------------------------

    def _parts(self, node: Node) -> Iterator[bytes]:
        """Yield what a node's clusters hold, those that lie one behind the other together."""
        start = node.key
        assert isinstance(start, _Start)  # noqa: S101 - nodes are our own
        if start.fixed:
            yield self._data.exactly(self._root, self._root_size)
            return
        first, count, visited = start.cluster, 1, 1
        while 2 <= first < self._clusters + 2:
            following = self._next(first + count - 1)
            visited += 1
            if visited > self._clusters + 1:
                raise Unreadable(f"{_DAMAGED}: a file's parts go in a circle")
            if following == first + count and count * self._cluster < MIB:
                count += 1
                continue
            at = self._first + (first - 2) * self._cluster
            yield self._data.exactly(at, count * self._cluster)
            first, count = following, 1

    def _next(self, cluster: int) -> int:
        """Return the cluster behind one; one out of range is the end."""
        at, odd = divmod(cluster * self._bits, 8)
        raw = self._at(at) | self._at(at + 1) << 8
        if self._bits == 12:
            return raw >> 4 if odd else raw & 0xFFF
        if self._bits == 32:
            return (raw | self._at(at + 2) << 16 | self._at(at + 3) << 24) & 0x0FFFFFFF
        return raw

    def _at(self, offset: int) -> int:
        """Return a byte of the table."""
        number, within = divmod(offset, _PAGE)
        if number not in self._pages:
            if len(self._pages) >= 16:
                self._pages.clear()
            self._pages[number] = self._data.read(self._table + number * _PAGE, _PAGE)
        page = self._pages[number]
        if within >= len(page):
            raise Unreadable(_DAMAGED)
        return page[within]

    # --- folders ------------------------------------------------------------------------------

    def _records(self, folder: Node) -> Iterator[bytes]:
        """Yield a folder's records of 32 bytes, up to its end."""
        left = MAX_FOLDER
        for part in self._parts(folder):
            left -= len(part)
            if left < 0:
                raise Unreadable("a folder on its disk is larger than any should be")
            for at in range(0, len(part) - 31, 32):
                if part[at] == 0:
                    return
                if part[at] != 0xE5:
                    yield part[at : at + 32]

    def _entries(self, folder: Node) -> Iterator[tuple[str, Node]]:
        """Yield (name, node). A long name lies in records before that of the short one."""
        long: dict[int, bytes] = {}
        checksum = -1
        for raw in self._records(folder):
            if raw[11] & 0x3F == _READ_ONLY_HIDDEN_SYSTEM_LABEL:
                if raw[0] & 0x40:
                    long, checksum = {}, raw[13]
                if raw[13] == checksum:
                    long[raw[0] & 0x1F] = raw[1:11] + raw[14:26] + raw[28:32]
                continue
            name = _long_name(long) if long and checksum == _checksum(raw) else _short_name(raw)
            long, checksum = {}, -1
            if raw[11] & _LABEL or name in (".", ".."):
                continue
            high = struct.unpack_from("<H", raw, 20)[0] if self._bits == 32 else 0
            cluster = high << 16 | struct.unpack_from("<H", raw, 26)[0]
            size = struct.unpack_from("<I", raw, 28)[0]
            is_folder = bool(raw[11] & _FOLDER)
            kind = Kind.FOLDER if is_folder else Kind.FILE
            yield name, Node(kind, 0 if is_folder else size, _Start(cluster))


def _long_name(parts: dict[int, bytes]) -> str:
    raw = b"".join(parts[number] for number in sorted(parts))
    return raw.decode("utf-16-le", "replace").split("\0")[0]


def _short_name(raw: bytes) -> str:
    first = b"\xe5" if raw[0] == 5 else raw[:1]
    name = (first + raw[1:8]).decode("cp437").rstrip(" ")
    extension = raw[8:11].decode("cp437").rstrip(" ")
    if raw[12] & 0x08:
        name = name.lower()
    if raw[12] & 0x10:
        extension = extension.lower()
    return f"{name}.{extension}" if extension else name


def _checksum(raw: bytes) -> int:
    total = 0
    for byte in raw[:11]:
        total = ((total & 1) << 7 | total >> 1) + byte & 0xFF
    return total
