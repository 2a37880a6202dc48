"""Whose a resource is: what every volume, domain and seed of vmcloner carries."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from vmcloner_core.errors import InvalidRequest
from vmcloner_core.names import check_fleet, check_template, clone_name

LABEL_VERSION = "1"


@attrs.frozen(kw_only=True)
class Labels:
    """Whose a resource is: carried by every volume, domain and seed from the moment it exists.

    ``created`` and ``expires`` are UTC in ISO 8601, seconds precision. ``storage`` and
    ``hypervisor`` name the backends (as settings name them) that hold the clone's parts. ``boot``
    names the boot provider that is asked at each start, None where the definition says it all.
    ``state`` is the id of the state folder that keeps the clone's record; None on clones of before
    state folders had one, which all of them share.
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

    @property
    def clone(self) -> str:
        """Name of the clone that these labels belong to."""
        return clone_name(self.fleet, self.index)

    def same_clone(self, other: Labels) -> bool:
        """Tell whether both label parts of one clone: same fleet, index and template.

        Run, owner and times may differ: the same command run again makes the same clone.
        """
        return (self.fleet, self.index, self.template) == (other.fleet, other.index, other.template)

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
        """Return the labels that ``values`` spell, or None where they aren't vmcloner's.

        What a newer version may have added is ignored; what is malformed is not ours.
        """
        known = {field.name for field in attrs.fields(cls)}
        wanted: dict[str, object] = {k: v for k, v in values.items() if k in known}
        try:
            if values.get("version") != LABEL_VERSION:
                return None
            wanted["index"] = int(values["index"])
            labels = cls(**wanted)  # type: ignore[arg-type]
            labels.clone  # noqa: B018 - raises where fleet and index make no name
        except (KeyError, TypeError, ValueError, InvalidRequest):
            return None
        return labels
