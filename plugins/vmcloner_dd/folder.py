"""Copies in a folder: sparse files, in a pool that is laid out as that of ``files``."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import attrs

from vmcloner_core.drivers import DriverContext, ImageFile
from vmcloner_core.errors import NotFound, VmclonerError, WrongState
from vmcloner_core.model import (
    AS_IT_COMES,
    Check,
    CloneRequest,
    Copying,
    Origin,
    Outcome,
    Progress,
    Volume,
)
from vmcloner_core.names import split_volume
from vmcloner_dd.fanning import FanningDriver
from vmcloner_dd.settings import DdSettings
from vmcloner_files.cloning import blank_size, disk_size, volume
from vmcloner_files.driver import FilesDriver
from vmcloner_files.errors import translated
from vmcloner_files.pool import Pool
from vmcloner_files.records import DiskRecord
from vmcloner_files.settings import FilesSettings


class FolderDriver(FanningDriver, FilesDriver):
    """Keeps copies in a folder. Imports, deletes and counts as ``files`` does."""

    zeroed = True

    def __init__(self, context: DriverContext, settings: DdSettings) -> None:
        path = settings.path or context.host.state / "dd"
        FilesDriver.__init__(self, context, FilesSettings(path=path))
        self.dd = settings

    def probe(self) -> Iterator[Check]:
        """See :meth:`StorageDriver.probe`."""
        yield from (check for check in super().probe() if check.name != "cloning")

    def import_image(
        self,
        template: str,
        image: ImageFile,
        progress: Progress,
        copying: Copying = AS_IT_COMES,
    ) -> Outcome[Origin]:
        """See :meth:`StorageDriver.import_image`."""
        return super().import_image(template, image, progress, self.copying(copying))

    # --- volumes --------------------------------------------------------------------------------

    def allot(self, requests: Sequence[CloneRequest]) -> Iterator[Outcome[Volume]]:
        """See :meth:`FanningDriver.allot`."""
        self._pool.prepare()
        with self._pool.lock():
            outcomes = [self._allotted(request) for request in requests]
        yield from outcomes

    def _allotted(self, request: CloneRequest) -> Outcome[Volume]:
        key, labels = request.volume_name, request.labels
        path = self._pool.disk_path(labels, request.disk)
        try:
            with translated(path):
                record = self._pool.disk(labels, request.disk)
                made = record is None
                record = record or self._make_room(request, path)
        except VmclonerError as error:
            return Outcome(key=key, error=error)
        return Outcome(key=key, value=volume(path, record, self._pool, self.name), changed=made)

    def _make_room(self, request: CloneRequest, path: Path) -> DiskRecord:
        record = DiskRecord(
            labels=request.labels, format="raw", size=self._size(request), complete=False
        )
        with self._pool.draft(self._pool.volumes) as draft:
            os.ftruncate(draft.fd, record.size)
            self._pool.labels.write(draft.fd, path, record.to_mapping())
            try:
                draft.publish(path)
            except FileExistsError:  # by another process at this moment
                found = self._pool.disk(request.labels, request.disk)
                if found is None:
                    raise
                return found
        return record

    def _size(self, request: CloneRequest) -> int:
        if request.origin is None:
            return blank_size(request)
        image = self._pool.image(request.origin.template)
        if image is None:
            raise _no_image(request.origin, self._pool)
        return disk_size(request, image.size)

    def extend(self, volume: Volume, request: CloneRequest) -> Volume:
        """See :meth:`FanningDriver.extend`."""
        size = self._size(request)
        if size <= volume.size:
            return volume
        self._relabel(volume, size=size)
        return attrs.evolve(volume, size=size)

    def finish(self, volumes: Sequence[Volume]) -> None:
        """See :meth:`FanningDriver.finish`."""
        for each in volumes:
            self._relabel(each, complete=True)

    def _relabel(self, each: Volume, *, size: int | None = None, complete: bool = False) -> None:
        """Change what the record of a copy says, and make its file as large as that."""
        with translated(each.path):
            fd = os.open(each.path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            with contextlib.closing(os.fdopen(fd, "rb")), self._pool.lock():
                record = self._pool.disk(each.labels, each.disk)
                if record is not None:
                    changed = attrs.evolve(record, size=size or record.size, complete=complete)
                    os.ftruncate(fd, changed.size)
                    self._pool.labels.write(fd, each.path, changed.to_mapping())
                    os.fsync(fd)

    def find(self, names: Sequence[str]) -> Mapping[str, Volume]:
        """See :meth:`FanningDriver.find`."""
        found = {}
        for name in names:
            path = self._pool.volumes / name
            record = self._pool.record(path) if split_volume(name) is not None else None
            if record is not None:
                found[name] = volume(path, record, self._pool, self.name)
        return found

    @contextlib.contextmanager
    def source(self, origin: Origin) -> Iterator[int]:
        """See :meth:`FanningDriver.source`."""
        path = self._pool.image_path(origin.template)
        with translated(path):
            record = self._pool.image(origin.template)
            if record is None:
                raise _no_image(origin, self._pool)
            if record.digest != origin.digest:
                raise WrongState(
                    f"template {origin.template} got another image in {self._pool}",
                    hint="run the same command again",
                )
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            yield fd
        finally:
            os.close(fd)


def _no_image(origin: Origin, pool: Pool) -> NotFound:
    return NotFound(
        f"template {origin.template} has no image in {pool}",
        hint=f"vmcloner template import {origin.template}",
    )
