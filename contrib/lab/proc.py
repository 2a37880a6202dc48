"""Run programs on the host: argv lists, time limits, output kept for error messages."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from contrib.lab.errors import LabError, TimeUp

DIES_WITH_PARENT = ("setpriv", "--pdeathsig", "KILL", "--")
"""Prefix for an argv: the kernel kills it when its parent ends, for whatever reason."""
_UNLESS_ORPHANED = 'test "$PPID" = "$0" && exec "$@"'


def dies_with_us(argv: Sequence[str]) -> list[str]:
    """Return an argv that runs a command which the kernel kills when this process ends.

    If this process ends before that is set up (PR_SET_PDEATHSIG, prctl(2)), nothing is run.
    """
    return [*DIES_WITH_PARENT, "sh", "-c", _UNLESS_ORPHANED, str(os.getpid()), *argv]


def say(text: str) -> None:
    """Print a message on standard error; standard output belongs to the command inside."""
    print(f"lab: {text}", file=sys.stderr, flush=True)


def need(*programs: str) -> None:
    """Check that the host has these programs."""
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        raise LabError(f"{', '.join(missing)}: not installed; run: contrib/setup/packages")


def run(
    argv: Sequence[str | Path],
    *,
    timeout: float = 60.0,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    content: bytes | None = None,
) -> bytes:
    """Run a command and return its output.

    :param content: its standard input.
    :raises LabError: it failed; the message has its last lines.
    :raises TimeUp: it was killed because it took longer than ``timeout`` seconds.
    """
    words = [str(word) for word in argv]
    try:
        done = subprocess.run(
            dies_with_us(words),
            input=b"" if content is None else content,
            capture_output=True,
            timeout=timeout,
            check=False,
            cwd=cwd,
            env=env,
        )
    except subprocess.TimeoutExpired as error:
        raise TimeUp(f"{words[0]}: no end after {timeout:.0f} s") from error
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()
        raise LabError("\n".join([f"{words[0]} failed with {done.returncode}:", *lines[-15:]]))
    return done.stdout
