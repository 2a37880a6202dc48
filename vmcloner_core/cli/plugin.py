"""``vmcloner plugin``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import metadata
from typing import Any

from cliff.command import Command

from vmcloner_core import entry_points
from vmcloner_core.cli.base import Table
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
