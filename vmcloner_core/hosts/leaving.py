"""What the host that a clone leaves does: it says what the clone is, and sends its disks."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import attrs

from vmcloner_core.errors import NotFound, WrongState
from vmcloner_core.extents import Run, data_runs, length
from vmcloner_core.hosts.cargo import Cargo, CargoDisk
from vmcloner_core.hosts.chunks import Chunk, next_chunk
from vmcloner_core.hosts.moved_disks import about, content_digest, readable
from vmcloner_core.model import Clone, Seed, Template
from vmcloner_core.os_errors import translated
from vmcloner_core.records import record_text
from vmcloner_core.stored_ids import KnownPool, read_id
from vmcloner_core.trusted_files import read_file

if TYPE_CHECKING:
    from vmcloner_core.engine import Engine
    from vmcloner_core.local_host import LocalHost


def cargo_of(engine: Engine, clone: Clone) -> Cargo:
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
        disks=tuple(about(volume) for volume in clone.volumes),
        host_key=None if home is None else (home.host_key, home.host_key_public),
        pool=shared_id(host, clone.labels.storage),
    )


def shared_id(host: LocalHost, pool: str) -> str:
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


class Leaving:
    """The open disks of a clone that leaves."""

    def __init__(self, host: LocalHost, clone: Clone) -> None:
        self._host = host
        self._clone = clone
        self._stack = contextlib.ExitStack()
        self._open: dict[str, tuple[int, int, Sequence[Run]]] = {}

    def opened(self, disk: CargoDisk) -> CargoDisk:
        """Open a disk; returns it with its digest."""
        volume = next(v for v in self._clone.volumes if v.disk == disk.number)
        fd = self._stack.enter_context(readable(self._host, volume))
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
