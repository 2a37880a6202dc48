"""``vmcloner host prepare gc`` and ``vmcloner host remove gc``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from vmcloner_core.cli.base import Record, duration, note
from vmcloner_core.schedule import EVERY, ScheduleChange
from vmcloner_core.units import format_age


class _Schedule(Record):
    """What preparing and removing have in common."""

    columns = ("by", "files", "steps", "dry_run")

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        parser.add_argument(
            "--dry-run", action="store_true", help="Show what would change; change nothing."
        )
        return parser

    def _change(
        self, change: ScheduleChange, parsed_args: argparse.Namespace
    ) -> tuple[Sequence[str], Sequence[Any]]:
        """Return a change as keys and values."""
        if not change.steps:
            note(self.app, "gc by a timer: no change")
        files = [str(path) for path in change.files]
        return self.columns, (change.by, files, list(change.steps), parsed_args.dry_run)


class HostPrepareGc(_Schedule):
    """Run "gc --expired --yes" regularly: by a timer of systemd, or cron where that isn't running.

    It uses the settings file that this command uses. Files that vmcloner didn't make are never
    changed.
    """

    example = "vmcloner host prepare gc --every 15min --dry-run"

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        parser.add_argument(
            "--every",
            type=duration,
            default=EVERY,
            metavar="TIME",
            help=f"Time between two runs, like 5min or 1h (default {format_age(EVERY)}).",
        )
        parser.add_argument(
            "--orphans",
            action="store_true",
            help="With gc --orphans: it also removes what a killed create could still complete.",
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Sequence[str], Sequence[Any]]:
        """Return keys and values."""
        change = self.engine.prepare_gc(
            every=parsed_args.every, orphans=parsed_args.orphans, dry_run=parsed_args.dry_run
        )
        return self._change(change, parsed_args)


class HostRemoveGc(_Schedule):
    """Remove what "host prepare gc" installed.

    Files that vmcloner didn't make are never changed.
    """

    example = "vmcloner host remove gc"

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Sequence[str], Sequence[Any]]:
        """Return keys and values."""
        return self._change(self.engine.remove_gc(dry_run=parsed_args.dry_run), parsed_args)
