"""``vmcloner logs``."""

from __future__ import annotations

import argparse
import time

from vmcloner_core.cli.base import Base, add_targets, chosen
from vmcloner_core.cli.usage import printable, say
from vmcloner_core.errors import PartialFailure, VmclonerError
from vmcloner_core.names import fold
from vmcloner_core.units import parse_duration


class Logs(Base):
    """Print the console output of clones, each line with its clone's name.

    All of what libvirt keeps, about 8 MiB of each clone since its last start. Escape sequences are
    left out and other control characters spelled out: the lines can be shown on any terminal.
    """

    example = "vmcloner logs web --follow --lines 10"

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        add_targets(parser, everything=True)
        parser.add_argument(
            "--follow", action="store_true", help="Go on with what comes, until Ctrl-C."
        )
        parser.add_argument(
            "--lines", type=_number, metavar="N", help="Of each clone, only the last N lines."
        )
        parser.add_argument(
            "--since",
            type=_duration,
            metavar="AGE",
            help="Leave out what is older, like 10min or 2h: consoles that have been silent since, "
            "and what comes before an older message of the kernel.",
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        """Print the lines.

        :raises PartialFailure: a console can't be read.
        """
        since = None if parsed_args.since is None else time.time() - parsed_args.since
        lines = self.engine.console_lines(
            *chosen(parsed_args, "logs"),
            lines=parsed_args.lines,
            since=since,
            follow=parsed_args.follow,
        )
        failures: list[tuple[str, VmclonerError]] = []
        for line in lines:
            if line.error is not None:
                say(str(line.error))
                failures.append((line.clone, line.error))
                continue
            text = printable(line.text)
            print(f"{line.clone}: {text}", file=self.app.stdout, flush=parsed_args.follow)
        if failures:
            names = fold([name for name, _ in failures])
            raise PartialFailure(f"logs: can't read those of {names}", failures=failures)


def _number(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"not a number of lines: {text!r}")
    return int(text)


def _duration(text: str) -> int:
    try:
        return parse_duration(text)
    except VmclonerError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
