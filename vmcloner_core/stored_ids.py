"""Ids in files: made once, then only read. Of a state folder, and of the pools that it knows."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Self
from urllib.parse import quote

import attrs

from vmcloner_core.errors import BackendError
from vmcloner_core.model import Host
from vmcloner_core.os_errors import translated

DRAFT_PREFIX = ".id-"


def new_id() -> str:
    """Return a random id: 32 hexadecimal digits."""
    return uuid.uuid4().hex


def is_id(text: str) -> bool:
    """Tell whether a text is what :func:`new_id` returns."""
    return re.fullmatch("[0-9a-f]{32}", text) is not None


def id_of(*parts: str) -> str:
    """Return the id that stands for something with ids of another kind, like LVM's UUIDs."""
    return hashlib.sha256("/".join(parts).encode()).hexdigest()[:32]


def read_id(file: Path) -> str | None:
    """Return the id in a file, None if there is no file or no id in it.

    :raises OSError: the file can't be read.
    """
    try:
        fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        found = os.read(fd, 64).decode(errors="replace").strip()
    finally:
        os.close(fd)
    return found if is_id(found) else None


def keep_id(file: Path, offered: str, drafts: Path) -> str | None:
    """Write an id to a file, unless it exists; returns the id that it has, None if it has none.

    :param drafts: an existing folder of the same file system, for a temporary name.
    :raises OSError: the file can't be written.
    """
    with drafted(offered, drafts) as draft, contextlib.suppress(FileExistsError):
        file.hardlink_to(draft)  # unless another run was faster
    return read_id(file)


@contextlib.contextmanager
def drafted(offered: str, folder: Path) -> Iterator[Path]:
    """Write an id to the disk under a temporary name, which is gone afterwards.

    :raises OSError: it can't be written.
    """
    handle, name = tempfile.mkstemp(prefix=DRAFT_PREFIX, dir=folder)
    try:
        with os.fdopen(handle, "w") as stream:
            os.fchmod(handle, 0o644)
            stream.write(f"{offered}\n")
            stream.flush()
            os.fsync(handle)
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


@attrs.frozen
class KnownPool:
    """Which pool a state folder knows by a name: ``pools/NAME`` in it has the pool's id.

    A pool that is not mounted, or was made anew, is not taken for the one that has the clones.
    """

    state: Path
    name: str

    @classmethod
    def of(cls, host: Host, name: str) -> Self:
        """Return what a host knows of its pool of that name."""
        return cls(host.state, name)

    def owner(self) -> str | None:
        """Return the state folder's own id, None if it has none yet.

        :raises VmclonerError: it can't be read.
        """
        with translated(self.state):
            return read_id(Host(name="", state=self.state).state_id)

    @property
    def file(self) -> Path:
        """The file with the pool's id."""
        return self.state / "pools" / quote(self.name, safe="")

    def check(self, pool: object, found: str | None) -> None:
        """Check that a pool is the one that was used before, or that none was.

        :param pool: for the message. :param found: the id of what is there, None if it has none.
        :raises VmclonerError: it is not that pool, or what is remembered can't be read.
        """
        with translated(self.file):
            known = read_id(self.file)
        if known is None or known == found:
            return
        what = "it has no id" if found is None else "it has another id"
        raise BackendError(
            f"{pool} is not the one that storage {self.name!r} was before: {what}",
            hint=f"mount or connect that one; to use this one from now on: rm {self.file}",
        )

    def remember(self, found: str | None) -> None:
        """Remember a pool's id, unless one is remembered.

        :raises VmclonerError: the state folder can't be written.
        """
        with translated(self.file):
            if found is not None and read_id(self.file) is None:
                self.file.parent.mkdir(parents=True, exist_ok=True)
                keep_id(self.file, found, self.state)
