"""Snapshots in a folder: copies of disks' files, which share their blocks where the pool can.

Elsewhere bytes are copied: of an overlay those that its clone has written, since it stays an
overlay of its template's image. So no chain of overlays grows, and a disk's path, its format and
what is below it are the same before and after.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs

from vmcloner_core.drivers import DiskSnapshotInterface, Lane
from vmcloner_core.errors import Conflict, NotFound, VmclonerError, WrongState
from vmcloner_core.model import (
    AS_IT_COMES,
    DiskSnapshot,
    Labels,
    Outcome,
    SnapshotLabels,
    SnapshotRequest,
    Volume,
)
from vmcloner_core.os_errors import allocated, translated
from vmcloner_files.cloning import as_volume
from vmcloner_files.drafts import Draft
from vmcloner_files.holders import Holders
from vmcloner_files.pool import Pool
from vmcloner_files.records import DiskRecord, SnapshotRecord
from vmcloner_files.reflink import reflink

_LABELS = 4096
"""Bytes that a file takes beside those of its data, at most."""


class FolderSnapshots(DiskSnapshotInterface):
    """The snapshots in a pool's folder. Thread-safe.

    :param name: the pool's name.
    """

    lane = Lane(batch=64)

    def __init__(self, pool: Pool, name: str) -> None:
        self._pool = pool
        self._name = name

    def create(self, requests: Sequence[SnapshotRequest]) -> Iterator[Outcome[DiskSnapshot]]:
        """See :meth:`DiskSnapshotInterface.create`."""
        self._pool.prepare()
        for request in requests:
            path = self._pool.snapshots / request.key
            try:
                with translated(path):
                    record, changed = self._create(request, path)
            except VmclonerError as error:
                yield Outcome(key=request.key, error=error)
            else:
                made = self._as_known(path, record)
                yield Outcome(key=request.key, value=made, changed=changed)

    def _create(self, request: SnapshotRequest, path: Path) -> tuple[SnapshotRecord, bool]:
        """Take one snapshot; returns its record, and whether it wasn't there."""
        volume, labels = request.volume, request.labels
        found = self._same(labels, path)
        if found is not None:
            return found, False
        with self._pool.lock():
            disk = self._disk(volume)
        record = SnapshotRecord(labels=labels, disk=disk)
        with self._pool.draft(self._pool.snapshots) as draft:
            self._copy(volume.path, draft)
            os.fsync(draft.fd)
            try:
                with self._pool.lock():
                    self._pool.labels.write(draft.fd, path, record.to_mapping())
                    os.fsync(draft.fd)
                    draft.publish(path)
            except FileExistsError:
                raise _taken(path) from None
        return record, True

    def _same(self, labels: SnapshotLabels, path: Path) -> SnapshotRecord | None:
        found = self._pool.snapshot(labels)
        if found is not None and not found.labels.same(labels):
            raise _taken(path)
        return found

    def _disk(self, volume: Volume) -> DiskRecord:
        """Return the record of a complete disk."""
        record = self._pool.disk(volume.labels, volume.disk)
        if record is None:
            raise NotFound(f"volume {volume.path} is gone", hint="run its create again")
        if not record.complete:
            raise WrongState(
                f"volume {volume.path} is incomplete: its copy was interrupted",
                hint="run its create again to resume the copy",
            )
        return record

    def _copy(self, source: Path, draft: Draft) -> None:
        """Give a draft a file's bytes."""
        fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            status = os.fstat(fd)
            self._pool.check_file(source, status)
            if self._pool.features().reflink:
                reflink(fd, draft.fd)
                return
            from vmcloner_core.copying import Target
            from vmcloner_core.full_copies import copy_one

            os.ftruncate(draft.fd, status.st_size)
            target = Target(path=draft.path, size=status.st_size, blank=True)
            copy_one(fd, target, AS_IT_COMES)
        finally:
            os.close(fd)

    def revert(self, snapshots: Sequence[DiskSnapshot]) -> Iterator[Outcome[Volume]]:
        """See :meth:`DiskSnapshotInterface.revert`. A new file is renamed over the old one."""
        self._pool.prepare()
        holders = Holders(leases=not self._pool.shared)
        for snapshot in snapshots:
            key = snapshot.labels.volume
            path = self._pool.disk_path(snapshot.labels.labels, snapshot.labels.disk)
            try:
                with translated(path):
                    record = self._revert(snapshot, path, holders)
            except VmclonerError as error:
                yield Outcome(key=key, error=error)
            else:
                volume = as_volume(path, record, self._pool, self._name)
                yield Outcome(key=key, value=volume)

    def _revert(self, snapshot: DiskSnapshot, path: Path, holders: Holders) -> DiskRecord:
        labels = snapshot.labels
        source = self._pool.snapshots / labels.key
        kept = self._same(labels, source)
        if kept is None:
            raise NotFound(f"snapshot {source} is gone", hint="vmcloner snapshot list")
        with self._pool.draft(self._pool.volumes) as draft:
            self._copy(source, draft)
            with self._pool.lock(alone=True):
                found = self._pool.disk(labels.labels, labels.disk)
                own: Labels = found.labels if found is not None else kept.disk.labels
                record = attrs.evolve(kept.disk, labels=own)
                self._pool.labels.write(draft.fd, path, record.to_mapping())
                if found is None:
                    draft.publish(path)
                else:
                    with holders.kept_out(path):
                        self._pool.replace(draft, path)
        return record

    def delete(self, snapshots: Sequence[DiskSnapshot]) -> Iterator[Outcome[None]]:
        """See :meth:`DiskSnapshotInterface.delete`."""
        self._pool.check_identity()
        with translated(self._pool):
            empty = not self._pool.snapshots.exists()
        if empty:
            yield from (Outcome(key=snapshot.key, changed=False) for snapshot in snapshots)
            return
        holders = Holders(leases=not self._pool.shared)
        with self._pool.lock(alone=True):
            outcomes = [self._delete(snapshot.labels, holders) for snapshot in snapshots]
        yield from outcomes

    def _delete(self, labels: SnapshotLabels, holders: Holders) -> Outcome[None]:
        path = self._pool.snapshots / labels.key
        try:
            if self._pool.snapshot(labels) is None:
                return Outcome(key=labels.key, changed=False)
            with translated(path), holders.kept_out(path):
                self._pool.remove(path)
        except VmclonerError as error:
            return Outcome(key=labels.key, error=error)
        return Outcome(key=labels.key)

    def found(self) -> tuple[DiskSnapshot, ...]:
        """See :meth:`DiskSnapshotInterface.found`."""
        found = self._pool.all_snapshots().items()
        return tuple(
            self._as_known(path, record)
            for path, record in found
            if self._pool.is_own(record.labels.labels)
        )

    def need(self, volumes: Sequence[Volume]) -> int:
        """See :meth:`DiskSnapshotInterface.need`."""
        if self._pool.features().reflink:
            return len(volumes) * _LABELS
        return sum(allocated(volume.path) + _LABELS for volume in volumes)

    def _as_known(self, path: Path, record: SnapshotRecord) -> DiskSnapshot:
        return DiskSnapshot(labels=record.labels, pool=self._name, path=path, size=record.disk.size)


def _taken(path: Path) -> Conflict:
    return Conflict(
        f"snapshot {path} exists already, taken by another run",
        hint="vmcloner snapshot delete, or choose another name",
    )
