"""Report mistakes in a command line."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NoReturn

from vmcloner_core.errors import HostCommandError, UsageError, did_you_mean, shown

MAX_LINE = 4000
"""Characters of a line on standard error."""


def say(text: str) -> None:
    """Print one line to standard error. What guests and servers said in it can't act there."""
    print(f"vmcloner: {shown(text, MAX_LINE)}", file=sys.stderr)


def unwritten(error: OSError) -> int:
    """Say that standard output can't be written; returns the exit code."""
    say(f"standard output: {error.strerror}")
    return HostCommandError.exit_code


def drop_output() -> None:
    """Have Python's buffer of standard output go nowhere: at its end it would try once more."""
    with contextlib.suppress(OSError, ValueError), Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


@contextlib.contextmanager
def written() -> Iterator[None]:
    """End the process with one line if the block can't write to standard output."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        sys.exit(unwritten(error))


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
    hint = _hint(parser, message)
    if hint:
        message = message.partition(" (choose from ")[0]
    say(f"{message} ({hint or f'{parser.prog} --help'})")
    sys.exit(UsageError.exit_code)


def _hint(parser: argparse.ArgumentParser, message: str) -> str:
    """Return what a misspelt value or option may have meant, empty if nothing is like it."""
    wrong = re.search(r"invalid choice: '(.*)' \(choose from (.*)\)$", message)
    if wrong is not None:
        return _closest(wrong[1], [word.strip(" '") for word in wrong[2].split(",")])
    if (wrong := re.search(r"unrecognized arguments: --([^ =]+)", message)) is None:
        return ""
    # The hyphens that all options begin with would make any two short ones alike.
    known = [name[2:] for name in parser._option_string_actions if name.startswith("--")]
    return _closest(wrong[1], known).replace("'", "'--", 1)


def _closest(word: str, known: list[str]) -> str:
    hint = did_you_mean(word, known)
    return hint if hint.startswith("did") else ""


def folded(failures: Iterable[tuple[str, str]]) -> list[str]:
    """Return a line for each reason, with the names of all clones that it holds for.

    :param failures: each clone's name, and what is said of it, with or without its name.
    """
    from vmcloner_core.names import fold

    found: dict[str, list[str]] = {}
    for name, said in failures:
        reason = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w-])", _NAME, said)
        found.setdefault(reason if reason.startswith(_NAME) else f"{_NAME}: {reason}", []).append(
            name
        )
    return [
        (reason if len(names) == 1 else reason.replace(f"{_NAME} is ", f"{_NAME} are ")).replace(
            _NAME, fold(names)
        )
        for reason, names in found.items()
    ]


_NAME = "\0"
"""Stands for the clones' names in a reason."""


def descriptor(text: str) -> int:
    """Return the number of a file descriptor that can be written to.

    :raises argparse.ArgumentTypeError: it isn't one.
    """
    import fcntl

    try:
        number = int(text)
        flags = fcntl.fcntl(number, fcntl.F_GETFL)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"{text!r} is not a file descriptor's number") from None
    except OSError:
        raise argparse.ArgumentTypeError(f"file descriptor {number} is not open") from None
    if flags & os.O_ACCMODE == os.O_RDONLY:
        raise argparse.ArgumentTypeError(f"file descriptor {number} is open for reading only")
    return number
