"""``vmcloner create``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vmcloner_core.cli.base import (
    RunCommand,
    add_copying,
    add_identical,
    add_origin,
    add_sizes,
    add_ttl,
    note,
    sizes,
    waiting,
)
from vmcloner_core.cli.usage import agrees, say
from vmcloner_core.errors import Interrupted, NotPulled
from vmcloner_core.model import CloneMode
from vmcloner_core.names import check_fleet
from vmcloner_core.placing import Placing, Where
from vmcloner_core.plan import OnFailure
from vmcloner_core.request import CreateRequest
from vmcloner_core.units import format_size


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
        add_origin(parser)
        number = parser.add_mutually_exclusive_group()
        number.add_argument(
            "-n", "--count", type=int, metavar="N", help="Size of the fleet (default 1)."
        )
        number.add_argument(
            "--add", type=int, metavar="N", help="Clones to add after the highest index."
        )
        parser.add_argument(
            "--values",
            type=Path,
            metavar="FILE",
            help="CSV or TOML with values for each clone: memory, vcpus, disk_size, address, "
            "hostname, machine_id, and any others that the template's placeholders use.",
        )
        parser.add_argument(
            "--hosts",
            metavar="HOSTS",
            help="Of several hosts, make new clones on these: lab[1-3], or @lab for a group.",
        )
        parser.add_argument(
            "--place",
            choices=[how.value for how in Placing],
            default=Placing.SPREAD.value,
            help="Spread them evenly over the hosts (default), or pack them on few.",
        )
        parser.add_argument(
            "--per-host", type=int, metavar="N", help="At most N of the fleet on each host."
        )
        parser.add_argument(
            "--replace-lost",
            action="store_true",
            help="Hosts that can't be reached are gone for good: make clones with new names for "
            "theirs, and place nothing there any more.",
        )
        add_sizes(parser)
        add_copying(parser)
        add_ttl(
            parser,
            "Lease new clones for so long: gc --expired then removes them. never: no end "
            "(default defaults.ttl of the settings)",
        )
        parser.add_argument(
            "--pull",
            action="store_true",
            help="Download the template's image if it isn't here (template pull), without asking.",
        )
        parser.add_argument("--start", action="store_true", help="Start them.")
        parser.add_argument(
            "--warm",
            action="store_true",
            help="Fork them from a guest that has booted, instead of booting each "
            "(template warm, which is done first if need be).",
        )
        add_identical(parser)
        parser.add_argument(
            "--on-failure",
            choices=[policy.value for policy in OnFailure],
            default=OnFailure.KEEP.value,
            help="If some fail: keep the others (default), or remove all that this run made.",
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Sequence[str], list[Any]]:
        """Plan or run, after pulling the template's image if need be; returns columns and rows."""
        try:
            return super().take_action(parsed_args)
        except NotPulled as missing:
            if parsed_args.dry_run or not (
                parsed_args.pull or self._may_pull(parsed_args.template, missing)
            ):
                raise
            image = self.engine.pull_template(parsed_args.template).unwrap()
            if image.signature:
                note(self.app, f"signature of the image's checksum: {image.signature}")
        return super().take_action(parsed_args)

    def _may_pull(self, template: str, missing: NotPulled) -> bool:
        """Ask whether to pull an image; False if there is nobody to ask.

        :raises Interrupted: the user said no.
        """
        if not sys.stdin.isatty():
            return False
        size = self.engine.pull_size(template)
        how_much = f" ({format_size(size)})" if size else ""
        say(missing.message)
        if not agrees(f"Download it{how_much}?"):
            raise Interrupted("nothing was made", hint=missing.hint)
        return True

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
            warm=parsed_args.warm,
            identical=parsed_args.identical,
            on_failure=OnFailure(parsed_args.on_failure),
            values=self._values(parsed_args),
            jobs=parsed_args.jobs,
            bandwidth=parsed_args.bwlimit,
            verify=parsed_args.verify,
            sizes=sizes(parsed_args),
            where=self._where(parsed_args),
            ttl=parsed_args.ttl,
            **waiting(parsed_args),
        )

    def _where(self, parsed_args: argparse.Namespace) -> Where:
        hosts: tuple[str, ...] = ()
        if parsed_args.hosts is not None:
            from vmcloner_core.hosts.groups import named

            hosts = named(self.engine.settings, [parsed_args.hosts])
        return Where(
            hosts=hosts,
            how=Placing(parsed_args.place),
            each=parsed_args.per_host,
            replace_lost=parsed_args.replace_lost,
        )

    @staticmethod
    def _values(parsed_args: argparse.Namespace) -> dict[int, Mapping[str, str | int]]:
        if parsed_args.values is None:
            return {}
        from vmcloner_core.values_file import read_values  # brings cattrs with it

        return read_values(parsed_args.values, check_fleet(parsed_args.fleet))
