"""Read files from a Debian package without unpacking it onto the host's file system.

Nothing is ever written under a name from the package, so a hostile package cannot overwrite files.
It can only be large, and its size is limited.

Formats: deb(5), ar(5), tar(5).
"""

from __future__ import annotations

import io
import re
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from vmcloner_core.errors import BackendError
from vmcloner_tiny.compression import unpack

MAX_UNPACKED = 1024**3
"""Bytes of a package's tar archive."""
MAX_FILES = 50_000
_AR_MAGIC = b"!<arch>\n"
_AR_HEADER = 60


class Deb:
    """A package, open for reading; a context manager. Not thread-safe.

    Files are known by their path without a leading ``./`` or ``/`` and without the ``usr/`` of a
    merged file system. Only regular files count: links are not followed.

    :param work: a folder for the uncompressed archive, an unnamed temporary file.
    :raises BackendError: it is not a package, is damaged, or is too large.
    """

    def __init__(self, path: Path, work: Path) -> None:
        self._name = path.name
        self._tar_file = tempfile.TemporaryFile(dir=work)  # noqa: SIM115 - closed in __exit__
        try:
            self._files = self._open(path)
        except BaseException:
            self._tar_file.close()
            raise

    def _open(self, path: Path) -> dict[str, tarfile.TarInfo]:
        with path.open("rb") as stream:
            name, data = _data_member(self._name, stream)
            unpack(f"{self._name}: {name}", data, self._tar_file, MAX_UNPACKED)
        self._tar_file.seek(0)
        files: dict[str, tarfile.TarInfo] = {}
        try:
            self._tar = tarfile.open(fileobj=self._tar_file, mode="r:")  # noqa: SIM115
            for count, member in enumerate(self._tar):
                if count >= MAX_FILES:
                    raise BackendError(f"{self._name}: contains more than {MAX_FILES} files")
                if member.isreg():
                    files[_normal(member.name)] = member
        # tarfile raises more than its own errors for bad headers, or too long a chain of them.
        except (tarfile.TarError, ValueError, OverflowError, RecursionError) as error:
            raise BackendError(f"{self._name}: damaged: {error}") from error
        return files

    def __enter__(self) -> Deb:
        return self

    def __exit__(self, *_error: object) -> None:
        self._tar.close()
        self._tar_file.close()

    def __iter__(self) -> Iterator[str]:
        """Yield the paths of the package's files."""
        return iter(self._files)

    def find(self, pattern: str) -> str:
        """Return the only path that ``pattern``, a regular expression, matches completely.

        :raises BackendError: no path matches, or more than one.
        """
        found = [path for path in self._files if re.fullmatch(pattern, path)]
        if len(found) != 1:
            raise BackendError(f"{self._name}: {len(found)} files match {pattern}, expected one")
        return found[0]

    def read(self, path: str, limit: int) -> bytes:
        """Return the contents of a file, decompressed if its suffix says that it is compressed.

        :param limit: maximum number of bytes.
        :raises BackendError: it has more bytes, or is damaged.
        """
        source = self._tar.extractfile(self._files[path])
        assert source is not None  # noqa: S101 - only regular files are kept
        target = io.BytesIO()
        unpack(f"{self._name}: {path}", source, target, limit)
        return target.getvalue()


def _normal(name: str) -> str:
    return name.removeprefix("./").lstrip("/").removeprefix("usr/")


def _data_member(package: str, stream: IO[bytes]) -> tuple[str, IO[bytes]]:
    """Return the name and contents of the ``data.tar*`` member of an ar archive."""
    if stream.read(len(_AR_MAGIC)) != _AR_MAGIC:
        raise BackendError(f"{package}: not a Debian package")
    while len(header := stream.read(_AR_HEADER)) == _AR_HEADER:
        name = header[:16].decode("ascii", "replace").rstrip(" /")
        digits = header[48:58].strip()
        if header[58:] != b"`\n" or not digits.isdigit():
            break
        size = int(digits)
        if name.startswith("data.tar"):
            return name, io.BytesIO(stream.read(size))
        stream.seek(size + size % 2, io.SEEK_CUR)
    raise BackendError(f"{package}: damaged: contains no data.tar")
