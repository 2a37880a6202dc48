"""``vmcloner delete``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmcloner_core.cli.base import (
    PLAN_COLUMNS,
    RESULT_COLUMNS,
    RunCommand,
    add_count,
    add_targets,
    note,
    targeted,
)
from vmcloner_core.cli.usage import agrees
from vmcloner_core.errors import Interrupted, NotFound, UsageError
from vmcloner_core.names import fold
from vmcloner_core.plan import Plan
from vmcloner_core.request import TargetRequest
from vmcloner_core.units import counted

if TYPE_CHECKING:
    from vmcloner_core.labs import Lab


class Delete(RunCommand):
    """Stop clones and remove them, with their disks, domains and logs.

    What isn't there gives exit code 4, after all else was deleted; --missing-ok makes it no error.
    Nothing that isn't vmcloner's is touched.
    """

    example = "vmcloner delete web db-[1-3] --yes"
    _networks: Sequence[str] = ()
    """Those of the lab that is deleted."""
    _lab: Lab | None = None

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        add_targets(parser, everything=True)
        add_count(parser)
        parser.add_argument(
            "--lab",
            type=Path,
            metavar="FILE",
            help="All clones and networks of the lab in this file, also those not in it any more.",
        )
        parser.add_argument("-y", "--yes", action="store_true", help="Don't ask first.")
        parser.add_argument(
            "--missing-ok", action="store_true", help="Succeed although a target isn't there."
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Sequence[str], list[Any]]:
        """Plan or run; returns columns and rows.

        :raises NotFound: nothing of the lab is there, and ``--missing-ok`` isn't given.
        """
        if parsed_args.lab is None:
            return super().take_action(parsed_args)
        if parsed_args.targets or parsed_args.all or parsed_args.count is not None:
            raise UsageError("--lab goes without targets, --all and --count")
        from vmcloner_core.labs import read_lab

        self._lab = read_lab(parsed_args.lab)
        clones, self._networks = self.engine.lab_parts(self._lab)
        if not clones and not self._networks and not parsed_args.missing_ok:
            raise NotFound(
                f"nothing of lab {self._lab.name!r} is there", hint="--missing-ok if that is fine"
            )
        if clones:
            parsed_args.targets = clones
            return super().take_action(parsed_args)
        self._check_terminal(parsed_args)
        if self._networks and not (parsed_args.dry_run or parsed_args.yes):
            self._ask(_listed(self._networks))
        return PLAN_COLUMNS if parsed_args.dry_run else RESULT_COLUMNS, []

    def produce_output(self, parsed_args: argparse.Namespace, column_names: Any, data: Any) -> int:
        """Print the rows and the summary; then remove the lab's networks.

        :raises VmclonerError: the run did not do everything.
        """
        super().produce_output(parsed_args, column_names, data)
        if self._lab is not None and self._networks and not parsed_args.dry_run:
            self.engine.delete_lab(self._lab)
        for network in self._networks:
            note(self.app, f"network {network} {'to be ' * parsed_args.dry_run}removed")
        return 0

    def request(self, parsed_args: argparse.Namespace) -> TargetRequest:
        """Return the request.

        :raises UsageError: standard input isn't a terminal, and ``--yes`` isn't given.
        """
        count, missing_ok = parsed_args.count, parsed_args.missing_ok
        lab = self._lab.name if self._lab is not None else None
        request = targeted("delete", parsed_args, count=count, missing_ok=missing_ok, lab=lab)
        self._check_terminal(parsed_args)
        return request

    @staticmethod
    def _check_terminal(parsed_args: argparse.Namespace) -> None:
        if not (parsed_args.yes or parsed_args.dry_run or sys.stdin.isatty()):
            raise UsageError("delete needs a terminal to ask for confirmation", hint="or use --yes")

    def confirm(self, plan: Plan, parsed_args: argparse.Namespace) -> None:
        """Ask before anything is deleted.

        :raises Interrupted: the user said no.
        """
        if parsed_args.yes or not plan.clones:
            return
        names = fold([clone.name for clone in plan.clones])
        more = f", {_listed(self._networks)}" if self._networks else ""
        self._ask(f"{counted(len(plan.clones), 'clone')}, {names}{more}")

    @staticmethod
    def _ask(what: str) -> None:
        if not agrees(f"Delete {what}?"):
            raise Interrupted("nothing was deleted")


def _listed(networks: Sequence[str]) -> str:
    return ", ".join(f"network {name}" for name in networks)
