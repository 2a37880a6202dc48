"""``vmcloner plugin``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import metadata
from typing import Any

from vmcloner_core import entry_points
from vmcloner_core.cli.base import Table

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
    state, description, error = "ok", None, None
    try:
        description = (entry.load().__doc__ or "").partition("\n")[0] or None
    except Exception as raised:  # a plugin's import may raise anything
        state, error = "broken", f"{type(raised).__name__}: {raised}".splitlines()[0]
    name = entry.name.replace("_", " ")
    return (name, "cli", distribution, version, None, state, description, error)
