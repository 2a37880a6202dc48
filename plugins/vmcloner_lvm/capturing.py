"""Capture clones' disks in a thin pool: as thin snapshots, which copy nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs

from vmcloner_core.drivers import CaptureInterface, CaptureRequest, ImageRecord
from vmcloner_core.errors import Conflict, NotFound
from vmcloner_core.locks import hold
from vmcloner_core.model import Origin, Outcome, Progress, Volume
from vmcloner_lvm import tags
from vmcloner_lvm.activation import activate, deactivate
from vmcloner_lvm.devmapper import device_name
from vmcloner_lvm.importing import Importer
from vmcloner_lvm.naming import checked, draft_name, origin_name
from vmcloner_lvm.records import disk, image
from vmcloner_lvm.session import Session


@attrs.frozen
class ThinCapturing(CaptureInterface):
    """Captures in one pool. ``name``: the pool's name."""

    importer: Importer
    name: str

    def capture(
        self,
        request: CaptureRequest,
        change: Callable[[Path], None],
        taken: Callable[[], None],
        progress: Progress,  # noqa: ARG002 - no bytes are copied
    ) -> Outcome[Origin]:
        """See :meth:`CaptureInterface.capture`."""
        importer, template = self.importer, request.template
        group = importer.pool.lvm.group
        checked(origin_name(template), f"template {template}", group)
        with hold(importer.locks, [f"{group}/{origin_name(template)}"]):
            record = ImageRecord(
                template=template, digest=request.digest, size=request.volume.size, allocated=0
            )
            with importer.pool.locked() as session:
                found = found_image(image(session.group, importer.pool.name, template), request)
                if found is not None:
                    origin = found.origin(self.name)
                    return Outcome(key=template, value=origin, changed=False)
                self._snapshot(session, request, record)
            with importer.undone(template):
                taken()
                draft = draft_name(template)
                importer.switch(draft, activate)
                change(Path(f"/dev/{group}/{draft}"))
                written = importer.pool.mapper.mapped(device_name(group, draft))
                importer.switch(draft, deactivate)
                done = attrs.evolve(record, allocated=written)
                importer.publish(record, done)
        return Outcome(key=template, value=done.origin(self.name))

    def _snapshot(self, session: Session, request: CaptureRequest, record: ImageRecord) -> None:
        """Make the draft, with its labels, by LVM's command: it suspends an active volume."""
        pool, volume = self.importer.pool, request.volume
        if disk(session.group, pool.name, volume.name, volume.labels) is None:
            raise NotFound(f"volume {volume.path} is gone", hint="run its create again")
        self.importer.sweep(session, request.template)
        session.check_room([0])
        named = [f"--addtag={tag}" for tag in tags.encode(record.to_mapping())]
        made = ["-s", "-an", "-n", draft_name(request.template), *named]
        session.lvm.run("lvcreate", *made, f"{session.lvm.group}/{volume.name}", held=True)

    def need(self, volume: Volume) -> int:  # noqa: ARG002 - a snapshot takes none of the data
        """See :meth:`CaptureInterface.need`."""
        return 0

    @contextlib.contextmanager
    def image(self, template: str) -> Iterator[Path]:
        """See :meth:`CaptureInterface.image`. It is active meanwhile."""
        pool = self.importer.pool
        if image(pool.read(), pool.name, template) is None:
            raise NotFound(f"template {template} has no image in {pool}")
        name = origin_name(template)
        was = pool.mapper.device(device_name(pool.lvm.group, name)) is not None
        self.importer.switch(name, activate)
        try:
            yield Path(f"/dev/{pool.lvm.group}/{name}")
        finally:
            if not was:
                deactivate(pool.lvm, pool.mapper, [name])


def found_image(
    found: tuple[object, ImageRecord] | None, request: CaptureRequest
) -> ImageRecord | None:
    """Return the record of a request's image, None if there is none yet.

    :param found: the template's image. :raises Conflict: it is another one.
    """
    if found is None:
        return None
    if found[1].digest != request.digest:
        raise Conflict(
            f"template {request.template} has another image in pool {request.volume.pool}",
            hint=f"vmcloner template delete {request.template}, or choose another name",
        )
    return found[1]
