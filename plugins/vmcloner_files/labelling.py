"""Labels on files: in the pool's folder ``.labels``, and in an extended attribute.

``.labels/NAME.INODE`` and the attribute ``user.vmcloner`` (xattr(7)) hold the same JSON object of
strings. The file in ``.labels`` counts. Whoever may use the pool can read it, even while libvirt
lets only QEMU's user read the disk; and QEMU can't write it. Its name has the inode number of the
labelled file: it labels no other file that is put in that place, and a disk that is renamed over
another is never without labels.

The attribute marks the file itself: where the file system has attributes, a file without one is not
ours, whatever ``.labels`` says. It stays with a file that is moved or copied with its attributes.
:meth:`FileLabels.sweep` makes what is missing in ``.labels`` from it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from vmcloner_core.errors import BackendError, VmclonerError
from vmcloner_core.trusted_files import check_owner

ATTRIBUTE = "user.vmcloner"
MAX_LABELS = 64 * 1024
"""Bytes: the maximum of an extended attribute on Linux."""
_DRAFT = ".draft"
_UNLABELLED = {errno.ENODATA, errno.EOPNOTSUPP, errno.EPERM}  # EPERM: symbolic links, devices


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

    :param folder: the pool's ``.labels``; :meth:`write` needs it.
    :param attributes: whether the file system has extended attributes.
    """

    def __init__(self, folder: Path, *, attributes: bool) -> None:
        self._folder = folder
        self._attributes = attributes

    def write(self, fd: int, path: Path, labels: Mapping[str, str]) -> None:
        """Label the open file ``fd``, which is about to appear as ``path``, or has.

        :raises OSError: they are too long, or can't be written.
        """
        content = encode(labels)
        if len(content) > MAX_LABELS:
            raise OSError(errno.E2BIG, "its labels are too long")
        self._store(path.name, os.fstat(fd).st_ino, content)
        if self._attributes:
            os.setxattr(fd, ATTRIBUTE, content)

    def _store(self, name: str, inode: int, content: bytes) -> None:
        file = f"{self._folder}/{name}.{inode}"
        # One that is there may label a file that others see: it is replaced in one step.
        draft = f"{file}{_DRAFT}" if os.path.lexists(file) else file
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            os.fchmod(fd, 0o644)  # whatever the umask: root's are read by the pool's owner
            os.write(fd, content)
        finally:
            os.close(fd)
        if draft != file:
            os.rename(draft, file)  # noqa: PTH104

    def read(self, path: str | Path) -> dict[str, str] | None:
        """Return a file's labels, None if it has none.

        :raises FileNotFoundError: there is no such file, even if its labels are left.
        :raises InvalidRequest: another user could have written them.
        :raises BackendError: only QEMU's user may read them.
        """
        inode = os.lstat(path).st_ino
        unreadable = None
        marked = b""
        if self._attributes:
            try:
                marked = os.getxattr(path, ATTRIBUTE, follow_symlinks=False)
            except PermissionError as error:
                if error.errno in _UNLABELLED:
                    return None
                unreadable = error
            except OSError as error:
                if error.errno in _UNLABELLED:
                    return None
                raise
        stored = self._stored(path, inode)
        if stored is None and unreadable is not None:
            raise BackendError(
                f"{path}: only QEMU's user may read its labels",
                hint="stop its guest, or run the same command once as root",
            ) from unreadable
        return decode(marked) if stored is None else stored

    def _stored(self, path: str | Path, inode: int) -> dict[str, str] | None:
        """Return what ``.labels`` says of a file, None if it says nothing."""
        file = f"{self._folder}/{os.path.basename(path)}.{inode}"  # noqa: PTH119
        found = _content(file)
        if found is None and not self._attributes:
            return _beside(Path(path), inode)
        return decode(found) if found is not None else None

    def forget(self, path: Path, inode: int) -> None:
        """Remove the labels of a file that was removed, or replaced by another one."""
        for file in (f"{self._folder}/{path.name}.{inode}", _sidecar(path)):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(file)  # noqa: PTH108

    def stale(self, folders: Iterable[Path]) -> bool:
        """Tell whether there is something to :meth:`sweep`."""
        files, stored = self._compare(folders)
        return files.keys() != stored

    def sweep(self, folders: Iterable[Path]) -> None:
        """Remove labels whose files are gone; store those that only files themselves have.

        No other process may write labels meanwhile.

        :param folders: those of the labelled files.
        """
        files, stored = self._compare(folders)
        for name in stored - files.keys():
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{self._folder}/{name}")  # noqa: PTH108
        for name in files.keys() - stored:
            path, inode = files[name]
            with contextlib.suppress(OSError, VmclonerError):  # not ours, or not readable now
                labels = self.read(path)
                if labels is not None:
                    self._store(os.path.basename(path), inode, encode(labels))  # noqa: PTH119
        files, stored = self._compare(folders)
        named = {_sidecar(Path(path)) for name, (path, _) in files.items() if name not in stored}
        for folder in folders:
            for left in set(folder.glob(".*.labels*")) - named:  # of an earlier version
                left.unlink()

    def _compare(self, folders: Iterable[Path]) -> tuple[dict[str, tuple[str, int]], set[str]]:
        """Return the files that may have labels, by their labels' names, and the stored names."""
        files: dict[str, tuple[str, int]] = {}
        for folder in folders:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name[0] != ".":
                        files[f"{entry.name}.{entry.inode()}"] = entry.path, entry.inode()
        return files, set(os.listdir(self._folder))  # noqa: PTH208


def _content(file: str | Path) -> bytes | None:
    """Return what is in a labels' file, None if there is none.

    :raises InvalidRequest: another user could have written it.
    """
    try:
        fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    try:
        check_owner(file, os.fstat(fd))
        return os.read(fd, MAX_LABELS)
    finally:
        os.close(fd)


def _beside(path: Path, inode: int) -> dict[str, str] | None:
    """Return the labels that an earlier version kept beside a file, without attributes."""
    content = _content(_sidecar(path))
    labels = decode(content) if content is not None else None
    return labels if labels is not None and labels.pop("inode", "") == str(inode) else None


def _sidecar(path: Path) -> Path:
    return path.with_name(f".{path.name}.labels")
