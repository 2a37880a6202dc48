"""Work out a clone's specification: the model's ``CloneSpec``."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence

from vmcloner_core.model import CloneSpec, Labels, Nic, Template, Values
from vmcloner_core.placeholders import clone_values, fill
from vmcloner_core.plan import Readiness
from vmcloner_core.values_file import check_value


def clone_spec(
    template: Template,
    labels: Labels,
    clone: uuid.UUID,
    macs: Sequence[str],
    values: Values | None = None,
) -> CloneSpec:
    """Return a clone's specification, without an identity.

    :param values: its own if they are known; None for the template's.
    :raises InvalidRequest: a placeholder in the template's values can't be filled in.
    """
    nics = tuple(Nic(spec=s, mac=m) for s, m in zip(template.nics, macs, strict=False))
    return CloneSpec(
        labels=labels,
        template=template,
        uuid=clone,
        nics=nics,
        values=own_values(template, labels, nics) if values is None else values,
    )


def own_values(template: Template, labels: Labels, nics: tuple[Nic, ...]) -> dict[str, str | int]:
    """Return the values that a template gives a clone, with their placeholders filled in.

    :raises InvalidRequest: one of them can't be.
    """
    where = f"template {template.name}: values"
    known: Mapping[str, object] = clone_values(labels, nics) if template.values else {}
    filled = {
        key: fill(value, known, what=f"{where}.{key}") if isinstance(value, str) else value
        for key, value in template.values.items()
    }
    return {key: check_value(key, value, where) for key, value in filled.items()}


def filled(wait: Readiness, spec: CloneSpec) -> Readiness:
    """Return a readiness with a clone's own values filled in.

    :raises InvalidRequest: one isn't known, or the result is not a regular expression.
    """
    return filled_in(wait, clone_values(spec.labels, spec.nics, spec.values))


def filled_in(wait: Readiness, values: Mapping[str, object]) -> Readiness:
    """Return a readiness with its placeholders replaced by ``values``.

    :raises InvalidRequest: one isn't known, or the result is not a regular expression.
    """
    if not wait.placeholders:
        return wait
    argument = fill(wait.argument, values, what="ready")
    return Readiness.parse(f"{wait.kind}:{argument}", timeout=wait.timeout)
