"""What pools may note of a template's image, as strings."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from vmcloner_core.model import Origin

VERSION = "1"


@attrs.frozen(kw_only=True)
class ImageRecord:
    """A template's image: the digest of its source, its bytes, and its bytes that hold data."""

    template: str
    digest: str
    size: int
    allocated: int

    def to_mapping(self) -> dict[str, str]:
        """Return it as strings."""
        values = {key: str(value) for key, value in attrs.asdict(self).items()}
        return {"version": VERSION, "kind": "image", **values}

    @classmethod
    def from_mapping(cls, values: Mapping[str, str]) -> ImageRecord | None:
        """Return the record in ``values``, None if there is no record of an image."""
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
        return Origin(pool=pool, **attrs.asdict(self))
