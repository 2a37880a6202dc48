"""``vmcloner wait``."""

from __future__ import annotations

import argparse

from vmcloner_core.cli.base import RunCommand, add_targets, add_timeout
from vmcloner_core.plan import Action, Readiness
from vmcloner_core.request import TargetRequest


class Wait(RunCommand):
    """Wait until clones are ready: for what their template says, or for WHAT."""

    example = "vmcloner wait web --for 'console:{{ name }} login:' --timeout 120"

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        add_targets(parser, everything=True)
        parser.add_argument(
            "--for",
            dest="readiness",
            metavar="WHAT",
            help="running, or console:REGEX where {{ name }} is the clone's.",
        )
        add_timeout(parser)
        return parser

    def request(self, parsed_args: argparse.Namespace) -> TargetRequest:
        """Return the request."""
        wait = None
        if parsed_args.readiness is not None:
            wait = Readiness.parse(parsed_args.readiness, timeout=parsed_args.timeout)
        return TargetRequest(
            action=Action.WAIT,
            targets=tuple(parsed_args.targets),
            everything=parsed_args.all,
            wait=wait,
            ready=wait is None,
            timeout=parsed_args.timeout,
        )
