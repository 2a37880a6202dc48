"""The records of images, kept as their metadata: of a clone's disk, of a template's image."""

from __future__ import annotations

import json
from collections.abc import Mapping

import attrs

from vmcloner_core.model import Labels, Origin

KEY = "vmcloner"
"""The key of an image's metadata that has the record."""
VERSION = "1"


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


@attrs.frozen(kw_only=True)
class ImageRecord:
    """A template's image: the digest of its source, its bytes, and its bytes that hold data."""

    template: str
    digest: str
    size: int
    allocated: int

    def to_text(self) -> str:
        """Return it as text."""
        values = {key: str(value) for key, value in attrs.asdict(self).items()}
        return _to_text({"version": VERSION, "kind": "image", **values})

    @classmethod
    def from_bytes(cls, content: bytes) -> ImageRecord | None:
        """Return the record in an image's metadata, None if there is no record of an image."""
        values = _from_bytes(content)
        if (values.get("version"), values.get("kind")) != (VERSION, "image"):
            return None
        try:
            return cls(
                template=values["template"],
                digest=values["digest"],
                size=int(values["size"]),
                allocated=int(values["allocated"]),
            )
        except (KeyError, ValueError):
            return None

    def origin(self, pool: str) -> Origin:
        """Return it as the core knows it."""
        return Origin(
            template=self.template,
            pool=pool,
            size=self.size,
            allocated=self.allocated,
            digest=self.digest,
        )


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
