"""``vmcloner lease``."""

from __future__ import annotations

import argparse
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from vmcloner_core.cli.base import Table, add_targets, add_ttl, chosen, note
from vmcloner_core.cli.listing import left_words
from vmcloner_core.lease_calls import LeaseState
from vmcloner_core.units import counted

COLUMNS = ("name", "owner", "expires", "left", "expired")


class LeaseShow(Table):
    """Show until when clones are leased. Those without a lease never expire."""

    example = "vmcloner lease show web"
    columns: Sequence[str] = COLUMNS
    nothing = "there are no clones (vmcloner create web -t tiny --ttl 4h)"

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        add_targets(parser, everything=True)
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Sequence[str], list[Any]]:
        """Return columns and rows."""
        clones = self.engine.list(*chosen(parsed_args, "lease show"))
        return COLUMNS, self._rows(self.engine.leases(clones), parsed_args)

    def _rows(
        self, states: Sequence[LeaseState], parsed_args: argparse.Namespace
    ) -> list[tuple[Any, ...]]:
        words = left_words if self.for_people(parsed_args) else lambda left: left
        return [
            (
                state.clone.name,
                state.clone.labels.owner,
                state.lease.expires if state.lease is not None else None,
                words(state.left),
                state.left is not None and state.left <= 0,
            )
            for state in states
        ]


class _Change(LeaseShow):
    """What extending and ending leases have in common."""

    columns = (*COLUMNS, "changed")
    done = ""

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        parser.add_argument(
            "--dry-run", action="store_true", help="Show what would change; change nothing."
        )
        return parser

    @abstractmethod
    def change(self, parsed_args: argparse.Namespace) -> tuple[LeaseState, ...]:
        """Change the leases."""

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Sequence[str], list[Any]]:
        """Change leases; returns columns and rows."""
        states = self.change(parsed_args)
        self._count = sum(state.changed for state in states)
        rows = self._rows(states, parsed_args)
        return self.columns, [
            (*row, state.changed) for row, state in zip(rows, states, strict=True)
        ]

    def produce_output(self, parsed_args: argparse.Namespace, column_names: Any, data: Any) -> int:
        """Print the rows, then a summary."""
        super().produce_output(parsed_args, column_names, data)
        would = "would be " if parsed_args.dry_run else ""
        note(self.app, f"{counted(self._count, 'lease')} {would}{self.done}")
        return 0


class LeaseExtend(_Change):
    """Let leases end --ttl from now. One that ends later is not changed.

    A clone without a lease gets one; --ttl never takes leases away.
    """

    example = "vmcloner lease extend web --ttl 4h"
    done = "changed"

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        add_ttl(
            parser,
            "Time from now (default: what each was leased for, else defaults.ttl of the settings)",
        )
        return parser

    def change(self, parsed_args: argparse.Namespace) -> tuple[LeaseState, ...]:
        """See :meth:`Engine.extend_lease`."""
        return self.engine.extend_lease(
            *parsed_args.targets,
            ttl=parsed_args.ttl,
            everything=parsed_args.all,
            dry_run=parsed_args.dry_run,
        )


class LeaseEnd(_Change):
    """End leases now: the next gc --expired removes these clones, running ones too.

    A clone without a lease gets one that has ended. Until gc runs, lease extend undoes it.
    """

    example = "vmcloner lease end web-3"
    done = "ended"

    def change(self, parsed_args: argparse.Namespace) -> tuple[LeaseState, ...]:
        """See :meth:`Engine.end_lease`."""
        return self.engine.end_lease(
            *parsed_args.targets, everything=parsed_args.all, dry_run=parsed_args.dry_run
        )
