"""``vmcloner wait``."""

from __future__ import annotations

import argparse

from vmcloner_core.cli.base import RunCommand, add_readiness, add_targets, targeted, waiting
from vmcloner_core.request import TargetRequest


class Wait(RunCommand):
    """Wait until clones are ready, as their template or --for says."""

    example = "vmcloner wait web --for 'console:{{ name }} login:' --timeout 120"

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        add_targets(parser, everything=True)
        add_readiness(parser)
        parser.set_defaults(wait=True)
        return parser

    def request(self, parsed_args: argparse.Namespace) -> TargetRequest:
        """Return the request."""
        return targeted("wait", parsed_args, **waiting(parsed_args))
