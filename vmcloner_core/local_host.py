"""Everything that acts on one host: its drivers, folders and locks.

An engine acts on a host only through this object, and opens no path there itself. This one is the
host that the process runs on.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import hmac
import logging
import math
import os
import socket
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from vmcloner_core import clock, locks, ssh_access
from vmcloner_core.benchmark_marks import BenchmarkMarks
from vmcloner_core.booting import Preview, Starter
from vmcloner_core.catalog import Catalog
from vmcloner_core.claims import Claims
from vmcloner_core.deadlines import answers, instance
from vmcloner_core.driver_registry import DriverRegistry
from vmcloner_core.drivers import HypervisorDriver, StorageDriver
from vmcloner_core.errors import BackendError, VmclonerError
from vmcloner_core.model import (
    AS_IT_COMES,
    Access,
    Clone,
    CloneSpec,
    Copying,
    Host,
    Labels,
    Lease,
    Leftover,
    Moment,
    Origin,
    Outcome,
    State,
    Template,
    Volume,
)
from vmcloner_core.moves import Moves
from vmcloner_core.names import split_clone
from vmcloner_core.os_errors import of_state
from vmcloner_core.pipeline import Work
from vmcloner_core.plan import ClonePlan
from vmcloner_core.plugins import PluginHost
from vmcloner_core.pools import Definitions
from vmcloner_core.process import LocalRunner
from vmcloner_core.records import RECORD, Records, sync
from vmcloner_core.runlog import RunLog
from vmcloner_core.snapshot_folders import SnapshotFolders
from vmcloner_core.snapshot_undo import Undo, leftover
from vmcloner_core.stored_ids import drafted, new_id, read_id
from vmcloner_core.survey import Survey, look
from vmcloner_core.sweeping import ID_LOCK, Sweeper
from vmcloner_core.template_images import TemplateImages
from vmcloner_core.trusted_files import check_folder
from vmcloner_core.warm_forks import Forks
from vmcloner_core.warm_leftovers import LOCK, UnfinishedOrigins, parents
from vmcloner_core.warm_origins import WarmOrigins

if TYPE_CHECKING:
    from vmcloner_core.schedule import Schedule
    from vmcloner_core.template_leftovers import Leftovers

log = logging.getLogger(__name__)
MACHINE_ID = Path("/etc/machine-id")


def _machine_id() -> str | None:
    """Return this machine's id, None if it has none (yet)."""
    with contextlib.suppress(OSError):
        return read_id(MACHINE_ID)
    return None


class LocalHost:
    """The host that the process runs on. Thread-safe."""

    def __init__(self, host: Host, plugins: PluginHost) -> None:
        self.host = host
        self.drivers = DriverRegistry(host, plugins, LocalRunner())
        self.records = Records(host.records)
        self.moves = Moves(host.moves)
        self.claims = Claims(self.records, self.hold_free, self.now)
        self.pools = Definitions(host.pools)
        self.benchmarks = BenchmarkMarks(host.benchmarks, self.hold_free)
        self.snapshots = SnapshotFolders(host.snapshots)
        self.catalog = Catalog(host.templates, received=host.received)
        self.images = TemplateImages(self.drivers, plugins)
        self.warm = WarmOrigins(host.warm)
        self.unfinished = UnfinishedOrigins(self.warm, self.images)
        self.forks = Forks(self.warm, self.records, self.drivers.backend, self.emulates)
        self.starter = Starter(
            boots=self.drivers.boot,
            backend=self.drivers.backend,
            folder=host.boots,
            records=self.records,
        )
        self._lock = threading.Lock()
        self._state_id: str | None = None

    @functools.cached_property
    def leftovers(self) -> Leftovers:
        """What is left of templates that are gone."""
        from vmcloner_core.template_leftovers import Leftovers

        host = self.host
        return Leftovers(host.templates, host.received, self.catalog, self.images, self.drivers)

    @functools.cached_property
    def seed(self) -> str:
        """The seed of its clones' UUIDs and MAC addresses: no other host has the same.

        Nobody can tell the machine-id from it (machine-id(5)): it is the key of a hash.
        """
        own = self.host.seed or _machine_id() or self.state_id
        text = f"vmcloner/{self.host.name}/{'' if self.host.seed else socket.gethostname()}"
        return hmac.new(own.encode(), text.encode(), hashlib.sha256).hexdigest()

    @property
    def state_id(self) -> str:
        """The id of the state folder; until it has one, the one that it will get."""
        with self._lock:
            if self._state_id is None:
                self._state_id = self._read_id() or new_id()
            return self._state_id

    def keep_state_id(self) -> str:
        """Write the state folder's id, unless it has one; returns it.

        :raises BackendError: the folder can't be written, or its file holds no id.
        """
        offered, file = self.state_id, self.host.state_id
        with self._lock:
            self._state_id = self._read_id() or self._write_id(offered)
            if self._state_id is None:
                raise BackendError(
                    f"{file} does not contain a state folder's id",
                    hint="restore it: the clones' labels have it (vmcloner show CLONE --xml)",
                )
            return self._state_id

    def _write_id(self, offered: str) -> str | None:
        """Offer the state folder an id; returns the one that it has, by this run or another."""
        folder, file = self.host.state, self.host.state_id
        with locks.hold(folder, [ID_LOCK]):
            try:
                if not os.path.lexists(file):
                    self._new_id(offered)
            except OSError as error:
                raise BackendError(
                    f"can't write {file}: {error.strerror}",
                    hint=f"run as root, or set hosts.{self.host.name}.state",
                ) from error
        return self._read_id()

    def _new_id(self, offered: str) -> None:
        with drafted(offered, self.host.state) as draft:
            draft.rename(self.host.state_id)
            sync(self.host.state)

    def _read_id(self) -> str | None:
        try:
            return read_id(self.host.state_id)
        except (PermissionError, IsADirectoryError):  # another user's; no id
            return None
        except OSError as error:
            raise of_state(error, self.host.state_id) from error

    def close(self) -> None:
        """Close the drivers' connections; they are opened again when needed."""
        self.drivers.close()

    def check_state(self) -> None:
        """Check that no other user could have written what the state folder has.

        Records are believed, with the templates in them, and what was built is booted.

        :raises InvalidRequest: one could; names the folder, the reason and the way out.
        """
        host = self.host
        own = (host.records, host.boots, host.templates, host.received, host.snapshots, host.moves)
        for folder in (host.state, *own, host.warm):
            if os.path.lexists(folder):
                check_folder(folder)

    def survey(self) -> Survey:
        """Return everything on the host that can be read.

        :raises InvalidRequest: another user could have written the state folder.
        """
        self.check_state()
        found, moves = look(self.drivers, self.records, self.state_id), self.moves.all()
        waiting, made = self.warm.waiting(), self.parents()
        if not moves and not waiting and not made:
            return found
        clones = [
            attrs.evolve(clone, moving=moves.get(clone.name), making=clone.fleet in made)
            for clone in found.clones
        ]
        clones = [_as_fork(c, fresh=waiting[c.name]) if c.name in waiting else c for c in clones]
        return attrs.evolve(found, clones=tuple(clones))

    def parents(self) -> frozenset[str]:
        """Return the fleets of the clones from which warm origins are being made now."""
        if not locks.is_held(self.host.state, LOCK):
            return frozenset()
        return frozenset(map(parents, self.warm.drafts()))

    def now(self) -> Moment:
        """Return the time on the host."""
        return clock.now()

    def lease(self, ttl: int) -> Lease:
        """Return a lease of so many seconds from now.

        :raises WrongState: the host's clock is behind its own files.
        """
        moment = self.now()
        clock.check_clock(moment, self._dated(), long_off=math.inf)
        return Lease(granted=moment, ttl=ttl)

    def check_clock(self, moment: Moment, leased: Iterable[str]) -> None:
        """Check the host's clock against its own files; see :func:`clock.check_clock`.

        :param leased: the names of the clones whose leases are to be judged by it.
        """
        records = (self.host.records / name / RECORD for name in leased)
        clock.check_clock(moment, (*self._dated(), *records))

    def _dated(self) -> Sequence[Path]:
        """Return what runs change in the state folder."""
        host = self.host
        return host.state, host.state_id, host.records, host.runs, host.consoles

    def settled(self, fleets: Collection[str]) -> Survey:
        """Undo the snapshots and forks that killed runs began; returns what is on the host then.

        :param fleets: those whose locks the caller holds.
        """
        found = self.survey()
        undone = self.undo_snapshots(fleets, found)
        ended = self._end_forks(fleets, found)
        return self.survey() if undone or ended else found

    def _end_forks(self, fleets: Collection[str], found: Survey) -> bool:
        """Power off guests with half an identity of their own, so that nothing keeps their memory.

        :returns: whether there were any.
        """
        waiting = self.warm.waiting()
        begun = [
            clone
            for clone in found.clones
            if clone.name in waiting and clone.fleet in fleets and clone.state is State.PAUSED
        ]
        for clone in begun:
            try:
                driver = self.drivers.hypervisor(clone.labels.hypervisor)
                self.forks.end_killed(driver, clone.name)
            except VmclonerError as error:
                log.warning("%s", error)
        return bool(begun)

    def undo_snapshots(
        self, fleets: Collection[str], found: Survey | None = None
    ) -> tuple[Leftover, ...]:
        """Undo the snapshots that were begun for clones of these fleets; returns them.

        What can't be undone is logged, and has its error.

        :param fleets: those whose locks the caller holds. :param found: seen under these locks.
        """
        undo = Undo(self.snapshots, self.drivers)
        drafts = undo.drafts(fleets)
        return undo(drafts, found or self.survey()) if drafts else ()

    def end_reverts(self, names: Iterable[str]) -> None:
        """Note that the run has ended that reverted clones: their next revert is another."""
        for name in names:
            try:
                self.records.update(name, reverting="")
            except VmclonerError as error:
                log.warning("%s", error)

    def hold(
        self, names: Sequence[str], cancelled: Callable[[], bool]
    ) -> contextlib.AbstractContextManager[None]:
        """Hold locks against other runs, and log what it waits for. See :func:`locks.hold`."""
        self.check_state()
        return locks.hold(
            self.host.state,
            names,
            cancelled=cancelled,
            waiting=lambda name: log.warning("waiting for another run on %s", name),
        )

    def emulates(self, hypervisor: str) -> bool:
        """Tell whether a hypervisor's guests are emulated; False if it doesn't answer."""
        with contextlib.suppress(VmclonerError):
            return self.drivers.resources(hypervisor).emulated
        return False

    def import_image(
        self,
        template: Template,
        pool: StorageDriver,
        run: str,
        started: float,
        cancelled: Callable[[], bool],
        copying: Copying = AS_IT_COMES,
    ) -> Origin:
        """Return a template's image in a pool, imported while no other run does if it isn't there.

        :param run, started: see :meth:`TemplateImages.import_image`.
        """
        with self.hold([f"template/{template.name}"], cancelled):
            imported = self.images.import_image(template, pool, run, started, copying)
        return imported.unwrap()

    def build_kernel(self, template: Template, cancelled: Callable[[], bool]) -> bool:
        """Build the kernel of a template whose image another host has put into a shared pool.

        :returns: whether it was missing.
        """
        if self.images.has_kernel(template):
            return False
        with self.hold([f"template/{template.name}"], cancelled):
            self.images.build(template)
        return True

    def sweep(self, fleets: Collection[str], found: Survey) -> None:
        """Remove what killed runs left; see :class:`Sweeper`.

        :param fleets: those whose locks the caller holds. :param found: seen under these locks.
        """
        self._sweeper()(fleets, found)
        self._forget_moves(fleets, found)
        self._forget_forks(fleets, found)
        self.pools.remove(set(fleets) & self._empty_pools())

    def _forget_moves(self, fleets: Collection[str], found: Survey) -> None:
        """Remove the marks of moved clones of which nothing is here."""
        there = {clone.name for clone in found.clones}
        for name in () if found.unseen else self.moves.all():
            if name not in there and (split_clone(name) or ("",))[0] in fleets:
                self.moves.remove(name)

    def _forget_forks(self, fleets: Collection[str], found: Survey) -> None:
        """Forget clones that were to be forked, and of which nothing is here."""
        there = {clone.name for clone in found.clones}
        for name in () if found.unseen else self.warm.waiting():
            if name not in there and (split_clone(name) or ("",))[0] in fleets:
                self.warm.end(name)

    def forget_empty_pools(self) -> None:
        """Remove the definitions of pools without clones that no run works on."""
        empty = self._empty_pools()
        if not empty:
            return
        with self.hold_free([f"fleet/{name}" for name in empty]) as free:
            self.pools.remove({n for n in self._empty_pools() if f"fleet/{n}" in free})

    def _empty_pools(self) -> set[str]:
        return {name for name in self.pools.names() if not self.claims.names(name)}

    def collect(
        self, fleets: Collection[str], found: Survey, *, remove: bool
    ) -> tuple[Leftover, ...]:
        """Return what killed runs left, and remove it if ``remove``; see :meth:`sweep`."""
        begun = self._begun_snapshots(fleets, found, remove=remove)
        return (*begun, *self._sweeper().collect(fleets, found, remove=remove))

    def _begun_snapshots(
        self, fleets: Collection[str], found: Survey, *, remove: bool
    ) -> tuple[Leftover, ...]:
        """Return the snapshots that killed runs began, and undo them if ``remove``."""
        drafts = self.snapshots.drafts()
        if not drafts:
            return ()
        others = {draft.fleet for draft in drafts} - set(fleets)
        with self.hold_free([f"fleet/{fleet}" for fleet in others]) as free:
            idle = {*fleets, *(fleet for fleet in others if f"fleet/{fleet}" in free)}
            if remove:
                return self.undo_snapshots(idle, found if idle <= set(fleets) else None)
            return tuple(leftover(d) for d in self.snapshots.drafts() if d.fleet in idle)

    def _sweeper(self) -> Sweeper:
        return Sweeper(self.host, self.drivers, self.records, self.survey)

    def hold_free(
        self, names: Collection[str]
    ) -> contextlib.AbstractContextManager[frozenset[str]]:
        """Hold those locks that nobody holds, without waiting. See :func:`locks.hold_free`."""
        self.check_state()
        return locks.hold_free(self.host.state, names)

    def schedule(self) -> Schedule:
        """Return what runs commands regularly on the host."""
        from vmcloner_core.schedule import Schedule

        return Schedule(LocalRunner())

    def run_log(self, run: str) -> RunLog:
        """Return the log of a run that begins."""
        return RunLog(self.host.runs, run)

    def located(self, clones: Sequence[Clone]) -> tuple[Clone, ...]:
        """Return clones with their known addresses, or else their static ones."""
        running = {c.labels.hypervisor for c in clones if c.state is State.RUNNING}
        found = answers({n: functools.partial(self._addresses, n) for n in sorted(running)})

        def located(clone: Clone) -> Clone:
            if clone.state is not State.RUNNING:
                return clone
            answer = found[clone.labels.hypervisor]
            addresses = None if isinstance(answer, VmclonerError) else answer.get(clone.name)
            ip = addresses[0] if addresses else self.records.planned_address(clone.name)
            return attrs.evolve(clone, ip=ip)

        return tuple(located(clone) for clone in clones)

    def _addresses(self, hypervisor: str) -> Mapping[str, tuple[str, ...]]:
        found = self.drivers.hypervisor(hypervisor).addresses()
        return instance(found, Mapping)  # type: ignore[type-abstract]

    def made_of(self, labels: Labels) -> Template:
        """Return the template that a clone was made of, as it was then.

        :raises NotFound: the clone's record doesn't have it, and the template's file is gone.
        """
        record = self.records.find(labels.clone)
        known = record is not None and record.labels.same_clone(labels)
        kept = record.template() if record is not None and known else None
        return kept or self.catalog.template(labels.template)

    def access(self, labels: Labels, address: str) -> Access:
        """Return how to reach a clone at an address; see :func:`ssh_access.access`."""
        template = self.made_of(labels)
        known_hosts = self.records.known_hosts(labels.clone)
        record = self.records.find(labels.clone)
        identity = record.identity if record is not None else None
        keys = identity.authorized_keys if identity is not None else ()
        return ssh_access.access(template, labels, address, known_hosts, keys)

    def reach(self, clone: Clone) -> Outcome[Access]:
        """Return how to reach a clone as it is now, or why it can't be reached."""
        return ssh_access.reach(clone, self.access)

    def previews(
        self, clones: Sequence[Clone], spec: Callable[[Clone], CloneSpec]
    ) -> Iterator[Preview]:
        """Yield what clones would boot; their volumes are activated meanwhile."""
        groups: dict[str, list[Clone]] = {}
        for clone in clones:
            groups.setdefault(clone.labels.hypervisor, []).append(clone)
        for name, group in groups.items():
            yield from self._previews(self.drivers.hypervisor(name), group, spec)

    def _previews(
        self,
        driver: HypervisorDriver,
        clones: Sequence[Clone],
        spec: Callable[[Clone], CloneSpec],
    ) -> Iterator[Preview]:
        states = self.drivers.ask(
            "hypervisor",
            driver.name,
            "states",
            lambda d: d.states(),
            Mapping,  # type: ignore[type-abstract]
        )
        works = []
        with contextlib.ExitStack() as stack:
            for clone in clones:
                try:
                    plan = ClonePlan(labels=clone.labels, steps=(), spec=spec(clone))
                    if states.get(clone.name) is not State.RUNNING:
                        stack.enter_context(self.active(clone.volumes))
                except VmclonerError as error:
                    provider = clone.labels.boot or ""
                    yield Preview(name=clone.name, provider=provider, error=error)
                else:
                    works.append(Work(plan=plan, volumes=clone.volumes))
            yield from self.starter.preview(driver, works)

    @contextlib.contextmanager
    def active(self, volumes: Sequence[Volume]) -> Iterator[None]:
        """Activate volumes during the block; those that were active before stay active."""
        made: list[Volume] = []
        try:
            for volume in volumes:
                for outcome in self.drivers.activate(volume.pool, [volume]):
                    outcome.unwrap()
                    if outcome.changed:
                        made.append(volume)
            yield
        finally:
            for volume in made:
                for outcome in self.drivers.deactivate(volume.pool, [volume]):
                    outcome.unwrap()


def _as_fork(clone: Clone, *, fresh: bool) -> Clone:
    """Return a clone as one that waits to be forked, or else whose fork wasn't finished.

    The former is saved, its memory is its origin's; the latter's guest is not to be used.
    """
    domain, seen = clone.domain, State.STOPPED if fresh else State.RUNNING
    if domain is None or not clone.ours or clone.state is not seen:
        return clone
    state = State.SAVED if fresh else State.PAUSED
    reason = "" if fresh else "its fork isn't finished"
    domain = attrs.evolve(domain, state=state, reason=reason)
    return attrs.evolve(clone, state=state, domain=domain)
