"""``vmcloner console``."""

from __future__ import annotations

import argparse
import sys
import time

from vmcloner_core.cli.base import Base, note
from vmcloner_core.errors import UsageError

POLL = 0.2
CHUNK = 65536


class Console(Base):
    """Attach to a clone's serial console (^] to leave), or print its output.

    --log and --follow print the guest's output unchanged, including control characters.
    """

    example = "vmcloner console web-3 --log"

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        parser.add_argument("clone", metavar="CLONE", help="Name of a clone.")
        parser.add_argument(
            "--log", action="store_true", help="Print its output since its last start."
        )
        parser.add_argument("--follow", action="store_true", help="Keep printing (implies --log).")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        """Attach, or print."""
        if parsed_args.log or parsed_args.follow:
            self._print(parsed_args.clone, follow=parsed_args.follow)
            return
        if not sys.stdin.isatty():
            raise UsageError("console needs a terminal", hint="--log prints its output")
        print("Connecting; press ^] to leave.", file=sys.stderr)
        self.engine.attach_console(parsed_args.clone, sys.stdin.fileno(), sys.stdout.fileno())

    def _print(self, name: str, *, follow: bool) -> None:
        offset = 0
        while True:
            data, offset = self.engine.read_console(name, offset, CHUNK)
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
            if not data:
                if not offset and not follow:
                    note(self.app, f"{name} has said nothing on its console since its last start")
                if not follow:
                    return
                time.sleep(POLL)
