"""Make clones' disks: linked to their template's image, or with room for a copy of it."""

from __future__ import annotations

import contextlib
import enum
import errno
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import attrs

from vmcloner_core import qcow2
from vmcloner_core.errors import VmclonerError, WrongState
from vmcloner_core.model import (
    CloneRequest,
    Copying,
    Origin,
    Outcome,
    Progress,
    Volume,
    VolumeProgress,
)
from vmcloner_core.os_errors import translated
from vmcloner_files.drafts import Draft
from vmcloner_files.holders import Holders
from vmcloner_files.pool import Pool
from vmcloner_files.records import DiskRecord, ImageRecord
from vmcloner_files.reflink import reflink


class Method(enum.Enum):
    """How a clone's disk is made."""

    REFLINK = "reflink"
    OVERLAY = "overlay"
    COPY = "copy"


@attrs.frozen(kw_only=True)
class Image:
    """A template's image, open for reading; ``fd`` is -1 if only its name is needed.

    libvirt gives images below overlays to QEMU's user, who may be the only one that may read them.
    """

    fd: int
    path: Path
    record: ImageRecord


class Cloner:
    """Makes the disks of one batch. A context manager, for one thread.

    :param method: returns how the disk of a request with an origin is made.
    """

    def __init__(
        self, pool: Pool, pool_name: str, method: Callable[[CloneRequest], Method]
    ) -> None:
        self._pool = pool
        self._pool_name = pool_name
        self._method = method
        self._open = contextlib.ExitStack()
        self._images: dict[tuple[str, Method], Image] = {}

    def __enter__(self) -> Cloner:
        return self

    def __exit__(self, *_error: object) -> None:
        self._open.close()

    def make(self, requests: Sequence[CloneRequest]) -> list[Outcome[Volume]]:
        """Make disks, all under one lock. One to be copied is empty and incomplete."""
        with self._pool.lock():
            return [self._outcome(request) for request in requests]

    def _outcome(self, request: CloneRequest) -> Outcome[Volume]:
        key = request.volume_name
        path = self._pool.disk_path(request.labels, request.disk)
        try:
            with translated(path):
                found = self._pool.disk(request.labels, request.disk)
                made = self._make(request, path) if found is None else None
                record = made or found or self._pool.disk(request.labels, request.disk)
        except VmclonerError as error:
            return Outcome(key=key, error=error)
        if record is None:
            vanished = WrongState(f"{path} was removed by another process while it was made")
            return Outcome(key=key, error=vanished)
        volume = as_volume(path, record, self._pool, self._pool_name)
        return Outcome(key=key, value=volume, changed=made is not None)

    def _make(self, request: CloneRequest, path: Path) -> DiskRecord | None:
        """Make a disk; returns None if its name was taken meanwhile."""
        try:
            return self._make_once(request, path)
        except OSError as error:
            # On NFS, a sweep of another host that was killed may still remove one draft: the server
            # gets its request after we have looked.
            if error.errno != errno.ESTALE:
                raise
            return self._make_once(request, path)

    def _make_once(self, request: CloneRequest, path: Path) -> DiskRecord | None:
        with self._pool.draft(self._pool.volumes) as draft:
            image = self._image(request)
            record = self._fill(request, image, draft)
            if record.full:
                record = attrs.evolve(record, complete=False)
            self._pool.labels.write(draft.fd, path, record.to_mapping())
            try:
                draft.publish(path)
            except FileExistsError:
                return None
        return record

    def replace(
        self,
        requests: Sequence[CloneRequest],
        holders: Holders,
        defaults: Copying,
        progress: VolumeProgress,
    ) -> Iterator[Outcome[Volume]]:
        """Replace disks by new ones. At every moment a disk is the old or the new one, complete.

        :param defaults: how bytes are copied where a request does not say.
        """
        for request in requests:
            path = self._pool.disk_path(request.labels, request.disk)
            copying = request.copying.with_defaults(defaults)
            report = functools.partial(progress, request.volume_name)
            try:
                with translated(path):
                    record = self._replace(request, path, holders, copying, report)
            except VmclonerError as error:
                yield Outcome(key=request.volume_name, error=error)
            else:
                made = as_volume(path, record, self._pool, self._pool_name)
                yield Outcome(key=request.volume_name, value=made)

    def _replace(
        self,
        request: CloneRequest,
        path: Path,
        holders: Holders,
        copying: Copying,
        progress: Progress,
    ) -> DiskRecord:
        with self._pool.lock():
            image = self._image(request)
        with self._pool.draft(self._pool.volumes) as draft:
            record = self._fill(request, image, draft)
            if record.full and image is not None:
                from vmcloner_core.copying import Target
                from vmcloner_core.full_copies import copy_one

                target = Target(path=draft.path, size=record.size, blank=True, progress=progress)
                copy_one(image.fd, target, copying)
            with self._pool.lock(alone=True):
                found = self._pool.disk(request.labels, request.disk)
                if found is not None:
                    record = attrs.evolve(record, labels=found.labels)
                self._pool.labels.write(draft.fd, path, record.to_mapping())
                if found is None:
                    draft.publish(path)
                    return record
                with holders.kept_out(path):
                    self._pool.replace(draft, path)
        return record

    def _image(self, request: CloneRequest) -> Image | None:
        """Return the open image of a request's origin; the caller holds the pool's lock."""
        origin = request.origin
        if origin is None:
            return None
        key = origin.template, self._method(request)
        if key not in self._images:
            if key[1] is Method.OVERLAY:
                path, record = _held(self._pool, origin)
                self._images[key] = Image(fd=-1, path=path, record=record)
            else:
                self._images[key] = image = open_image(self._pool, origin)
                self._open.callback(os.close, image.fd)
        return self._images[key]

    def _fill(self, request: CloneRequest, image: Image | None, draft: Draft) -> DiskRecord:
        """Give a draft its length and its bytes, but no copied ones."""
        size = disk_size(request, image.record.size if image is not None else 0)
        record = DiskRecord(labels=request.labels, format="raw", size=size, disk=request.disk)
        if image is None:
            os.ftruncate(draft.fd, size)
            os.pwrite(draft.fd, request.head, 0)
            return record
        method = self._method(request)
        if method is Method.OVERLAY:
            qcow2.overlay(str(image.path), size).write(draft.fd)
            return attrs.evolve(record, format="qcow2")
        if method is Method.REFLINK:
            reflink(image.fd, draft.fd)
        if method is Method.COPY or size != image.record.size:
            os.ftruncate(draft.fd, size)
        return attrs.evolve(record, full=method is Method.COPY)


def open_image(pool: Pool, origin: Origin) -> Image:
    """Open an origin's image; the caller holds the pool's lock, and closes it.

    :raises NotFound, WrongState: see :meth:`Origin.check_held`.
    """
    path, record = _held(pool, origin)
    with translated(path):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            pool.check_file(path, os.fstat(fd))
        except BaseException:
            os.close(fd)
            raise
    return Image(fd=fd, path=path, record=record)


def _held(pool: Pool, origin: Origin) -> tuple[Path, ImageRecord]:
    record = origin.check_held(pool.image(origin.template))
    return pool.image_path(origin.template), record


def as_volume(path: Path, record: DiskRecord, pool: Pool, pool_name: str) -> Volume:
    """Return a disk as the core knows it."""
    return Volume(
        name=path.name,
        pool=pool_name,
        labels=record.labels,
        path=path,
        size=record.size,
        format=record.format,
        backing=pool.image_path(record.labels.image) if record.format == "qcow2" else None,
        complete=record.complete,
    )


def disk_size(request: CloneRequest, image: int) -> int:
    """Return the bytes of a request's disk, in whole sectors.

    :param image: bytes of the template's image. :raises InvalidRequest: the disk is smaller.
    """
    size = request.size_over(image)
    return size + -size % qcow2.SECTOR
