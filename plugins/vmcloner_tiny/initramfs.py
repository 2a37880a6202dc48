"""Write an initramfs: a cpio archive of the "new ASCII" kind.

Format: kernel, Documentation/driver-api/early-userspace/buffer-format.rst; cpio(5). There is no
need for a tool: the archive has ten files, must be reproducible, and should need neither root (for
the owners) nor a folder of files to pack.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable

import attrs

_MAGIC = "070701"
_TRAILER = "TRAILER!!!"


@attrs.frozen
class Entry:
    """A file or a folder of the archive, owned by root. ``path`` has no leading slash."""

    path: str
    content: bytes
    mode: int


def folder(path: str) -> Entry:
    """Return an entry for a folder. It must precede the entries of its contents."""
    return Entry(path, b"", stat.S_IFDIR | 0o755)


def file(path: str, content: bytes) -> Entry:
    """Return an entry for a regular file."""
    return Entry(path, content, stat.S_IFREG | 0o644)


def executable(path: str, content: bytes) -> Entry:
    """Return an entry for a program."""
    return Entry(path, content, stat.S_IFREG | 0o755)


def pack(entries: Iterable[Entry]) -> bytes:
    """Return the archive, uncompressed."""
    archive = bytearray()
    for inode, entry in enumerate((*entries, Entry(_TRAILER, b"", 0)), start=1):
        name = entry.path.encode() + b"\0"
        links = 2 if stat.S_ISDIR(entry.mode) else 1
        # inode, mode, uid, gid, links, mtime, size, device, special device, name size, checksum
        fields = (inode, entry.mode, 0, 0, links, 0, len(entry.content), 0, 0, 0, 0, len(name), 0)
        header = _MAGIC + "".join(f"{field:08x}" for field in fields)
        for part in (header.encode() + name, entry.content):
            archive += part
            archive += bytes(-len(archive) % 4)
    return bytes(archive)
