"""Folders that are built once, each named by a hash of everything it is built from."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import platformdirs

from contrib.lab.errors import LabError

UNUSED = 7 * 86400.0
"""Seconds after which an unused entry is removed; the sources have probably changed."""
VARIABLE = "VMCLONER_LAB_CACHE"


def folder() -> Path:
    """Return the folder of the cache; create it if it does not exist."""
    named = os.environ.get(VARIABLE)
    path = Path(named).absolute() if named else platformdirs.user_cache_path("vmcloner") / "lab"
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = path.stat()
    if status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o022:
        # What is in it is run, by root: images, packages, keys.
        raise LabError(f"others can write to {path}: chmod go-w it, or set {VARIABLE}")
    return path


def digest(*parts: bytes | str) -> str:
    """Return a short hash of the parts, in order."""
    sha = hashlib.sha256()
    for part in parts:
        content = part.encode() if isinstance(part, str) else part
        sha.update(f"{len(content)}\n".encode() + content)
    return sha.hexdigest()[:16]


def digest_files(paths: Iterable[Path], base: Path) -> str:
    """Return a hash of files: names relative to ``base``, executable or not, contents."""
    parts: list[bytes | str] = []
    for path in sorted(paths):
        executable = bool(path.stat().st_mode & 0o100)
        parts += [f"{path.relative_to(base)} {executable}", path.read_bytes()]
    return digest(*parts)


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True, create: bool = True) -> Iterator[int | None]:
    """Hold an exclusive lock (flock(2)) on a file and yield its descriptor.

    :param wait: whether to wait for another holder; otherwise None is yielded if there is one.
    :param create: whether to create a missing file.
    :raises FileNotFoundError: the file is missing, and ``create`` is False.
    """
    flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0)
    descriptor = os.open(path, flags, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield None
        else:
            yield descriptor
    finally:
        os.close(descriptor)


def entry(kind: str, key: str, build: Callable[[Path], None]) -> Path:
    """Return the folder ``KIND-KEY`` of the cache; build it if it does not exist.

    Only one of several processes builds it. A killed build leaves a folder, which the next build
    of that kind removes, as well as entries that were not used recently.

    :param build: fills an empty folder.
    """
    top = folder()
    path = top / f"{kind}-{key}"
    if not path.exists():
        with locked(top / f"{kind}.lock"):
            if not path.exists():
                _clear_away(top, kind)
                work = Path(tempfile.mkdtemp(prefix=f"{kind}.building-", dir=top))
                try:
                    build(work)
                    work.rename(path)
                finally:
                    shutil.rmtree(work, ignore_errors=True)
    os.utime(path)
    return path


def _clear_away(top: Path, kind: str) -> None:
    for left in top.glob(f"{kind}.building-*"):
        shutil.rmtree(left)
    for old in top.glob(f"{kind}-*"):
        if old.stat().st_mtime < time.time() - UNUSED:
            shutil.rmtree(old)
