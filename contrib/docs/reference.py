"""Pages of the reference, generated from the code: they can't be out of step with it."""

from __future__ import annotations

import argparse
import inspect
import re
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

import attrs

from vmcloner_core import entry_points, errors
from vmcloner_core.cli.app import DESCRIPTION, Shell
from vmcloner_core.plugins import PluginHost
from vmcloner_core.settings import Defaults, HostSettings, Limits

_OUTPUT = ("output formatters", "CSV Formatter", "json formatter", "table formatter",
           "value formatter", "yaml formatter", "shell formatter")  # fmt: skip
_OF_CLIFF = ("complete", "help")


def pages() -> dict[str, str]:
    """Return all generated pages by their paths below the source folder."""
    commands = _commands()
    found = {f"reference/commands/vmcloner-{word}.md": page for word, page in commands.items()}
    return found | {
        "reference/commands.md": _index(commands),
        "reference/vmcloner.toml.md": _settings(),
        "reference/errors.md": _errors(),
        "reference/python-api.md": _API,
        "reference/hooks.md": _HOOKS,
    }


# --- commands -------------------------------------------------------------------------------------


def _parsers(shell: Shell) -> Iterator[tuple[str, argparse.ArgumentParser, Any]]:
    """Yield each command's words, its parser, and itself."""
    for words, found in sorted(shell.command_manager.commands.items()):
        if words not in _OF_CLIFF:
            command = found.load()(shell, None, cmd_name=words)
            yield words, command.get_parser(f"vmcloner {words}"), command


def _commands() -> dict[str, str]:
    """Return a page for each first word of the commands: ``template`` for ``template list``."""
    shell = Shell()
    groups: dict[str, list[tuple[str, argparse.ArgumentParser, Any]]] = {}
    for words, parser, command in _parsers(shell):
        groups.setdefault(words.split()[0], []).append((words, parser, command))
    return {word: _group(word, members) for word, members in groups.items()}


def _group(word: str, members: list[tuple[str, argparse.ArgumentParser, Any]]) -> str:
    alone = len(members) == 1 and members[0][0] == word
    about = _summary(members[0][2]) if alone else f"commands of the group {word}"
    level = "##" if alone else "###"
    parts = [f"# vmcloner-{word}(1) — {about}"]
    for words, parser, command in members:
        if not alone:
            parts.append(f"## vmcloner {words}")
        usage = parser.format_usage().removeprefix("usage: ")
        parts += [f"{level} Synopsis", _literal(" ".join(usage.split())), f"{level} Description"]
        parts += [_prose(inspect.getdoc(command) or ""), f"{level} Options", *_options(parser)]
        if command.example:
            parts += [f"{level} Example", _literal(command.example)]
    return "\n\n".join([*parts, "Exit codes: see [exit codes](../../exit-codes.md).", ""])


def _summary(command: Any) -> str:
    return (inspect.getdoc(command) or "").partition("\n")[0].rstrip(".")


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    output = False
    for group in parser._action_groups:
        if group.title in _OUTPUT:
            output = True
            continue
        for action in group._group_actions:
            if action.help != argparse.SUPPRESS:
                yield _option(parser, action)
    if output:
        yield (
            "`-f FORMAT`, `--format FORMAT`, `-c COLUMN`, `--column COLUMN` and others\n"
            ": Choose the output's format and columns: see [commands](../commands.md)."
        )


def _option(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    value = parser._get_formatter()._format_args(action, action.dest.upper())
    names = [f"{name} {value}".strip() for name in action.option_strings] or [value]
    text = (action.help or "").replace("%(default)s", str(action.default)).replace("%%", "%")
    return ", ".join(f"`{name}`" for name in names) + f"\n: {_escaped(text) or '—'}"


def _index(commands: Mapping[str, str]) -> str:
    shell = Shell()
    parser = shell.build_option_parser(DESCRIPTION, "")
    members = "\n".join(f"commands/vmcloner-{word}" for word in sorted(commands))
    about = "mass clones of virtual machines from templates"
    description, _, example = DESCRIPTION.partition("\n\n")
    _, one, _ = next(p for p in _parsers(shell) if p[0] == "list")
    formats = [
        _option(one, action)
        for group in one._action_groups
        if group.title in _OUTPUT
        for action in group._group_actions
    ]
    listed = [f"- [vmcloner {w}](commands/vmcloner-{w}.md)" for w in sorted(commands)]
    return "\n\n".join([
        f"# vmcloner(1) — {about}", "## Synopsis", _literal("vmcloner [options] COMMAND …"),
        "## Description", description, _literal(inspect.cleandoc(example)),
        "## Global options", *_options(parser),
        "## Output options", "Of commands that print tables or records:", *formats,
        "## Commands", "\n".join(listed),
        f"```{{toctree}}\n:hidden:\n\n{members}\n```", "",
    ])  # fmt: skip


# --- settings -------------------------------------------------------------------------------------


def _settings() -> str:
    parts = [
        "# vmcloner.toml(5) — settings of vmcloner",
        "One TOML file; every key has a default. [Settings](../settings.md) explains them, with an "
        "example. All keys, from the code that reads them:",
        "## [defaults]", *_keys(Defaults), "## [limits]", *_keys(Limits),
        "## [hosts.NAME]", *_keys(HostSettings, leave_out=("hypervisor", "storage")),
    ]  # fmt: skip
    plugins = PluginHost()
    for kind in ("hypervisor", "storage"):
        for entry in sorted(entry_points.of_group(f"vmcloner.{kind}"), key=lambda e: e.name):
            backend = getattr(plugins, kind)(entry.name)
            parts += [f"## [hosts.NAME.{kind}.{entry.name}]", f"{backend.description}."]
            parts += [
                "`driver`\n: The plugin, if the table has another name "
                f'(string, default `"{entry.name}"`).'
            ]
            parts += _keys(backend.settings)
    return "\n\n".join([*parts, ""])


def _keys(cls: type, leave_out: tuple[str, ...] = ()) -> Iterator[str]:
    described = _params(inspect.getdoc(cls) or "")
    hints = typing.get_type_hints(cls, include_extras=True)
    for field in attrs.fields(cls):
        if field.name in leave_out or field.metadata.get("key") is False:
            continue
        default = field.default
        if isinstance(default, attrs.Factory):  # type: ignore[arg-type]
            default = default.factory()
        shown = "no default" if default is None else "required" if default is attrs.NOTHING else (
            f"default `{_toml(default)}`"
        )  # fmt: skip
        about = described.get(field.name, "")
        kind = _kind(hints[field.name])
        yield f"`{field.name}`\n: {f'{_sentence(about)} ' if about else ''}({kind}, {shown})"


def _params(text: str) -> dict[str, str]:
    """Return what ``:param a, b: …`` in a docstring say."""
    found = {}
    for names, about in re.findall(
        r":param ([\w, ]+): (.*?)(?=\s:param |\n\n|\Z)", text, re.DOTALL
    ):
        for name in names.split(","):
            found[name.strip()] = _prose(" ".join(about.split()))
    return found


def _sentence(text: str) -> str:
    return (
        f"{text[:1].upper()}{text[1:]}" if text.endswith(".") else f"{text[:1].upper()}{text[1:]}."
    )


def _kind(hint: Any) -> str:
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return " or ".join(_kind(a) for a in typing.get_args(hint) if a is not type(None))
    if typing.get_origin(hint) is typing.Annotated:
        return "size, like `10GiB`"
    if typing.get_origin(hint) is typing.Literal:
        return " or ".join(f"`{a!r}`".replace("'", '"') for a in typing.get_args(hint))
    if typing.get_origin(hint) in (tuple, list):
        return f"list of {_kind(typing.get_args(hint)[0])}"
    if typing.get_origin(hint) is not None:
        return "table"
    names = {"str": "string", "int": "number", "float": "number", "bool": "boolean", "Path": "path"}
    return names.get(getattr(hint, "__name__", ""), getattr(hint, "__name__", str(hint)).lower())


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_toml, value))}]"
    return f'"{getattr(value, "value", value)}"'


# --- errors ---------------------------------------------------------------------------------------


def _errors() -> str:
    rows = ["| code | error | |", "| --- | --- | --- |"]
    classes = [
        each
        for _, each in inspect.getmembers(errors, inspect.isclass)
        if issubclass(each, errors.VmclonerError) and each.__module__ == errors.__name__
    ]
    for each in sorted(classes, key=lambda c: (c.exit_code, c.__name__)):
        rows.append(f"| {each.exit_code} | `{each.__name__}` | {_prose(_summary(each))} |")
    return "\n\n".join([
        "# Errors and their exit codes",
        "The errors of the [engine](python-api.md), with the exit codes that the command has for "
        "them. [Exit codes](../exit-codes.md) says what to do.",
        "\n".join(rows), "",
    ])  # fmt: skip


# --- Python ---------------------------------------------------------------------------------------


def _auto(*directives: str) -> str:
    return "```{eval-rst}\n" + "\n\n".join(directives) + "\n```"


def _module(name: str, *, undocumented: bool = False) -> str:
    more = "\n   :undoc-members:" if undocumented else ""
    return f".. automodule:: {name}\n   :members:{more}\n   :show-inheritance:"


_API = "\n\n".join([
    "# Python API",
    "From the docstrings. [Embedding the engine](../embedding.md) has examples.",
    "## The engine",
    _auto(".. autoclass:: vmcloner_core.Engine\n   :members:\n   :inherited-members:"),
    "## Requests", _auto(_module("vmcloner_core.request")),
    "## Plans and results", _auto(_module("vmcloner_core.plan")),
    "## Values", _auto(*(
        _module(f"vmcloner_core.model.{name}")
        for name in ("clone", "domain", "host", "identity", "labels", "leftover", "outcome",
                     "statistics", "template", "volume")
    )),
    "",
])  # fmt: skip
_HOOKS = "\n\n".join([
    "# Hooks and contracts of backends",
    "From the docstrings. [Writing a backend](../plugins.md) shows how to use them.",
    "## Hooks", _auto(_module("vmcloner_core.hooks")),
    "## Contracts", _auto(*(
        _module(f"vmcloner_core.drivers.{name}")
        for name in ("storage", "hypervisor", "boot", "identity", "image", "context")
    )),
    "",
])  # fmt: skip


# --- text -----------------------------------------------------------------------------------------


def _literal(text: str) -> str:
    return f"```text\n{text}\n```"


def _escaped(text: str) -> str:
    """Return plain text as Markdown."""
    return re.sub(r"([\\`*_{}\[\]<>#|])", r"\\\1", text)


def _prose(text: str) -> str:
    """Return a docstring as Markdown: literals stay, and roles become them."""
    parts = re.split(r"(``.+?``|:\w+:`[^`]+`)", text)
    return "".join(
        f"`{re.sub(r'^:[a-z]+:|[`~]', '', part)}`" if number % 2 else _escaped(part)
        for number, part in enumerate(parts)
    )
