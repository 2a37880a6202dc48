"""``vmcloner host``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from vmcloner_core.cli.base import Table
from vmcloner_core.errors import BackendError
from vmcloner_core.model import Check, Status

CHECK_COLUMNS = ("backend", "check", "status", "detail", "fix")


def check_row(check: Check) -> tuple[str | None, ...]:
    """Return a check as a row of :data:`CHECK_COLUMNS`."""
    return check.backend, check.name, check.status.value, check.detail, check.fix or None


def judged(checks: Sequence[Check]) -> int:
    """Return the exit code for checks: that of a backend that can't work, if one failed."""
    failed = any(check.status is Status.FAILED for check in checks)
    return BackendError.exit_code if failed else 0


class HostCheck(Table):
    """Check what each backend needs of this host, with what mends it.

    Exits with 8 if something that is needed is missing.
    """

    example = "vmcloner host check kvm"

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        parser.add_argument(
            "backends", nargs="*", metavar="BACKEND", help="Of the settings; all by default."
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Sequence[str], list[Any]]:
        """Return columns and rows."""
        self.checks = tuple(self.engine.check_host(*parsed_args.backends))
        return CHECK_COLUMNS, [check_row(check) for check in self.checks]

    def run(self, parsed_args: argparse.Namespace) -> int:
        """Check; fails where a check does."""
        return super().run(parsed_args) or judged(self.checks)
