"""Bring an image into a pool: raw, sparse, in as few pieces as can be, read-only."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator

import attrs

from vmcloner_core import qcow2
from vmcloner_core.copying import Pace, copy_runs
from vmcloner_core.drivers import ImageFile
from vmcloner_core.errors import (
    Conflict,
    InvalidRequest,
    NotEnoughResources,
    WrongState,
)
from vmcloner_core.extents import Run, data_runs, nonzero_runs
from vmcloner_core.model import Progress
from vmcloner_core.names import fold
from vmcloner_core.process import CommandRunner
from vmcloner_core.units import format_size
from vmcloner_files.drafts import Draft
from vmcloner_files.errors import translated
from vmcloner_files.extents import MAX_RUNS, coalesce, count_extents
from vmcloner_files.features import space
from vmcloner_files.pool import Pool
from vmcloner_files.records import ImageRecord

MODE = 0o444


@attrs.frozen
class Importer:
    """Imports images into one pool."""

    pool: Pool
    runner: CommandRunner

    def run(
        self, template: str, image: ImageFile, progress: Progress, pace: Pace
    ) -> tuple[ImageRecord, bool]:
        """Make ``image`` the template's; returns its record and whether anything was done.

        :raises WrongState: clones are linked to the image that would be replaced.
        :raises NotEnoughResources: no room.
        """
        found = self.pool.image(template)
        if found is not None and found.digest == image.digest:
            return found, False
        self._check_unlinked(template)
        self.pool.prepare()
        with translated(image.path):
            source = os.open(image.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with contextlib.closing(os.fdopen(source, "rb")), translated(self.pool):
            self._check_room(template, self._need(image, source))
            with self._filled(image, source, progress, pace) as draft:
                return self._publish(template, image, draft)

    @contextlib.contextmanager
    def _filled(
        self, image: ImageFile, source: int, progress: Progress, pace: Pace
    ) -> Iterator[Draft]:
        """Yield a draft with the image's bytes."""
        with self.pool.draft(self.pool.templates) as draft:
            if image.format == "raw":
                if os.lseek(source, 0, os.SEEK_END) != image.size:  # a device's size too
                    raise InvalidRequest(f"{image.path} changed while it was imported")
                _fill(source, draft.fd, self._runs(source), image.size, progress, pace)
                yield draft
                return
            qcow2.convert(image.path, image.size, draft.path, self.runner, bandwidth=pace.bandwidth)
            runs = self._runs(draft.fd)
            extents = count_extents(draft.fd) or 0
            if extents <= max(MAX_RUNS, len(runs)) or _length(runs) > self._free():
                progress(image.size, image.size)
                yield draft
                return
            with self.pool.draft(self.pool.templates) as better:
                _fill(draft.fd, better.fd, runs, image.size, progress, pace)
                yield better

    def _runs(self, source: int) -> list[Run]:
        """Return the runs of an image to be stored: few, where each costs with every reflink."""
        runs = nonzero_runs(source)
        return coalesce(runs) if self.pool.prepare().reflink else list(runs)

    def _publish(self, template: str, image: ImageFile, draft: Draft) -> tuple[ImageRecord, bool]:
        os.fsync(draft.fd)  # the origin of all clones is worth a write barrier
        record = ImageRecord(
            template=template,
            digest=image.digest,
            size=image.size,
            extents=count_extents(draft.fd),
        )
        path = self.pool.image_path(template)
        with self.pool.lock(alone=True):
            found = self.pool.image(template)
            if found is not None:
                if found.digest == image.digest:  # somebody else was faster
                    return found, False
                self._check_unlinked(template)
                self.pool.remove(path)
            self.pool.labels.write(draft.fd, path, record.to_mapping())
            os.fchmod(draft.fd, MODE)
            try:
                draft.publish(path)
            except FileExistsError as error:
                raise Conflict(f"{path} exists and isn't vmcloner's") from error
        return record, True

    def _check_unlinked(self, template: str) -> None:
        check_unlinked(self.pool, template)

    # --- space ----------------------------------------------------------------------------------

    def _need(self, image: ImageFile, source: int) -> int:
        """Return at most how many bytes the image takes as a sparse raw file."""
        if image.format == "raw":
            return _length(data_runs(source))
        return qcow2.measure(image.path, self.runner)

    def _check_room(self, template: str, need: int) -> None:
        free = self._free()
        if need > free:
            raise NotEnoughResources(
                f"template {template} needs {format_size(need)} in {self.pool}, "
                f"{format_size(free)} are free",
                hint="make room, or import it into another pool",
            )

    def _free(self) -> int:
        return space(self.pool.folder).free


def check_unlinked(pool: Pool, template: str) -> None:
    """Check that no clone reads from a template's image.

    :raises WrongState: names those that do.
    """
    linked = pool.linked(template)
    if linked:
        raise WrongState(
            f"template {template}: clones are linked to its image: {_few(fold(linked))}",
            hint="delete them first",
        )


def _few(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:199]}…"


def _length(runs: Iterable[Run]) -> int:
    return sum(end - start for start, end in runs)


def _fill(
    source: int, target: int, runs: list[Run], size: int, progress: Progress, pace: Pace
) -> None:
    """Copy runs of an image to room that is reserved first, in one piece each where there is."""
    total, copied = _length(runs), 0

    def done(count: int) -> None:
        nonlocal copied
        copied += count
        progress(copied, total)

    os.ftruncate(target, size)
    for start, end in runs:
        os.posix_fallocate(target, start, end - start)
    copy_runs(source, target, runs, done, pace)
