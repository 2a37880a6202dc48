"""``vmcloner move``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from vmcloner_core.cli.base import Table, note
from vmcloner_core.errors import PartialFailure
from vmcloner_core.model import Moved
from vmcloner_core.names import fold
from vmcloner_core.units import counted

AGAIN = "run the same command again"
COLUMNS = ("clone", "source", "target", "action", "error")


class Move(Table):
    """Move stopped clones to another host, with their disks and identities.

    Until a clone is whole on its new host, all of it stays on the old one, and it can't be started
    on either. If a move was cut off or killed, the same command finishes it. With the old host as
    HOST, it is taken back, until the new host has defined the clone.

    Exit code 10 if some could not be moved.
    """

    example = "vmcloner move web-[1-3] lab2"
    columns = COLUMNS

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        parser.add_argument(
            "targets",
            nargs="+",
            metavar="TARGET",
            help="A fleet (web), a clone (web-3) or a node set (web-[1-10,15]).",
        )
        parser.add_argument("host", metavar="HOST", help="Where they shall be, as in the settings.")
        parser.add_argument(
            "--template",
            metavar="TEMPLATE",
            help="The clones' template, if that gives them devices or domain XML of its own.",
        )
        parser.add_argument(
            "--dry-run", action="store_true", help="Show what would be done; change nothing."
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Sequence[str], list[Any]]:
        """Move; returns columns and rows."""
        moved = self.engine.move(
            *parsed_args.targets,
            host=parsed_args.host,
            template=parsed_args.template,
            dry_run=parsed_args.dry_run,
        )
        self._moved = () if parsed_args.dry_run else moved
        return COLUMNS, [row(each) for each in moved]

    def produce_output(self, parsed_args: argparse.Namespace, column_names: Any, data: Any) -> int:
        """Print the rows, then a summary. :raises PartialFailure: some could not be moved."""
        code = super().produce_output(parsed_args, column_names, data)
        failures = [(each.clone, each.error) for each in self._moved if each.error is not None]
        if failures:
            raise PartialFailure(
                f"move: {len(failures)} of {counted(len(self._moved), 'clone')} not moved",
                failures=failures,
                hint=next((error.hint for _, error in failures if error.hint), AGAIN),
            )
        done = [each.clone for each in self._moved if each.action != "stays"]
        if not parsed_args.dry_run:
            note(self.app, f"{fold(done)}: on {parsed_args.host}" if done else "nothing to move")
        return code

    _moved: Sequence[Moved] = ()


def row(moved: Moved) -> tuple[str | None, ...]:
    """Return what became of a clone as a row of :data:`COLUMNS`."""
    error = str(moved.error) if moved.error is not None else moved.why
    return moved.clone, moved.source or None, moved.target, moved.action, error or None
