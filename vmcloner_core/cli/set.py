"""``vmcloner set``."""

from __future__ import annotations

import argparse

from vmcloner_core.cli.base import RunCommand, add_sizes, add_targets, sizes, targeted
from vmcloner_core.request import TargetRequest


class Set(RunCommand):
    """Change the memory, the processors or the first disk of clones.

    Running clones get it at once where the hypervisor can; else at their next start. Disks only
    grow; the guest's file system is not changed. A reset keeps all of it.
    """

    example = "vmcloner set web-[1-5] --memory 2GiB --vcpus 2 --disk-size 20GiB"

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        add_targets(parser, everything=True)
        add_sizes(parser)
        return parser

    def request(self, parsed_args: argparse.Namespace) -> TargetRequest:
        """Return the request."""
        return targeted("set", parsed_args, sizes=sizes(parsed_args))
