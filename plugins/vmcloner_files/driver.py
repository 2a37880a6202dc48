"""The storage driver ``files``: a pool is a folder.

LINKED clones are reflinks where the file system supports them, and qcow2 overlays elsewhere. FULL
clones are sparse copies.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from vmcloner_core.drivers import CaptureInterface, DriverContext, ImageFile, Lane, StorageDriver
from vmcloner_core.errors import BackendError, NotFound, VmclonerError, WrongState
from vmcloner_core.model import (
    AS_IT_COMES,
    Capacity,
    Check,
    CloneMode,
    CloneRequest,
    Copying,
    Leftover,
    Origin,
    Outcome,
    Progress,
    Volume,
    VolumeProgress,
    untold,
)
from vmcloner_core.os_errors import translated
from vmcloner_core.qcow2 import SECTOR, overlay, read_header
from vmcloner_core.stored_ids import KnownPool
from vmcloner_files.cloning import Cloner, Method, as_volume
from vmcloner_files.features import existing, space
from vmcloner_files.holders import Holders
from vmcloner_files.pool import Pool
from vmcloner_files.records import DiskRecord, ImageRecord
from vmcloner_files.settings import FilesSettings
from vmcloner_files.snapshots import FolderSnapshots

if TYPE_CHECKING:
    from vmcloner_core.full_copies import Copier
    from vmcloner_files.importing import Importer

_NODES = 2 * 16 * 1024
"""Bytes of Btrfs' tree that a reflink may take until the next commit: a node that is split."""
COPIES = 32
"""Copies that are made at once: each has a few open files."""


class FilesDriver(StorageDriver):
    """Keeps a pool in a folder.

    :param copying: how bytes are copied where a request does not say.
    :param snapshots: whether the pool has snapshots.
    """

    # Linking takes 0.1 ms: a second thread gains nothing.
    clone_lane = Lane(batch=64)
    reset_lane = Lane(batch=64)
    delete_lane = Lane(batch=64)

    def __init__(
        self,
        context: DriverContext,
        settings: FilesSettings,
        copying: Copying = AS_IT_COMES,
        snapshots: bool = True,
    ) -> None:
        super().__init__(context)
        self._settings = settings
        self._copying = copying
        if settings.clone == "copy":
            self.modes = frozenset({CloneMode.FULL})
        folder = settings.path or context.host.state / "pool"
        known = KnownPool.of(context.host, context.name)
        self._pool = Pool(folder, known, settings.qemu_user, settings.shared)
        if snapshots:
            self.snapshots = FolderSnapshots(self._pool, self.name)

    # What links clones and lists them doesn't import what copies, imports and checks.

    @functools.cached_property
    def _importer(self) -> Importer:
        from vmcloner_files.importing import Importer

        return Importer(self._pool, self.context.runner)

    @functools.cached_property
    def _copier(self) -> Copier:
        from vmcloner_core.full_copies import Copier
        from vmcloner_files.copies import FolderCopies

        return Copier(FolderCopies(self._pool, self.name), self.delete, self._copying)

    @property
    def capturing(self) -> CaptureInterface:
        """See :attr:`StorageDriver.capturing`."""
        from vmcloner_files.capturing import Capturing

        return Capturing(self._pool, self.context.runner, self._origin, self._copying)

    def probe(self) -> Iterator[Check]:
        """See :meth:`StorageDriver.probe`."""
        from vmcloner_files import doctor

        return doctor.examine_pool(self.name, self._pool, self._settings.clone, self.context.runner)

    # --- origins --------------------------------------------------------------------------------

    def import_image(
        self,
        template: str,
        image: ImageFile,
        progress: Progress,
        copying: Copying = AS_IT_COMES,
    ) -> Outcome[Origin]:
        """See :meth:`StorageDriver.import_image`."""
        copying = copying.with_defaults(self._copying)
        record, changed = self._importer.run(template, image, progress, copying)
        return Outcome(key=template, value=self._origin(record), changed=changed)

    def origins(self) -> tuple[Origin, ...]:
        """See :meth:`StorageDriver.origins`."""
        records = self._pool.images().values()
        return tuple(sorted(map(self._origin, records), key=lambda origin: origin.template))

    def _origin(self, record: ImageRecord) -> Origin:
        path = self._pool.image_path(record.template)
        with translated(path):
            allocated = path.stat().st_blocks * 512
        return Origin(
            template=record.template,
            pool=self.name,
            size=record.size,
            allocated=allocated,
            digest=record.digest,
            extents=record.extents,
        )

    def delete_origin(self, template: str) -> Outcome[None]:
        """See :meth:`StorageDriver.delete_origin`. Reflinks and copies don't need their origin."""
        self._pool.check_identity()
        if self._pool.image(template) is None:
            return Outcome(key=template, changed=False)
        with translated(self._pool), self._pool.lock(alone=True):
            found = self._pool.image(template)
            if found is not None:
                self._pool.check_unlinked(template)
                self._pool.remove(self._pool.image_path(template))
        return Outcome(key=template, changed=found is not None)

    # --- volumes --------------------------------------------------------------------------------

    def clone(
        self, requests: Sequence[CloneRequest], progress: VolumeProgress = untold
    ) -> Iterator[Outcome[Volume]]:
        """See :meth:`StorageDriver.clone`."""
        self._pool.prepare()
        with Cloner(self._pool, self.name, self._method) as cloner:
            outcomes = cloner.make(requests)
        begun = []
        for request, outcome in zip(requests, outcomes, strict=True):
            if outcome.value is None or outcome.value.complete:
                yield outcome
            else:
                begun.append((request, outcome.value, outcome.changed))
        if begun:
            yield from self._filled(begun, progress)

    def _filled(
        self, begun: Sequence[tuple[CloneRequest, Volume, bool]], progress: VolumeProgress
    ) -> Iterator[Outcome[Volume]]:
        """Fill volumes that have no bytes yet: their requests, and whether they were made now."""
        from vmcloner_core.full_copies import Copy

        copies = [Copy(request=r, volume=volume, fresh=fresh) for r, volume, fresh in begun]
        for start in range(0, len(copies), COPIES):
            yield from self._copier.fill(copies[start : start + COPIES], progress)

    def delete(self, volumes: Sequence[Volume]) -> Iterator[Outcome[None]]:
        """See :meth:`StorageDriver.delete`."""
        self._pool.check_identity()
        with translated(self._pool):
            empty = not self._pool.volumes.exists()
        if empty:
            yield from (Outcome(key=volume.name, changed=False) for volume in volumes)
            return
        holders = Holders(leases=not self._pool.shared)
        with self._pool.lock(alone=True):
            outcomes = [self._delete(volume, holders) for volume in volumes]
        yield from outcomes
        with contextlib.suppress(OSError):  # the next run tries again, and reports it
            self._pool.sweep_drafts()

    def _delete(self, volume: Volume, holders: Holders) -> Outcome[None]:
        key = volume.name
        path = self._pool.disk_path(volume.labels, volume.disk)
        try:
            if self._pool.disk(volume.labels, volume.disk) is None:
                return Outcome(key=key, changed=False)
            with translated(path), holders.kept_out(path):
                self._pool.remove(path)
        except VmclonerError as error:
            return Outcome(key=key, error=error)
        return Outcome(key=key)

    def reset(
        self, requests: Sequence[CloneRequest], progress: VolumeProgress = untold
    ) -> Iterator[Outcome[Volume]]:
        """See :meth:`StorageDriver.reset`. A new file is renamed over the old one."""
        self._pool.prepare()
        holders = Holders(leases=not self._pool.shared)
        with Cloner(self._pool, self.name, self._reset_method) as cloner:
            yield from cloner.replace(requests, holders, self._copying, progress)

    def _reset_method(self, request: CloneRequest) -> Method:
        """Return how to make a disk again: in its old format, which its domain has."""
        found = self._pool.disk(request.labels, request.disk)
        if found is None:
            return self._method(request)
        if found.format == "qcow2":
            return Method.OVERLAY
        if found.full or self._is_full(request) or not self._pool.features().reflink:
            return Method.COPY
        return Method.REFLINK

    def whole(self, size: int) -> int:
        """See :meth:`StorageDriver.whole`: whole sectors."""
        return size + -size % SECTOR

    def grow(self, volumes: Sequence[Volume], size: int) -> Iterator[Outcome[Volume]]:
        """See :meth:`StorageDriver.grow`. A new size is noted last: a killed call is repeated."""
        for volume in volumes:
            try:
                yield self._grown(volume, self.whole(size))
            except VmclonerError as error:
                yield Outcome(key=volume.name, error=error)

    def _grown(self, volume: Volume, size: int) -> Outcome[Volume]:
        path = self._pool.disk_path(volume.labels, volume.disk)
        with translated(path), self._pool.lock(alone=True):
            record = self._pool.disk(volume.labels, volume.disk)
            if record is None:
                raise NotFound(f"volume {path} is gone", hint="run its create again")
            if not record.complete:
                raise WrongState(f"volume {path} is incomplete", hint="run its create again")
            changed = size > record.size
            if changed:
                record = attrs.evolve(record, size=size)
                self._extend(path, record)
        return Outcome(
            key=volume.name, value=as_volume(path, record, self._pool, self.name), changed=changed
        )

    def _extend(self, path: Path, record: DiskRecord) -> None:
        """Make a file as large as its record says, unless it is, and note that."""
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            if record.format == "raw":
                if os.fstat(fd).st_size < record.size:
                    os.ftruncate(fd, record.size)
            elif read_header(lambda at, length: os.pread(fd, length, at)).size < record.size:
                from vmcloner_core.qemu_img import enlarge

                below = self._pool.image_path(record.labels.image)
                enlarge(self.context.runner, path, below, record.size)
            self._pool.labels.write(fd, path, record.to_mapping())
        finally:
            os.close(fd)

    def hand_over(self, volumes: Sequence[Volume], state: str) -> Iterator[Outcome[None]]:
        """See :meth:`StorageDriver.hand_over`."""
        for volume in volumes:
            try:
                yield Outcome(key=volume.name, changed=self._handed_over(volume, state))
            except VmclonerError as error:
                yield Outcome(key=volume.name, error=error)

    @property
    def hands_over(self) -> bool:
        """See :attr:`StorageDriver.hands_over`."""
        return self._pool.shared

    def _handed_over(self, volume: Volume, state: str) -> bool:
        path = self._pool.disk_path(volume.labels, volume.disk)
        with translated(path), self._pool.lock(alone=True):
            record = self._pool.record(path)
            if record is None:
                raise NotFound(f"volume {path} is gone", hint="run its create again")
            if record.labels.same_clone(volume.labels) and record.labels.state == state:
                return False
            self._pool.disk(volume.labels, volume.disk)  # another's is a Conflict
            record = attrs.evolve(record, labels=attrs.evolve(record.labels, state=state))
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                self._pool.labels.write(fd, path, record.to_mapping())
            finally:
                os.close(fd)
        return True

    def volumes(self) -> tuple[Volume, ...]:
        """See :meth:`StorageDriver.volumes`."""
        return tuple(
            as_volume(path, record, self._pool, self.name)
            for path, record in self._pool.disks().items()
            if self._pool.is_own(record.labels)
        )

    def unlabelled(self, names: Sequence[str]) -> Sequence[str]:
        """See :meth:`StorageDriver.unlabelled`."""
        self._pool.check_identity()
        return [name for name in names if self._pool.is_foreign(name)]

    def sweep(self) -> None:
        """See :meth:`StorageDriver.sweep`."""
        self._pool.sweep()

    def leftovers(self) -> tuple[Leftover, ...]:
        """See :meth:`StorageDriver.leftovers`."""
        return self._pool.leftovers()

    # --- space ----------------------------------------------------------------------------------

    def capacity(self) -> Capacity:
        """See :meth:`StorageDriver.capacity`."""
        with translated(self._pool):
            return space(self._pool.folder)

    def need(self, request: CloneRequest, count: int) -> int:
        """See :meth:`StorageDriver.need`."""
        origin = request.origin
        with translated(self._pool):
            block = os.statvfs(next(existing(self._pool.folder))).f_frsize
        labels = block  # of a file system that cannot keep them in the inode
        if origin is None:
            return count * (-(-len(request.head) // block) * block + labels)
        method = self._method(request)
        if method is Method.COPY:
            return count * (origin.allocated + labels)
        if method is Method.OVERLAY:
            path = str(self._pool.image_path(origin.template))
            return count * (overlay(path, origin.size).blocks(block) * block + labels)
        return count * (block + labels + _NODES)  # its inode and its part of the extent tree

    def _method(self, request: CloneRequest) -> Method:
        """Return how a clone's disk is made.

        :raises BackendError: settings require reflinks, and the file system does not support them.
        """
        wanted = self._settings.clone
        if self._is_full(request):
            return Method.COPY
        can = self._pool.features().reflink
        if wanted == "auto":
            return Method.REFLINK if can else Method.OVERLAY
        if wanted == "reflink" and not can:
            raise BackendError(
                f"{self._pool}: its file system does not support reflinks",
                hint="set clone = 'auto'",
            )
        return Method(wanted)

    def _is_full(self, request: CloneRequest) -> bool:
        return request.mode is CloneMode.FULL or self._settings.clone == "copy"
