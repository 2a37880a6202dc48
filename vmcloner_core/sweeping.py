"""Find and remove what killed runs left behind, in all places where vmcloner writes.

These are, in the host's state folder:

``console/CLONE.log``, ``boot/CLONE``
    of a clone that has no domain (any more)
``boot/shared``
    files that no clone has
``identity/.CLONE.draft``, ``identity/CLONE/.…``
    a record that was half made or half removed, drafts of its files
``templates/.NAME-…``
    a download, or what an image builder was making
``admitted/FLEET.json``
    what a run was admitted for that has ended
``received/.NAME-…``
    a file that a controller was sending, and does not go on with
``.id-…``, ``.kvm-…``, ``.validated.json.draft``
    drafts of the folder's own files

and elsewhere what image builders were putting into their cache (:func:`image_cache`), logs that a
hypervisor keeps of a clone without a domain (:meth:`HypervisorDriver.logs`), and what each pool
knows of itself (:meth:`StorageDriver.sweep`). What another run may be making is left: each thing
belongs to a fleet, a template or an image, and is removed under its lock.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import attrs

from vmcloner_core.deadlines import answers
from vmcloner_core.driver_registry import DriverRegistry
from vmcloner_core.drivers import SHARED, StorageDriver, image_cache
from vmcloner_core.errors import HostCommandError, VmclonerError
from vmcloner_core.locks import hold_free
from vmcloner_core.model import Host, Leftover, Outcome, State, Volume
from vmcloner_core.names import split_clone
from vmcloner_core.os_errors import allocated
from vmcloner_core.records import Records
from vmcloner_core.survey import Survey

log = logging.getLogger(__name__)
MAX_DRAFT = 3600
"""Seconds without a write, after which nobody is making a small file any more."""
MAX_ARRIVAL = 24 * 3600
"""Seconds without a write, after which nobody goes on with sending a file."""
ID_LOCK = "id"
"""The lock of who gives a state folder its id."""
_ID_DRAFT = re.compile(r"\.id-[a-z0-9_]{8}")
_STATE_DRAFT = re.compile(r"\.kvm-[a-z0-9_]{8}|\.validated\.json\.draft")
_LOG = re.compile(r"(.+)\.log(?:\.\d+)?")
_DRAFT = re.compile(r"\.(.+)-[a-z0-9_]{8}")
""":data:`images.DRAFT_PREFIX`, and what :mod:`tempfile` adds."""
_KILLED = "the run that made it was killed"
_GONE = "its clone has no domain"

Found = tuple[str, Path, str]
"""What is left: its kind, its path, and why nothing needs it."""


@attrs.frozen
class Sweeper:
    """Finds and removes what killed runs left on one host.

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
        for left in self._files(fleets, fleets, found, remove=True):
            if left.error is not None:
                log.warning("left behind: %s", left.error.message)
        for name, answer in answers({n: d.sweep for n, d in self._pools(found).items()}).items():
            if answer is not None:
                log.warning("left behind in storage %r: %s", name, answer)
        self._deactivate(fleets, found)

    def _deactivate(self, fleets: Collection[str], found: Survey) -> None:
        """Deactivate volumes of clones that are off: who stopped them was killed before that.

        One that somebody else has open stays.
        """
        if any(each.kind == "hypervisor" for each in found.unseen):
            return
        pools = {name: pool for name, pool in self._pools(found).items() if pool.activates}
        idle: dict[str, list[Volume]] = {}
        for clone in found.clones:
            off = clone.state in (State.STOPPED, State.SAVED, State.ALLOCATED)
            if clone.ours and clone.fleet in fleets and off and clone.renamed is None:
                for volume in clone.volumes:
                    idle.setdefault(volume.pool, []).append(volume)
        asks: dict[str, Callable[[], list[Outcome[None]]]] = {
            name: functools.partial(_deactivated, pools[name], volumes)
            for name, volumes in idle.items()
            if name in pools
        }
        for name, answer in answers(asks).items():
            if isinstance(answer, VmclonerError):
                log.warning("storage %r: volumes of clones that are off: %s", name, answer)

    def collect(
        self, fleets: Collection[str], found: Survey, *, remove: bool
    ) -> tuple[Leftover, ...]:
        """Return what is left, and remove it if ``remove``; parameters as for a sweep.

        What can't be removed has its error.
        """
        pools = self._pools(found)
        listed = answers({name: driver.leftovers for name, driver in pools.items()})
        swept = answers({name: driver.sweep for name, driver in pools.items()}) if remove else {}
        named = map(split_clone, self.records.names())
        every = {clone[0] for clone in named if clone is not None}
        left = self._files(fleets, every, found, remove=remove)
        for name, those in listed.items():
            if isinstance(those, VmclonerError):
                log.warning("storage %r: %s", name, those)
                continue
            error = swept.get(name)
            left += [attrs.evolve(each, error=error) for each in those]
        return tuple(left)

    def _pools(self, found: Survey) -> Mapping[str, StorageDriver]:
        unseen = {each.name for each in found.unseen if each.kind == "storage"}
        names = [name for name in self.drivers.names("storage") if name not in unseen]
        return {name: self.drivers.storage(name) for name in names}

    def _files(
        self, fleets: Collection[str], inside: Collection[str], found: Survey, *, remove: bool
    ) -> list[Leftover]:
        """Return what is left outside of pools, and remove it if ``remove``.

        :param inside: the fleets in whose clones' folders to look for drafts of files too.
        """
        taken = functools.partial(_taken, remove=remove)
        left: list[Leftover] = []
        templates, images = self.host.templates, image_cache()
        try:
            left += self._of_fleets(fleets, inside, found, taken)
            left += _of_drafts(templates, self.host.state, "template", taken)
            left += _of_drafts(images, images.parent, "image", taken)
            left += self._of_state(taken)
            left += self._of_admissions(fleets, taken)
        except VmclonerError as error:
            log.warning("left behind: %s", error)
        return [*left, *self._of_nobody(taken)]

    def _of_fleets(
        self, fleets: Collection[str], inside: Collection[str], found: Survey, taken: _Take
    ) -> list[Leftover]:
        left = self._left(found, inside)
        done = [each for fleet in sorted(left.keys() & set(fleets)) for each in taken(left[fleet])]
        others = left.keys() - set(fleets)
        if not others:
            return done
        with hold_free(self.host.state, [f"fleet/{fleet}" for fleet in others]) as free:
            # A run that has just ended may have made what was missing when it was looked for.
            left = self._left(self.look(), others) if free else {}
            for fleet in sorted(others & left.keys()):
                if f"fleet/{fleet}" in free:
                    done += taken(left[fleet])
        return done

    def _left(self, found: Survey, inside: Collection[str]) -> Mapping[str, list[Found]]:
        """Return what was left of clones, by fleet."""
        drafts = self.records.drafts(inside)
        left = {name: [("draft", path, _KILLED) for path in own] for name, own in drafts.items()}
        logs = {path: _LOG.fullmatch(path.name) for path in _entries(self.host.consoles)}
        files = [("console", path, match[1]) for path, match in logs.items() if match is not None]
        files += [("boot", path, path.name) for path in _entries(self.host.boots)]
        gone = self._gone(found, {name for _, _, name in files})
        files = [(kind, path, name) for kind, path, name in files if name in gone]
        for kind, path, name in (*files, *self._logs(found)):
            clone = split_clone(name)
            if clone is not None:
                left.setdefault(clone[0], []).append((kind, path, _GONE))
        return left

    def _logs(self, found: Survey) -> Iterator[tuple[str, Path, str]]:
        """Yield logs outside of the state folder, which are ours as their clones have labels."""
        known = set(self.drivers.names("hypervisor"))
        for clone in found.clones:
            if clone.ours and clone.state is State.ALLOCATED and clone.labels.hypervisor in known:
                for path in self.drivers.hypervisor(clone.labels.hypervisor).logs(clone.name):
                    yield "log", path, clone.name

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

    def _of_state(self, taken: _Take) -> list[Leftover]:
        """Take drafts of the state folder's id: who made one holds the lock."""
        drafts = [path for path in _entries(self.host.state) if _ID_DRAFT.fullmatch(path.name)]
        if not drafts:
            return []
        with hold_free(self.host.state, [ID_LOCK]) as free:
            return taken([("draft", path, _KILLED) for path in drafts]) if free else []

    def _of_admissions(self, fleets: Collection[str], taken: _Take) -> list[Leftover]:
        """Take what is noted of runs that have ended, and drafts of such notes."""
        notes = {p: p.name.strip(".").partition(".")[0] for p in _entries(self.host.admitted)}
        others = {f"fleet/{fleet}" for fleet in notes.values() if fleet not in fleets}
        with hold_free(self.host.state, others) if others else contextlib.nullcontext(()) as free:
            ended = [p for p, fleet in notes.items() if fleet in fleets or f"fleet/{fleet}" in free]
            return taken([("draft", path, _KILLED) for path in ended])

    def _of_nobody(self, taken: _Take) -> list[Leftover]:
        """Take drafts that nobody writes any more, and shared files that no clone has."""
        shared = self.host.boots / SHARED
        drafts = [p for p in _entries(self.host.state) if _STATE_DRAFT.fullmatch(p.name)]
        drafts += [p for p in _entries(shared) if p.name.startswith(".")]
        files = [p for p in _entries(shared) if not p.name.startswith(".")]
        old = time.time() - MAX_DRAFT
        abandoned = _matching(drafts, lambda status: status.st_mtime < old)
        arrivals = [p for p in _entries(self.host.received) if p.name.startswith(".")]
        ended = time.time() - MAX_ARRIVAL
        abandoned = itertools.chain(abandoned, _matching(arrivals, lambda s: s.st_mtime < ended))
        unused = _matching(files, lambda status: status.st_nlink == 1)
        left = taken([("draft", path, _KILLED) for path in abandoned])
        left += taken([("boot", path, "no clone boots from it") for path in unused])
        if left:
            with contextlib.suppress(OSError):  # it is in use
                shared.rmdir()
        return left


def _deactivated(pool: StorageDriver, volumes: Sequence[Volume]) -> list[Outcome[None]]:
    return list(pool.deactivate(volumes))


_Take = Callable[[Sequence[Found]], list[Leftover]]


def _of_drafts(folder: Path, locks: Path, what: str, taken: _Take) -> list[Leftover]:
    """Take drafts ``.NAME-…`` in a folder whose locks ``WHAT/NAME`` nobody holds.

    :param locks: the folder of the locks.
    """
    drafts = {path: _DRAFT.fullmatch(path.name) for path in _entries(folder)}
    held = {path: f"{what}/{match[1]}" for path, match in drafts.items() if match}
    if not held:
        return []
    with hold_free(locks, held.values()) as free:
        left = [path for path, lock in held.items() if lock in free]
        return taken([("image", path, _KILLED) for path in left])


def _entries(folder: Path) -> Iterator[Path]:
    try:
        names = os.listdir(folder)  # noqa: PTH208
    except OSError:  # it isn't there, or it is not this user's
        return
    yield from (folder / name for name in sorted(names))


def _matching(paths: Iterable[Path], wanted: Callable[[os.stat_result], bool]) -> Iterator[Path]:
    """Yield those of these files that are as wanted."""
    for path in paths:
        with contextlib.suppress(OSError):  # another sweeper was faster, or it isn't this user's
            status = path.lstat()
            if stat.S_ISREG(status.st_mode) and wanted(status):
                yield path


def _taken(found: Sequence[Found], *, remove: bool) -> list[Leftover]:
    """Return what is left, and remove it if ``remove``."""
    left = []
    for kind, path, why in found:
        size = allocated(path)
        error = _removed(path) if remove else None
        left.append(Leftover(kind=kind, name=str(path), size=size, why=why, error=error))
    return left


def _removed(path: Path) -> VmclonerError | None:
    """Remove a file or a folder; returns the error, None if it is gone."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        if not isinstance(error, FileNotFoundError):  # another sweeper was faster
            return HostCommandError(f"{path}: {error.strerror}")
    return None
