"""Labels on files: in the pool's file ``.labels``, and in an extended attribute.

``.labels`` has a line ``NAME.INODE LABELS`` for each file; the attribute ``user.vmcloner``
(xattr(7)) of that file has the same LABELS, a JSON object of strings. The line counts. Whoever may
use the pool can read it, even while libvirt lets only QEMU's user read the disk; and QEMU can't
write it. It has the inode number of its file: so it labels no other file that is put in that place,
and a disk that is renamed over another is never without labels.

The attribute marks the file itself: where the file system has attributes, a file without one is not
ours, whatever ``.labels`` says. It stays with a file that is moved or copied with its attributes:
lines that are missing are made from it.

Lines are only added, each by one write(2), until :meth:`FileLabels.compacted` leaves out the old
ones. Of two lines for a file the last one counts; ``NAME.INODE -`` takes its labels away. The first
line identifies the file, so that only what is new is read again.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import threading
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from vmcloner_core.errors import BackendError, VmclonerError
from vmcloner_core.trusted_files import check_owner

ATTRIBUTE = "user.vmcloner"
MAX_LABELS = 64 * 1024
"""Bytes: the maximum of an extended attribute on Linux."""
_GARBAGE = 64 * 1024
"""Bytes of lines that don't count any more, beside as many as those that do."""
_HEADER = 35
"""Bytes of the first line: ``# ``, 32 digits, the end of the line."""
_TRIES = 4
_UNLABELLED = {errno.ENODATA, errno.EOPNOTSUPP, errno.EPERM}  # EPERM: symbolic links, devices
_GONE = b"-"


def encode(labels: Mapping[str, str]) -> bytes:
    """Return labels as they are stored."""
    return json.dumps(dict(labels), separators=(",", ":")).encode()


def decode(content: bytes) -> dict[str, str] | None:
    """Return stored labels, None if ``content`` is not a JSON object of strings."""
    try:
        values = json.loads(content)
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict) or not all(isinstance(v, str) for v in values.values()):
        return None
    return values


class FileLabels:
    """The labels of a pool's files. Thread-safe, except for two writers of one file.

    :param file: the pool's ``.labels``. :meth:`write` needs it, other calls do not.
    :param attributes: whether the file system has extended attributes.
    :param shared: whether several hosts write it.
    """

    def __init__(self, file: Path, *, attributes: bool, shared: bool = False) -> None:
        self._file = file
        self._shared = shared
        self._attributes = attributes
        self._mutex = threading.Lock()
        self._header = b""
        self._end = 0
        self._lines: dict[bytes, bytes] = {}

    def write(self, fd: int, path: Path, labels: Mapping[str, str]) -> None:
        """Label the open file ``fd``, which is about to appear as ``path``, or has.

        :raises OSError: they are too long, or can't be written.
        """
        content = encode(labels)
        if len(content) > MAX_LABELS:
            raise OSError(errno.E2BIG, "its labels are too long")
        self._add(_key(path, os.fstat(fd).st_ino), content)
        if self._attributes:
            os.setxattr(fd, ATTRIBUTE, content)

    def forget(self, path: Path, inode: int) -> None:
        """Remove the labels of a file that was removed, or replaced by another one.

        With attributes, a file that gets its inode number lacks the attribute: that is enough.
        """
        if not self._attributes:
            self._add(_key(path, inode), _GONE)

    def _add(self, key: bytes, content: bytes) -> None:
        line = b"\n%b %b\n" % (key, content)  # the last one may have no end
        fd = os.open(self._file, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            if self._shared:
                # The pool's lock is held. But only with a lock on the file itself does NFS refuse
                # a write that was under way when this host was cut off for so long that its
                # locks went to another one: it would overwrite what that one has added.
                fcntl.flock(fd, fcntl.LOCK_EX)
            if os.write(fd, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if self._shared:
                os.fsync(fd)  # Linux reports such a refusal at each close until an fsync() has
        finally:
            os.close(fd)

    def read(self, path: str | Path, status: os.stat_result) -> dict[str, str] | None:
        """Return a file's labels, None if it has none.

        :param status: of that file. Lines that are older than this call need not be read again.
        :raises FileNotFoundError: the file was removed.
        :raises InvalidRequest: another user could have written the labels.
        :raises BackendError: only QEMU's user may read them.
        """
        return self._read(path, status.st_ino, self._read_lines())

    def read_all(
        self, paths: Iterable[str]
    ) -> Iterator[tuple[str, os.stat_result, dict[str, str]]]:
        """Yield each labelled file, its status, and its labels, see :meth:`read`."""
        paths = list(paths)
        lines = self._read_lines()
        for path in paths:
            try:
                status = os.lstat(path)
                labels = self._read(path, status.st_ino, lines)
            except FileNotFoundError:
                continue  # removed meanwhile
            if labels is not None:
                yield path, status, labels

    def _read(
        self, path: str | Path, inode: int, lines: Mapping[bytes, bytes]
    ) -> dict[str, str] | None:
        own, unreadable = self._attribute(path) if self._attributes else (b"", None)
        if own is None and unreadable is None:
            return None
        line = lines.get(_key(path, inode))
        if line is None and not self._attributes:
            return _beside(Path(path), inode)
        labels = decode(line) if line is not None else None
        if labels is None and own is None:
            raise BackendError(
                f"{path}: only QEMU's user may read its labels",
                hint="stop its guest, or run the same command once as root",
            ) from unreadable
        return decode(own) if labels is None and own else labels

    def _attribute(self, path: str | Path) -> tuple[bytes | None, OSError | None]:
        """Return a file's attribute, None if it has none; and why it can't be read."""
        try:
            return os.getxattr(path, ATTRIBUTE, follow_symlinks=False), None
        except OSError as error:
            if error.errno in _UNLABELLED:
                return None, None
            if error.errno == errno.EACCES:
                return None, error
            raise

    def _read_lines(self) -> Mapping[bytes, bytes]:
        """Return what ``.labels`` says of files; reads what is new."""
        for _ in range(_TRIES):
            try:
                return self._read_new()
            except OSError as error:
                if error.errno != errno.ESTALE:  # replaced by another host while it was read
                    raise
        return self._read_new()

    def _read_new(self) -> Mapping[bytes, bytes]:
        with self._mutex:
            try:
                fd = os.open(self._file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            except FileNotFoundError:
                return {}
            try:
                status = os.fstat(fd)
                check_owner(self._file, status)
                header = os.pread(fd, _HEADER, 0)
                if header != self._header:
                    self._header, self._end, self._lines = header, 0, {}
                if status.st_size > self._end:
                    new = os.pread(fd, status.st_size - self._end, self._end)
                    whole = new.rfind(b"\n") + 1
                    self._take(new[:whole])
                    self._end += whole
            finally:
                os.close(fd)
            return self._lines

    def _take(self, new: bytes) -> None:
        for line in new.split(b"\n"):
            key, _, content = line.partition(b" ")
            if content == _GONE:
                self._lines.pop(key, None)
            elif content.endswith(b"}"):  # not torn by a full disk or a power failure
                self._lines[key] = content

    def compacted(self, folders: Iterable[Path]) -> bytes | None:
        """Return what ``.labels`` should contain, None if that is what it contains.

        These are the lines of files that are there, those too that only the files themselves have.
        No other process may write labels until it is replaced.

        :param folders: those of the labelled files.
        """
        files: dict[bytes, tuple[str, int]] = {}
        for folder in folders:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name[0] != ".":
                        files[_key(entry.name, entry.inode())] = entry.path, entry.inode()
        lines = dict(self._read_lines())
        # A host may not see yet what another has just made: its line must stay.
        kept = {key: line for key, line in lines.items() if key in files or self._shared}
        for key in files.keys() - lines.keys():
            try:
                labels = self._read(*files[key], {})
            except (OSError, VmclonerError):  # removed meanwhile, or not readable now
                continue
            if labels is not None:
                kept[key] = encode(labels)
        size = sum(len(key) + len(line) for key, line in kept.items())
        if kept == lines and self._header and self._end < 2 * size + _GARBAGE:
            return None
        header = b"# %b\n" % uuid.uuid4().hex.encode()
        return header + b"".join(b"%b %b\n" % each for each in kept.items())


def _key(path: str | Path, inode: int) -> bytes:
    return os.fsencode(f"{os.path.basename(path)}.{inode}")  # noqa: PTH119


def _beside(path: Path, inode: int) -> dict[str, str] | None:
    """Return the labels that an earlier version kept beside a file, without attributes."""
    sidecar = path.with_name(f".{path.name}.labels")
    try:
        with sidecar.open("rb") as stream:
            check_owner(sidecar, os.fstat(stream.fileno()))
            labels = decode(stream.read(MAX_LABELS))
    except FileNotFoundError:
        return None
    return labels if labels is not None and labels.pop("inode", "") == str(inode) else None
