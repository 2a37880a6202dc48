"""A log that its writer rotates, read as one: the parts after one another, by lasting offsets.

virtlogd renames ``LOG`` to ``LOG.0``, ``LOG.0`` to ``LOG.1`` and so on once ``LOG`` has 2 MiB, and
removes the oldest part (virtlogd.conf: ``max_size``, ``max_backups``); logrotate begins at ``.1``.
A part is known by its inode, so the offset of a byte stays the same while its part is renamed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs

MAX_PARTS = 100


@attrs.frozen
class Part:
    """An open part of a log."""

    fd: int
    inode: int
    size: int


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Sequence[Part]]:
    """Open a log's parts, the oldest first; none if there is no log."""
    with contextlib.ExitStack() as stack:
        parts: dict[int, Part] = {}
        for number in (None, *range(MAX_PARTS)):  # the newest first: none is missed by a rotation
            name = path if number is None else f"{path}.{number}"
            try:
                fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
            except FileNotFoundError:
                if number in (None, 0):
                    continue
                break
            stack.callback(os.close, fd)
            status = os.fstat(fd)
            parts.setdefault(status.st_ino, Part(fd, status.st_ino, status.st_size))
        yield tuple(parts.values())[::-1]


@attrs.frozen
class Log:
    """What was seen of a log: its parts' inodes and sizes, and the offset of the first."""

    begin: int = 0
    seen: tuple[tuple[int, int], ...] = ()

    def followed(self, parts: Sequence[Part]) -> Log:
        """Return what is seen now: the same log without its oldest parts, or another after its end.

        Only the newest part grows. Inodes are used again: those of a log's end must all be there.
        """
        now = tuple((part.inode, part.size) for part in parts)
        at = self.begin
        for number, (_, size) in enumerate(self.seen):
            *full, (inode, least) = self.seen[number:]
            there = now[: len(full) + 1]
            if (
                list(there[:-1]) == full
                and len(there) > len(full)
                and there[-1][0] == inode
                and there[-1][1] >= least
            ):
                break
            at += size
        return Log(at, now)

    def read(self, parts: Sequence[Part], offset: int, limit: int) -> tuple[bytes, int]:
        """Return bytes from ``offset``, and the offset to continue from.

        An offset before the oldest part, or beyond the end, is taken as the oldest part's begin.
        """
        end = self.begin + sum(part.size for part in parts)
        if not self.begin <= offset <= end:
            offset = self.begin
        at = self.begin
        for part in parts:
            if offset < at + part.size:
                data = os.pread(part.fd, min(limit, at + part.size - offset), offset - at)
                return data, offset + len(data)
            at += part.size
        return b"", offset


EMPTY = Log()
