"""Report mistakes in a command line."""

from __future__ import annotations

import argparse
import sys
from typing import NoReturn

from vmcloner_core.errors import UsageError, shown

MAX_LINE = 4000
"""Characters of a line on standard error."""


def say(text: str) -> None:
    """Print one line to standard error. What guests and servers said in it can't act there."""
    print(f"vmcloner: {shown(text, MAX_LINE)}", file=sys.stderr)


def agrees(question: str) -> bool:
    """Ask the user at the terminal; no answer is a no."""
    try:
        answer = input(f"{question} [y/N] ")
    except EOFError:
        return False
    return answer.strip().lower() in ("y", "yes")


def printable(text: str) -> str:
    """Return lines of text with their control characters spelled out; tabs stay."""
    return "\n".join(
        "\t".join(shown(part, len(part)) for part in line.split("\t")) for line in text.split("\n")
    )


def refuse(parser: argparse.ArgumentParser, message: str) -> NoReturn:
    """Print one line on what is wrong, and exit: argparse's usage text would hide it."""
    say(f"{message} ({parser.prog} --help)")
    sys.exit(UsageError.exit_code)
