"""Whether what is inside a plugin's value is of the types that its class declares."""

from __future__ import annotations

import functools
import types
import typing
from collections.abc import Callable
from typing import Any, Literal, Union, get_args, get_origin

import attrs


def wrong_type(value: object, kind: type) -> str | None:
    """Return what is wrong inside a value: ``size is a str``; None if nothing is.

    :param kind: its class. Nothing can be told of one that isn't attrs'.
    """
    for name, fits, inner in _fields(kind):
        found = getattr(value, name)
        if not fits(found):
            return f"{name} is a {type(found).__name__}"
        inside = wrong_type(found, inner) if inner is not None else None
        if inside is not None:
            return f"{name}.{inside}"
    return None


Fits = Callable[[object], bool]


@functools.cache  # what thousands of members yield is of a few classes
def _fields(kind: type) -> tuple[tuple[str, Fits, type | None], ...]:
    """Return each field of an attrs class: its name, what checks it, its own class if it is one."""
    if not attrs.has(kind):
        return ()
    hints = typing.get_type_hints(kind)
    found = [(field.name, hints[field.name]) for field in attrs.fields(kind)]
    return tuple(
        (name, _fits(hint), hint if isinstance(hint, type) else None) for name, hint in found
    )


def _fits(hint: Any) -> Fits:
    """Return what tells whether a value is of a type."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        each = [_fits(arg) for arg in args]
        return lambda value: any(fits(value) for fits in each)
    if origin is Literal:
        return lambda value: isinstance(value, str) and value in args
    if origin is tuple:
        member = _fits(args[0])
        return lambda value: isinstance(value, tuple) and all(map(member, value))
    if hint is float:
        return lambda value: isinstance(value, int | float)
    plain = origin or hint
    if not isinstance(plain, type):
        return lambda _value: True
    return lambda value: isinstance(value, plain)
