"""``vmcloner start``, ``stop``, ``restart``, ``pause``, ``save``, ``reset`` and so on."""

from __future__ import annotations

import argparse
from typing import Any

from vmcloner_core.cli.base import RunCommand, add_count, add_targets, targeted, waiting
from vmcloner_core.request import TargetRequest

DEFAULT_SHUTDOWN = 60.0


class _Power(RunCommand):
    """What these commands have in common."""

    action: str

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        add_targets(parser, everything=True)
        add_count(parser)
        if self.action in ("stop", "restart"):
            parser.add_argument(
                "-k", "--kill", action="store_true", help="Stop at once, without a shutdown."
            )
        return parser

    def request(self, parsed_args: argparse.Namespace) -> TargetRequest:
        """Return the request."""
        more = self.more(parsed_args)
        return targeted(self.action, parsed_args, count=parsed_args.count, **more)

    def more(self, parsed_args: argparse.Namespace) -> dict[str, Any]:
        """Return the request's fields that are this command's own."""
        return waiting(parsed_args) if self.waits else {}


class Start(_Power):
    """Start clones that aren't running."""

    action = "start"
    waits = True
    example = "vmcloner start web -n 5 --wait"


class Stop(_Power):
    """Shut clones down; those still running after --timeout are stopped at once."""

    action = "stop"
    example = "vmcloner stop web-[6-10] --timeout 30"

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        parser.add_argument(
            "--timeout",
            type=float,
            default=DEFAULT_SHUTDOWN,
            metavar="S",
            help=f"Seconds for guests to shut down (default {DEFAULT_SHUTDOWN:.0f}).",
        )
        return parser

    def more(self, parsed_args: argparse.Namespace) -> dict[str, Any]:
        """Return the fields that are this command's own."""
        return {"kill": parsed_args.kill, "shutdown_timeout": parsed_args.timeout}


class Restart(_Power):
    """Stop clones and start them again."""

    action = "restart"
    waits = True
    example = "vmcloner restart web-3 --kill --wait"

    def more(self, parsed_args: argparse.Namespace) -> dict[str, Any]:
        """Return the fields that are this command's own."""
        return {"kill": parsed_args.kill, **waiting(parsed_args)}


class Pause(_Power):
    """Pause running clones: they keep their memory, and use no processor."""

    action = "pause"
    example = "vmcloner pause web-[1-5]"


class Resume(_Power):
    """Continue paused clones."""

    action = "resume"
    waits = True
    example = "vmcloner resume web"


class Save(_Power):
    """Save the memory of running clones to files, and stop them.

    vmcloner restore, or start, continues them from there; stop --kill discards the saved memory.
    """

    action = "save"
    example = "vmcloner save web"


class Restore(_Power):
    """Continue saved clones from their saved memory."""

    action = "restore"
    waits = True
    example = "vmcloner restore web --wait"


class Reset(_Power):
    """Reset clones to their template's state, keeping names, addresses and keys.

    Running clones are stopped at once, and started again afterwards. Everything on the clones'
    disks is lost.
    """

    action = "reset"
    waits = True
    example = "vmcloner reset web --wait"

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        parser.add_argument("--start", action="store_true", help="Also start stopped clones.")
        return parser

    def more(self, parsed_args: argparse.Namespace) -> dict[str, Any]:
        """Return the fields that are this command's own."""
        return {"start": parsed_args.start, **waiting(parsed_args)}
