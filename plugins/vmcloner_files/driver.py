"""The storage driver ``files``: a pool is a folder.

LINKED clones share their template's blocks where the file system can (reflink), and are qcow2
overlays elsewhere. FULL clones are copies of their own, sparse as their template.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from vmcloner_core.copying import Pace
from vmcloner_core.drivers import DriverContext, ImageFile, Lane, StorageDriver
from vmcloner_core.errors import BackendError, VmclonerError
from vmcloner_core.model import (
    AS_IT_COMES,
    Capacity,
    Check,
    CloneMode,
    CloneRequest,
    Copying,
    Origin,
    Outcome,
    Progress,
    Volume,
)
from vmcloner_core.qcow2 import overlay
from vmcloner_files import doctor
from vmcloner_files.cloning import Cloner, Method, volume
from vmcloner_files.errors import translated
from vmcloner_files.features import existing, space
from vmcloner_files.holders import Holders
from vmcloner_files.importing import Importer, check_unlinked
from vmcloner_files.pool import Pool
from vmcloner_files.records import ImageRecord
from vmcloner_files.settings import FilesSettings


class FilesDriver(StorageDriver):
    """Keeps a pool in a folder."""

    # Linking takes 0.1 ms: a batch is for the pipeline's sake, a second thread gains nothing.
    clone_lane = Lane(batch=64)
    reset_lane = Lane(batch=64)
    delete_lane = Lane(batch=64)

    def __init__(self, context: DriverContext, settings: FilesSettings) -> None:
        super().__init__(context)
        self._settings = settings
        self._pool = Pool(settings.path or context.host.state / "pool")
        self._importer = Importer(self._pool, context.runner)

    def probe(self) -> Iterator[Check]:
        """See :meth:`StorageDriver.probe`."""
        return doctor.examine_pool(
            self.name, self._pool.folder, self._settings.clone, self.context.runner
        )

    # --- origins --------------------------------------------------------------------------------

    def import_image(
        self,
        template: str,
        image: ImageFile,
        progress: Progress,
        copying: Copying = AS_IT_COMES,
    ) -> Outcome[Origin]:
        """See :meth:`StorageDriver.import_image`."""
        pace = Pace(copying.bandwidth)
        record, changed = self._importer.run(template, image, progress, pace)
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
        if self._pool.image(template) is None:
            return Outcome(key=template, changed=False)
        with translated(self._pool), self._pool.lock(alone=True):
            found = self._pool.image(template)
            if found is not None:
                check_unlinked(self._pool, template)
                self._pool.remove(self._pool.image_path(template))
        return Outcome(key=template, changed=found is not None)

    # --- volumes --------------------------------------------------------------------------------

    def clone(self, requests: Sequence[CloneRequest]) -> Iterator[Outcome[Volume]]:
        """See :meth:`StorageDriver.clone`."""
        copies = [request for request in requests if _takes_time(request)]
        linked = [request for request in requests if not _takes_time(request)]
        if linked:
            self._pool.prepare()
            with Cloner(self._pool, self.name, self._method()) as cloner:
                outcomes = cloner.link(linked)
            yield from outcomes
        with Cloner(self._pool, self.name, Method.COPY) as cloner:
            for request in copies:
                yield cloner.copy(request)

    def delete(self, volumes: Sequence[Volume]) -> Iterator[Outcome[None]]:
        """See :meth:`StorageDriver.delete`."""
        if not self._pool.volumes.exists():
            yield from (Outcome(key=volume.name, changed=False) for volume in volumes)
            return
        holders = Holders()
        with self._pool.lock(alone=True):
            outcomes = [self._delete(volume, holders) for volume in volumes]
        yield from outcomes

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

    def reset(self, requests: Sequence[CloneRequest]) -> Iterator[Outcome[Volume]]:
        """See :meth:`StorageDriver.reset`. A new file is renamed over the old one."""
        self._pool.prepare()
        if not self._pool.labels.follow_renames:
            yield from super().reset(requests)
            return
        groups: dict[Method, list[CloneRequest]] = {}
        for request in requests:
            try:
                groups.setdefault(self._manner(request), []).append(request)
            except VmclonerError as error:
                yield Outcome(key=request.volume_name, error=error)
        holders = Holders()
        for method, group in groups.items():
            with Cloner(self._pool, self.name, method) as cloner:
                yield from cloner.replace(group, holders)

    def _manner(self, request: CloneRequest) -> Method:
        """Return how a disk is made anew: its domain knows its format.

        :raises Conflict: its name is taken by what isn't that clone's.
        """
        found = self._pool.disk(request.labels, request.disk)
        if found is None:
            return Method.COPY if _takes_time(request) else self._method()
        if found.format == "qcow2":
            return Method.OVERLAY
        return Method.REFLINK if self._pool.features().reflink else Method.COPY

    def volumes(self) -> tuple[Volume, ...]:
        """See :meth:`StorageDriver.volumes`."""
        disks = self._pool.disks().items()
        return tuple(volume(path, record, self._pool, self.name) for path, record in disks)

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
        labels = block  # what a file system takes for them that can't keep them in the inode
        if origin is None:
            return count * (-(-len(request.head) // block) * block + labels)
        method = Method.COPY if request.mode is CloneMode.FULL else self._method()
        if method is Method.COPY:
            return count * (origin.allocated + labels)
        if method is Method.OVERLAY:
            path = str(self._pool.image_path(origin.template))
            return count * (overlay(path, origin.size).blocks(block) * block + labels)
        return count * (block + labels)  # reflink: the inode, and its part of the extents' tree

    def _method(self) -> Method:
        """Return how LINKED clones are made here.

        :raises BackendError: settings force reflinks, and the file system can't.
        """
        can = self._pool.features().reflink
        if self._settings.clone == "auto":
            return Method.REFLINK if can else Method.OVERLAY
        if self._settings.clone == "reflink" and not can:
            raise BackendError(
                f"{self._pool}: its file system can't share blocks", hint="set clone = 'auto'"
            )
        return Method(self._settings.clone)


def _takes_time(request: CloneRequest) -> bool:
    return request.origin is not None and request.mode is CloneMode.FULL
