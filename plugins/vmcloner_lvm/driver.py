"""The storage driver ``lvm-thin``: a pool is a thin pool of a volume group.

Clones are thin snapshots: they share their template's blocks, and the template can be deleted. A
batch is made or removed in one transaction of LVM (see ``batches``), with its labels as tags.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence

import attrs

from vmcloner_core.drivers import (
    CaptureInterface,
    DriverContext,
    ImageFile,
    ImageRecord,
    Lane,
    StorageDriver,
)
from vmcloner_core.errors import InvalidRequest, NotFound, VmclonerError
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
    Volume,
    VolumeProgress,
    untold,
)
from vmcloner_core.stored_ids import KnownPool
from vmcloner_lvm import batches, doctor, tags
from vmcloner_lvm.activation import activate, combined, deactivate, refresh
from vmcloner_lvm.commands import Lvm
from vmcloner_lvm.devmapper import DeviceMapper, KernelDeviceMapper
from vmcloner_lvm.importing import Importer, remove_image
from vmcloner_lvm.naming import checked, origin_name
from vmcloner_lvm.pool import Pool
from vmcloner_lvm.records import (
    as_volume,
    disk,
    image,
    image_of,
    labels_of,
)
from vmcloner_lvm.session import Session, whole_chunks
from vmcloner_lvm.settings import LvmThinSettings
from vmcloner_lvm.snapshots import ThinSnapshots
from vmcloner_lvm.transaction import NewVolume
from vmcloner_lvm.volumegroup import ThinVolume

Images = Callable[[str], tuple[ThinVolume, ImageRecord] | None]
"""Returns a template's image in the pool."""


class LvmThinDriver(StorageDriver):
    """Keeps a pool in an LVM thin pool."""

    # One transaction takes three commands for any number of volumes. Batches are not larger so
    # that the first clones can start while others are being made.
    clone_lane = Lane(batch=512)
    reset_lane = Lane(batch=512)
    delete_lane = Lane(batch=1024)
    modes = frozenset({CloneMode.LINKED})

    def __init__(
        self,
        context: DriverContext,
        settings: LvmThinSettings,
        mapper: DeviceMapper | None = None,
    ) -> None:
        super().__init__(context)
        self._settings = settings
        self._mapper = mapper or KernelDeviceMapper()
        self._lvm = Lvm(settings.vg, context.runner)
        known = KnownPool.of(context.host, context.name)
        self._pool = Pool(self._lvm, settings.thinpool, self._mapper, known)
        self.snapshots = ThinSnapshots(self._pool, self.name, settings.strategy)
        self._chunk: int | None = None
        self._extent: int | None = None
        self._importer = Importer(self._pool, context.runner, context.host.state / "import")
        self._activate = combined(activate, self._lvm, self._mapper)
        self._deactivate = combined(deactivate, self._lvm, self._mapper)

    @property
    def capturing(self) -> CaptureInterface:
        """See :attr:`StorageDriver.capturing`."""
        from vmcloner_lvm.capturing import ThinCapturing

        return ThinCapturing(self._importer, self.name)

    def probe(self) -> Iterator[Check]:
        """See :meth:`StorageDriver.probe`."""
        return doctor.examine_pool(self.name, self._pool, self._settings.strategy)

    # --- origins --------------------------------------------------------------------------------

    def import_image(
        self,
        template: str,
        image: ImageFile,
        progress: Progress,
        copying: Copying = AS_IT_COMES,
    ) -> Outcome[Origin]:
        """See :meth:`StorageDriver.import_image`. Clones don't need the image that is replaced."""
        record, changed = self._importer.run(template, image, progress, copying)
        return Outcome(key=template, value=record.origin(self.name), changed=changed)

    def origins(self) -> tuple[Origin, ...]:
        """See :meth:`StorageDriver.origins`."""
        volumes = self._pool.read().thin.values()
        found = [image_of(each) for each in volumes if each.pool == self._pool.name]
        origins = [record.origin(self.name) for record in found if record is not None]
        return tuple(sorted(origins, key=lambda origin: origin.template))

    def delete_origin(self, template: str) -> Outcome[None]:
        """See :meth:`StorageDriver.delete_origin`. Clones don't need it."""
        if image(self._pool.read(), self._pool.name, template) is None:
            return Outcome(key=template, changed=False)
        with self._pool.locked() as session:
            found = image(session.group, self._pool.name, template)
            if found is not None:
                remove_image(session, template)
        return Outcome(key=template, changed=found is not None)

    # --- volumes --------------------------------------------------------------------------------

    def clone(
        self,
        requests: Sequence[CloneRequest],
        progress: VolumeProgress = untold,  # noqa: ARG002 - no bytes are copied
    ) -> Iterator[Outcome[Volume]]:
        """See :meth:`StorageDriver.clone`."""
        with self._pool.locked() as session:
            outcomes = self._clone(session, requests)
        yield from outcomes

    def _clone(self, session: Session, requests: Sequence[CloneRequest]) -> list[Outcome[Volume]]:
        outcomes: list[Outcome[Volume]] = []
        new: dict[str, tuple[CloneRequest, NewVolume]] = {}
        images = functools.cache(lambda name: image(session.group, self._pool.name, name))
        for request in requests:
            name = request.volume_name
            try:
                found = self._found(session, request)
                if found is not None:
                    outcomes.append(Outcome(key=name, value=found, changed=False))
                else:
                    new[name] = request, self._new(session, request, images)
            except VmclonerError as error:
                outcomes.append(Outcome(key=name, error=error))
        if not new:
            return outcomes
        wanted = [request for request, _ in new.values()]
        try:
            batches.create(session, [each for _, each in new.values()], self._strategy)
        except VmclonerError as error:
            session.reread()
            same = session.stray_id() is None
            return outcomes + [self._left(session, each, error, same=same) for each in wanted]
        return outcomes + [self._made(session, each) for each in wanted]

    @property
    def _strategy(self) -> batches.Strategy:
        return self._settings.strategy

    def _found(self, session: Session, request: CloneRequest) -> Volume | None:
        """Return the volume of a request, None if it does not exist.

        :raises Conflict: its name is taken.
        """
        name = request.volume_name
        found = disk(session.group, self._pool.name, name, request.labels)
        labels = labels_of(found) if found is not None else None
        if found is None or labels is None:
            return None
        return as_volume(self._lvm.group, found, labels, self.name)

    def _new(self, session: Session, request: CloneRequest, images: Images) -> NewVolume:
        """Return the new volume for a request.

        :raises InvalidRequest: the size or the name is not possible.
        """
        name = checked(request.volume_name, f"clone {request.labels.clone}", self._lvm.group)
        if request.mode is not CloneMode.LINKED and request.origin is not None:
            raise InvalidRequest(
                f"{request.labels.clone}: pool {self.name} has no full clones",
                hint="leave out --full, or use a pool of dd or files",
            )
        size = request.size or 0
        origin = None
        if request.origin is not None:
            size, origin = self._origin(images, request.origin, request)
        return NewVolume(
            name=name,
            size=size + -size % session.group.extent,
            tags=tags.encode(request.labels.to_mapping()),
            origin=origin,
            head=request.head,
        )

    def _origin(self, images: Images, origin: Origin, request: CloneRequest) -> tuple[int, str]:
        """Return the bytes of a clone, and the name of its origin's volume."""
        found = images(origin.template)
        record = origin.check_held(found[1] if found is not None else None)
        size = request.size_over(record.size)
        return max(size, found[0].size if found is not None else 0), origin_name(origin.template)

    def reset(
        self,
        requests: Sequence[CloneRequest],
        progress: VolumeProgress = untold,  # noqa: ARG002 - no bytes are copied
    ) -> Iterator[Outcome[Volume]]:
        """See :meth:`StorageDriver.reset`. All volumes are replaced in one transaction."""
        with self._pool.locked() as session:
            outcomes = self._reset(session, requests)
        yield from outcomes

    def _reset(self, session: Session, requests: Sequence[CloneRequest]) -> list[Outcome[Volume]]:
        failed: dict[str, VmclonerError] = {}
        new: dict[str, tuple[CloneRequest, NewVolume]] = {}
        old: list[str] = []
        images = functools.cache(lambda name: image(session.group, self._pool.name, name))
        for request in requests:
            name = request.volume_name
            try:
                found = self._found(session, request)
                if found:
                    session.check_removable(name)
                wanted = attrs.evolve(request, labels=found.labels) if found else request
                new[name] = wanted, self._new(session, wanted, images)
            except VmclonerError as error:
                failed[name] = error
            else:
                old += [name] if found else []
        errors = deactivate(self._lvm, self._mapper, old, held=True)
        failed |= {name: error for name, error in errors.items() if error is not None}
        fit = {name: each for name, each in new.items() if name not in failed}
        try:
            if fit:
                gone = [name for name in old if name in fit]
                batches.replace(session, gone, [each for _, each in fit.values()], self._strategy)
        except VmclonerError as error:
            session.reread()
            failed |= dict.fromkeys(fit, error)
        outcomes: list[Outcome[Volume]] = [Outcome(key=k, error=e) for k, e in failed.items()]
        return outcomes + [
            self._made(session, request) for k, (request, _) in fit.items() if k not in failed
        ]

    def whole(self, size: int) -> int:
        """See :meth:`StorageDriver.whole`: whole extents."""
        if self._extent is None:
            self._extent = self._pool.read().extent
        return size + -size % self._extent

    def grow(self, volumes: Sequence[Volume], size: int) -> Iterator[Outcome[Volume]]:
        """See :meth:`StorageDriver.grow`. What a thin volume was never written to is zeros."""
        whole = self.whole(size)
        with self._pool.locked() as session:
            errors = {volume.name: self._grow(session, volume, whole) for volume in volumes}
            before, after = session.group.thin, session.reread().thin
        for volume in volumes:
            error, name = errors[volume.name], volume.name
            value = None
            if error is None:
                value = as_volume(self._lvm.group, after[name], volume.labels, self.name)
            changed = error is None and before[name].size != after[name].size
            yield Outcome(key=name, value=value, error=error, changed=changed)

    def _grow(self, session: Session, volume: Volume, size: int) -> VmclonerError | None:
        """Enlarge a volume; returns its error."""
        name = volume.name
        try:
            found = disk(session.group, self._pool.name, name, volume.labels)
            if found is None:
                raise NotFound(f"volume {volume.path} is gone", hint="run its create again")
            if found.size < size:
                full = f"{self._lvm.group}/{name}"
                session.lvm.run("lvextend", "-y", "-L", f"{size}b", full, held=True)
            refresh(session.lvm, self._mapper, name, size, held=True)
        except VmclonerError as error:
            return error
        return None

    def _made(self, session: Session, request: CloneRequest) -> Outcome[Volume]:
        name = request.volume_name
        made = session.group.thin[name]
        return Outcome(key=name, value=as_volume(self._lvm.group, made, request.labels, self.name))

    def _left(
        self, session: Session, request: CloneRequest, failure: VmclonerError, *, same: bool
    ) -> Outcome[Volume]:
        """Return the outcome for a volume of a batch that failed.

        :param same: False if kernel and metadata are known to differ.
        """
        name = request.volume_name
        if name in session.pool.messages.creates:  # neither made nor taken back
            return Outcome(key=name, error=failure)
        try:
            volume = self._found(session, request)
        except VmclonerError as error:
            return Outcome(key=name, error=error)
        if volume is not None and same:
            return Outcome(key=name, value=volume)
        return Outcome(key=name, error=failure)

    def delete(self, volumes: Sequence[Volume]) -> Iterator[Outcome[None]]:
        """See :meth:`StorageDriver.delete`."""
        with self._pool.locked() as session:
            outcomes = self._delete(session, volumes)
        yield from outcomes

    def _delete(self, session: Session, volumes: Sequence[Volume]) -> list[Outcome[None]]:
        outcomes: dict[str, Outcome[None]] = {}
        there: list[str] = []
        for volume in volumes:
            try:
                found = disk(session.group, self._pool.name, volume.name, volume.labels)
                if found is not None:
                    session.check_removable(volume.name)
            except VmclonerError as error:
                outcomes[volume.name] = Outcome(key=volume.name, error=error)
                continue
            outcomes[volume.name] = Outcome(key=volume.name, changed=found is not None)
            if found is not None:
                there.append(volume.name)
        errors = deactivate(self._lvm, self._mapper, there, held=True)
        for name in there:
            if errors[name] is not None:
                outcomes[name] = Outcome(key=name, error=errors[name])
        idle = [name for name in there if errors[name] is None]
        try:
            if idle:
                batches.remove(session, idle, self._strategy)
        except VmclonerError as error:
            left = session.reread().thin
            stray = session.stray_id() is not None  # the kernel still has them
            outcomes |= {
                name: Outcome(key=name, error=error) for name in idle if stray or name in left
            }
        return list(outcomes.values())

    def volumes(self) -> tuple[Volume, ...]:
        """See :meth:`StorageDriver.volumes`."""
        group = self._pool.read()
        return tuple(
            as_volume(self._lvm.group, each, labels, self.name)
            for each in group.thin.values()
            if each.pool == self._pool.name and (labels := labels_of(each)) is not None
        )

    def unlabelled(self, names: Sequence[str]) -> Sequence[str]:
        """See :meth:`StorageDriver.unlabelled`."""
        group = self._pool.read()
        ours = {name for name, each in group.thin.items() if labels_of(each) is not None}
        return [name for name in names if name in group.logical and name not in ours]

    def sweep(self) -> None:
        """See :meth:`StorageDriver.sweep`."""
        self._importer.sweep_all()

    def leftovers(self) -> tuple[Leftover, ...]:
        """See :meth:`StorageDriver.leftovers`."""
        return self._importer.leftovers()

    # --- space ----------------------------------------------------------------------------------

    def capacity(self) -> Capacity:
        """See :meth:`StorageDriver.capacity`."""
        return doctor.capacity(self._pool)

    def need(self, request: CloneRequest, count: int) -> int:
        """See :meth:`StorageDriver.need`. A new snapshot takes none of the pool's data."""
        if request.origin is not None or not request.head:
            return 0
        if self._chunk is None:
            self._chunk = self._pool.chunk_size(self._pool.read())
        return count * whole_chunks(len(request.head), self._chunk)

    # --- activation -----------------------------------------------------------------------------

    def activate(self, volumes: Sequence[Volume]) -> Iterator[Outcome[None]]:
        """See :meth:`StorageDriver.activate`."""
        idle = [v.name for v in volumes if not v.path.exists()]
        errors = self._activate(idle) if idle else {}
        for volume in volumes:
            error = errors.get(volume.name)
            yield Outcome(key=volume.name, error=error, changed=volume.name in errors)

    def deactivate(self, volumes: Sequence[Volume]) -> Iterator[Outcome[None]]:
        """See :meth:`StorageDriver.deactivate`."""
        errors = self._deactivate([volume.name for volume in volumes])
        for volume in volumes:
            yield Outcome(key=volume.name, error=errors[volume.name])

    def close(self) -> None:
        """See :meth:`StorageDriver.close`."""
        if isinstance(self._mapper, KernelDeviceMapper):
            self._mapper.close()
