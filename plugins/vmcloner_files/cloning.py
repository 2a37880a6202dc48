"""Make clones' disks: linked to their template's image, or copies of it."""

from __future__ import annotations

import contextlib
import enum
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal

import attrs

from vmcloner_core import qcow2
from vmcloner_core.copying import Pace, copy_runs
from vmcloner_core.errors import InvalidRequest, NotFound, VmclonerError, WrongState
from vmcloner_core.extents import data_runs
from vmcloner_core.model import CloneRequest, Copying, Origin, Outcome, Volume
from vmcloner_core.units import format_size
from vmcloner_files.errors import translated
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
class _Source:
    """A template's image, open."""

    fd: int
    path: Path
    record: ImageRecord


class Cloner:
    """Makes the disks of one batch by one method. A context manager, for one thread."""

    def __init__(self, pool: Pool, pool_name: str, method: Method) -> None:
        self._pool = pool
        self._pool_name = pool_name
        self._method = method
        self._format: Literal["raw", "qcow2"] = "qcow2" if method is Method.OVERLAY else "raw"
        self._open = contextlib.ExitStack()
        self._sources: dict[str, _Source] = {}

    def __enter__(self) -> Cloner:
        return self

    def __exit__(self, *_error: object) -> None:
        self._open.close()

    def link(self, requests: Sequence[CloneRequest]) -> list[Outcome[Volume]]:
        """Make disks that take no time to speak of, all under one lock."""
        with self._pool.lock():
            return [self._outcome(request, contextlib.nullcontext) for request in requests]

    def copy(self, request: CloneRequest) -> Outcome[Volume]:
        """Make one disk that takes its time, without keeping others from the pool meanwhile."""
        return self._outcome(request, self._pool.lock)

    def replace(
        self, requests: Sequence[CloneRequest], holders: Holders
    ) -> Iterator[Outcome[Volume]]:
        """Make disks anew; each is the old or the new one, whole, at every moment."""
        for request in requests:
            path = self._pool.disk_path(request.labels, request.disk)
            try:
                with translated(path):
                    record = self._replace(request, path, holders)
            except VmclonerError as error:
                yield Outcome(key=request.volume_name, error=error)
            else:
                made = volume(path, record, self._pool, self._pool_name)
                yield Outcome(key=request.volume_name, value=made)

    def _replace(self, request: CloneRequest, path: Path, holders: Holders) -> DiskRecord:
        record, fill = self._content(request, self._pool.lock)
        with self._pool.draft(self._pool.volumes) as draft:
            fill(draft.fd, record.size)
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

    def _outcome(
        self, request: CloneRequest, lock: Callable[[], AbstractContextManager[None]]
    ) -> Outcome[Volume]:
        key = request.volume_name
        path = self._pool.disk_path(request.labels, request.disk)
        try:
            with translated(path):
                found = self._pool.disk(request.labels, request.disk)
                made = self._make(request, path, lock) if found is None else None
                record = made or found or self._pool.disk(request.labels, request.disk)
        except VmclonerError as error:
            return Outcome(key=key, error=error)
        if record is None:
            return Outcome(key=key, error=WrongState(f"{path} vanished while it was made"))
        if not record.complete:
            return Outcome(
                key=key,
                error=WrongState(
                    f"{path} is a copy by dd that was cut off", hint="complete or delete it by dd"
                ),
            )
        return Outcome(
            key=key,
            value=volume(path, record, self._pool, self._pool_name),
            changed=made is not None,
        )

    def _make(
        self, request: CloneRequest, path: Path, lock: Callable[[], AbstractContextManager[None]]
    ) -> DiskRecord | None:
        """Make a disk; returns None where its name was taken meanwhile."""
        record, fill = self._content(request, lock)
        with self._pool.draft(self._pool.volumes) as draft:
            fill(draft.fd, record.size)
            with lock():
                if self._pool.disk(request.labels, request.disk) is not None:
                    return None
                self._pool.labels.write(draft.fd, path, record.to_mapping())
                try:
                    draft.publish(path)
                except FileExistsError:
                    return None
        return record

    def _content(
        self, request: CloneRequest, lock: Callable[[], AbstractContextManager[None]]
    ) -> tuple[DiskRecord, Callable[[int, int], None]]:
        """Return what a disk is to be, and what fills an empty file with its bytes."""
        if request.origin is None:
            size = blank_size(request)
            record = DiskRecord(labels=request.labels, format="raw", size=size)
            return record, functools.partial(_blank, request.head)
        with lock():
            source = self._source(request.origin)
        size = disk_size(request, source.record.size)
        record = DiskRecord(labels=request.labels, format=self._format, size=size)
        if self._method is Method.COPY:
            return record, functools.partial(_copy, request.copying, source)
        link = _reflink if self._method is Method.REFLINK else _overlay
        return record, functools.partial(link, source)

    def _source(self, origin: Origin) -> _Source:
        if origin.template in self._sources:
            return self._sources[origin.template]
        path = self._pool.image_path(origin.template)
        record = self._pool.image(origin.template)
        if record is None:
            raise NotFound(
                f"template {origin.template} has no image in pool {self._pool_name}",
                hint=f"vmcloner template import {origin.template}",
            )
        if record.digest != origin.digest:
            raise WrongState(
                f"template {origin.template} got another image in pool {self._pool_name}",
                hint="run the same command again",
            )
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        self._open.callback(os.close, fd)
        source = _Source(fd=fd, path=path, record=record)
        self._sources[origin.template] = source
        return source


def volume(path: Path, record: DiskRecord, pool: Pool, name: str) -> Volume:
    """Return a disk as the core knows it.

    :param name: the pool's.
    """
    return Volume(
        name=path.name,
        pool=name,
        labels=record.labels,
        path=path,
        size=record.size,
        format=record.format,
        backing=pool.image_path(record.labels.template) if record.format == "qcow2" else None,
        complete=record.complete,
    )


def disk_size(request: CloneRequest, least: int) -> int:
    """Return the bytes of the disk that is asked for: whole sectors, no fewer than its image's.

    :param least: the image's bytes. :raises InvalidRequest: the disk would be smaller.
    """
    size = request.size or least
    if size < least:
        raise InvalidRequest(
            f"{request.volume_name}: a disk of {format_size(size)} is smaller than its "
            f"template's image, {format_size(least)}",
            hint="give disk_size at least that",
        )
    return _sectors(size)


def blank_size(request: CloneRequest) -> int:
    """Return the bytes of the blank disk that is asked for: whole sectors."""
    return _sectors(request.size or 0)


def _sectors(size: int) -> int:
    return size + -size % qcow2.SECTOR


def _blank(head: bytes, target: int, size: int) -> None:
    os.ftruncate(target, size)
    os.pwrite(target, head, 0)


def _reflink(source: _Source, target: int, size: int) -> None:
    reflink(source.fd, target)
    if size != source.record.size:
        os.ftruncate(target, size)


def _overlay(source: _Source, target: int, size: int) -> None:
    qcow2.overlay(str(source.path), size).write(target)


def _copy(copying: Copying, source: _Source, target: int, size: int) -> None:
    os.ftruncate(target, size)
    runs = list(data_runs(source.fd))
    total, copied = sum(end - start for start, end in runs), 0

    def done(count: int) -> None:
        nonlocal copied
        copied += count
        copying.progress(copied, total)

    copy_runs(source.fd, target, runs, done, Pace(copying.bandwidth))
