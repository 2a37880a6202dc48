"""Capture clones' disks in a folder: as raw files, without what a qcow2 disk is an overlay of."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs

from vmcloner_core.copying import Pace, copy_runs
from vmcloner_core.drivers import CaptureInterface, CaptureRequest
from vmcloner_core.errors import Conflict, NotEnoughResources, NotFound
from vmcloner_core.extents import data_runs
from vmcloner_core.model import Copying, Origin, Outcome, Progress, Volume
from vmcloner_core.os_errors import translated
from vmcloner_core.process import CommandRunner
from vmcloner_core.qemu_img import flatten
from vmcloner_core.units import format_size
from vmcloner_files.drafts import Draft
from vmcloner_files.extents import count_extents
from vmcloner_files.features import space
from vmcloner_files.pool import Pool
from vmcloner_files.records import ImageRecord
from vmcloner_files.reflink import reflink


@attrs.frozen
class Capturing(CaptureInterface):
    """Captures in one pool. ``copying``: how bytes are copied where a request does not say."""

    pool: Pool
    runner: CommandRunner
    origin: Callable[[ImageRecord], Origin]
    copying: Copying

    def capture(
        self,
        request: CaptureRequest,
        change: Callable[[Path], None],
        taken: Callable[[], None],
        progress: Progress,
    ) -> Outcome[Origin]:
        """See :meth:`CaptureInterface.capture`. A reflink where the file system has them."""
        template = request.template
        if (found := self._found(request)) is not None:
            return Outcome(key=template, value=self.origin(found), changed=False)
        self.pool.prepare()
        self._check_room(template, request.volume)
        with translated(self.pool), self.pool.draft(self.pool.templates, named=True) as draft:
            self._fill(request, draft, progress)
            taken()
            change(draft.path)
            record = self._publish(request, draft)
        return Outcome(key=template, value=self.origin(record))

    def _found(self, request: CaptureRequest) -> ImageRecord | None:
        """Return the record of the image, None if there is none yet.

        :raises Conflict: the template has another one.
        """
        found = self.pool.image(request.template)
        if found is not None and found.digest != request.digest:
            raise Conflict(
                f"template {request.template} has another image in {self.pool}",
                hint=f"vmcloner template delete {request.template}, or choose another name",
            )
        return found

    def _fill(self, request: CaptureRequest, draft: Draft, progress: Progress) -> None:
        """Give a draft the volume's bytes."""
        volume, copying = request.volume, request.copying.with_defaults(self.copying)
        if volume.format != "raw":
            flatten(self.runner, volume, draft.path, copying, live=request.live)
            progress(volume.size, volume.size)
            return
        source = os.open(volume.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            self.pool.check_file(volume.path, os.fstat(source))
            if self.pool.features().reflink:
                reflink(source, draft.fd)
                return
            runs, done = data_runs(source), 0

            def count(more: int) -> None:
                nonlocal done
                done += more
                progress(done, volume.size)

            os.ftruncate(draft.fd, volume.size)
            copy_runs(source, draft.fd, list(runs), count, Pace(copying.bandwidth))
        finally:
            os.close(source)

    def _publish(self, request: CaptureRequest, draft: Draft) -> ImageRecord:
        os.fsync(draft.fd)  # all clones depend on it
        record = ImageRecord(
            template=request.template,
            digest=request.digest,
            size=os.fstat(draft.fd).st_size,
            extents=count_extents(draft.fd),
        )
        path = self.pool.image_path(request.template)
        with self.pool.lock(alone=True):
            if (found := self._found(request)) is not None:
                return found
            self.pool.labels.write(draft.fd, path, record.to_mapping())
            os.fchmod(draft.fd, stat.S_IRUSR)  # a clone may have secrets on its disk
            try:
                draft.publish(path)
            except FileExistsError as error:
                raise Conflict(f"{path} exists and is not vmcloner's") from error
        return record

    def need(self, volume: Volume) -> int:
        """See :meth:`CaptureInterface.need`."""
        with translated(volume.path):
            own = volume.path.stat().st_blocks * 512
            if volume.format == "raw":
                return 0 if self.pool.features().reflink else own
            below = volume.backing.stat().st_blocks * 512 if volume.backing is not None else 0
        return own + below

    def _check_room(self, template: str, volume: Volume) -> None:
        need = self.need(volume)
        with translated(self.pool):
            free = space(self.pool.folder).free
        if need > free:
            raise NotEnoughResources(
                f"template {template} needs {format_size(need)} in {self.pool}, "
                f"{format_size(free)} are free",
                hint="free space in the pool",
            )

    @contextlib.contextmanager
    def image(self, template: str) -> Iterator[Path]:
        """See :meth:`CaptureInterface.image`."""
        if self.pool.image(template) is None:
            raise NotFound(f"template {template} has no image in {self.pool}")
        yield self.pool.image_path(template)
