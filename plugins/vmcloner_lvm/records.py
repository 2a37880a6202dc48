"""The records of volumes, kept as tags: of a clone's volume, of a template's image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vmcloner_core.drivers import ImageRecord
from vmcloner_core.errors import Conflict, InvalidRequest
from vmcloner_core.model import Labels, Volume
from vmcloner_lvm import tags
from vmcloner_lvm.naming import origin_name
from vmcloner_lvm.volumegroup import ThinVolume, VolumeGroup


def image_of(volume: ThinVolume) -> ImageRecord | None:
    """Return the record of a template's image, None if the volume is not one."""
    values = tags.decode(volume.tags)
    record = ImageRecord.from_mapping(values) if values is not None else None
    if record is None:
        return None
    try:
        return record if volume.name == origin_name(record.template) else None
    except InvalidRequest:
        return None


def labels_of(volume: ThinVolume) -> Labels | None:
    """Return the labels of a clone's volume, None if the volume is not one."""
    values = tags.decode(volume.tags)
    if values is None or tags.DRAFT in volume.tags:
        return None
    labels = Labels.from_mapping(values)
    return labels if labels is not None and labels.has_volume(volume.name) else None


def image(group: VolumeGroup, pool: str, template: str) -> tuple[ThinVolume, ImageRecord] | None:
    """Return a template's image in a pool, None if there is none.

    :raises Conflict: the volume of that name is not ours.
    """
    name = origin_name(template)
    if name not in group.logical:
        return None
    volume = group.thin.get(name)
    record = image_of(volume) if volume is not None and volume.pool == pool else None
    if volume is None or record is None:
        raise foreign(group, pool, name)
    return volume, record


def disk(group: VolumeGroup, pool: str, name: str, labels: Labels) -> ThinVolume | None:
    """Return a clone's volume, None if there is none of that name.

    :raises Conflict: the volume of that name is not ours, or belongs to another clone.
    """
    if name not in group.logical:
        return None
    volume = group.thin.get(name)
    found = labels_of(volume) if volume is not None and volume.pool == pool else None
    if volume is None or found is None:
        raise foreign(group, pool, name)
    if not found.same_clone(labels):
        raise other_clone(group.name, name, found, labels)
    return volume


def foreign(group: VolumeGroup, pool: str, name: str) -> Conflict:
    """Return the error for a name of ours that a volume outside this pool has."""
    volume = group.thin.get(name)
    if volume is not None and volume.pool != pool and tags.decode(volume.tags) is not None:
        return Conflict(
            f"volume {group.name}/{name} belongs to pool {group.name}/{volume.pool}",
            hint="names are unique in a group: use that pool, or one in another group",
        )
    return not_ours(group.name, name)


def not_ours(group: str, name: str) -> Conflict:
    """Return the error for a name of ours that a volume without our labels has."""
    return Conflict(
        f"volume {group}/{name} exists and is not vmcloner's",
        hint="it is not touched: rename it (lvrename), or choose another name",
    )


def other_clone(group: str, name: str, found: Labels, wanted: Labels) -> Conflict:
    """Return the error for a name of ours that a volume of another clone has."""
    return Conflict(
        f"volume {group}/{name} belongs to clone {found.clone} of template {found.template}, "
        f"not {wanted.template}",
        hint="delete that clone first, or choose another name",
    )


def check_removable(group: str, name: str, dependents: Sequence[str]) -> None:
    """Check that a volume has no dependents; they are not ours, as none of our volumes is one.

    :param dependents: the names of the volumes that LVM would remove with it.
    :raises Conflict: there are some.
    """
    if dependents:
        those = " ".join(f"{group}/{each}" for each in dependents)
        raise Conflict(
            f"volume {group}/{name} has dependents that would be removed with it: {those}",
            hint=f"if they are not needed: lvremove {those}",
        )


def as_volume(group: str, volume: ThinVolume, labels: Labels, pool: str) -> Volume:
    """Return a clone's volume as the core knows it."""
    return Volume(
        name=volume.name,
        pool=pool,
        labels=labels,
        path=Path(f"/dev/{group}/{volume.name}"),
        size=volume.size,
        format="raw",
        kind="block",
    )
