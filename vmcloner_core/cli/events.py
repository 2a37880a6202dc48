"""``vmcloner events``."""

from __future__ import annotations

import argparse
import json

from vmcloner_core.cli.base import Base


class Events(Base):
    """Print what runs did, as JSON lines: each plan, each step of each clone, each result.

    Of the last 200 runs on this host, also those of other processes. docs/events.md lists the
    keys, which stay the same while "schema" does.
    """

    example = "vmcloner events --follow | jq -c 'select(.status == \"failed\")'"

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        parser.add_argument(
            "--follow",
            action="store_true",
            help="What comes from now on, until Ctrl-C; of one run: all of it, until its end.",
        )
        parser.add_argument("--run", metavar="ID", help="Only the events of this run.")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        """Print the events."""
        for event in self.engine.events(run=parsed_args.run, follow=parsed_args.follow):
            print(json.dumps(event.json()), file=self.app.stdout, flush=parsed_args.follow)
