"""``vmcloner template warm``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from vmcloner_core.cli.base import Record, add_backends, add_identical, note
from vmcloner_core.cli.template import warm_row
from vmcloner_core.units import format_size

WARM_COLUMNS = ("template", "pool", "hypervisor", "key", "made", "size", "depends", "changed")


class TemplateWarm(Record):
    """Boot a clone of a template once, and keep its memory and its disk, to fork clones from.

    The guest boots without a network card. create --warm does this by itself the first time, and
    again when the image, the template, QEMU or the host's processor is another.
    """

    example = "vmcloner template warm tiny"
    columns = WARM_COLUMNS

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        parser.add_argument("template", metavar="NAME", help="Name of a template.")
        parser.add_argument(
            "--at",
            default="ready",
            metavar="WHEN",
            help="When to save it: ready (default), ssh, or console:REGEX.",
        )
        add_identical(parser)
        add_backends(parser)
        parser.add_argument(
            "--timeout", type=float, metavar="SECONDS", help="For the guest to get there."
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Sequence[str], Sequence[Any]]:
        """Make it; returns its keys and values."""
        outcome = self.engine.warm_template(
            parsed_args.template,
            at=parsed_args.at,
            identical=parsed_args.identical,
            storage=parsed_args.storage,
            hypervisor=parsed_args.hypervisor,
            timeout=parsed_args.timeout,
        )
        origin = outcome.unwrap()
        row = warm_row(origin)
        what = "saved" if outcome.changed else "already there"
        note(self.app, f"{origin.template}: {format_size(row['size'])} of memory, {what}")
        values = (*(row[key] for key in WARM_COLUMNS[1:-1]), outcome.changed)
        return WARM_COLUMNS, (origin.template, *values)
