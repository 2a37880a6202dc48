"""``vmcloner delete``."""

from __future__ import annotations

import argparse
import sys

from vmcloner_core.cli.base import RunCommand, add_count, add_targets, targeted
from vmcloner_core.cli.usage import agrees
from vmcloner_core.errors import Interrupted, UsageError
from vmcloner_core.names import fold
from vmcloner_core.plan import Plan
from vmcloner_core.request import TargetRequest
from vmcloner_core.units import counted


class Delete(RunCommand):
    """Stop clones and remove them, with their disks, domains and logs.

    What isn't there gives exit code 4, after all else was deleted; --missing-ok makes it no error.
    Nothing that isn't vmcloner's is touched.
    """

    example = "vmcloner delete web db-[1-3] --yes"

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        add_targets(parser, everything=True)
        add_count(parser)
        parser.add_argument("-y", "--yes", action="store_true", help="Don't ask first.")
        parser.add_argument(
            "--missing-ok", action="store_true", help="Succeed although a target isn't there."
        )
        return parser

    def request(self, parsed_args: argparse.Namespace) -> TargetRequest:
        """Return the request.

        :raises UsageError: standard input isn't a terminal, and ``--yes`` isn't given.
        """
        count, missing_ok = parsed_args.count, parsed_args.missing_ok
        request = targeted("delete", parsed_args, count=count, missing_ok=missing_ok)
        if not (parsed_args.yes or parsed_args.dry_run or sys.stdin.isatty()):
            raise UsageError("delete needs a terminal to ask for confirmation", hint="or use --yes")
        return request

    def confirm(self, plan: Plan, parsed_args: argparse.Namespace) -> None:
        """Ask before anything is deleted.

        :raises Interrupted: the user said no.
        """
        if parsed_args.yes or not plan.clones:
            return
        names = fold([clone.name for clone in plan.clones])
        if not agrees(f"Delete {counted(len(plan.clones), 'clone')}, {names}?"):
            raise Interrupted("nothing was deleted")
