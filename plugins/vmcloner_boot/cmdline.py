"""Kernel command lines: a template's with a clone's values in it, and what fits on one."""

from __future__ import annotations

from collections.abc import Mapping

from vmcloner_core.errors import InvalidRequest
from vmcloner_core.model import MAX_CMDLINE, Labels, Nic, Template


def fill_cmdline(
    template: Template,
    labels: Labels,
    nics: tuple[Nic, ...],
    values: Mapping[str, str | int],
) -> str:
    """Return a template's ``kernel.cmdline`` for a clone, "" where it has none.

    :raises InvalidRequest: a placeholder isn't known, or it is no command line.
    """
    from vmcloner_core.placeholders import clone_values, fill  # brings jinja2 with it

    what = f"template {template.name}: kernel.cmdline"
    text = template.kernel.cmdline if template.kernel is not None else ""
    return check_cmdline(fill(text, clone_values(labels, nics, values), what=what), what, labels)


def check_cmdline(text: str, what: str, labels: Labels) -> str:
    """Return a clone's command line.

    :raises InvalidRequest: it has characters that can't be printed, or is too long; says of
        ``what``.
    """
    if not text.isprintable():  # control characters, and bytes that are no UTF-8
        raise InvalidRequest(f"{what}: has a line break or another control character")
    size = len(text.encode())
    if size > MAX_CMDLINE:
        raise InvalidRequest(f"{what}: {size} bytes for {labels.clone}, of {MAX_CMDLINE} at most")
    return text


def example(template: Template) -> tuple[Labels, tuple[Nic, ...], Mapping[str, str | int]]:
    """Return labels, cards and values as a clone of the template has them, to try its texts on."""
    labels = Labels(
        fleet="check",
        index=1,
        template=template.name,
        run="check",
        owner="check",
        created="1970-01-01T00:00:00Z",
        storage="check",
        hypervisor="check",
    )
    nics = tuple(
        Nic(spec=spec, mac=f"52:54:00:00:00:{number & 0xFF:02x}")
        for number, spec in enumerate(template.nics)
    )
    return labels, nics, template.values
