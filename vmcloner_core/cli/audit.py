"""``vmcloner audit``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from vmcloner_core.audit import Report, Verdict
from vmcloner_core.cli.base import Table, add_fanout, add_targets, chosen, note
from vmcloner_core.cli.usage import folded
from vmcloner_core.names import fold
from vmcloner_core.units import counted

COLUMNS = ("fact", "read", "distinct", "missing", "shared")


class Audit(Table):
    """Check from inside running clones that their identities are unique.

    Reads by one ssh login to each: hostname, machine-id, SSH host keys, MAC and IP addresses, DHCP
    client-id, UUID and VM generation id. Exit code 10 if clones share one, or one can't be read.
    """

    example = "vmcloner audit web"
    columns = COLUMNS
    _report: Report | None = None

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        add_targets(parser, everything=True)
        add_fanout(parser)
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Sequence[str], list[Any]]:
        """Ask the clones; returns columns and rows."""
        report = self.engine.audit(
            *chosen(parsed_args, "audit"), timeout=parsed_args.timeout, jobs=parsed_args.jobs
        )
        self._report = report
        whole = parsed_args.formatter in ("json", "yaml")
        return COLUMNS, [_row(verdict, whole=whole) for verdict in report.verdicts]

    def produce_output(self, parsed_args: argparse.Namespace, column_names: Any, data: Any) -> int:
        """Print what was found.

        :raises PartialFailure: clones share an identity, or one couldn't be read.
        """
        assert self._report is not None  # noqa: S101 - take_action was before
        if len(self._report.unread) < len(self._report.clones) or not self.for_people(parsed_args):
            super().produce_output(parsed_args, column_names, data)
        unread = [(name, str(error)) for name, error in self._report.unread.items()]
        for line in folded(unread):
            note(self.app, line)
        self._report.check()
        note(self.app, f"{counted(len(self._report.clones), 'clone')}, all identities unique")
        return 0


def _row(verdict: Verdict, *, whole: bool) -> tuple[object, ...]:
    """Return a verdict as a row of :data:`COLUMNS`; ``whole`` for formats that nest."""
    shared: object = [{"value": value, "clones": list(names)} for value, names in verdict.shared]
    missing: object = list(verdict.missing)
    if not whole:
        missing = fold(verdict.missing)
        shared = "; ".join(f"{fold(names)}: {value}" for value, names in verdict.shared)
    return (verdict.fact, verdict.read, verdict.distinct, missing, shared)
