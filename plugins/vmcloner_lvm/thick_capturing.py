"""Capture clones' disks in a volume group: as copies."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs

from vmcloner_core.copying import Target
from vmcloner_core.drivers import CaptureInterface, CaptureRequest, ImageRecord
from vmcloner_core.errors import NotFound
from vmcloner_core.full_copies import copy_one
from vmcloner_core.locks import hold
from vmcloner_core.model import Copying, Origin, Outcome, Progress, Volume
from vmcloner_core.os_errors import translated
from vmcloner_lvm.capturing import found_image
from vmcloner_lvm.thick_group import image_name
from vmcloner_lvm.thick_importing import ThickImporter


@attrs.frozen
class ThickCapturing(CaptureInterface):
    """Captures in one group. ``name``: the pool's. ``copying``: where a request does not say."""

    importer: ThickImporter
    name: str
    copying: Copying

    def capture(
        self,
        request: CaptureRequest,
        change: Callable[[Path], None],
        taken: Callable[[], None],
        progress: Progress,
    ) -> Outcome[Origin]:
        """See :meth:`CaptureInterface.capture`."""
        importer, template, volume = self.importer, request.template, request.volume
        group = importer.group

        def fill(target: Target) -> None:
            with translated(volume.path):
                source = os.open(volume.path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    copy_one(source, target, request.copying.with_defaults(self.copying))
                finally:
                    os.close(source)
            taken()
            change(target.path)

        with hold(importer.locks, [f"{group.name}/{image_name(template)}"]):
            there = group.read()
            found = found_image(group.image(there, template), request)
            if found is not None:
                return Outcome(key=template, value=found.origin(self.name), changed=False)
            if group.disk(there, volume.name, volume.labels) is None:
                raise NotFound(f"volume {volume.path} is gone", hint="run its create again")
            record = ImageRecord(
                template=template, digest=request.digest, size=volume.size, allocated=volume.size
            )
            importer.make(record, fill, progress)
        return Outcome(key=template, value=record.origin(self.name))

    def need(self, volume: Volume) -> int:
        """See :meth:`CaptureInterface.need`."""
        return self.importer.group.whole(volume.size)

    @contextlib.contextmanager
    def image(self, template: str) -> Iterator[Path]:
        """See :meth:`CaptureInterface.image`. It is active meanwhile."""
        group, name = self.importer.group, image_name(template)
        if group.image(group.read(), template) is None:
            raise NotFound(f"template {template} has no image in volume group {group.name}")
        for error in group.activate([name]).values():
            if error is not None:
                raise error
        try:
            yield group.path(name)
        finally:
            group.deactivate([name])  # one that another process has open stays active
