"""What the host does where a clone arrives: it checks that it can have it, and writes its disks.

The clone's mark notes how far each disk is; a disk is used when its digest is right.
"""

from __future__ import annotations

import contextlib
import functools
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

import attrs

from vmcloner_core.drivers import StorageDriver
from vmcloner_core.errors import BackendError, Conflict, InvalidRequest, NotEnoughResources
from vmcloner_core.hosts.adapting import adapted_spec
from vmcloner_core.hosts.cargo import Cargo
from vmcloner_core.hosts.chunks import CHUNK, Chunk, written
from vmcloner_core.hosts.leaving import shared_id
from vmcloner_core.hosts.moved_disks import content_digest, writable
from vmcloner_core.model import Capacity, CloneRequest, Moving, Volume
from vmcloner_core.moves import Arrived, Mark
from vmcloner_core.os_errors import translated
from vmcloner_core.outcomes import checked
from vmcloner_core.records import Record
from vmcloner_core.stored_ids import is_id
from vmcloner_core.survey import Survey
from vmcloner_core.units import format_size

if TYPE_CHECKING:
    from vmcloner_core.engine import Engine
    from vmcloner_core.local_host import LocalHost


class Arrival:
    """A clone that arrives on a host. One thread works on it at a time."""

    def __init__(self, engine: Engine, cargo: Cargo) -> None:
        self._engine = engine
        self._host = engine._host
        self._cargo = cargo
        self._labels = attrs.evolve(cargo.labels, state=self._host.keep_state_id())
        self._disks: dict[int, Arrived] = {}
        self._files: dict[int, int] = {}
        self._stack = contextlib.ExitStack()
        self._heir = ""

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
        if shares(self._host, self._cargo):
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
            spec, checks = adapted_spec(self._engine, record), self._engine._planning.checks
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
            opened = writable(self._host, volumes[disk.number])
            self._files[disk.number] = self._stack.enter_context(opened)
        self._note()
        return tuple(self._disks[disk.number].octets for disk in self._cargo.disks)

    def _note(self, *, whole: bool = False, lasting: bool = True) -> None:
        uuid = self._cargo.known().uuid
        moving = Moving(leaves=False, other=self._source, uuid=uuid, whole=whole, heir=self._heir)
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
        self._source, self._heir = source, self._host.keep_state_id()
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


def _static(record: Record) -> set[str]:
    """Return the static addresses in a clone's record, without the lengths of their prefixes."""
    cards = record.identity.interfaces if record.identity is not None else ()
    return {card.address.partition("/")[0] for card in cards if card.address is not None}


def shares(host: LocalHost, cargo: Cargo) -> bool:
    """Tell whether a clone's pool is this host's too."""
    return bool(cargo.pool) and shared_id(host, cargo.labels.storage) == cargo.pool


def check_room(host: LocalHost, cargos: Sequence[Cargo], found: Survey) -> None:
    """Check that pools have room for what has not begun to arrive."""
    begun = {clone.name for clone in found.clones if clone.moving is not None}
    needs: dict[str, tuple[int, int]] = {}
    for cargo in cargos:
        if cargo.name in begun or shares(host, cargo):
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
