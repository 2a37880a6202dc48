"""``vmcloner plugin list`` and ``plugin new``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from cliff.command import Command

from vmcloner_core import entry_points, skeletons
from vmcloner_core.cli.base import Base, Table, note
from vmcloner_core.deadlines import answers
from vmcloner_core.errors import VmclonerError
from vmcloner_core.plugins import IMPORTING

COLUMNS = ("name", "kind", "distribution", "version", "api", "state", "description", "error")


class PluginList(Table):
    """List installed plugins, and why any of them can't be used."""

    example = "vmcloner plugin list -f json"
    columns = COLUMNS
    short = ("name", "kind", "state", "description", "error")

    def take_action(self, _parsed_args: argparse.Namespace) -> tuple[Sequence[str], list[Any]]:
        """Return columns and rows."""
        infos = self.engine.plugins.infos()
        rows = [tuple(getattr(info, name) or None for name in COLUMNS) for info in infos]
        rows += [_command(entry) for entry in entry_points.with_distributions("vmcloner.cli")]
        return COLUMNS, rows


class PluginNew(Base):
    """Write the skeleton of a plugin: a distribution that passes its conformance suite."""

    example = "vmcloner plugin new zfs --kind storage"

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        parser.add_argument("name", metavar="NAME", help="The plugin's name, as settings use it.")
        parser.add_argument(
            "--kind",
            metavar="KIND",
            required=True,
            choices=tuple(skeletons.KINDS),
            help=f"What it is to be: {', '.join(skeletons.KINDS)}.",
        )
        parser.add_argument(
            "--folder", metavar="DIR", type=Path, help="A new folder, by default vmcloner-NAME."
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        """Write it."""
        name: str = parsed_args.name
        folder = parsed_args.folder or Path(f"vmcloner-{name}")
        for path in skeletons.write(name, parsed_args.kind, folder):
            self.app.stdout.write(f"{path}\n")
        note(self.app, f"next: cd {folder} && pip install -e . && pytest -rs")


def _command(entry: metadata.EntryPoint) -> tuple[Any, ...]:
    """Return a command as a row of :data:`COLUMNS`."""
    distribution, version = entry_points.provenance(entry)
    state, description, error = "ok", None, entry_points.twins(entry) or None
    loaded = None if error else answers({entry.name: entry.load}, IMPORTING)[entry.name]
    if error:
        state = "duplicate"
    elif isinstance(loaded, VmclonerError):
        state, error = "broken", loaded.message
    elif not (isinstance(loaded, type) and issubclass(loaded, Command)):
        state, error = "broken", f"it is no {Command.__module__}.{Command.__qualname__}"
    else:
        description = (loaded.__doc__ or "").partition("\n")[0] or None
    name = entry.name.replace("_", " ")
    return (name, "cli", distribution, version, None, state, description, error)
