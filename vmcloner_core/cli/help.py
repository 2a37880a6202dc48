"""``vmcloner --help`` and ``vmcloner help``: the options and a line for each command."""

from __future__ import annotations

import argparse
import ast
import functools
import importlib.util
import inspect
import shutil
import sys
import textwrap
from typing import TYPE_CHECKING, Any

import autopage.argparse
from cliff.help import HelpCommand

from vmcloner_core.cli.usage import written

if TYPE_CHECKING:
    from vmcloner_core.cli.app import Shell


class Help(HelpCommand):
    """Print help for the program, or for one command."""

    app: Shell

    def take_action(self, parsed_args: argparse.Namespace) -> int:
        """Print it; returns the exit code."""
        with written():
            if parsed_args.cmd:
                return int(super().take_action(parsed_args))
            print_help(self.app)
        return 0


def print_help(app: Shell) -> None:
    """Print the program's help, through a pager if there is one."""
    pager = autopage.argparse.help_pager(app.stdout)
    color = pager.to_terminal()
    autopage.argparse.use_color_for_parser(app.parser, color)
    title, name = ("\033[4m{}\033[0m", "\033[36m{}\033[39m") if color else ("{}", "{}")
    with pager as out:
        app.parser.print_help(out)
        out.write(f"\n{title.format('Commands')}:\n")
        width = max(len(words) for words, _ in app.command_manager)
        room = shutil.get_terminal_size().columns - width - 5 if color else sys.maxsize
        for words, entry in sorted(app.command_manager):
            first, *more = textwrap.wrap(summary(entry), max(20, room)) or [""]
            out.write(f"  {name.format(words.ljust(width))}  {first}\n")
            out.writelines(f"{'':{width + 4}}{line}\n" for line in more)


def summary(entry: Any) -> str:
    """Return the first line of a command's docstring.

    The line is read from the source, since importing every command takes longer than everything
    else that help does. A command without source, or without its own docstring, is imported.

    :param entry: an entry point, or cliff's substitute for one.
    """
    try:
        module, _, name = entry.value.partition(":")
        line = None if module in sys.modules else _summaries(module).get(name)
        if line is None:
            line = (inspect.getdoc(entry.load()) or "").partition("\n")[0]
    except Exception:  # a plugin's import may raise anything
        return "broken (vmcloner plugin list)"
    return line.rstrip(".")


@functools.cache
def _summaries(module: str) -> dict[str, str]:
    """Return the first lines of the docstrings of a module's classes, by name."""
    spec = importlib.util.find_spec(module)
    source = getattr(spec and spec.loader, "get_source", lambda _name: None)(module)
    tree = ast.parse(source or "")
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    found = {node.name: ast.get_docstring(node) for node in classes}
    return {name: text.partition("\n")[0] for name, text in found.items() if text}
