"""``vmcloner gc``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from vmcloner_core.cli.base import Table, note
from vmcloner_core.cli.usage import agrees, say
from vmcloner_core.errors import Interrupted, PartialFailure, UsageError
from vmcloner_core.model import Leftover
from vmcloner_core.survey import Unseen
from vmcloner_core.units import counted, format_size

COLUMNS = ("kind", "name", "size", "why", "error")
MAX_LINES = 20
"""Leftovers that are listed before the question."""


class Gc(Table):
    """Remove what killed runs left; with --expired, clones whose leases have ended.

    With --orphans also clones that lack a part.

    Clones of benchmarks that were killed are removed too.

    Runs remove their own kind of leftovers too. What another run works on, what belongs to another
    state folder and what has no labels of vmcloner's is never touched.
    """

    example = "vmcloner gc --expired --orphans --dry-run"

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        parser.add_argument(
            "--dry-run", action="store_true", help="Show what would be removed; change nothing."
        )
        parser.add_argument(
            "--expired",
            action="store_true",
            help="Also delete clones whose leases have ended, running ones too.",
        )
        parser.add_argument(
            "--orphans",
            action="store_true",
            help="Also delete clones without a domain (state allocated), and stopped ones "
            "without disks (state orphan).",
        )
        parser.add_argument("-y", "--yes", action="store_true", help="Don't ask first.")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Sequence[str], list[Any]]:
        """Collect; returns columns and rows.

        :raises UsageError: standard input isn't a terminal, and ``--yes`` isn't given.
        """
        if not (parsed_args.yes or parsed_args.dry_run or sys.stdin.isatty()):
            raise UsageError("gc needs a terminal to ask for confirmation", hint="or use --yes")
        asked = (lambda _left: None) if parsed_args.yes else confirm
        self._unseen: list[Unseen] = []
        self._left = self.engine.gc(
            expired=parsed_args.expired,
            orphans=parsed_args.orphans,
            dry_run=parsed_args.dry_run,
            on_found=asked,
            on_unseen=self._unseen.append,
        )
        size = format_size if parsed_args.formatter == "table" else int
        several = any(each.host for each in self._left)
        return (("host", *COLUMNS) if several else COLUMNS), [
            (
                *((each.host,) if several else ()),
                *(each.kind, each.name, size(each.size), each.why),
                each.error and str(each.error),
            )
            for each in self._left
        ]

    def produce_output(self, parsed_args: argparse.Namespace, column_names: Any, data: Any) -> int:
        """Print the rows, then a summary.

        :raises PartialFailure: something could not be removed, or a backend not be read.
        """
        super().produce_output(parsed_args, column_names, data)
        for unseen in self._unseen:
            say(f"{unseen}: what is on it is left ({unseen.hint})")
        failures = [(each.name, each.error) for each in self._left if each.error is not None]
        if failures:
            raise PartialFailure(
                f"gc: {len(failures)} of {counted(len(self._left), 'leftover')} not removed: "
                f"{failures[0][1].message}",
                failures=failures,
            )
        what = "would remove" if parsed_args.dry_run else "removed"
        done = f"{what} {_summary(self._left)}" if self._left else "nothing to remove"
        if self._unseen:
            raise PartialFailure(
                f"gc: {done}, but not all could be read", hint=self._unseen[0].hint
            )
        note(self.app, done)
        return 0


def confirm(left: Sequence[Leftover]) -> None:
    """Ask before anything is removed.

    :raises Interrupted: the user said no.
    """
    for each in left[:MAX_LINES]:
        where = f" on {each.host}" if each.host else ""
        say(f"{each.kind} {each.name}{where}: {each.why}")
    if len(left) > MAX_LINES:
        say(f"and {len(left) - MAX_LINES} more (--dry-run lists them)")
    if not agrees(f"Remove {_summary(left)}?"):
        raise Interrupted("nothing was removed")


def _summary(left: Sequence[Leftover]) -> str:
    size = format_size(sum(each.size for each in left))
    return f"{counted(len(left), 'leftover')}, {size}"
