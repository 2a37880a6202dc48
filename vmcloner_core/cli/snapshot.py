"""``vmcloner snapshot``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from vmcloner_core.cli.base import RunCommand, Table, add_targets
from vmcloner_core.cli.usage import agrees
from vmcloner_core.errors import Interrupted, PartialFailure, UsageError
from vmcloner_core.model import SnapshotAim
from vmcloner_core.names import fold
from vmcloner_core.plan import Plan
from vmcloner_core.request import TargetRequest
from vmcloner_core.units import counted

COLUMNS = ("clone", "name", "taken", "memory", "disks", "complete")


class _Snapshot(RunCommand):
    """A command about a snapshot of one name."""

    action: str

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        parser.add_argument(
            "targets",
            nargs="+",
            metavar="TARGET",
            help="A fleet (web), a clone (web-3) or a node set (web-[1-10,15]).",
        )
        parser.add_argument("snapshot", metavar="NAME", help="The snapshot's name.")
        return parser

    def request(self, parsed_args: argparse.Namespace) -> TargetRequest:
        """Return the request."""
        return TargetRequest(
            action=self.action,
            targets=tuple(parsed_args.targets),
            jobs=parsed_args.jobs,
            start=getattr(parsed_args, "start", False),
            snapshot=SnapshotAim(
                name=parsed_args.snapshot,
                memory=getattr(parsed_args, "memory", False),
                force=getattr(parsed_args, "force", False),
            ),
        )


class SnapshotCreate(_Snapshot):
    """Take snapshots of clones, all under one name.

    The clones are stopped, or their guest agents freeze their disks for a moment. With --memory
    they run: they stand still while their memory and disks are kept, and go on.
    """

    action = "snapshot-create"
    example = "vmcloner snapshot create web ready --memory"

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        parser.add_argument(
            "--memory", action="store_true", help="Keep running clones with their memory."
        )
        return parser


class _Destroying(_Snapshot):
    """A command that asks first."""

    question: str

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        parser.add_argument("-y", "--yes", action="store_true", help="Don't ask first.")
        return parser

    def request(self, parsed_args: argparse.Namespace) -> TargetRequest:
        """Return the request.

        :raises UsageError: standard input isn't a terminal, and ``--yes`` isn't given.
        """
        request = super().request(parsed_args)
        if not (parsed_args.yes or parsed_args.dry_run or sys.stdin.isatty()):
            raise UsageError(
                f"{self.action.replace('-', ' ')} needs a terminal to ask for confirmation",
                hint="or use --yes",
            )
        return request

    def confirm(self, plan: Plan, parsed_args: argparse.Namespace) -> None:
        """Ask before anything is changed.

        :raises Interrupted: the user said no.
        """
        if parsed_args.yes or not plan.clones:
            return
        clones = f"{counted(len(plan.clones), 'clone')}, {fold([c.name for c in plan.clones])}"
        if not agrees(self.question.format(name=parsed_args.snapshot, clones=clones)):
            raise Interrupted("nothing was changed")


class SnapshotRevert(_Destroying):
    """Make clones what they were at a snapshot; what they have done since is lost.

    Those whose snapshot has their memory continue from there, running or paused as they were.
    Clones that run are refused, unless --force stops them.
    """

    action = "snapshot-revert"
    question = "Revert {clones}, to snapshot {name}?"
    example = "vmcloner snapshot revert web ready --force --yes"

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        parser.add_argument("--force", action="store_true", help="Stop clones that run, at once.")
        parser.add_argument(
            "--start", action="store_true", help="Start clones whose snapshot has no memory."
        )
        return parser


class SnapshotDelete(_Destroying):
    """Remove a snapshot of clones; the clones stay as they are."""

    action = "snapshot-delete"
    question = "Remove snapshot {name} of {clones}?"
    example = "vmcloner snapshot delete web ready --yes"


class SnapshotList(Table):
    """List snapshots of clones."""

    example = "vmcloner snapshot list web"
    columns = COLUMNS
    nothing = "there are no snapshots (vmcloner snapshot create web ready)"

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        add_targets(parser, everything=False)
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Sequence[str], list[Any]]:
        """Return columns and rows."""
        self._found = self.engine.survey(*parsed_args.targets)
        rows = [
            (
                clone.name,
                snapshot.name,
                snapshot.taken,
                snapshot.memory,
                len(snapshot.disks),
                snapshot.complete,
            )
            for clone in self._found.clones
            for snapshot in clone.snapshots
        ]
        return COLUMNS, rows

    def produce_output(self, parsed_args: argparse.Namespace, column_names: Any, data: Any) -> int:
        """Print the rows, then what could not be read.

        :raises PartialFailure: something couldn't.
        """
        super().produce_output(parsed_args, column_names, data)
        for unseen in self._found.unseen:
            raise PartialFailure(str(unseen), hint=unseen.hint)
        return 0
