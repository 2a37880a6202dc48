"""A volume group with thick logical volumes: what is in it, and the commands that change it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs

from vmcloner_core.copying import Target
from vmcloner_core.drivers import ImageRecord
from vmcloner_core.errors import HostCommandError, NotEnoughResources, VmclonerError
from vmcloner_core.model import Labels, Origin
from vmcloner_core.os_errors import translated
from vmcloner_core.stored_ids import KnownPool, id_of
from vmcloner_core.units import format_size
from vmcloner_lvm import tags
from vmcloner_lvm.activation import activate, combined, deactivate, refresh
from vmcloner_lvm.commands import Lvm
from vmcloner_lvm.devmapper import DeviceMapper
from vmcloner_lvm.naming import checked
from vmcloner_lvm.records import (
    check_removable,
    not_ours,
    other_clone,
)

COPYING = "vmcloner-copying"
"""Tag of a volume that is incomplete."""
GROWING = "vmcloner-growing-from."
"""Prefix of the tag of a volume whose bytes from there on are not zeros yet."""
_THICK = {"linear", "striped", "raid1", "mirror"}
_FEW = 100
_FIELDS = "vg_uuid,lv_name,lv_uuid,lv_size,lv_tags,segtype,origin"
_FIGURES = "vg_size,vg_free,vg_extent_size,vg_mda_free"


@attrs.frozen(kw_only=True)
class LogicalVolume:
    """A logical volume of the group, ours or not.

    :param size: bytes. :param thick: it has its own blocks.
    :param origin: the volume that it is a snapshot of, or has as its external origin; or "".
    """

    name: str
    uuid: str
    size: int
    tags: tuple[str, ...]
    thick: bool
    origin: str = ""

    @property
    def values(self) -> dict[str, str]:
        """Our labels on it, if it is thick."""
        return (tags.decode(self.tags) or {}) if self.thick else {}

    @property
    def complete(self) -> bool:
        """Whether its bytes are those that it is meant to have."""
        return COPYING not in self.tags and self.grows_from is None

    @property
    def grows_from(self) -> int | None:
        """The size that it had before it was to be enlarged, None if that has ended."""
        found = [tag.removeprefix(GROWING) for tag in self.tags if tag.startswith(GROWING)]
        return min((int(size) for size in found if size.isdecimal()), default=None)

    @property
    def labels(self) -> Labels | None:
        """The labels of the clone whose disk it is, None if it is not a clone's disk."""
        labels = Labels.from_mapping(self.values)
        return labels if labels is not None and labels.has_volume(self.name) else None

    @property
    def image(self) -> ImageRecord | None:
        """The record of the template whose image it is, None if it is not an imported image."""
        record = ImageRecord.from_mapping(self.values)
        return record if record and self.name == image_name(record.template) else None


Contents = Mapping[str, LogicalVolume]
"""The logical volumes of a group by name."""


def image_name(template: str) -> str:
    """Return the name of a template's volume; those of ``lvm-thin`` are ``template.NAME``."""
    return checked(f"image.{template}", f"template {template}")


class ThickGroup:
    """A volume group. Thread-safe.

    :param known: remembers which group it is.
    """

    def __init__(self, lvm: Lvm, mapper: DeviceMapper, known: KnownPool) -> None:
        self.lvm = lvm
        self._known = known
        self._mapper = mapper
        self.name = lvm.group
        self.activate = combined(activate, lvm, mapper)
        self.deactivate = combined(deactivate, lvm, mapper)
        self._extent = 0
        self._remembered = False

    def path(self, name: str) -> Path:
        """Return the device of a volume."""
        return Path(f"/dev/{self.name}/{name}")

    # --- reading --------------------------------------------------------------------------------

    def read(self) -> Contents:
        """Return the group's logical volumes.

        :raises NotFound: there is no such group.
        :raises BackendError: it is not the group that was used before.
        """
        try:
            rows = self.lvm.report("lvs", _FIELDS, self.name)
        except HostCommandError:
            self.lvm.facts()  # raises NotFound if there is no such group
            raise
        self._known.check(f"volume group {self.name}", self._identity(rows))
        return {
            str(row["lv_name"]): LogicalVolume(
                name=str(row["lv_name"]),
                uuid=str(row["lv_uuid"]),
                size=int(row["lv_size"]),
                tags=tuple(filter(None, str(row["lv_tags"]).split(","))),
                thick=str(row["segtype"]) in _THICK,
                origin=str(row["origin"]),
            )
            for row in rows
        }

    def _identity(self, rows: Sequence[Mapping[str, object]]) -> str:
        """Return the group's id: no other group of its name has it.

        :param rows: its logical volumes, if they are known.
        """
        if not rows:
            rows = self.lvm.report("vgs", "vg_uuid", self.name)
        return id_of(str(rows[0]["vg_uuid"]))

    def figures(self) -> Mapping[str, int]:
        """Return the group's size, free bytes, extent size and free metadata, by LVM's names.

        :raises NotFound: there is no such group.
        """
        try:
            [row] = self.lvm.report("vgs", _FIGURES, self.name)
        except (HostCommandError, ValueError):
            self.lvm.facts()
            raise
        return {key: int(row[key]) for key in _FIGURES.split(",")}

    def whole(self, size: int) -> int:
        """Return a size rounded up to whole extents."""
        if not self._extent:
            self._extent = self.figures()["vg_extent_size"]
        return size + -size % self._extent

    def disk(self, there: Contents, name: str, labels: Labels) -> LogicalVolume | None:
        """Return a clone's volume, None if there is none of that name.

        :raises Conflict: the volume of that name is not ours, or belongs to another clone.
        """
        volume = there.get(name)
        if volume is None:
            return None
        if volume.labels is None:
            raise not_ours(self.name, name)
        if not volume.labels.same_clone(labels):
            raise other_clone(self.name, name, volume.labels, labels)
        return volume

    def image(self, there: Contents, template: str) -> tuple[LogicalVolume, ImageRecord] | None:
        """Return a template's image, None if there is none.

        :raises Conflict: the volume of that name is not ours.
        """
        volume = there.get(image_name(template))
        if volume is None:
            return None
        record = volume.image
        if record is None:
            raise not_ours(self.name, volume.name)
        return volume, record

    def origin(self, there: Contents, origin: Origin) -> ImageRecord:
        """Return the record of an origin's image.

        :raises NotFound: the group has no image of the template.
        :raises WrongState: it has another one than ``origin``.
        """
        found = self.image(there, origin.template)
        return origin.check_held(found[1] if found is not None else None)

    def check_removable(self, there: Contents, volume: LogicalVolume) -> None:
        """Check that no other volume would be removed with this one.

        :raises Conflict: some would.
        """
        dependents = [each.name for each in there.values() if each.origin == volume.name]
        check_removable(self.name, volume.name, dependents)

    # --- changing -------------------------------------------------------------------------------

    def create(self, name: str, size: int, values: Mapping[str, str]) -> LogicalVolume:
        """Make an incomplete, inactive volume with labels. It may hold the bytes of deleted ones.

        LVM makes one volume at a time, and waits longest for udev. So a batch is made inactive,
        and then activated by one command.
        """
        if not self._remembered:
            self._known.remember(self._identity(()))
            self._remembered = True
        marks = (*tags.encode(values), COPYING)
        words = [word for tag in marks for word in ("--addtag", tag)]
        size = self.whole(size)
        # Nothing is wiped, since all bytes are written; a booting host does not activate it.
        options = ("-y", "-Wn", "-Zn", "-an", "-ky", "-n", name)
        self._allocate("lvcreate", name, size, *options, *words, self.name)
        return LogicalVolume(name=name, uuid="", size=size, tags=marks, thick=True)

    def extend(self, name: str, size: int) -> None:
        """Enlarge a volume. The new part may hold the bytes of deleted volumes."""
        self._allocate("lvextend", name, size, "-y", f"{self.name}/{name}")

    def grow(self, volume: LogicalVolume, size: int) -> LogicalVolume:
        """Enlarge a volume that is filled, with zeros; returns it. Call it again after a kill.

        :param size: bytes, not below its own.
        :raises NotEnoughResources: there is no room; the volume has its old size.
        """
        start, full = volume.grows_from, f"{self.name}/{volume.name}"
        if start is None:
            start = volume.size
            self.lvm.run("lvchange", "--addtag", f"{GROWING}{start}", full)
        lacking: NotEnoughResources | None = None
        try:
            if size > volume.size:
                self.extend(volume.name, size)
        except NotEnoughResources as error:
            lacking, size = error, volume.size
        self._zero(volume.name, start, size)
        self.lvm.run("lvchange", "--deltag", f"{GROWING}{start}", full)
        if lacking is not None:
            raise lacking
        tags_left = tuple(tag for tag in volume.tags if not tag.startswith(GROWING))
        return attrs.evolve(volume, size=size, tags=tags_left)

    def _zero(self, name: str, start: int, end: int) -> None:
        """Write zeros to the end of a volume; it is active afterwards if a guest has it open."""
        error = self.activate([name])[name]
        if error is not None:
            raise error
        refresh(self.lvm, self._mapper, name, end)
        try:
            with translated(self.path(name)):
                target = Target(path=self.path(name), size=end)
                with target.open():
                    if start < end:
                        target.zero(start, end)
                    target.flush()
        finally:
            self.deactivate([name])

    def _allocate(self, command: str, name: str, size: int, *words: str) -> None:
        try:
            self.lvm.run(command, "-L", f"{size}b", *words)
        except HostCommandError as error:
            if "insufficient free space" not in error.message.lower():
                raise
            raise NotEnoughResources(
                f"volume {name} needs {format_size(size)}: {error.message}",
                hint="delete clones, or vgextend the group",
            ) from error

    def complete(self, names: Sequence[str], *options: str) -> None:
        """Mark volumes as complete."""
        full = (f"{self.name}/{name}" for name in names)
        self.lvm.run("lvchange", *options, "--deltag", COPYING, *full)

    def remove(self, volumes: Sequence[LogicalVolume]) -> Mapping[str, VmclonerError]:
        """Remove volumes; returns the errors of those that remain, by name."""
        busy = self.deactivate([volume.name for volume in volumes])
        errors = {name: error for name, error in busy.items() if error is not None}
        idle = [volume for volume in volumes if volume.name not in errors]
        for start in range(0, len(idle), _FEW):
            some = idle[start : start + _FEW]
            # By UUID: another process may have given the name to a new volume.
            chosen = " || ".join(f'lv_uuid="{volume.uuid}"' for volume in some)
            try:
                self.lvm.run("lvremove", "-y", "-S", chosen, self.name)
            except HostCommandError as error:
                left = {volume.uuid for volume in self.read().values()}
                errors |= {volume.name: error for volume in some if volume.uuid in left}
        return errors

    def remove_one(self, there: Contents, volume: LogicalVolume) -> None:
        """Remove a volume.

        :raises Conflict: other volumes would be removed with it.
        :raises WrongState: it is in use.
        """
        self.check_removable(there, volume)
        for error in self.remove([volume]).values():
            raise error
