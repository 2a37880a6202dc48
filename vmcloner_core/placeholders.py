"""Placeholders (``{{ name }}``) in a template's texts, rendered for each clone in a sandbox."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from vmcloner_core.errors import InvalidRequest, shown
from vmcloner_core.model import Labels, Nic

if TYPE_CHECKING:
    from jinja2 import Template

    from vmcloner_core.sandbox import Sandbox

MAX_TEXT = 65536
"""Characters of a text, before and after rendering."""


@functools.cache
def _environment() -> Sandbox:
    from jinja2 import StrictUndefined

    from vmcloner_core.sandbox import Sandbox

    return Sandbox(undefined=StrictUndefined, keep_trailing_newline=True)


@functools.lru_cache(maxsize=32)  # all clones of a fleet use the same texts
def _compiled(text: str) -> Template:
    return _environment().from_string(text)


def clone_values(
    labels: Labels, nics: tuple[Nic, ...] = (), values: Mapping[str, object] | None = None
) -> dict[str, object]:
    """Return the placeholders: ``name, fleet, index, template, owner, run, mac, macs`` and others.

    :param values: per-clone values; they cannot override those named above.
    """
    macs = [nic.mac for nic in nics]
    return {
        **(values or {}),
        "name": labels.clone,
        "fleet": labels.fleet,
        "index": labels.index,
        "template": labels.template,
        "owner": labels.owner,
        "run": labels.run,
        "mac": macs[0] if macs else "",
        "macs": macs,
    }


def fill(
    text: str,
    values: Mapping[str, object],
    *,
    what: str,
    escape: Callable[[str], str] | None = None,
) -> str:
    """Return ``text`` with its placeholders replaced.

    :param what: name of the text for messages (``"kernel.cmdline"``).
    :param escape: applied to each string if the text has its own grammar; values are strings,
        integers and lists of strings then.
    :raises InvalidRequest: a placeholder is unknown or cannot be evaluated, a value is none of
        these, the text is too long, or it needs more work than
        :data:`vmcloner_core.sandbox.MAX_WORK`.
    """
    if "{" not in text:
        return text
    from jinja2 import TemplateError

    from vmcloner_core.sandbox import bounded_work

    _check_length(text, what)
    if escape is not None:
        values = {key: _escaped(value, escape, f"{what}: {key}") for key, value in values.items()}
    try:
        with bounded_work():
            filled = _compiled(text).render(values)
    except TemplateError as error:
        raise InvalidRequest(
            f"{what}: {error.message}", hint=f"known placeholders: {', '.join(values)}"
        ) from error
    except Exception as error:  # an expression can raise anything
        reason = str(error) or type(error).__name__
        raise InvalidRequest(f"{what}: {shown(reason)}") from error
    _check_length(filled, what)
    return filled


def _escaped(value: object, escape: Callable[[str], str], what: str) -> object:
    """Return a value with its strings escaped."""
    if isinstance(value, str):
        return escape(value)
    if isinstance(value, int):
        return value
    if isinstance(value, list | tuple) and all(isinstance(member, str) for member in value):
        return [escape(member) for member in value]
    raise InvalidRequest(f"{what}: neither a string nor an integer")


def names_in(text: str) -> frozenset[str]:
    """Return the names of the placeholders in a text; none if it is no valid one."""
    if "{" not in text or len(text) > MAX_TEXT:
        return frozenset()
    from jinja2 import TemplateError, meta

    try:
        return frozenset(meta.find_undeclared_variables(_environment().parse(text)))
    except (TemplateError, RecursionError):
        return frozenset()


def _check_length(text: str, what: str) -> None:
    if len(text) > MAX_TEXT:
        raise InvalidRequest(f"{what}: with placeholders no longer than {MAX_TEXT} characters")
