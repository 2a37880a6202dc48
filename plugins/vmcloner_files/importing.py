"""Import an image into a pool: as a raw, sparse, read-only file with few extents."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator

import attrs

from vmcloner_core.copying import Pace, check_same, copy_runs
from vmcloner_core.drivers import ImageFile
from vmcloner_core.errors import Conflict, InvalidRequest, NotEnoughResources, WrongState
from vmcloner_core.extents import Run, data_runs, nonzero_runs
from vmcloner_core.model import Copying, Progress
from vmcloner_core.os_errors import translated
from vmcloner_core.process import CommandRunner
from vmcloner_core.qemu_img import convert, measure
from vmcloner_core.units import format_size
from vmcloner_files.drafts import Draft
from vmcloner_files.extents import MAX_RUNS, coalesce, count_extents
from vmcloner_files.features import space
from vmcloner_files.pool import Pool
from vmcloner_files.records import ImageRecord

MODE = 0o444
"""Of an image; less where others may not read its source. libvirt gives it to QEMU's user."""


@attrs.frozen
class Importer:
    """Imports images into one pool."""

    pool: Pool
    runner: CommandRunner

    def run(
        self, template: str, image: ImageFile, progress: Progress, copying: Copying
    ) -> tuple[ImageRecord, bool]:
        """Make ``image`` the template's image; returns its record and whether anything changed.

        :raises WrongState: clones are linked to the image that would be replaced.
        :raises NotEnoughResources: the pool is too full.
        """
        found = self._same(template, image)
        if found is not None:
            return found, False
        try:
            self.pool.check_unlinked(template)
        except WrongState:
            found = self._same(template, image)  # another process has just made it, and a clone
            if found is None:
                raise
            return found, False
        self.pool.prepare()
        with translated(image.path):
            source = os.open(image.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with contextlib.closing(os.fdopen(source, "rb")), translated(self.pool):
            self._check_room(template, self._need(image, source))
            with self._filled(image, source, progress, copying) as draft:
                return self._publish(template, image, draft, _mode(os.fstat(source)))

    @contextlib.contextmanager
    def _filled(
        self, image: ImageFile, source: int, progress: Progress, copying: Copying
    ) -> Iterator[Draft]:
        """Yield a draft with the image's bytes."""
        raw = image.format == "raw"
        with self.pool.draft(self.pool.templates, named=not raw) as draft:
            if raw:
                if os.lseek(source, 0, os.SEEK_END) != image.size:  # a device's size too
                    raise InvalidRequest(f"{image.path} changed while it was imported")
                _fill(source, draft.fd, self._runs(source), image.size, progress, copying)
                yield draft
                return
            convert(self.runner, image, draft.path, copying)
            runs = self._runs(draft.fd)
            extents = count_extents(draft.fd) or 0
            if extents <= max(MAX_RUNS, len(runs)) or _length(runs) > self._free():
                progress(image.size, image.size)
                yield draft
                return
            with self.pool.draft(self.pool.templates) as better:
                _fill(draft.fd, better.fd, runs, image.size, progress, copying)
                yield better

    def _runs(self, source: int) -> list[Run]:
        """Return the runs of an image to store: few, if each is a cost of every reflink."""
        runs = nonzero_runs(source)
        return coalesce(runs) if self.pool.prepare().reflink else list(runs)

    def _publish(
        self, template: str, image: ImageFile, draft: Draft, mode: int
    ) -> tuple[ImageRecord, bool]:
        os.fsync(draft.fd)  # all clones depend on it
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
                if found.digest == image.digest:  # another process was faster
                    return found, False
                self.pool.check_unlinked(template)
                self.pool.remove(path)
            self.pool.labels.write(draft.fd, path, record.to_mapping())
            os.fchmod(draft.fd, mode)
            try:
                draft.publish(path)
            except FileExistsError as error:
                raise Conflict(f"{path} exists and is not vmcloner's") from error
        return record, True

    def _same(self, template: str, image: ImageFile) -> ImageRecord | None:
        """Return the record of the template's image if it is this one."""
        found = self.pool.image(template)
        if found is None or found.digest != image.digest:
            return None
        self._restrict(template, image)
        return found

    def _restrict(self, template: str, image: ImageFile) -> None:
        """Keep an image from those who may not read its source (any more)."""
        path = self.pool.image_path(template)
        with translated(path):
            now = stat.S_IMODE(path.stat().st_mode)
            wanted = now & _mode(image.path.stat())
            if wanted != now:
                path.chmod(wanted)

    # --- space ----------------------------------------------------------------------------------

    def _need(self, image: ImageFile, source: int) -> int:
        """Return an upper bound of the bytes that the image takes as a sparse raw file."""
        if image.format == "raw":
            return _length(data_runs(source))
        return measure(self.runner, image)

    def _check_room(self, template: str, need: int) -> None:
        free = self._free()
        if need > free:
            raise NotEnoughResources(
                f"template {template} needs {format_size(need)} in {self.pool}, "
                f"{format_size(free)} are free",
                hint="free space, or import it into another pool",
            )

    def _free(self) -> int:
        return space(self.pool.folder).free


def _mode(source: os.stat_result) -> int:
    """Return the mode of an image with such a source."""
    return stat.S_IRUSR | MODE & source.st_mode


def _length(runs: Iterable[Run]) -> int:
    return sum(end - start for start, end in runs)


def _fill(
    source: int, target: int, runs: list[Run], size: int, progress: Progress, copying: Copying
) -> None:
    """Copy runs of an image, to space that is allocated first: in one extent each if possible."""
    total, copied = _length(runs), 0

    def done(count: int) -> None:
        nonlocal copied
        copied += count
        progress(copied, total)

    os.ftruncate(target, size)
    for start, end in runs:
        os.posix_fallocate(target, start, end - start)
    copy_runs(source, target, runs, done, Pace(copying.bandwidth))
    if copying.verify:
        check_same(source, target)
