"""The records of images, kept as their metadata: of a clone's disk, of a template's image."""

from __future__ import annotations

import json
from collections.abc import Mapping

import attrs

from vmcloner_core.drivers import ImageRecord
from vmcloner_core.model import Labels

KEY = "vmcloner"
"""The key of an image's metadata that has the record."""
ORIGIN = "template."
"""How the names of templates' images begin; names of clones contain no dot."""


def origin_name(template: str) -> str:
    """Return the name of a template's image in the pool."""
    return f"{ORIGIN}{template}"


@attrs.frozen(kw_only=True)
class DiskRecord:
    """A clone's disk: the clone's labels, and the disk's number."""

    labels: Labels
    disk: int

    def to_text(self) -> str:
        """Return it as text."""
        return _to_text({**self.labels.to_mapping(), "kind": "disk", "disk": str(self.disk)})

    @classmethod
    def from_bytes(cls, content: bytes) -> DiskRecord | None:
        """Return the record in an image's metadata, None if there is no record of a disk."""
        values = _from_bytes(content)
        labels, disk = Labels.from_mapping(values), values.get("disk", "")
        if labels is None or values.get("kind") != "disk" or not disk.isdecimal():
            return None
        return cls(labels=labels, disk=int(disk[:4]))

    def is_of(self, name: str) -> bool:
        """Tell whether an image of that name is this disk, and not a copy that a user made."""
        return self.labels.has_volume(name) and name == f"{self.labels.clone}-disk{self.disk}"


def image_text(record: ImageRecord) -> str:
    """Return the record of a template's image as text."""
    return _to_text(record.to_mapping())


def image_in(content: bytes) -> ImageRecord | None:
    """Return the record in an image's metadata, None if there is no record of an image."""
    return ImageRecord.from_mapping(_from_bytes(content))


def _to_text(values: Mapping[str, str]) -> str:
    return json.dumps(values, separators=(",", ":"))


def _from_bytes(content: bytes) -> dict[str, str]:
    """Return what is written in metadata, which anybody with access to the pool can write."""
    try:
        values = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(values, dict):
        return {}
    return {key: value for key, value in values.items() if isinstance(value, str)}
