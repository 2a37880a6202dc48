"""Copies in a volume group: thick logical volumes, labelled by tags as ``lvm-thin`` does it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import attrs

from vmcloner_core.coalesce import Coalescer
from vmcloner_core.copying import Pace, Target, fan_out
from vmcloner_core.drivers import DriverContext, ImageFile
from vmcloner_core.errors import (
    Conflict,
    HostCommandError,
    NotEnoughResources,
    NotFound,
    VmclonerError,
    WrongState,
)
from vmcloner_core.locks import hold
from vmcloner_core.model import (
    AS_IT_COMES,
    Capacity,
    Check,
    CloneRequest,
    Copying,
    Labels,
    Origin,
    Outcome,
    Progress,
    Status,
    Volume,
)
from vmcloner_core.names import split_volume
from vmcloner_core.units import format_size
from vmcloner_dd.fanning import FanningDriver
from vmcloner_dd.settings import DdSettings
from vmcloner_files.cloning import blank_size, disk_size
from vmcloner_files.errors import translated
from vmcloner_lvm import tags
from vmcloner_lvm.activation import activate, deactivate
from vmcloner_lvm.commands import Lvm
from vmcloner_lvm.devmapper import DeviceMapper, KernelDeviceMapper
from vmcloner_lvm.filling import opened as opened_image
from vmcloner_lvm.locking import LOCKS
from vmcloner_lvm.naming import checked
from vmcloner_lvm.records import ImageRecord, check_removable

COPYING = "vmcloner-copying"
"""Tag of a volume whose bytes aren't all there."""
_THICK = {"linear", "striped", "raid1", "mirror"}
_VOLUME_TEXT = 1024
"""Bytes that a volume of ours takes in the group's metadata, its tags included."""
_FEW = 100
_FIELDS = "lv_name,lv_uuid,lv_size,lv_tags,segtype,origin"


@attrs.frozen(kw_only=True)
class Logical:
    """A logical volume of the group, ours or not.

    :param size: bytes. :param origin: the volume that it is a snapshot of, or lies over; or "".
    """

    name: str
    uuid: str
    size: int
    tags: tuple[str, ...]
    thick: bool
    origin: str = ""

    @property
    def values(self) -> dict[str, str]:
        """What its tags say, where they are ours and it is of our kind."""
        return (tags.decode(self.tags) or {}) if self.thick else {}

    @property
    def labels(self) -> Labels | None:
        """Whose disk it is, None where it isn't a clone's."""
        labels, name = Labels.from_mapping(self.values), split_volume(self.name)
        return labels if labels and name and name[0] == labels.clone else None

    @property
    def image(self) -> ImageRecord | None:
        """Which template's image it is, None where it isn't one, or not yet."""
        record = ImageRecord.from_mapping(self.values)
        return record if record and self.name == image_name(record.template) else None


def image_name(template: str) -> str:
    """Return the name of a template's volume; those of ``lvm-thin`` are ``template.NAME``."""
    return checked(f"image.{template}", f"template {template}")


class GroupDriver(FanningDriver):
    """Keeps copies in a volume group."""

    def __init__(
        self,
        context: DriverContext,
        settings: DdSettings,
        mapper: DeviceMapper | None = None,
        locks: Path = LOCKS,
    ) -> None:
        super().__init__(context)
        self.dd = settings
        self._locks = locks
        self._group = settings.vg or ""
        self._lvm = Lvm(self._group, context.runner)
        self._mapper = mapper or KernelDeviceMapper()
        self._extent = 0
        self._on = Coalescer(lambda names: activate(self._lvm, self._mapper, names))
        self._off = Coalescer(lambda names: deactivate(self._lvm, self._mapper, names))

    def probe(self) -> Iterator[Check]:
        """See :meth:`StorageDriver.probe`."""

        def check(name: str, status: Status, detail: str = "", fix: str = "") -> Check:
            return Check(backend=self.name, name=name, status=status, detail=detail, fix=fix)

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
            facts = self._lvm.facts()
        except VmclonerError as error:
            yield check("volume group", Status.FAILED, error.message, error.hint or "")
            return
        for wrong, what, fix in (
            (facts.exported, "is exported", f"vgimport {self._group}"),
            (facts.partial, "lacks a physical volume", f"vgs {self._group} says which"),
            (facts.shared, "is shared by lvmlockd", "name a group of this host's own"),
        ):
            if wrong:
                yield check("volume group", Status.FAILED, f"{self._group} {what}", fix)
                return
        yield check("volume group", Status.OK, self._group)

    # --- what is there --------------------------------------------------------------------------

    def _read(self) -> dict[str, Logical]:
        """Return the group's logical volumes by name."""
        try:
            rows = self._lvm.report("lvs", _FIELDS, self._group)
        except HostCommandError:
            self._lvm.facts()  # says so where there is no such group
            raise
        return {
            str(row["lv_name"]): Logical(
                name=str(row["lv_name"]),
                uuid=str(row["lv_uuid"]),
                size=int(row["lv_size"]),
                tags=tuple(filter(None, str(row["lv_tags"]).split(","))),
                thick=str(row["segtype"]) in _THICK,
                origin=str(row["origin"]),
            )
            for row in rows
        }

    def _volume(self, logical: Logical, labels: Labels) -> Volume:
        return Volume(
            name=logical.name,
            pool=self.name,
            labels=labels,
            path=self._path(logical.name),
            size=logical.size,
            kind="block",
            complete=COPYING not in logical.tags,
        )

    def _path(self, name: str) -> Path:
        return Path(f"/dev/{self._group}/{name}")

    def _ours(self, there: Mapping[str, Logical], name: str, labels: Labels) -> Logical | None:
        """Return a clone's volume, None where there is none of that name.

        :raises Conflict: the name is taken by what isn't ours, or by another clone's volume.
        """
        logical = there.get(name)
        if logical is None:
            return None
        if logical.labels is None:
            raise self._foreign(name)
        if not logical.labels.same_clone(labels):
            raise Conflict(
                f"volume {self._group}/{name} belongs to clone {logical.labels.clone} of template "
                f"{logical.labels.template}, not {labels.template}",
                hint="delete that clone first, or choose another name",
            )
        return logical

    def _foreign(self, name: str) -> Conflict:
        return Conflict(
            f"volume {self._group}/{name} exists and isn't this pool's",
            hint="it is left alone: rename it (lvrename), or choose another name",
        )

    def volumes(self) -> tuple[Volume, ...]:
        """See :meth:`StorageDriver.volumes`."""
        return tuple(
            self._volume(each, labels)
            for each in self._read().values()
            if (labels := each.labels) is not None
        )

    def find(self, names: Sequence[str]) -> Mapping[str, Volume]:
        """See :meth:`FanningDriver.find`."""
        wanted = set(names)
        return {volume.name: volume for volume in self.volumes() if volume.name in wanted}

    # --- volumes --------------------------------------------------------------------------------

    def allot(self, requests: Sequence[CloneRequest]) -> Iterator[Outcome[Volume]]:
        """See :meth:`FanningDriver.allot`."""
        there = self._read()
        for request in requests:
            try:
                yield self._allotted(request, there)
            except VmclonerError as error:
                yield Outcome(key=request.volume_name, error=error)

    def _allotted(self, request: CloneRequest, there: Mapping[str, Logical]) -> Outcome[Volume]:
        name, labels = request.volume_name, request.labels
        found = self._ours(there, name, labels)
        if found is None:
            size = self._size(request, there)
            try:
                made = self._lvcreate(checked(name, name), size, labels.to_mapping())
                return Outcome(key=name, value=self._volume(made, labels))
            except HostCommandError:
                found = self._ours(self._read(), name, labels)
                if found is None:  # else another made it at this moment
                    raise
        return Outcome(key=name, value=self._volume(found, found.labels or labels), changed=False)

    def _size(self, request: CloneRequest, there: Mapping[str, Logical]) -> int:
        if request.origin is None:
            return blank_size(request)
        return disk_size(request, self._image(there, request.origin).size)

    def _lvcreate(self, name: str, size: int, values: Mapping[str, str]) -> Logical:
        """Make a volume with its tags, in which old bytes may be; returns it.

        LVM makes one at a time. What it would do longest is to wait for udev: so all of a batch
        are activated later, by one command.
        """
        marks = (*tags.encode(values), COPYING)
        words = [word for tag in marks for word in ("--addtag", tag)]
        size = self._whole(size)
        # Nothing is wiped: all of it gets written. And no host should activate it at its boot.
        options = ("-y", "-Wn", "-Zn", "-an", "-ky", "-n", name)
        self._allot("lvcreate", name, size, *options, *words, self._group)
        return Logical(name=name, uuid="", size=size, tags=marks, thick=True)

    def _allot(self, command: str, name: str, size: int, *words: str) -> None:
        """Make a volume, or a larger one of it."""
        try:
            self._lvm.run(command, "-L", f"{size}b", *words)
        except HostCommandError as error:
            if "insufficient free space" not in error.message.lower():
                raise
            raise NotEnoughResources(
                f"volume {name} needs {format_size(size)}: {error.message}",
                hint="delete clones, or vgextend the group",
            ) from error

    def extend(self, volume: Volume, request: CloneRequest) -> Volume:
        """See :meth:`FanningDriver.extend`. What it gets may hold old bytes, like the rest."""
        size = self._whole(self._size(request, self._read()))
        if size <= volume.size:
            return volume
        self._allot("lvextend", volume.name, size, "-y", self._full(volume.name))
        return attrs.evolve(volume, size=size)

    def finish(self, volumes: Sequence[Volume]) -> None:
        """See :meth:`FanningDriver.finish`."""
        self._lvm.run("lvchange", "--deltag", COPYING, *(self._full(v.name) for v in volumes))

    def _full(self, name: str) -> str:
        return f"{self._group}/{name}"

    @contextlib.contextmanager
    def opened(self, volumes: Sequence[Volume]) -> Iterator[Mapping[str, VmclonerError]]:
        """See :meth:`FanningDriver.opened`."""
        names = [volume.name for volume in volumes]
        try:
            errors = self._on(names)
            yield {name: error for name, error in errors.items() if error is not None}
        finally:
            self._off(names)  # one that somebody else waits for, or uses already, stays active

    def activate(self, volumes: Sequence[Volume]) -> Iterator[Outcome[None]]:
        """See :meth:`StorageDriver.activate`."""
        refused = {o.key: o.error for o in super().activate(volumes) if o.error is not None}
        errors = self._on([v.name for v in volumes if v.name not in refused])
        for volume in volumes:
            yield Outcome(key=volume.name, error=refused.get(volume.name) or errors[volume.name])

    def deactivate(self, volumes: Sequence[Volume]) -> Iterator[Outcome[None]]:
        """See :meth:`StorageDriver.deactivate`."""
        errors = self._off([volume.name for volume in volumes])
        for volume in volumes:
            yield Outcome(key=volume.name, error=errors[volume.name])

    def delete(self, volumes: Sequence[Volume]) -> Iterator[Outcome[None]]:
        """See :meth:`StorageDriver.delete`."""
        there = self._read() if volumes else {}
        doomed: dict[str, Logical] = {}
        for volume in volumes:
            try:
                found = self._ours(there, volume.name, volume.labels)
                if found is None:
                    yield Outcome(key=volume.name, changed=False)
                else:
                    self._check_removable(there, found)
                    doomed[volume.name] = found
            except VmclonerError as error:
                yield Outcome(key=volume.name, error=error)
        errors = self._remove(list(doomed.values()))
        for name in doomed:
            yield Outcome(key=name, error=errors.get(name))

    def _check_removable(self, there: Mapping[str, Logical], logical: Logical) -> None:
        hanging = [each.name for each in there.values() if each.origin == logical.name]
        check_removable(self._group, logical.name, hanging)

    def _remove(self, doomed: Sequence[Logical]) -> Mapping[str, VmclonerError]:
        """Remove volumes; returns the errors of those that stay."""
        busy = self._off([logical.name for logical in doomed]) if doomed else {}
        errors = {name: error for name, error in busy.items() if error is not None}
        idle = [logical for logical in doomed if logical.name not in errors]
        for start in range(0, len(idle), _FEW):
            some = idle[start : start + _FEW]
            # By what can't be another's: a name may have got a new bearer.
            chosen = " || ".join(f'lv_uuid="{logical.uuid}"' for logical in some)
            try:
                self._lvm.run("lvremove", "-y", "-S", chosen, self._group)
            except HostCommandError as error:
                left = {logical.uuid for logical in self._read().values()}
                errors |= {logical.name: error for logical in some if logical.uuid in left}
        return errors

    # --- origins --------------------------------------------------------------------------------

    def _image(self, there: Mapping[str, Logical], origin: Origin) -> ImageRecord:
        logical = there.get(image_name(origin.template))
        record = logical.image if logical is not None else None
        if record is None:
            raise NotFound(
                f"template {origin.template} has no image in pool {self.name}",
                hint=f"vmcloner template import {origin.template} --storage {self.name}",
            )
        if record.digest != origin.digest:
            raise WrongState(
                f"template {origin.template} got another image in pool {self.name}",
                hint="run the same command again",
            )
        return record

    @contextlib.contextmanager
    def source(self, origin: Origin) -> Iterator[int]:
        """See :meth:`FanningDriver.source`."""
        self._image(self._read(), origin)
        name = image_name(origin.template)
        error = self._on([name])[name]
        if error is not None:
            raise error
        try:
            with translated(self._path(name)):
                fd = os.open(self._path(name), os.O_RDONLY | os.O_CLOEXEC)
            try:
                yield fd
            finally:
                os.close(fd)
        finally:
            self._off([name])  # it stays active where another reads it

    def origins(self) -> tuple[Origin, ...]:
        """See :meth:`StorageDriver.origins`."""
        records = [each.image for each in self._read().values()]
        origins = [record.origin(self.name) for record in records if record is not None]
        return tuple(sorted(origins, key=lambda origin: origin.template))

    def delete_origin(self, template: str) -> Outcome[None]:
        """See :meth:`StorageDriver.delete_origin`. Copies don't need it."""
        there = self._read()
        logical = there.get(image_name(template))
        if logical is None:
            return Outcome(key=template, changed=False)
        if logical.image is None:
            raise self._foreign(logical.name)
        self._check_removable(there, logical)
        for error in self._remove([logical]).values():
            raise error
        return Outcome(key=template)

    def import_image(
        self,
        template: str,
        image: ImageFile,
        progress: Progress,
        copying: Copying = AS_IT_COMES,
    ) -> Outcome[Origin]:
        """See :meth:`StorageDriver.import_image`. Copies don't need the image that is replaced."""
        with hold(self._locks, [f"{self._group}/{image_name(template)}"]):
            there = self._read()
            held = there.get(image_name(template))
            if held is not None and held.image is None:
                raise self._foreign(held.name)
            if held is not None and held.image is not None and held.image.digest == image.digest:
                return Outcome(key=template, value=held.image.origin(self.name), changed=False)
            if held is not None:
                self._check_removable(there, held)
            record = ImageRecord(
                template=template, digest=image.digest, size=image.size, allocated=image.size
            )
            self._import(record, image, progress, self.copying(copying), held)
        return Outcome(key=template, value=record.origin(self.name))

    def _import(
        self,
        record: ImageRecord,
        image: ImageFile,
        progress: Progress,
        copying: Copying,
        held: Logical | None,
    ) -> None:
        """Fill a volume under a name of its own, then give it the template's."""
        draft = checked(f"image-draft.{record.template}", f"template {record.template}")
        self._drop(draft)
        made = self._lvcreate(draft, record.size, record.to_mapping())
        try:
            for error in self._on([draft]).values():
                if error is not None:
                    raise error
            target = Target(path=self._path(draft), size=made.size, progress=progress)
            folder = self.context.host.state / "import"
            with (
                opened_image(image, folder, self.context.runner) as source,
                translated(target.path),
            ):
                with target.open():
                    pace = Pace(copying.bandwidth)
                    fan_out(source, [target], pace=pace, verify=copying.verify)
                if target.error is not None:
                    raise target.error
            self._off([draft])
            self._lvm.run("lvchange", "-pr", "--deltag", COPYING, self._full(draft))
            if held is not None:
                self._check_removable(self._read(), held)
                for error in self._remove([held]).values():
                    raise error
            self._lvm.run("lvrename", self._group, draft, image_name(record.template))
        except BaseException:
            with contextlib.suppress(VmclonerError):
                self._drop(draft)
            raise

    def _drop(self, draft: str) -> None:
        """Remove what an import left.

        :raises Conflict: it isn't ours, or others' volumes would go with it.
        :raises WrongState: another import is at it.
        """
        there = self._read()
        logical = there.get(draft)
        if logical is None:
            return
        if ImageRecord.from_mapping(logical.values) is None:
            raise self._foreign(draft)
        self._check_removable(there, logical)
        for error in self._remove([logical]).values():
            raise error

    # --- space ----------------------------------------------------------------------------------

    def _figures(self) -> dict[str, int]:
        fields = "vg_size,vg_free,vg_extent_size,vg_mda_free"
        try:
            [row] = self._lvm.report("vgs", fields, self._group)
        except (HostCommandError, ValueError):
            self._lvm.facts()
            raise
        return {key: int(row[key]) for key in fields.split(",")}

    def capacity(self) -> Capacity:
        """See :meth:`StorageDriver.capacity`."""
        figures = self._figures()
        volumes = figures["vg_mda_free"] // _VOLUME_TEXT
        warnings: tuple[str, ...] = ()
        if volumes < _FEW:
            warnings = (f"the group's metadata area has room for {volumes} more volumes only",)
        return Capacity(
            total=figures["vg_size"],
            free=figures["vg_free"],
            volumes_free=volumes,
            warnings=warnings,
        )

    def need(self, request: CloneRequest, count: int) -> int:
        """See :meth:`StorageDriver.need`."""
        size = request.size or (request.origin.size if request.origin is not None else 0)
        return count * self._whole(size)

    def _whole(self, size: int) -> int:
        """Return a size in whole extents."""
        if not self._extent:
            self._extent = self._figures()["vg_extent_size"]
        return size + -size % self._extent
