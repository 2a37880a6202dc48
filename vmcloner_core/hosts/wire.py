"""Values as JSON, between a controller and the engines beside its hosts.

A host's answers are checked when they are read: types, ranges and names by the values' own rules.
No answer can name a class or a function, as a pickle can. Errors keep their class, message and
hint.
"""

from __future__ import annotations

import base64
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

from vmcloner_core import errors
from vmcloner_core.errors import BackendError, PartialFailure, VmclonerError, shown

if TYPE_CHECKING:
    from cattrs.preconf.json import JsonConverter

T = TypeVar("T")
MAX_MESSAGE = 256 * 1024**2
"""Bytes of one value: 100,000 clones are about 60 MiB."""
MAX_FAILURES = 100_000
KINDS = {
    kind.__name__: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, VmclonerError)
}


def dump(value: object) -> str:
    """Return a value as JSON text."""
    return json.dumps(_converter().unstructure(value), separators=(",", ":"))


def load_each(text: str, kinds: Mapping[str, Any], *, whose: str) -> dict[str, Any]:
    """Return the values that JSON text holds by name, each of the type of its name.

    :raises BackendError: as :func:`load`; also for a name without a type.
    """
    given = load(text, dict[str, Any], whose=whose)
    unknown = sorted(map(str, given.keys() - kinds.keys()))
    if unknown:
        raise BackendError(
            f"{whose}: no such argument: {shown(unknown[0])}",
            hint="both sides need the same version of vmcloner",
        )
    return {name: _structured(value, kinds[name], whose) for name, value in given.items()}


def load(text: str, kind: type[T], *, whose: str) -> T:
    """Return the value of a type that JSON text holds.

    :param whose: who sent it, for messages.
    :raises BackendError: it is too large, or does not hold such a value.
    """
    if len(text) > MAX_MESSAGE:
        raise BackendError(f"{whose}: an answer of more than {MAX_MESSAGE} bytes")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BackendError(f"{whose}: its answer is no JSON") from error
    return _structured(value, kind, whose)


def _structured(value: object, kind: type[T], whose: str) -> T:
    try:
        return _converter().structure(value, kind)
    except Exception as error:  # whatever a hostile answer makes the values' own rules raise
        name = getattr(kind, "__name__", str(kind))
        raise BackendError(
            f"{whose}: its answer is no {name}: {shown(type(error).__name__)}",
            hint="both sides need the same version of vmcloner",
        ) from error


@functools.cache
def _converter() -> JsonConverter:
    from cattrs.preconf.json import make_converter

    converter = make_converter()
    for kind in (Path, UUID):
        converter.register_unstructure_hook(kind, str)
    converter.register_structure_hook(Path, lambda value, _: Path(_text(value)))
    converter.register_structure_hook(UUID, lambda value, _: UUID(_text(value)))
    converter.register_structure_hook_func(_is_object, lambda value, _: _object(value))
    converter.register_structure_hook(type(None), lambda value, _: _nothing(value))
    converter.register_unstructure_hook(bytes, lambda value: base64.b64encode(value).decode())
    converter.register_structure_hook(
        bytes, lambda value, _: base64.b64decode(_text(value), validate=True)
    )
    converter.register_unstructure_hook_func(_is_error, _from_error)
    converter.register_structure_hook_func(_is_error, lambda value, _: _to_error(value))
    return converter


def _text(value: object) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise ValueError("not a text")
    return value


def _is_object(kind: Any) -> bool:
    return bool(kind == dict[str, Any])


def _object(value: object) -> dict[str, Any]:
    """Return a JSON object as it is; cattrs would take other things for one too."""
    if not isinstance(value, dict):
        raise TypeError("not an object")
    return value


def _nothing(value: object) -> None:
    if value is not None:
        raise ValueError("not null")


def _shown(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("not a text")
    return shown(value)


def _is_error(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, VmclonerError)


def _from_error(error: VmclonerError) -> dict[str, Any]:
    known = next(kind for kind in type(error).__mro__ if kind.__name__ in KINDS)
    said: dict[str, Any] = {"kind": known.__name__, "message": error.message, "hint": error.hint}
    if isinstance(error, PartialFailure):
        said["failures"] = [(name, _from_error(inner)) for name, inner in error.failures]
    return said


def _to_error(said: Any) -> VmclonerError:
    hint = said.get("hint")
    message = _shown(said["message"])
    kind = KINDS[said["kind"]]
    more = {"hint": _shown(hint) if hint is not None else None}
    if issubclass(kind, PartialFailure):
        inner = [
            (_shown(name), _to_error(each))
            for name, each in said.get("failures", ())[:MAX_FAILURES]
            if each.get("kind") in KINDS and "failures" not in each
        ]
        return kind(message, failures=inner, **more)
    return kind(message, **more)
