"""Remove what killed runs left behind, in all places where vmcloner writes.

These are, in the host's state folder:

``console/CLONE.log``, ``boot/CLONE``
    of a clone that has no domain (any more)
``boot/shared``
    files that no clone has
``identity/.CLONE.draft``
    a record that was half made or half removed
``templates/.NAME-…``
    a download, or what an image builder was making
``.id-…``, ``.kvm-…``
    drafts of the folder's own files

and what each pool knows of itself (:meth:`StorageDriver.sweep`). What another run may be making is
left: each thing belongs to a fleet or a template, and is removed under its lock.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path

import attrs

from vmcloner_core.deadlines import answers
from vmcloner_core.driver_registry import DriverRegistry
from vmcloner_core.drivers import SHARED
from vmcloner_core.errors import VmclonerError
from vmcloner_core.locks import hold_free
from vmcloner_core.model import Host
from vmcloner_core.names import split_clone
from vmcloner_core.records import Records
from vmcloner_core.survey import Survey

log = logging.getLogger(__name__)
MAX_DRAFT = 3600
"""Seconds without a write, after which nobody is making a small file any more."""
_STATE_DRAFT = re.compile(r"\.(id|kvm)-[a-z0-9_]{8}")
_LOG = re.compile(r"(.+)\.log(?:\.\d+)?")
_DRAFT = re.compile(r"\.(.+)-[a-z0-9_]{8}")
""":data:`images.DRAFT_PREFIX`, and what :mod:`tempfile` adds."""


@attrs.frozen
class Sweeper:
    """Removes what killed runs left on one host.

    :param look: returns what is on the host now.
    """

    host: Host
    drivers: DriverRegistry
    records: Records
    look: Callable[[], Survey]

    def __call__(self, fleets: Collection[str], found: Survey) -> None:
        """Sweep. What can't be removed is logged in one line each, never raised.

        :param fleets: those whose locks the caller holds.
        :param found: what was seen on the host under these locks.
        """
        try:
            self._sweep_fleets(fleets, found)
            self._sweep_templates()
        except VmclonerError as error:
            log.warning("left behind: %s", error)
        self._sweep_files()
        self._sweep_pools(found)

    def _sweep_fleets(self, fleets: Collection[str], found: Survey) -> None:
        left = self._left(found)
        for fleet in left.keys() & set(fleets):
            _remove(left[fleet])
        others = left.keys() - set(fleets)
        if not others:
            return
        with hold_free(self.host.state, [f"fleet/{fleet}" for fleet in others]) as free:
            # A run that has just ended may have made what was missing when it was looked for.
            left = self._left(self.look()) if free else {}
            for fleet in others & left.keys():
                if f"fleet/{fleet}" in free:
                    _remove(left[fleet])

    def _left(self, found: Survey) -> Mapping[str, list[Path]]:
        """Return what was left of clones, by fleet."""
        left = self.records.drafts()
        files = {path: _LOG.fullmatch(path.name) for path in _entries(self.host.consoles)}
        names = {path: match[1] for path, match in files.items() if match is not None}
        names |= {path: path.name for path in _entries(self.host.boots)}
        gone = self._gone(found, set(names.values()))
        for path, name in names.items():
            clone = split_clone(name)
            if clone is not None and name in gone:
                left.setdefault(clone[0], []).append(path)
        return left

    def _gone(self, found: Survey, names: Collection[str]) -> set[str]:
        """Return those names that are certainly not those of domains."""
        if any(each.kind == "hypervisor" for each in found.unseen):
            return set()
        known = set(self.drivers.names("hypervisor"))
        clones = {clone.name: clone for clone in found.clones}
        kept = self.records.names() | found.foreign_names

        def gone(name: str) -> bool:
            clone = clones.get(name)
            if clone is None:
                return name not in kept
            return clone.ours and clone.domain is None and clone.labels.hypervisor in known

        return set(filter(gone, names))

    def _sweep_templates(self) -> None:
        drafts = {path: _DRAFT.fullmatch(path.name) for path in _entries(self.host.templates)}
        locks = {path: f"template/{match[1]}" for path, match in drafts.items() if match}
        if locks:
            with hold_free(self.host.state, locks.values()) as free:
                _remove(path for path, lock in locks.items() if lock in free)

    def _sweep_files(self) -> None:
        """Remove drafts that nobody writes any more, and shared files that no clone has."""
        shared = self.host.boots / SHARED
        drafts = [p for p in _entries(self.host.state) if _STATE_DRAFT.fullmatch(p.name)]
        drafts += [p for p in _entries(shared) if p.name.startswith(".")]
        files = [p for p in _entries(shared) if not p.name.startswith(".")]
        old = time.time() - MAX_DRAFT
        _remove(_matching(drafts, lambda status: status.st_mtime < old))
        _remove(_matching(files, lambda status: status.st_nlink == 1))
        with contextlib.suppress(OSError):  # it isn't there, or is in use
            shared.rmdir()

    def _sweep_pools(self, found: Survey) -> None:
        unseen = {each.name for each in found.unseen if each.kind == "storage"}
        names = [name for name in self.drivers.names("storage") if name not in unseen]
        done = answers({name: self.drivers.storage(name).sweep for name in names})
        for name, answer in done.items():
            if answer is not None:
                log.warning("left behind in storage %r: %s", name, answer)


def _entries(folder: Path) -> Iterator[Path]:
    try:
        names = os.listdir(folder)  # noqa: PTH208
    except OSError:  # it isn't there, or it is not this user's
        return
    yield from (folder / name for name in sorted(names))


def _matching(paths: Iterable[Path], wanted: Callable[[os.stat_result], bool]) -> Iterator[Path]:
    """Yield those of these files that are as wanted."""
    for path in paths:
        with contextlib.suppress(FileNotFoundError):  # another sweeper was faster
            status = path.lstat()
            if stat.S_ISREG(status.st_mode) and wanted(status):
                yield path


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        try:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("left behind: %s: %s", path, error.strerror)
