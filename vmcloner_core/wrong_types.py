"""Whether what is inside a plugin's value is of the types that its class declares."""

from __future__ import annotations

import functools
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin

import attrs


def wrong_type(value: object, kind: type) -> str | None:
    """Return what is wrong inside a value: ``size is a str``; None if nothing is.

    :param kind: its class. Nothing can be told of one that isn't attrs'.
    """
    if not attrs.has(kind):
        return None
    for name, hint in _hints(kind).items():
        found = getattr(value, name)
        if not _fits(found, hint):
            return f"{name} is a {type(found).__name__}"
        inside = wrong_type(found, hint) if isinstance(hint, type) else None
        if inside is not None:
            return f"{name}.{inside}"
    return None


@functools.cache
def _hints(kind: type[attrs.AttrsInstance]) -> Mapping[str, Any]:
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in attrs.fields(kind)}


def _fits(value: object, hint: Any) -> bool:
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, each) for each in args)
    if origin is Literal:
        return isinstance(value, str) and value in args
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(each, args[0]) for each in value)
    if hint is float:
        return isinstance(value, int | float)
    plain = origin or hint
    return isinstance(value, plain) if isinstance(plain, type) else True
