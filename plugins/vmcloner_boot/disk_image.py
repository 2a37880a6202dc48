"""Disks that others wrote, read within limits: raw and qcow2 images, partitions, plain ranges.

What is read is hostile input. A :class:`Budget` bounds the bytes and the time of all reads on
behalf of one clone; a read beyond an image's end is short, never an exception of the system's.
"""

from __future__ import annotations

import os
import stat
import time
import zlib
from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterator
from pathlib import Path

import attrs

from vmcloner_core import qcow2
from vmcloner_core.errors import (
    DeadlineExceeded,
    HostCommandError,
    InvalidRequest,
    WrongState,
    shown,
)

MAX_BACKING = 8
"""Files that a qcow2 image may be layered over, one over the other."""
MIB = 1024**2
MAX_TABLES = 8 * MIB
"""Bytes of a qcow2 image's tables that are kept."""


class Unreadable(WrongState):
    """What is on the disk can't be made sense of. The message may have the guest's own words."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(shown(message), hint=hint)


class Exhausted(WrongState):
    """What is on the disk leads on and on."""


@attrs.define
class Budget:
    """How much may be read on behalf of one clone, and until when.

    :param left: bytes. :param deadline: by :func:`time.monotonic`.
    """

    left: int = 2048 * MIB
    deadline: float = attrs.field(factory=lambda: time.monotonic() + 60)

    def spend(self, size: int) -> None:
        """Take ``size`` bytes of it.

        :raises Exhausted: it is used up. :raises DeadlineExceeded: its time is over.
        """
        self.left -= size
        if self.left < 0:
            raise Exhausted("what it boots takes more to read than any disk should need")
        if time.monotonic() > self.deadline:
            raise DeadlineExceeded("reading what it boots takes too long")


class Bytes(ABC):
    """Something of a fixed size that can be read at any offset."""

    size: int

    @abstractmethod
    def read(self, offset: int, length: int) -> bytes:
        """Return up to ``length`` bytes from ``offset``; fewer at the end, none beyond it."""

    def exactly(self, offset: int, length: int) -> bytes:
        """Return ``length`` bytes from ``offset``.

        :raises Unreadable: there aren't so many.
        """
        data = self.read(offset, length)
        if len(data) != length:
            raise Unreadable(f"the disk ends before byte {offset + length}")
        return data


@attrs.frozen
class Range(Bytes):
    """A part of something: a partition."""

    whole: Bytes
    start: int
    size: int

    def read(self, offset: int, length: int) -> bytes:
        """See :meth:`Bytes.read`."""
        if offset < 0 or offset >= self.size:
            return b""
        return self.whole.read(self.start + offset, min(length, self.size - offset))


class RawImage(Bytes):
    """A file or a block device, read as it is. Closed by :meth:`close`."""

    def __init__(self, path: Path, budget: Budget) -> None:
        self._budget = budget
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise HostCommandError(f"can't read {path}: {error.strerror}") from error
        mode = os.fstat(self._descriptor).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            self.close()
            raise HostCommandError(f"can't read {path}: neither a file nor a block device")
        self._path = path
        self.size = os.lseek(self._descriptor, 0, os.SEEK_END)
        if stat.S_ISBLK(mode):
            # The guest wrote past this host's cache of the device (cache=none).
            os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def read(self, offset: int, length: int) -> bytes:
        """See :meth:`Bytes.read`."""
        if offset < 0 or offset >= self.size:
            return b""
        length = min(length, self.size - offset)
        self._budget.spend(length)
        parts: list[bytes] = []
        while length:
            try:
                part = os.pread(self._descriptor, length, offset)
            except OSError as error:
                raise HostCommandError(f"can't read {self._path}: {error.strerror}") from error
            if not part:
                break
            parts.append(part)
            offset += len(part)
            length -= len(part)
        return b"".join(parts)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


class Qcow2Image(Bytes):
    """A qcow2 image, with those that it is layered over.

    The images are the pool's, not the guest's; still no number in them is trusted. Snapshots within
    an image aren't looked at.

    :param backing: the raw file that it is an overlay of, if it is one: the pool's word counts,
        not the header's. None where the pool has no such word.
    :raises Unreadable: it uses what isn't understood here (encryption, an external data file), or
        doesn't say which format its backing file has.
    """

    def __init__(
        self, path: Path, budget: Budget, backing: Path | None = None, depth: int = 0
    ) -> None:
        self._files: list[RawImage] = []
        self._budget = budget
        try:
            self._open(path, backing, depth)
        except BaseException:
            self.close()
            raise

    def _open(self, path: Path, backing: Path | None, depth: int) -> None:
        if depth > MAX_BACKING:
            raise Unreadable(f"{path}: more than {MAX_BACKING} images over one another")
        self._path = path
        self._file = RawImage(path, self._budget)
        self._files.append(self._file)
        try:
            self._header = header = qcow2.read_header(self._file.read)
            if header.extended_l2:
                raise qcow2.Refused("has extended L2 entries")
            under = None if header.backing is None else qcow2.backing_file(path, header)
        except qcow2.Refused as error:
            raise Unreadable(f"{path}: can't be read here: {error}") from error
        self.size, self._bits = header.size, header.cluster_bits
        self._l1 = self._table(header.l1_offset, header.l1_entries)
        self._l2: dict[int, array[int]] = {}
        self._unpacked: tuple[int, bytes] = (-1, b"")
        if under is not None and backing is not None:
            under = backing, "raw"
        self._backing = None if under is None else self._layer(*under, depth)

    def _layer(self, path: Path, image_format: str, depth: int) -> Bytes:
        """Open the image below, in the format that this image's header names.

        Its content doesn't say: a raw image may hold a qcow2 image, whose header a guest wrote.
        """
        if image_format == "raw":
            raw = RawImage(path, self._budget)
            self._files.append(raw)
            return raw
        image = Qcow2Image(path, self._budget, depth=depth + 1)
        self._files.extend(image._files)
        return image

    def read(self, offset: int, length: int) -> bytes:
        """See :meth:`Bytes.read`."""
        if offset < 0 or offset >= self.size:
            return b""
        end = min(offset + length, self.size)
        return b"".join(self._parts(offset, end))

    def _parts(self, offset: int, end: int) -> Iterator[bytes]:
        size = 1 << self._bits
        while offset < end:
            entry = self._entry(offset)
            within = offset & (size - 1)
            length = min(size - within, end - offset)
            host = entry & qcow2.OFFSET_MASK
            if entry & qcow2.COMPRESSED:
                yield self._decompressed(entry)[within : within + length]
            elif entry & 1 or not host:
                yield self._below(offset, length) if not entry & 1 else bytes(length)
            else:
                # Clusters that lie one behind the other are read together.
                while offset + length < end and length < MIB:
                    following = self._entry(offset + length)
                    expected = host + ((within + length) & ~(size - 1))
                    if following & ~(1 << 63) != expected:
                        break
                    length = min(length + size, end - offset)
                yield self._file.read(host + within, length).ljust(length, b"\0")
            offset += length

    def _below(self, offset: int, length: int) -> bytes:
        data = self._backing.read(offset, length) if self._backing is not None else b""
        return data.ljust(length, b"\0")

    def _entry(self, offset: int) -> int:
        per_table = 1 << (self._bits - 3)
        cluster = offset >> self._bits
        index, within = divmod(cluster, per_table)
        table_at = self._l1[index] & qcow2.OFFSET_MASK if index < len(self._l1) else 0
        if not table_at:
            return 0
        if table_at not in self._l2:
            if len(self._l2) * per_table * 8 >= MAX_TABLES:
                self._l2.clear()
            self._l2[table_at] = self._table(table_at, per_table)
        return self._l2[table_at][within]

    def _table(self, offset: int, count: int) -> array[int]:
        try:
            return qcow2.entries(self._file.read, offset, count)
        except qcow2.Refused as error:
            raise Unreadable(f"{self._path}: can't be read here: {error}") from error

    def _decompressed(self, entry: int) -> bytes:
        if self._unpacked[0] == entry:
            return self._unpacked[1]
        packed = self._file.read(*self._header.packed(entry))
        size = 1 << self._bits
        self._budget.spend(size)
        data = (unzstd if self._header.zstd else _inflate)(packed, size)
        self._unpacked = (entry, data)
        return data

    def close(self) -> None:
        """Close all files."""
        for file in self._files:
            file.close()
        self._files.clear()


def _inflate(packed: bytes, size: int) -> bytes:
    try:
        data = zlib.decompressobj(-12).decompress(packed, size)
    except zlib.error as error:
        raise Unreadable(f"a compressed cluster is damaged: {error}") from error
    return data.ljust(size, b"\0")


def unzstd(packed: bytes, size: int) -> bytes:
    """Unpack up to ``size`` bytes; what is missing of them is zeros."""
    try:
        from compression import zstd  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        from backports import zstd
    try:
        data = zstd.ZstdDecompressor().decompress(packed, size)
    except zstd.ZstdError as error:
        raise Unreadable(f"a compressed cluster is damaged: {error}") from error
    return bytes(data).ljust(size, b"\0")


def open_image(
    path: Path, image_format: str, budget: Budget, backing: Path | None = None
) -> RawImage | Qcow2Image:
    """Open a clone's disk.

    :param image_format: ``raw`` or ``qcow2``, as its pool says: never guessed from its content.
    :param backing: see :class:`Qcow2Image`.
    :raises Unreadable, HostCommandError: it can't be read.
    """
    if image_format == "raw":
        return RawImage(path, budget)
    if image_format == "qcow2":
        return Qcow2Image(path, budget, backing)
    raise InvalidRequest(f"{path}: disks of format {image_format!r} can't be read here")
