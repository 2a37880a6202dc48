"""``vmcloner create``."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from vmcloner_core.cli.base import RunCommand, add_copying, add_sizes, sizes, waiting
from vmcloner_core.model import CloneMode
from vmcloner_core.names import check_fleet
from vmcloner_core.plan import OnFailure
from vmcloner_core.request import CreateRequest


class Create(RunCommand):
    """Create a fleet of clones, or complete one.

    The clones are FLEET-1 to FLEET-N. --count N is the size of the whole fleet: after a failure,
    run the same command again to finish the work.
    """

    example = "vmcloner create web -t tiny -n 20 --start --wait"
    waits = True

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        parser.add_argument("fleet", metavar="FLEET", help="Name of the fleet, a DNS label.")
        parser.add_argument(
            "-t", "--template", required=True, metavar="NAME", help="Template to clone."
        )
        number = parser.add_mutually_exclusive_group()
        number.add_argument(
            "-n", "--count", type=int, metavar="N", help="Size of the fleet (default 1)."
        )
        number.add_argument(
            "--add", type=int, metavar="N", help="Clones to add after the highest index."
        )
        parser.add_argument(
            "-e",
            "--hypervisor",
            metavar="NAME",
            help="Hypervisor from the settings, like kvm or xen.",
        )
        parser.add_argument("--storage", metavar="NAME", help="Storage pool from the settings.")
        parser.add_argument(
            "--full", action="store_true", help="Full copies, not linked to the template."
        )
        parser.add_argument(
            "--values",
            type=Path,
            metavar="FILE",
            help="CSV or TOML with values for each clone: memory, vcpus, disk_size, address, "
            "hostname, machine_id, and any others that the template's placeholders use.",
        )
        add_sizes(parser)
        add_copying(parser)
        parser.add_argument("--start", action="store_true", help="Start them.")
        parser.add_argument(
            "--on-failure",
            choices=[policy.value for policy in OnFailure],
            default=OnFailure.KEEP.value,
            help="If some fail: keep the others (default), or remove all that this run made.",
        )
        return parser

    def request(self, parsed_args: argparse.Namespace) -> CreateRequest:
        """Return the request."""
        return CreateRequest(
            fleet=parsed_args.fleet,
            template=parsed_args.template,
            count=parsed_args.count,
            add=parsed_args.add,
            hypervisor=parsed_args.hypervisor,
            storage=parsed_args.storage,
            mode=CloneMode.FULL if parsed_args.full else None,
            start=parsed_args.start,
            on_failure=OnFailure(parsed_args.on_failure),
            values=self._values(parsed_args),
            jobs=parsed_args.jobs,
            bandwidth=parsed_args.bwlimit,
            verify=parsed_args.verify,
            sizes=sizes(parsed_args),
            **waiting(parsed_args),
        )

    @staticmethod
    def _values(parsed_args: argparse.Namespace) -> dict[int, Mapping[str, str | int]]:
        if parsed_args.values is None:
            return {}
        from vmcloner_core.values_file import read_values  # brings cattrs with it

        return read_values(parsed_args.values, check_fleet(parsed_args.fleet))
