"""Mistakes in a command line: told in one line."""

from __future__ import annotations

import argparse
import sys
from typing import NoReturn

from vmcloner_core.errors import UsageError


def refuse(parser: argparse.ArgumentParser, message: str) -> NoReturn:
    """Exit with what is wrong with a command line, in one line: argparse's usage would hide it."""
    print(f"vmcloner: {message} ({parser.prog} --help)", file=sys.stderr)
    sys.exit(UsageError.exit_code)
