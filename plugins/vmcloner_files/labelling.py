"""Labels on files: an extended attribute, or a sidecar file if the file system has none.

The attribute ``user.vmcloner`` (xattr(7)) and the sidecar ``.NAME.labels`` hold the same JSON
object of strings. A sidecar also contains the inode number of its file: it does not label another
file that was put in its place.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

from vmcloner_core.trusted_files import check_owner

ATTRIBUTE = "user.vmcloner"
MAX_SIDECAR = 64 * 1024
"""Bytes: the maximum of an extended attribute on Linux."""
_DRAFT = ".labels-draft"
_UNLABELLED = {errno.ENODATA, errno.EOPNOTSUPP, errno.EPERM}  # EPERM: symbolic links, devices


class LabelStore(Protocol):
    """Keeps the labels of files. Thread-safe, except for two writers of one file.

    ``follow_renames``: whether labels move with a file that is renamed over another, so that it is
    never without labels.
    """

    follow_renames: bool

    def write(self, fd: int, path: Path, labels: Mapping[str, str]) -> None:
        """Label the open file ``fd``, which is about to appear as ``path``."""
        ...

    def read(self, path: str | Path) -> dict[str, str] | None:
        """Return a file's labels, None if it has none.

        :raises FileNotFoundError: there is no such file, even if its labels are left.
        """
        ...

    def forget(self, path: Path) -> None:
        """Remove the labels of a file that was removed."""
        ...


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


class XattrLabels:
    """Labels in an extended attribute: removed with the file."""

    follow_renames = True

    def write(self, fd: int, path: Path, labels: Mapping[str, str]) -> None:  # noqa: ARG002
        """See :meth:`LabelStore.write`."""
        os.setxattr(fd, ATTRIBUTE, encode(labels))

    def read(self, path: str | Path) -> dict[str, str] | None:
        """See :meth:`LabelStore.read`."""
        try:
            return decode(os.getxattr(path, ATTRIBUTE, follow_symlinks=False))
        except OSError as error:
            if error.errno in _UNLABELLED:
                return None
            raise

    def forget(self, path: Path) -> None:
        """See :meth:`LabelStore.forget`."""


class SidecarLabels:
    """Labels in a file beside the labelled one, written before it appears."""

    follow_renames = False

    def write(self, fd: int, path: Path, labels: Mapping[str, str]) -> None:
        """See :meth:`LabelStore.write`."""
        draft = path.with_name(f".{path.name}{_DRAFT}")
        draft.write_bytes(encode({**labels, "inode": str(os.fstat(fd).st_ino)}))
        draft.chmod(0o644)  # regardless of the umask
        draft.rename(_sidecar(path))

    def read(self, path: str | Path) -> dict[str, str] | None:
        """See :meth:`LabelStore.read`."""
        path = Path(path)
        inode = str(path.lstat().st_ino)
        try:
            with _sidecar(path).open("rb") as stream:
                check_owner(_sidecar(path), os.fstat(stream.fileno()))
                labels = decode(stream.read(MAX_SIDECAR))
        except FileNotFoundError:
            return None
        return labels if labels is not None and labels.pop("inode", "") == inode else None

    def forget(self, path: Path) -> None:
        """See :meth:`LabelStore.forget`."""
        with contextlib.suppress(FileNotFoundError):
            _sidecar(path).unlink()

    def sweep(self, folder: Path) -> None:
        """Remove sidecars whose files do not exist. No other process may write labels meanwhile."""
        for path in self.left(folder):
            path.unlink(missing_ok=True)

    def left(self, folder: Path) -> Iterator[Path]:
        """Yield drafts, and sidecars whose files do not exist."""
        with os.scandir(folder) as entries:
            hidden = [entry.name for entry in entries if entry.name[0] == "."]
        for name in hidden:
            labelled = folder / name[1:].removesuffix(".labels")
            unused = name.endswith(".labels") and not os.path.lexists(labelled)
            if unused or name.endswith(_DRAFT):
                yield folder / name


def _sidecar(path: Path) -> Path:
    return path.with_name(f".{path.name}.labels")
