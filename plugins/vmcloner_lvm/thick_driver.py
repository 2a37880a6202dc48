"""The storage driver of full copies in a volume group: thick logical volumes.

Their labels are tags, as those of ``lvm-thin`` are. The group may have a thin pool as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from vmcloner_core.drivers import CaptureInterface, DriverContext, ImageFile, Lane, StorageDriver
from vmcloner_core.errors import HostCommandError, NotFound, VmclonerError, WrongState
from vmcloner_core.full_copies import Copier, Copy
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
    Status,
    Volume,
    VolumeProgress,
    untold,
)
from vmcloner_core.stored_ids import KnownPool
from vmcloner_lvm.commands import Lvm
from vmcloner_lvm.devmapper import DeviceMapper, KernelDeviceMapper
from vmcloner_lvm.locking import LOCKS
from vmcloner_lvm.naming import checked
from vmcloner_lvm.thick_copies import ThickCopies
from vmcloner_lvm.thick_group import COPYING, Contents, LogicalVolume, ThickGroup
from vmcloner_lvm.thick_importing import ThickImporter

VOLUME_TEXT = 1024
"""Bytes that a volume takes in the group's metadata, with its tags."""
_LOW = 100
"""Volumes that still fit: below this number, there is a warning."""


class ThickDriver(StorageDriver):
    """Keeps copies in a volume group.

    :param copying: how bytes are copied where a request does not say.
    """

    clone_lane = Lane(batch=32)
    reset_lane = Lane(batch=32)
    delete_lane = Lane(batch=64)
    modes = frozenset({CloneMode.FULL})

    def __init__(
        self,
        context: DriverContext,
        group: str,
        copying: Copying = AS_IT_COMES,
        mapper: DeviceMapper | None = None,
        locks: Path = LOCKS,
    ) -> None:
        super().__init__(context)
        self._copying = copying
        self._mapper = mapper or KernelDeviceMapper()
        known = KnownPool.of(context.host, context.name)
        self._group = ThickGroup(Lvm(group, context.runner), self._mapper, known)
        self._copies = ThickCopies(self._group, self.name)
        self._copier = Copier(self._copies, self.delete, copying)
        folder = context.host.state / "import"
        self._importer = ThickImporter(self._group, context.runner, folder, locks)

    @property
    def capturing(self) -> CaptureInterface:
        """See :attr:`StorageDriver.capturing`."""
        from vmcloner_lvm.thick_capturing import ThickCapturing

        return ThickCapturing(self._importer, self.name, self._copying)

    def probe(self) -> Iterator[Check]:
        """See :meth:`StorageDriver.probe`."""

        def check(name: str, status: Status, detail: str = "", fix: str = "") -> Check:
            return Check(backend=self.name, name=name, status=status, detail=detail, fix=fix)

        name = self._group.name
        if self.context.runner.which("lvs") is None:
            yield check("lvm2", Status.FAILED, "not installed", "apt-get install lvm2")
            return
        yield check("lvm2", Status.OK)
        if self.context.runner.which("qemu-img") is None:
            yield check(
                "qemu-img",
                Status.FAILED,
                "needed to import qcow2 images",
                "apt-get install qemu-utils",
            )
        try:
            facts = self._group.lvm.facts()
        except VmclonerError as error:
            yield check("volume group", Status.FAILED, error.message, error.hint or "")
            return
        for wrong, what, fix in (
            (facts.exported, "is exported", f"vgimport {name}"),
            (facts.partial, "lacks a physical volume", f"see vgs {name}"),
            (facts.shared, "is shared by lvmlockd", "use a group of this host alone"),
        ):
            if wrong:
                yield check("volume group", Status.FAILED, f"{name} {what}", fix)
                return
        yield check("volume group", Status.OK, name)

    # --- origins --------------------------------------------------------------------------------

    def import_image(
        self,
        template: str,
        image: ImageFile,
        progress: Progress,
        copying: Copying = AS_IT_COMES,
    ) -> Outcome[Origin]:
        """See :meth:`StorageDriver.import_image`. Copies don't need the image that is replaced."""
        copying = copying.with_defaults(self._copying)
        record, changed = self._importer.run(template, image, progress, copying)
        return Outcome(key=template, value=record.origin(self.name), changed=changed)

    def origins(self) -> tuple[Origin, ...]:
        """See :meth:`StorageDriver.origins`."""
        records = [volume.image for volume in self._group.read().values()]
        origins = [record.origin(self.name) for record in records if record is not None]
        return tuple(sorted(origins, key=lambda origin: origin.template))

    def delete_origin(self, template: str) -> Outcome[None]:
        """See :meth:`StorageDriver.delete_origin`. Copies don't need it."""
        there = self._group.read()
        found = self._group.image(there, template)
        if found is not None:
            self._group.remove_one(there, found[0])
        return Outcome(key=template, changed=found is not None)

    # --- volumes --------------------------------------------------------------------------------

    def clone(
        self, requests: Sequence[CloneRequest], progress: VolumeProgress = untold
    ) -> Iterator[Outcome[Volume]]:
        """See :meth:`StorageDriver.clone`."""
        there = self._group.read()
        copies = []
        for request in requests:
            try:
                volume, made = self._room(request, there)
            except VmclonerError as error:
                yield Outcome(key=request.volume_name, error=error)
                continue
            if volume.complete:
                yield Outcome(key=volume.name, value=volume, changed=False)
            else:
                copies.append(Copy(request=request, volume=volume, fresh=made))
        yield from self._copier.fill(copies, progress)

    def _room(self, request: CloneRequest, there: Contents) -> tuple[Volume, bool]:
        """Return the volume of a request and whether it was made now."""
        name, labels = request.volume_name, request.labels
        found = self._group.disk(there, name, labels)
        if found is None:
            size = self._copies.size(there, request)
            try:
                made = self._group.create(checked(name, name), size, labels.to_mapping())
                return self._copies.volume(made, labels), True
            except HostCommandError:
                found = self._group.disk(self._group.read(), name, labels)
                if found is None:  # otherwise another process made it meanwhile
                    raise
        if found.grows_from is not None:
            found = self._group.grow(found, found.size)
        return self._copies.volume(found, found.labels or labels), False

    def whole(self, size: int) -> int:
        """See :meth:`StorageDriver.whole`: whole extents."""
        return self._group.whole(size)

    def grow(self, volumes: Sequence[Volume], size: int) -> Iterator[Outcome[Volume]]:
        """See :meth:`StorageDriver.grow`."""
        there = self._group.read()
        for volume in volumes:
            try:
                yield self._grown(volume, self.whole(size), there)
            except VmclonerError as error:
                yield Outcome(key=volume.name, error=error)

    def _grown(self, volume: Volume, size: int, there: Contents) -> Outcome[Volume]:
        found = self._group.disk(there, volume.name, volume.labels)
        if found is None:
            raise NotFound(f"volume {volume.path} is gone", hint="run its create again")
        if COPYING in found.tags:
            raise WrongState(f"volume {volume.path} is incomplete", hint="run its create again")
        changed = size > found.size or not found.complete
        if changed:
            found = self._group.grow(found, max(size, found.size))
        value = self._copies.volume(found, volume.labels)
        return Outcome(key=volume.name, value=value, changed=changed)

    def delete(self, volumes: Sequence[Volume]) -> Iterator[Outcome[None]]:
        """See :meth:`StorageDriver.delete`."""
        there = self._group.read() if volumes else {}
        doomed: list[LogicalVolume] = []
        for volume in volumes:
            try:
                found = self._group.disk(there, volume.name, volume.labels)
                if found is None:
                    yield Outcome(key=volume.name, changed=False)
                else:
                    self._group.check_removable(there, found)
                    doomed.append(found)
            except VmclonerError as error:
                yield Outcome(key=volume.name, error=error)
        errors = self._group.remove(doomed)
        for each in doomed:
            yield Outcome(key=each.name, error=errors.get(each.name))

    def volumes(self) -> tuple[Volume, ...]:
        """See :meth:`StorageDriver.volumes`."""
        return self._copies.volumes(self._group.read())

    def activate(self, volumes: Sequence[Volume]) -> Iterator[Outcome[None]]:
        """See :meth:`StorageDriver.activate`."""
        refused = {o.key: o.error for o in super().activate(volumes) if o.error is not None}
        errors = self._group.activate([v.name for v in volumes if v.name not in refused])
        for volume in volumes:
            yield Outcome(key=volume.name, error=refused.get(volume.name) or errors[volume.name])

    def deactivate(self, volumes: Sequence[Volume]) -> Iterator[Outcome[None]]:
        """See :meth:`StorageDriver.deactivate`."""
        errors = self._group.deactivate([volume.name for volume in volumes])
        for volume in volumes:
            yield Outcome(key=volume.name, error=errors[volume.name])

    def unlabelled(self, names: Sequence[str]) -> Sequence[str]:
        """See :meth:`StorageDriver.unlabelled`."""
        there = self._group.read()
        return [name for name in names if name in there and there[name].labels is None]

    def sweep(self) -> None:
        """See :meth:`StorageDriver.sweep`."""
        self._importer.sweep_all()

    def leftovers(self) -> tuple[Leftover, ...]:
        """See :meth:`StorageDriver.leftovers`."""
        return self._importer.leftovers()

    # --- space ----------------------------------------------------------------------------------

    def capacity(self) -> Capacity:
        """See :meth:`StorageDriver.capacity`."""
        figures = self._group.figures()
        volumes = figures["vg_mda_free"] // VOLUME_TEXT
        warning = f"the group's metadata area has room for only {volumes} more volumes"
        return Capacity(
            total=figures["vg_size"],
            free=figures["vg_free"],
            volumes_free=volumes,
            warnings=(warning,) if volumes < _LOW else (),
        )

    def need(self, request: CloneRequest, count: int) -> int:
        """See :meth:`StorageDriver.need`."""
        size = request.size or (request.origin.size if request.origin is not None else 0)
        return count * self._group.whole(size)

    def close(self) -> None:
        """See :meth:`StorageDriver.close`."""
        if isinstance(self._mapper, KernelDeviceMapper):
            self._mapper.close()
