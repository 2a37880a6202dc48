"""The records of a pool's files, kept as labels: of clones' disks, their snapshots, of images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, cast

import attrs

from vmcloner_core.model import Labels, SnapshotLabels
from vmcloner_core.names import split_volume

VERSION = "1"


@attrs.frozen(kw_only=True)
class DiskRecord:
    """A clone's disk: the clone's labels, the disk's format and its virtual size in bytes.

    A qcow2 disk is an overlay over its template's image; a raw one needs no other file.

    :param disk: its number; None in records of earlier versions.
    :param full: it is a copy of its template's image; a reset copies again.
    :param complete: False during its copy, and after a copy that was interrupted.
    """

    labels: Labels
    format: Literal["raw", "qcow2"]
    size: int
    disk: int | None = None
    full: bool = False
    complete: bool = True

    def to_mapping(self) -> dict[str, str]:
        """Return it as strings."""
        values = {**self.labels.to_mapping(), "format": self.format, "size": str(self.size)}
        values |= {"disk": str(self.disk)} if self.disk is not None else {}
        values |= {"mode": "full"} if self.full else {}
        return values if self.complete else {**values, "complete": "no"}

    @classmethod
    def from_mapping(cls, values: Mapping[str, str]) -> DiskRecord | None:
        """Return the record in ``values``, None if there is no record of a disk."""
        labels = Labels.from_mapping(values)
        kind, size = values.get("format"), _number(values.get("size"))
        if labels is None or kind not in ("raw", "qcow2") or size is None:
            return None
        return cls(
            labels=labels,
            format=cast(Literal["raw", "qcow2"], kind),
            size=size,
            disk=_number(values.get("disk")),
            full=values.get("mode") == "full",
            complete=values.get("complete") != "no",
        )

    def is_of(self, name: str) -> bool:
        """Tell whether a file of that name is this disk, and not a copy that a user made."""
        named = split_volume(name)
        return self.labels.has_volume(name) and (named is None or self.disk in (None, named[1]))


@attrs.frozen(kw_only=True)
class SnapshotRecord:
    """A snapshot of a clone's disk: its labels, and the record that the disk had."""

    labels: SnapshotLabels
    disk: DiskRecord

    def to_mapping(self) -> dict[str, str]:
        """Return it as strings."""
        return {**self.disk.to_mapping(), **self.labels.to_mapping()}

    @classmethod
    def from_mapping(cls, values: Mapping[str, str]) -> SnapshotRecord | None:
        """Return the record in ``values``, None if there is no record of a snapshot."""
        labels, disk = SnapshotLabels.from_mapping(values), DiskRecord.from_mapping(values)
        return cls(labels=labels, disk=disk) if labels is not None and disk is not None else None


@attrs.frozen(kw_only=True)
class ImageRecord:
    """A template's image: the digest of its source, its bytes, its extents after the import."""

    template: str
    digest: str
    size: int
    extents: int | None = None

    def to_mapping(self) -> dict[str, str]:
        """Return it as strings."""
        values = attrs.asdict(self, filter=lambda _attribute, value: value is not None)
        return {"version": VERSION, **{key: str(value) for key, value in values.items()}}

    @classmethod
    def from_mapping(cls, values: Mapping[str, str]) -> ImageRecord | None:
        """Return the record in ``values``, None if there is no record of an image."""
        template, digest = values.get("template"), values.get("digest")
        size = _number(values.get("size"))
        if values.get("version") != VERSION or not template or not digest or size is None:
            return None
        extents = _number(values.get("extents"))
        return cls(template=template, digest=digest, size=size, extents=extents)


def _number(text: str | None) -> int | None:
    """Return a number, None if ``text`` is not a plain one."""
    return int(text) if text and len(text) < 20 and text.isascii() and text.isdecimal() else None
