"""Words that name members of enumerations."""

from __future__ import annotations

import enum
from typing import TypeVar

from vmcloner_core.errors import InvalidRequest, shown

E = TypeVar("E", bound=enum.Enum)


def choice(kind: type[E], name: str, value: E | str) -> E:
    """Return a member of an enumeration, which may be given by its value.

    :param name: of what is chosen, for the message.
    :raises InvalidRequest: there is no such member.
    """
    try:
        return kind(value)
    except ValueError:
        known = ", ".join(str(each.value) for each in kind)
        text = shown(repr(value), 80)
        raise InvalidRequest(f"{name} {text} is unknown", hint=f"one of: {known}") from None
