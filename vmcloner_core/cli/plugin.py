"""``vmcloner plugin``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import metadata
from typing import Any

from vmcloner_core.cli.base import Table


class PluginList(Table):
    """List all plugins that are installed, with what is wrong with those that don't load."""

    example = "vmcloner plugin list -f json"

    def take_action(self, _parsed_args: argparse.Namespace) -> tuple[Sequence[str], list[Any]]:
        """Return columns and rows."""
        rows = [
            (i.name, i.kind, i.distribution, i.version, i.state, i.description, i.error or None)
            for i in self.engine.plugins.infos()
        ]
        rows += [_command(entry) for entry in metadata.entry_points(group="vmcloner.cli")]
        return (
            ("name", "kind", "distribution", "version", "state", "description", "error"),
            rows,
        )


def _command(entry: metadata.EntryPoint) -> tuple[Any, ...]:
    dist = entry.dist
    state, description, error = "ok", "", None
    try:
        description = (entry.load().__doc__ or "").partition("\n")[0]
    except Exception as raised:  # a plugin's import may raise anything
        state, error = "broken", f"{type(raised).__name__}: {raised}".splitlines()[0]
    return (
        entry.name.replace("_", " "),
        "cli",
        dist.name if dist else "unknown",
        dist.version if dist else "",
        state,
        description,
        error,
    )
