"""A sandbox for jinja2 templates that bounds their work: no loop, width or number goes on and on.

jinja2's own sandbox keeps a template from the host's objects, not from its memory and time. Here
each operation spends units: one for each character and item that it takes or makes, and for each
turn of a loop. What could make much of little, as a width does, spends before it is done.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jinja2.compiler
from jinja2 import BytecodeCache, TemplateSyntaxError, Undefined, nodes, pass_context
from jinja2.bccache import Bucket
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from vmcloner_core import kept_code
from vmcloner_core.kept_code import KeptCode

MAX_WORK = 1_000_000
"""Units that filling in one text may spend."""
MAX_BITS = 4096
"""Bits of a number."""
MAX_POWER = 64
"""Exponents, and decimal places."""
_FILTERS = frozenset({
    "abs", "attr", "capitalize", "center", "count", "d", "default", "dictsort", "e",
    "escape", "first", "float", "forceescape", "format", "indent", "int", "items", "join",
    "last", "length", "list", "lower", "map", "max", "min", "reject", "rejectattr",
    "replace", "reverse", "round", "safe", "select", "selectattr", "sort", "string",
    "striptags", "title", "tojson", "trim", "truncate", "unique", "upper", "urlencode",
})  # fmt: skip
_METHODS = frozenset({
    "capitalize", "casefold", "center", "count", "endswith", "find", "format", "index",
    "isalnum", "isalpha", "isdecimal", "isdigit", "islower", "isupper", "join", "ljust",
    "lower", "lstrip", "partition", "removeprefix", "removesuffix", "replace", "rfind",
    "rjust", "rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith", "strip",
    "swapcase", "title", "upper", "zfill",
})  # fmt: skip
"""Of texts."""
_COMPILER = str(jinja2.compiler.__file__)
_left: contextvars.ContextVar[list[int]] = contextvars.ContextVar("left")


class TooMuch(ValueError):
    """A template that takes more work than any text should need."""

    def __init__(self, reason: str = "takes more work than any text should need") -> None:
        super().__init__(reason)


@contextlib.contextmanager
def bounded_work() -> Iterator[None]:
    """Give what is rendered within :data:`MAX_WORK` units; :class:`TooMuch` ends it then."""
    token = _left.set([MAX_WORK])
    try:
        yield
    finally:
        _left.reset(token)


class Sandbox(ImmutableSandboxedEnvironment):
    """jinja2's sandbox with bounds, for templates rendered within :func:`bounded_work`.

    Filters and methods that aren't known to be bounded aren't there; nor are recursive loops.
    """

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, **options: Any) -> None:
        if kept_code.used is not None:
            options["bytecode_cache"] = _Compiled(kept_code.used, options)
        super().__init__(optimized=False, finalize=_shown, **options)
        del self.globals["lipsum"]
        self.filters = {name: _bounded(name, self.filters[name]) for name in _FILTERS}
        self.filters |= {"_made": _made, "_turn": _turn, "_turns": _turns, "_joined": _joined}

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        _Counting().visit(tree)
        tree.set_environment(self)
        return tree

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Tell whether a template may use an attribute: of texts, methods that are bounded."""
        if isinstance(obj, str):
            return attr in _METHODS
        plain = isinstance(obj, int | float | bytes)
        return not plain and super().is_safe_attribute(obj, attr, value)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Evaluate an operator that can make much of little."""
        if operator == "*":
            _repeat(left, right)
            _repeat(right, left)
        elif operator == "**" and not (isinstance(right, int | float) and abs(right) <= MAX_POWER):
            raise TooMuch(f"a power of more than {MAX_POWER}")
        elif operator == "%" and isinstance(left, str):
            spend(_size(right))
            _grow("format", left, ())
        return _made(super().call_binop(context, operator, left, right))

    def call(self, context: Context, obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Call a method, a macro or a function."""
        values = (*args, *kwargs.values())
        spend(1 + sum(map(_size, values)))
        text = getattr(getattr(obj, "__wrapped__", obj), "__self__", None)
        if isinstance(text, str):
            _grow(obj.__name__, text, values)
        return _made(super().call(context, obj, *args, **kwargs))


class _Compiled(BytecodeCache):
    """Templates that earlier processes compiled by the same modules: of this sandbox, and jinja2's.

    :param options: the sandbox's: they decide what a template compiles to.
    """

    def __init__(self, kept: KeptCode, options: Mapping[str, Any]) -> None:
        self._kept = kept
        modules = [(m.st_mtime_ns, m.st_size) for m in map(os.stat, (__file__, _COMPILER))]
        plain = {name: value for name, value in options.items() if isinstance(value, bool | str)}
        # Packages may give all files one time. A version that has to be looked up takes too long.
        version = vars(jinja2).get("__version__")
        self._made_by = f"jinja2 {version} {modules} {sorted(plain.items())}"

    def load_bytecode(self, bucket: Bucket) -> None:
        """Look a template up; its key and checksum are of its name and text."""
        bucket.code = self._kept.find(f"{self._made_by} {bucket.key} {bucket.checksum}")

    def dump_bytecode(self, bucket: Bucket) -> None:
        """Keep a template that was compiled."""
        if bucket.code is not None:
            self._kept.add(f"{self._made_by} {bucket.key} {bucket.checksum}", bucket.code)


class _Counting(NodeTransformer):
    """Makes loops, macros and what is put together in a template spend units."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 - jinja2's name
        if node.recursive:
            raise TemplateSyntaxError("recursive loops aren't supported here", node.lineno)
        node.iter = _through(node.iter, "_turns")
        return self.visit_Macro(node)

    def visit_Macro(self, node: Any) -> nodes.Node:  # noqa: N802 - jinja2's name
        self.generic_visit(node)
        text = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        turn = _through(nodes.Const("", lineno=node.lineno), "_turn")
        turn.args = [nodes.Const(1 + text, lineno=node.lineno)]
        node.body.insert(0, nodes.Output([turn], lineno=node.lineno))
        return node  # type: ignore[no-any-return]

    visit_CallBlock = visit_Block = visit_Macro  # noqa: N815

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802 - jinja2's name
        self.generic_visit(node)
        return _through(nodes.List(node.nodes, lineno=node.lineno), "_joined")

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802 - jinja2's name
        self.generic_visit(node)
        return node if node.ctx == "store" else _through(node, "_made")

    def visit_List(self, node: nodes.List | nodes.Dict) -> nodes.Node:  # noqa: N802 - jinja2's name
        self.generic_visit(node)
        return _through(node, "_made")

    visit_Dict = visit_List  # noqa: N815


def _through(node: Any, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _bounded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter that spends what it takes, may make, and makes."""
    first = 1 if hasattr(function, "jinja_pass_arg") else 0

    @functools.wraps(function)
    def filtered(*args: Any, **kwargs: Any) -> Any:
        value, *others = (*args[first:], *kwargs.values())
        if name == "join":
            value = _turns(value)
            args = (*args[:first], value, *args[first + 1 :])
        if isinstance(value, Iterator):  # of another filter, which spent them
            spend(1)
        else:
            spend(_size(value))
            _grow(name, value, others)
        spend(sum(map(_size, others)))
        return _made(function(*args, **kwargs))

    return filtered


# --- what operations spend ----------------------------------------------------------------------


def spend(units: int) -> None:
    """Take units of the work that is left.

    :raises TooMuch: there aren't so many.
    """
    left = _left.get()
    left[0] -= units
    if left[0] < 0:
        raise TooMuch


def _size(value: object) -> int:
    """Return the units that a value is: its characters and items, however deep.

    :raises TooMuch: more than are left. :raises TypeError: it is no plain value.
    """
    left, units, todo = _left.get()[0], 0, [value]
    while todo:
        item = todo.pop()
        units += 1
        if isinstance(item, str | bytes | range):
            units += len(item)
        elif isinstance(item, Mapping):
            todo += [*item, *item.values()]
        elif isinstance(item, list | tuple):
            todo += item
        elif isinstance(item, int):
            if item.bit_length() > MAX_BITS:
                raise TooMuch(f"a number of more than {MAX_BITS} bits")
        elif item is not None and not isinstance(item, float | Undefined):
            raise TypeError(f"{type(item).__name__} can't be used as a value")
        if units + len(todo) > left:
            raise TooMuch
    return units


def _made(value: Any) -> Any:
    """Spend what a value is that was made; return it. Iterators and namespaces hold nothing yet."""
    plain = isinstance(value, str | bytes | int | float | list | tuple | Mapping | range)
    spend(_size(value) if plain else 1)
    return value


def _shown(value: Any) -> Any:
    """Spend what a value is that is written out; return it."""
    spend(_size(value))
    return value


@pass_context
def _turn(_context: Context, text: str, units: int) -> str:
    spend(units)
    return text


def _turns(values: Iterable[Any]) -> list[Any]:
    """Return what a loop goes through."""
    found = []
    for value in values:
        spend(1)
        found.append(value)
    return found


def _joined(values: list[Any]) -> str:
    spend(_size(values))
    return "".join(map(str, values))


def _repeat(value: Any, times: Any) -> None:
    """Spend what ``value * times`` will be."""
    if isinstance(value, str | bytes | list | tuple) and isinstance(times, int):
        spend(_size(value) * max(0, times))


def _grow(name: str, value: Any, args: Sequence[Any]) -> None:
    """Spend what a filter or method will make, where that may be more than all it takes."""
    numbers = sum(abs(arg) for arg in args if isinstance(arg, int))
    texts = [arg for arg in args if isinstance(arg, str)]
    if name in ("center", "ljust", "rjust", "zfill"):
        spend(numbers)
    elif name in ("indent", "tojson"):
        spend((numbers + sum(map(len, texts))) * _size(value))
    elif name == "replace" and len(texts) > 1:
        spend(str(value).count(texts[0]) * len(texts[1]))
    elif name == "join":
        items = args[0] if isinstance(value, str) and args else value
        separator = value if isinstance(value, str) else "".join(texts)
        spend(len(separator) * len(items))
    elif name == "round" and numbers > MAX_POWER:
        raise TooMuch(f"more than {MAX_POWER} decimal places")
    elif name in ("format", "format_map"):
        # A width that isn't written in the text may be anything.
        if re.search(r"%[^%a-zA-Z]*\*|\{[^{}]+\{", str(value)):
            raise TooMuch("the width of a format must stand in it as a number")
        spend(sum(map(int, re.findall(r"[0-9]{1,18}", str(value)))))
