"""What snapshots of clones have beside their disks: a folder for each, in the host's state folder.

``CLONE/NAME/note.json``  while it is taken: what the clone was doing before; then: which scripts
                          had run on its disk
``CLONE/NAME/machine/``   what its hypervisor kept: memory, firmware variables, TPM
``CLONE/NAME/boot/``      with memory: what the clone was started from, which it needs to continue

A snapshot is begun and removed under the name ``.NAME``, and gets its own by a rename once all of
its disks are there. So what a killed run left is recognised: whoever holds the fleet's lock finds
``.NAME``, and undoes it (:mod:`vmcloner_core.snapshot_undo`).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import attrs

from vmcloner_core.errors import InvalidRequest, VmclonerError
from vmcloner_core.model import State
from vmcloner_core.names import check_snapshot, split_clone
from vmcloner_core.os_errors import of_state
from vmcloner_core.trusted_files import make_folder, read_file, replacing

NOTE = "note.json"
MACHINE = "machine"
BOOT = "boot"


@attrs.frozen(kw_only=True)
class Draft:
    """A snapshot that is being taken or removed, or was when its run was killed.

    :param was: the clone's state before its run changed that; None if there is nothing to restore.
    :param memory: whether it was to have the clone's memory.
    """

    clone: str
    name: str
    folder: Path
    was: State | None = None
    memory: bool = False

    @property
    def fleet(self) -> str:
        """The name of the clone's fleet."""
        return (split_clone(self.clone) or ("", 0))[0]


class SnapshotFolders:
    """The folders of a host's snapshots. Thread-safe; only one run at a time works on a fleet."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self, clone: str, name: str) -> Path | None:
        """Return the folder of a snapshot, None if it has none."""
        folder = self.folder / clone / name
        return folder if folder.is_dir() else None

    def names(self) -> frozenset[str]:
        """Return the names that complete snapshots of any clones have."""
        found = (name for clone in _names(self.folder) for name in _names(self.folder / clone))
        return frozenset(name for name in found if not name.startswith("."))

    def begin(self, clone: str, name: str, was: State, *, memory: bool) -> None:
        """Make the folder of a snapshot that is to be taken.

        :raises HostCommandError: it can't be written.
        """
        folder = self._draft(clone, name)
        with _translated(folder):
            make_folder(self.folder / clone)
            folder.mkdir(mode=0o700)
            (folder / MACHINE).mkdir(mode=0o700)
        _write_note(folder, {"was": was.value, "memory": memory})

    def machine(self, clone: str, name: str) -> Path:
        """Return the folder for the hypervisor of a snapshot that is being taken."""
        return self._draft(clone, name) / MACHINE

    def keep_boot(self, clone: str, name: str, boots: Path) -> None:
        """Keep what a clone was started from: its folder in ``boots``, if it has one there."""
        _linked_tree(boots / clone, self._draft(clone, name) / BOOT)

    def put_boot_back(self, clone: str, name: str, boots: Path) -> None:
        """Put back what :meth:`keep_boot` kept."""
        kept = self.folder / clone / name / BOOT
        if kept.is_dir():
            with _translated(boots / clone):
                shutil.rmtree(boots / clone, ignore_errors=True)
            _linked_tree(kept, boots / clone)

    def commit(self, clone: str, name: str, ran: Mapping[str, str]) -> None:
        """Give a snapshot's folder its name: the snapshot is complete.

        :param ran: the scripts that have run on its disk; see :class:`Record`.
        """
        draft, folder = self._draft(clone, name), self.folder / clone / name
        _write_note(draft, {"ran": dict(ran)})
        with _translated(folder):
            if folder.exists():  # of a snapshot whose disks somebody removed
                shutil.rmtree(folder)
            draft.rename(folder)
            _synced(folder.parent)

    def ran(self, clone: str, name: str) -> dict[str, str]:
        """Return the scripts that had run on the disk of a snapshot; none if that isn't known."""
        try:
            found = json.loads(read_file(self.folder / clone / name / NOTE, trusted=True))["ran"]
            return {str(script): str(digest) for script, digest in found.items()}
        except (VmclonerError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return {}

    def begin_removal(self, clone: str, name: str) -> None:
        """Mark a snapshot as one that is being removed, so that a killed removal is completed."""
        draft, folder = self._draft(clone, name), self.folder / clone / name
        with _translated(folder):
            if folder.exists() and not draft.exists():
                folder.rename(draft)
            else:
                make_folder(draft)

    def drop(self, clone: str, name: str) -> None:
        """Remove the folder of a snapshot that was begun, or is being removed."""
        self._removed(self._draft(clone, name))
        with contextlib.suppress(OSError):  # it has others
            (self.folder / clone).rmdir()

    def forget(self, clone: str) -> None:
        """Remove the folders of all snapshots of a clone."""
        self._removed(self.folder / clone)

    def drafts(self) -> tuple[Draft, ...]:
        """Return the snapshots that are begun, or were when their runs were killed."""
        return tuple(self._drafts())

    def _drafts(self) -> Iterator[Draft]:
        for clone in _names(self.folder):
            for entry in _names(self.folder / clone) if split_clone(clone) else ():
                try:
                    name = check_snapshot(entry[1:]) if entry[0] == "." else ""
                except InvalidRequest:
                    continue
                if name:
                    yield _read(clone, name, self.folder / clone / entry)

    def _draft(self, clone: str, name: str) -> Path:
        return self.folder / clone / f".{check_snapshot(name)}"

    @staticmethod
    def _removed(folder: Path) -> None:
        with _translated(folder), contextlib.suppress(FileNotFoundError):
            shutil.rmtree(folder)


def _read(clone: str, name: str, folder: Path) -> Draft:
    """Return a draft; one whose note was never written has changed nothing of its clone."""
    try:
        said = json.loads(read_file(folder / NOTE, trusted=True))
        was, memory = State(said["was"]), said["memory"] is True
    except (VmclonerError, ValueError, KeyError, TypeError, RecursionError):
        was, memory = None, False
    return Draft(clone=clone, name=name, folder=folder, was=was, memory=memory)


def _write_note(folder: Path, note: dict[str, object]) -> None:
    with _translated(folder), replacing(folder / NOTE, 0o600) as stream:
        stream.write(json.dumps(note).encode())


def _linked_tree(source: Path, target: Path) -> None:
    """Copy a folder, if there is one; files get second names where that is possible."""

    def linked(file: str, copy: str) -> None:
        try:
            os.link(file, copy)
        except OSError:
            shutil.copy2(file, copy)

    with _translated(source), contextlib.suppress(FileNotFoundError):
        shutil.copytree(source, target, copy_function=linked)


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))  # noqa: PTH208
    except OSError:  # it isn't there, or it is not this user's
        return []


def _synced(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def _translated(what: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise of_state(error, error.filename or what) from error
