"""Clones on their way from one host to another: what each of the two hosts does.

The disks are read as raw disks and written into blank volumes of the other host's pool, so any two
pools whose volumes are files or block devices will do. They cross in chunks, as images do
(:mod:`vmcloner_core.hosts.parcels`). Only what isn't zeros is sent; the target notes in the clone's
mark how far it is, and uses a disk when its digest is right.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import shutil
import stat
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

import attrs

from vmcloner_core import qemu_img
from vmcloner_core.birth import Birth
from vmcloner_core.drivers import StorageDriver
from vmcloner_core.errors import (
    BackendError,
    Conflict,
    InvalidRequest,
    NotEnoughResources,
    NotFound,
    WrongState,
)
from vmcloner_core.extents import GRANULE, Run, data_runs, is_zero, length, nonzero_pieces
from vmcloner_core.hosts.parcels import CHUNK, Chunk, next_chunk, written
from vmcloner_core.model import (
    AS_IT_COMES,
    MAX_DISKS,
    Capacity,
    Clone,
    CloneRequest,
    CloneSpec,
    Labels,
    Moving,
    Nic,
    Seed,
    State,
    Template,
    Volume,
)
from vmcloner_core.moves import Arrived, Mark
from vmcloner_core.os_errors import translated
from vmcloner_core.outcomes import checked
from vmcloner_core.plan import ClonePlan, Plan
from vmcloner_core.process import LocalRunner
from vmcloner_core.records import Record, record_of, record_text
from vmcloner_core.stored_ids import KnownPool, is_id, read_id
from vmcloner_core.survey import Survey
from vmcloner_core.trusted_files import make_folder, read_file
from vmcloner_core.units import MAX_SIZE, format_size
from vmcloner_core.values_file import check_value

if TYPE_CHECKING:
    from vmcloner_core.engine import Engine, Held
    from vmcloner_core.hosts.beside import Asked, Event
    from vmcloner_core.local_host import LocalHost

MAX_KEY = 4096
"""Characters of an SSH host key."""
_PRIVATE = "-----BEGIN OPENSSH PRIVATE KEY-----\n"
_PUBLIC = re.compile(r"ssh-[a-z0-9-]{1,32} [A-Za-z0-9+/=]{16,1024}( [\x21-\x7e]{0,256})?")


@attrs.frozen(kw_only=True)
class CargoDisk:
    """A disk of a clone.

    :param size: bytes. :param data: bytes of it that aren't zeros, about.
    :param digest: see :func:`content_digest`; empty while the disk has not been read.
    """

    number: int
    size: int
    data: int
    digest: str = ""

    def __attrs_post_init__(self) -> None:
        if not (0 <= self.number < MAX_DISKS and 0 < self.size <= MAX_SIZE):
            raise InvalidRequest(f"disk {self.number} of {self.size} bytes")
        if not 0 <= self.data <= self.size + GRANULE:
            raise InvalidRequest(f"disk {self.number}: {self.data} bytes of data")
        if not re.fullmatch("([0-9a-f]{64})?", self.digest):
            raise InvalidRequest("not a digest")


@attrs.frozen(kw_only=True)
class Cargo:
    """A clone that is to be moved: what it is, and how much of its disks has to be sent.

    :param record: its record (:func:`record_text`). :param host_key: its SSH host key, private and
        public; None if it has none.
    :param pool: the id of its pool; empty if that has none, or hands nothing over to other hosts.
    """

    labels: Labels
    record: str = attrs.field(repr=False)
    disks: tuple[CargoDisk, ...]
    host_key: tuple[str, str] | None = attrs.field(default=None, repr=False)
    pool: str = ""

    def __attrs_post_init__(self) -> None:
        if not 0 < len(self.disks) <= MAX_DISKS:
            raise InvalidRequest(f"{len(self.disks)} disks")
        if self.host_key is not None and not _is_key(*self.host_key):
            raise InvalidRequest("not an SSH host key")
        values: object = self.known().values
        if not isinstance(values, dict):
            raise InvalidRequest(f"{self.name}: not its values")
        for key, value in values.items():
            check_value(key, value, self.name)

    @property
    def name(self) -> str:
        """The clone's name."""
        return self.labels.clone

    @property
    def data(self) -> int:
        """The bytes that have to be sent, before they are compressed."""
        return sum(disk.data for disk in self.disks)

    def known(self) -> Record:
        """Return the clone's record. :raises InvalidRequest: it is none."""
        record = record_of(self.record, self.name)
        if record is None or not record.labels.same_clone(self.labels):
            raise InvalidRequest(f"{self.name}: not its record")
        return record

    def disk(self, item: str) -> CargoDisk:
        """Return a disk by its number. :raises InvalidRequest: there is none of it."""
        for disk in self.disks:
            if str(disk.number) == item:
                return disk
        raise InvalidRequest(f"{self.name} has no disk {item!r}")


def _is_key(private: str, public: str) -> bool:
    fits = len(private) <= MAX_KEY and private.startswith(_PRIVATE) and private.isascii()
    return fits and _PUBLIC.fullmatch(public) is not None


def content_digest(fd: int, size: int) -> tuple[str, int]:
    """Return the SHA-256 of a disk's bytes that aren't zeros, and how many these are, about.

    It is the same whatever a pool has rounded the disk's size up to, and whatever is there.
    """
    digest, data = hashlib.sha256(size.to_bytes(8, "big")), 0
    for offset, piece in nonzero_pieces(fd):
        if offset >= size:
            break
        own = piece[: size - offset]
        if is_zero(own):
            continue
        digest.update(offset.to_bytes(8, "big"))
        digest.update(own)
        data += len(own)
    return digest.hexdigest(), data


class CargoCalls(ABC):
    """The calls of :class:`~vmcloner_core.hosts.beside.Beside` that move clones.

    The controller holds the clones' fleets. Each call can be made again after a kill.
    """

    def __init__(self) -> None:
        super().__init__()
        self._leaving: dict[str, _Leaving] = {}
        self._arriving: dict[str, _Arrival] = {}
        self._one_run = threading.Lock()

    @property
    @abstractmethod
    def _engine(self) -> Engine:
        """The engine of this host."""

    @abstractmethod
    def _holding_now(self) -> Held:
        """Return what is held. :raises WrongState: nothing is."""

    # --- the host that a clone leaves -----------------------------------------------------------

    def call_cargo(self, asked: Asked, _event: Event) -> Cargo:
        """Return what a clone is, with its disks not read yet. Changes nothing."""
        return _cargo(self._engine, self._there(asked.name))

    def call_depart(self, asked: Asked, _event: Event) -> Cargo:
        """Mark a clone as leaving for host ``to``, and open its disks to be sent."""
        self._unload(asked.name)
        clone = self._there(asked.name)
        cargo = _cargo(self._engine, clone)
        self._stopped(clone, State.STOPPED)
        if asked.heir and not (cargo.pool and is_id(asked.heir)):
            raise InvalidRequest(
                f"{clone.name}: pool {cargo.labels.storage!r} hands no disks over to {asked.to}"
            )
        if not asked.heir and any(volume.kind == "network" for volume in clone.volumes):
            raise InvalidRequest(
                f"{clone.name}: disks of pool {cargo.labels.storage!r} are reached over the "
                "network, and are not copied to other pools"
            )
        host = self._engine._host
        moving = Moving(leaves=True, other=asked.to, uuid=cargo.known().uuid, heir=asked.heir)
        host.moves.note(clone.name, Mark(moving=moving))
        if asked.heir:  # its disks stay where they are
            return cargo
        leaving = _Leaving(host, clone)
        try:
            disks = tuple(map(leaving.opened, cargo.disks))
        except BaseException:
            leaving.close()
            raise
        self._leaving[clone.name] = leaving
        return attrs.evolve(cargo, disks=disks)

    def call_piece(self, asked: Asked, _event: Event) -> Chunk:
        """Return a part of a disk of a clone that leaves."""
        if asked.name not in self._leaving:
            raise WrongState(f"{asked.name} is not open", hint="run the same command again")
        return self._leaving[asked.name].chunk(asked.item, asked.offset)

    def call_unload(self, asked: Asked, _event: Event) -> None:
        """Close the disks of a clone."""
        self._unload(asked.name)

    def call_undefine(self, asked: Asked, _event: Event) -> None:
        """Remove the domain of a clone that leaves; its disks and its record stay."""
        self._marked(asked.name, leaves=True)
        clone = self._seen(asked.name)
        if clone is not None and clone.domain is not None:
            self._stopped(clone, State.STOPPED, State.ORPHAN)
            self._deleted(clone, ("undefine",))

    def call_give(self, asked: Asked, _event: Event) -> None:
        """Hand the disks of a clone that leaves over, if both hosts share their pool."""
        heir = self._marked(asked.name, leaves=True).moving.heir
        clone = self._seen(asked.name)
        if not heir or clone is None:
            return
        drivers = self._engine._host.drivers
        for volume in clone.volumes:
            give = functools.partial(drivers.storage(volume.pool).hand_over, [volume], heir)
            backend = drivers.backend("storage", volume.pool)
            for outcome in checked(give, [volume.name], backend):
                outcome.unwrap()

    def call_drop(self, asked: Asked, _event: Event) -> None:
        """Remove all of a clone that has left, or of one that has not arrived, and its mark."""
        self._unload(asked.name)
        host, clone = self._engine._host, self._seen(asked.name)
        mark = host.moves.find(asked.name)
        if clone is not None:
            if mark is None or mark.moving.whole:
                raise WrongState(f"{asked.name} is no clone that has left")
            if mark.moving.heir and clone.volumes:
                raise WrongState(f"{asked.name}: its disks are not handed over yet")
            self._stopped(clone, State.STOPPED, State.ALLOCATED, State.ORPHAN)
            self._deleted(clone, ("undefine", "remove"))
        host.moves.remove(asked.name)

    # --- the host where it arrives --------------------------------------------------------------

    def call_admit(self, asked: Asked, _event: Event) -> None:
        """Check that clones can be had here; their template may be missing. Changes nothing.

        :raises VmclonerError: why not.
        """
        self._fit(asked, complete=False)

    def call_fit(self, asked: Asked, _event: Event) -> str:
        """Check that a clone can be had here, with the template that is here. Changes nothing.

        :returns: the id of the state folder here if the clone's pool is this host's too, else "".
        :raises VmclonerError: why not.
        """
        (cargo,) = asked.cargos
        self._fit(asked, complete=True)
        host = self._engine._host
        return host.keep_state_id() if _shares(host, cargo) else ""

    def call_take(self, asked: Asked, _event: Event) -> None:
        """Keep the record of a clone whose disks are in a pool that both hosts share.

        It is whole then, but for its disks, which the other host hands over.
        """
        (cargo,) = asked.cargos
        self._fit(asked, complete=True)
        if not _shares(self._engine._host, cargo):
            raise WrongState(f"{cargo.name}: its pool is not shared")
        _Arrival(self._engine, cargo).take(asked.to)

    def _fit(self, asked: Asked, *, complete: bool) -> None:
        found = self._engine.survey()
        for cargo in asked.cargos:
            _Arrival(self._engine, cargo).check(found, complete=complete)
        _check_room(self._engine._host, asked.cargos, found)

    def call_arrive(self, asked: Asked, _event: Event) -> tuple[int, ...]:
        """Mark a clone as arriving from host ``to``; returns how much of each disk is here."""
        (cargo,) = asked.cargos
        self._unload(cargo.name)
        self._fit(asked, complete=True)
        arrival = _Arrival(self._engine, cargo)
        self._arriving[cargo.name] = arrival
        return arrival.begin(asked.to)

    def call_land(self, asked: Asked, _event: Event) -> int:
        """Write a part of a disk; returns how much of it is here then."""
        assert asked.chunk is not None  # noqa: S101 - the controller gives one
        return self._arrival(asked.name).write(asked.item, asked.offset, asked.chunk)

    def call_landed(self, asked: Asked, _event: Event) -> None:
        """Check the disks of a clone, keep its record, and mark it as whole."""
        self._arrival(asked.name).end()
        self._unload(asked.name)

    def _arrival(self, name: str) -> _Arrival:
        if name not in self._arriving:
            raise WrongState(f"{name} is not arriving", hint="run the same command again")
        return self._arriving[name]

    def call_define(self, asked: Asked, _event: Event) -> None:
        """Define the domain of a clone that is whole here, and is nobody else's any more."""
        clone = self._seen(asked.name)
        if clone is not None and clone.moving is None and clone.domain is not None:
            return  # it was done before
        mark = self._marked(asked.name, leaves=False)
        if clone is None or not (mark.moving.whole and clone.volumes):
            raise WrongState(f"{asked.name} is not whole", hint="run the same command again")
        if clone.domain is None:
            self._defined(clone)

    def call_stay(self, asked: Asked, _event: Event) -> None:
        """Remove a clone's mark: it is this host's, and can be started."""
        self._unload(asked.name)
        self._engine._host.moves.remove(asked.name)

    # --- what they share ------------------------------------------------------------------------

    def _seen(self, name: str) -> Clone | None:
        found = self._engine.survey()
        found.check_complete(f"move {name}")
        return next((clone for clone in found.clones if clone.name == name), None)

    def _there(self, name: str) -> Clone:
        clone = self._seen(name)
        if clone is None:
            raise NotFound(f"no clone {name!r}")
        return clone

    def _stopped(self, clone: Clone, *states: State) -> None:
        """Check a clone's state: somebody may have started it without us."""
        if clone.state not in states:
            by = "its hypervisor's own tools" if clone.moving else f"vmcloner stop {clone.name}"
            raise WrongState(
                f"{clone.name} is {clone.state.value}",
                hint=f"stop it with {by}, then run the same command again",
            )

    def _marked(self, name: str, *, leaves: bool) -> Mark:
        mark = self._engine._host.moves.find(name)
        if mark is None or mark.moving.leaves is not leaves:
            raise WrongState(f"{name} is not being moved", hint="run the same command again")
        return mark

    def _unload(self, name: str) -> None:
        if name in self._leaving:
            self._leaving.pop(name).close()
        if name in self._arriving:
            self._arriving.pop(name).close()

    def _close_cargo(self) -> None:
        for name in (*self._leaving, *self._arriving):
            self._unload(name)

    def _deleted(self, clone: Clone, steps: tuple[str, ...]) -> None:
        self._carried_out(
            "delete",
            ClonePlan(
                labels=clone.labels,
                steps=steps,
                state=clone.state,
                volumes=clone.volumes,
                domain=clone.domain,
            ),
        )

    def _defined(self, clone: Clone) -> None:
        record = self._engine._host.records.find(clone.name)
        if record is None:
            raise NotFound(f"{clone.name} has no record", hint="run the same command again")
        spec = _spec(self._engine, record)
        plan = ClonePlan(
            labels=clone.labels,
            steps=("define",),
            state=clone.state,
            volumes=clone.volumes,
            spec=spec,
        )
        self._carried_out("create", plan)

    def _carried_out(self, action: str, clone: ClonePlan) -> None:
        from vmcloner_core.steps import ACTIONS

        plan = Plan(
            action=action,
            run=Birth.now().run,
            host=self._engine.host.name,
            clones=(clone,),
            order=ACTIONS[action].order,
        )
        with self._one_run:
            result = self._holding_now().carry_out(plan)
        for failed in result.failures:
            if failed.error is not None:
                raise failed.error


# --- leaving ------------------------------------------------------------------------------------


def _cargo(engine: Engine, clone: Clone) -> Cargo:
    """Return what a clone is. :raises VmclonerError: it can't be moved."""
    host, name = engine._host, clone.name
    record = host.records.find(name)
    if record is None or not record.labels.same_clone(clone.labels):
        raise WrongState(f"{name} has no record", hint="it was made by a version without records")
    if clone.fleet in host.pools.names():
        raise WrongState(f"{name} is of a pool", hint=f"vmcloner pool empty {clone.fleet}")
    made_of = host.made_of(clone.labels)
    if _has_tpm(made_of):
        raise WrongState(f"{name} has a TPM, whose state is not taken along")
    if clone.domain is not None:
        record = attrs.evolve(record, uuid=clone.domain.uuid, macs=clone.domain.macs)
    incomplete = [volume.name for volume in clone.volumes if not volume.complete]
    if incomplete or not clone.volumes:
        raise WrongState(f"{name} is incomplete", hint="run its create again")
    home = host.records.home(name) if host.records.known_hosts(name) is not None else None
    return Cargo(
        labels=clone.labels,
        record=record_text(
            attrs.evolve(record, restart=False, reverting="", ready="", seed=Seed())
        ),
        disks=tuple(_about(volume) for volume in clone.volumes),
        host_key=None if home is None else (home.host_key, home.host_key_public),
        pool=_shared_id(host, clone.labels.storage),
    )


def _shared_id(host: LocalHost, pool: str) -> str:
    """Return the id of a pool that other hosts may have too, empty if it isn't such a one.

    Hosts that were made from one disk image have pools of one id, each its own.
    """
    if not host.drivers.storage(pool).hands_over:
        return ""
    file = KnownPool.of(host.host, pool).file
    with translated(file):
        return read_id(file) or ""


def _has_tpm(template: Template) -> bool:
    domain = template.domain
    text = read_file(domain.xml, trusted=False).decode(errors="replace") if domain.xml else ""
    return "<tpm" in text + (domain.devices or "")


def _about(volume: Volume) -> CargoDisk:
    """Return what is known of a disk that has not been read."""
    if volume.kind != "file":
        return CargoDisk(number=volume.disk, size=volume.size, data=volume.size)
    with translated(volume.path):
        data = sum(
            path.stat().st_blocks * 512
            for path in (volume.path, volume.backing)
            if path is not None
        )
    return CargoDisk(number=volume.disk, size=volume.size, data=min(data, volume.size))


class _Leaving:
    """The open disks of a clone that leaves."""

    def __init__(self, host: LocalHost, clone: Clone) -> None:
        self._host = host
        self._clone = clone
        self._stack = contextlib.ExitStack()
        self._open: dict[str, tuple[int, int, Sequence[Run]]] = {}

    def opened(self, disk: CargoDisk) -> CargoDisk:
        """Open a disk; returns it with its digest."""
        volume = next(v for v in self._clone.volumes if v.disk == disk.number)
        fd = self._stack.enter_context(_readable(self._host, volume))
        size = min(disk.size, length(fd))
        digest, data = content_digest(fd, size)
        self._open[str(disk.number)] = fd, size, list(data_runs(fd))
        return attrs.evolve(disk, size=size, data=data, digest=digest)

    def chunk(self, item: str, offset: int) -> Chunk:
        """Return the next part of a disk."""
        if item not in self._open:
            raise NotFound(f"{self._clone.name} has no disk {item!r}")
        fd, size, runs = self._open[item]
        return next_chunk(fd, runs, size, offset)

    def close(self) -> None:
        """Close the disks."""
        self._stack.close()


@contextlib.contextmanager
def _readable(host: LocalHost, volume: Volume) -> Iterator[int]:
    """Yield a disk's bytes as an open file: its own, or of a raw copy of an overlay."""
    with _active(host, volume), contextlib.ExitStack() as stack:
        path = volume.path
        if volume.format != "raw":
            path = host.moves.draft(volume.labels.clone, volume.disk)
            stack.callback(path.unlink, missing_ok=True)
            _flatten(volume, path)
        with translated(path):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | _as_it_is(volume))
        stack.callback(os.close, fd)
        yield fd


def _flatten(volume: Volume, path: Path) -> None:
    """Write an overlay with what is below it to a raw file."""
    need = _about(volume).data
    with translated(path.parent):
        make_folder(path.parent)
        free = shutil.disk_usage(path.parent).free
    if need > free:
        raise NotEnoughResources(
            f"{volume.name} takes {format_size(need)} while it is sent; {format_size(free)} are "
            f"free in {path.parent}",
            hint="free space there",
        )
    with translated(path):
        path.unlink(missing_ok=True)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    qemu_img.flatten(LocalRunner(), volume, path, AS_IT_COMES)


def _as_it_is(volume: Volume) -> int:
    """Return the flag that opens no other file by a link; devices have names that are links."""
    return os.O_NOFOLLOW if volume.kind == "file" else 0


@contextlib.contextmanager
def _active(host: LocalHost, volume: Volume) -> Iterator[None]:
    """Keep a volume usable while its domain is off."""
    driver, backend = (
        host.drivers.storage(volume.pool),
        host.drivers.backend("storage", volume.pool),
    )
    for outcome in checked(lambda: driver.activate([volume]), [volume.name], backend):
        outcome.unwrap()
    try:
        yield
    finally:
        for _ in checked(lambda: driver.deactivate([volume]), [volume.name], backend):
            pass


# --- arriving -----------------------------------------------------------------------------------


class _Arrival:
    """A clone that arrives on a host. One thread works on it at a time."""

    def __init__(self, engine: Engine, cargo: Cargo) -> None:
        self._engine = engine
        self._host = engine._host
        self._cargo = cargo
        self._labels = attrs.evolve(cargo.labels, state=self._host.keep_state_id())
        self._disks: dict[int, Arrived] = {}
        self._files: dict[int, int] = {}
        self._stack = contextlib.ExitStack()

    def close(self) -> None:
        """Close the disks."""
        self._stack.close()

    @property
    def _pool(self) -> StorageDriver:
        return self._host.drivers.storage(self._labels.storage)

    def _record(self) -> Record:
        return attrs.evolve(self._cargo.known(), labels=self._labels)

    def check(self, found: Survey, *, complete: bool) -> None:
        """Check that the clone can be had here.

        :param complete: the template is here, if it ever will be.
        """
        name, record = self._cargo.name, self._cargo.known()
        found.check_complete(f"move {name}")
        hypervisor = self._host.drivers.hypervisor(self._cargo.labels.hypervisor)
        if _shares(self._host, self._cargo):
            self._check_disks()
        if name in found.foreign_names:
            raise Conflict(f"{name}: another machine has that name", hint="rename that one")
        self._check_mine(found, record.uuid)
        used = {
            mac
            for clone in found.clones
            if clone.domain is not None and clone.name != name
            for mac in clone.domain.macs
        }
        taken = sorted(set(record.macs) & (used | found.foreign_macs))
        if taken:
            raise Conflict(f"{name}: another machine has its MAC address {taken[0]}")
        self._check_addresses(record)
        if complete:
            spec, checks = _spec(self._engine, record), self._engine._planning.checks
            checks.pairing(spec.template, hypervisor)
            checks.needs(spec, hypervisor)

    def _check_disks(self) -> None:
        """Check that the clone's disks, as the other host has them, are in the shared pool here."""
        labels, pool = self._cargo.labels, self._pool
        unseen = InvalidRequest(
            f"{self._cargo.name}: its disks are not in pool {pool.name!r} as this host sees it, "
            "which has the same id on both"
        )
        if labels.state is None or not is_id(labels.state):
            raise unseen
        volumes = []
        for disk in self._cargo.disks:
            name = CloneRequest(labels=labels, disk=disk.number, size=disk.size).volume_name
            volume = Volume(
                name=name, pool=pool.name, labels=labels, path=Path("/") / name, size=disk.size
            )
            volumes.append(volume)
        names = [volume.name for volume in volumes]
        backend = self._host.drivers.backend("storage", pool.name)
        ask = functools.partial(pool.hand_over, volumes, labels.state)  # they have it: no change
        for outcome in checked(ask, names, backend):
            if outcome.error is not None:
                raise unseen from outcome.error

    def _check_mine(self, found: Survey, uuid: UUID) -> None:
        """Check that what the host has of the clone is what arrived here."""
        name = self._cargo.name
        there = next((clone for clone in found.clones if clone.name == name), None)
        if there is None:
            return
        moving = there.moving
        if moving is None or moving.leaves or moving.uuid != uuid:
            raise Conflict(f"{name}: there is another clone of that name")

    def _check_addresses(self, record: Record) -> None:
        """Check that no clone here has a static address of this one."""
        own = _static(record)
        records = self._host.records
        for other in records.of(records.names()).values() if own else ():
            same = own & _static(other) if other.labels.clone != self._cargo.name else None
            if same:
                raise Conflict(
                    f"{self._cargo.name}: {other.labels.clone} has its address {min(same)}"
                )

    def begin(self, source: str) -> tuple[int, ...]:
        """Mark the clone, make its volumes and open them; returns how much of each is here."""
        self._source = source
        known = self._host.moves.find(self._cargo.name)
        there = known.disks if known is not None else {}
        for disk in self._cargo.disks:
            found = there.get(disk.number)
            if found is not None and found.digest == disk.digest:  # else it was changed since
                self._disks[disk.number] = found
        self._note()
        self._remove({disk.number for disk in self._cargo.disks} - self._disks.keys())
        volumes = self._volumes()
        for disk in self._cargo.disks:
            self._disks.setdefault(disk.number, Arrived(disk.digest, 0))
            opened = _writable(self._host, volumes[disk.number])
            self._files[disk.number] = self._stack.enter_context(opened)
        self._note()
        return tuple(self._disks[disk.number].octets for disk in self._cargo.disks)

    def _note(self, *, whole: bool = False, lasting: bool = True) -> None:
        uuid = self._cargo.known().uuid
        moving = Moving(leaves=False, other=self._source, uuid=uuid, whole=whole)
        mark = Mark(moving=moving, disks=self._disks)
        self._host.moves.note(self._cargo.name, mark, lasting=lasting)

    def _remove(self, numbers: set[int]) -> None:
        """Remove volumes that an earlier move has begun, of a disk that was another one then."""
        own = [v for v in self._pool.volumes() if v.labels.state == self._labels.state]
        gone = [v for v in own if self._labels.has_volume(v.name) and v.disk in numbers]
        backend, names = (
            self._host.drivers.backend("storage", self._pool.name),
            [volume.name for volume in gone],
        )
        for outcome in checked(lambda: self._pool.delete(gone), names, backend):
            outcome.unwrap()

    def _volumes(self) -> dict[int, Volume]:
        """Make the volumes, unless they are there; returns them by the disks' numbers."""
        requests = [
            CloneRequest(labels=self._labels, disk=disk.number, size=disk.size)
            for disk in self._cargo.disks
        ]
        names = [request.volume_name for request in requests]
        backend = self._host.drivers.backend("storage", self._pool.name)
        made: dict[int, Volume] = {}
        for outcome in checked(lambda: self._pool.clone(requests), names, backend, Volume):
            volume = outcome.unwrap()
            if volume.labels.state != self._labels.state:
                raise Conflict(f"{volume.name}: another host has a disk of that name in its pool")
            if volume.format != "raw":
                raise BackendError(f"{volume.name}: the pool made no raw disk")
            made[volume.disk] = volume
        return made

    def write(self, item: str, since: int, chunk: Chunk) -> int:
        """Write a part of a disk; returns how much of it is here then.

        :param since: how much the sender believes to be here; nothing is written if that is wrong.
        """
        disk = self._cargo.disk(item)
        there = self._disks[disk.number]
        if there.octets != since:
            return there.octets
        end = chunk.end(disk.size)
        if not since < end <= disk.size or chunk.at % CHUNK * len(chunk.octets):
            raise BackendError("what arrived is not the next part of the disk")
        if chunk.octets:
            fd = self._files[disk.number]
            with translated(f"disk {item} of {self._cargo.name}"):
                if stat.S_ISBLK(os.fstat(fd).st_mode):
                    os.pwrite(fd, bytes(end - chunk.at), chunk.at)  # a thin pool may not zero them
                written(chunk.octets, fd, chunk.at, end)
        self._disks[disk.number] = Arrived(disk.digest, end)
        self._note(lasting=False)
        return end

    def take(self, source: str) -> None:
        """Mark the clone, keep its record, and mark it as whole."""
        self._source = source
        self._note()
        self._keep()

    def _keep(self) -> None:
        record = attrs.evolve(self._cargo.known(), labels=self._labels)
        self._host.records.adopt(record, self._cargo.host_key)
        self._note(whole=True)

    def end(self) -> None:
        """Check the disks, keep the record, and mark the clone as whole."""
        name, damaged = self._cargo.name, []
        for disk in self._cargo.disks:
            fd = self._files[disk.number]
            if content_digest(fd, disk.size)[0] == disk.digest:
                os.fsync(fd)
            else:
                damaged.append(str(disk.number))
                del self._disks[disk.number]
        if damaged:
            self._note()
            raise BackendError(
                f"{name}: disk {', '.join(damaged)} arrived damaged",
                hint="run the same command again: it is sent anew",
            )
        self._keep()


@contextlib.contextmanager
def _writable(host: LocalHost, volume: Volume) -> Iterator[int]:
    with _active(host, volume), translated(volume.path):
        fd = os.open(volume.path, os.O_RDWR | os.O_CLOEXEC | _as_it_is(volume))
        try:
            yield fd
        finally:
            os.close(fd)


def _static(record: Record) -> set[str]:
    """Return the static addresses in a clone's record, without the lengths of their prefixes."""
    cards = record.identity.interfaces if record.identity is not None else ()
    return {card.address.partition("/")[0] for card in cards if card.address is not None}


def _shares(host: LocalHost, cargo: Cargo) -> bool:
    """Tell whether a clone's pool is this host's too."""
    return bool(cargo.pool) and _shared_id(host, cargo.labels.storage) == cargo.pool


def _check_room(host: LocalHost, cargos: Sequence[Cargo], found: Survey) -> None:
    """Check that pools have room for what has not begun to arrive."""
    begun = {clone.name for clone in found.clones if clone.moving is not None}
    needs: dict[str, tuple[int, int]] = {}
    for cargo in cargos:
        if cargo.name in begun or _shares(host, cargo):
            continue
        driver = host.drivers.storage(cargo.labels.storage)
        count, need = needs.get(driver.name, (0, 0))
        for disk in cargo.disks:
            blank = CloneRequest(labels=cargo.labels, disk=disk.number, size=disk.size)
            need += max(disk.data, driver.need(blank, 1))
        needs[driver.name] = count + len(cargo.disks), need
    for pool, (count, need) in needs.items():
        room = host.drivers.ask("storage", pool, "capacity", lambda d: d.capacity(), Capacity)
        if need > room.free:
            raise NotEnoughResources(
                f"the disks take {format_size(need)}; {format_size(room.free)} are free in pool "
                f"{pool!r}",
                hint="free space there, or move fewer clones",
            )
        if room.volumes_free is not None and count > room.volumes_free:
            raise NotEnoughResources(f"pool {pool!r} has no room for {count} more volumes")


# --- what a moved clone is made of --------------------------------------------------------------


def _spec(engine: Engine, record: Record) -> CloneSpec:
    """Return the specification of a clone that comes from another host."""
    template = _adapted(engine, record)
    nics = tuple(Nic(spec=s, mac=m) for s, m in zip(template.nics, record.macs, strict=False))
    return CloneSpec(
        labels=record.labels,
        template=template,
        uuid=record.uuid,
        nics=nics,
        values=record.values,
        identity=record.identity,
        lease=record.lease,
    )


def _adapted(engine: Engine, record: Record) -> Template:
    """Return the template that a clone was made of, with this host's files and devices.

    A host that somebody has taken over must not reach into this one by a path or by XML.

    :raises NotFound: this host lacks the template.
    """
    own, made_of = engine.template(record.labels.template), record.template()
    if made_of is None:
        return own
    return attrs.evolve(
        made_of,
        image=own.image,
        kernel=own.kernel,
        domain=own.domain,
        ssh=own.ssh,
        seal=own.seal,
        folder=own.folder,
        origin_file=own.origin_file,
        identity=attrs.evolve(
            made_of.identity,
            authorized_keys=own.identity.authorized_keys,
            user_data=own.identity.user_data,
            network_config=own.identity.network_config,
        ),
    )
