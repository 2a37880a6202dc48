"""Labels: every volume, domain and seed of vmcloner carries them."""

from __future__ import annotations

import re
from collections.abc import Mapping

import attrs

from vmcloner_core.errors import InvalidRequest
from vmcloner_core.names import check_fleet, check_template, clone_name, split_volume

LABEL_VERSION = "1"
_WARM = "warm-"
_KEY = re.compile("[0-9a-f]{20}")


def warm_image(key: str) -> str:
    """Return the name of a warm origin's disk among the images of its pool."""
    return f"{_WARM}{key}"


def warm_key(image: str) -> str | None:
    """Return the key of the warm origin that an image is the disk of; None for a template's."""
    key = image.removeprefix(_WARM)
    return key if key != image and _KEY.fullmatch(key) else None


def _check_warm(key: str | None) -> None:
    if key is not None and not _KEY.fullmatch(key):
        raise InvalidRequest(f"not the key of a warm origin: {key!r}")


@attrs.frozen(kw_only=True)
class Labels:
    """To whom a resource belongs. Every volume, domain and seed has labels from its creation.

    ``created`` and ``expires`` are UTC in ISO 8601, seconds precision. ``storage`` and
    ``hypervisor`` name the backends (as in the settings) that hold the clone's parts. ``boot``
    names the boot provider that is called at each start, None if the domain's definition is enough.
    ``state`` is the id of the state folder with the clone's record; None for clones created before
    state folders had ids, which belong to all of them. ``lab`` names the lab that the fleet is part
    of, None for fleets of no lab. ``warm`` is the key of the warm origin that the clone was forked
    from, whose disk is below its own; None if it is made from its template's image.
    """

    fleet: str = attrs.field(validator=lambda _i, _a, v: check_fleet(v) and None)
    index: int
    template: str = attrs.field(validator=lambda _i, _a, v: check_template(v) and None)
    run: str
    owner: str
    created: str
    storage: str
    hypervisor: str
    expires: str | None = None
    boot: str | None = None
    state: str | None = None
    lab: str | None = None
    warm: str | None = attrs.field(default=None, validator=lambda _i, _a, v: _check_warm(v))

    @property
    def image(self) -> str:
        """Name of the image in its pool that the clone's first disk is made from."""
        return self.template if self.warm is None else warm_image(self.warm)

    @property
    def clone(self) -> str:
        """Name of the clone that these labels describe."""
        return clone_name(self.fleet, self.index)

    def same_clone(self, other: Labels) -> bool:
        """Return whether both label parts of the same clone: same fleet, index and template.

        Run, owner and times may differ: repeating a command creates the same clone.
        """
        return (self.fleet, self.index, self.template) == (other.fleet, other.index, other.template)

    def has_volume(self, name: str) -> bool:
        """Return whether a volume's name is that of a disk of this clone.

        A volume with these labels and another name is a copy that a user made.
        """
        found = split_volume(name)
        return found is not None and found[0] == self.clone

    def to_mapping(self) -> dict[str, str]:
        """Return the labels as short strings, for tags, attributes or metadata."""
        values = {
            field.name: str(value)
            for field in attrs.fields(Labels)
            if (value := getattr(self, field.name)) is not None
        }
        return {"version": LABEL_VERSION, **values}

    @classmethod
    def from_mapping(cls, values: Mapping[str, str]) -> Labels | None:
        """Return the labels in ``values``, or None if they are not vmcloner's.

        Keys that a newer version may have added are ignored; malformed labels are not ours.
        """
        known = {field.name for field in attrs.fields(cls)}
        wanted: dict[str, object] = {k: v for k, v in values.items() if k in known}
        try:
            if values.get("version") != LABEL_VERSION:
                return None
            wanted["index"] = int(values["index"])
            labels = cls(**wanted)  # type: ignore[arg-type]
            labels.clone  # noqa: B018 - raises if fleet and index form no valid name
        except (KeyError, TypeError, ValueError, InvalidRequest):
            return None
        return labels
