"""Run a script in a guest by ssh, or an Ansible playbook for it, with bounded output."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import attrs

from vmcloner_core import ansible, ssh
from vmcloner_core.cancelling import pause
from vmcloner_core.errors import (
    BackendError,
    DeadlineExceeded,
    HostCommandError,
    VmclonerError,
    shown,
)
from vmcloner_core.model import Access, Labels, Script
from vmcloner_core.process import bound
from vmcloner_core.trusted_files import replacing
from vmcloner_core.units import format_seconds

MAX_OUTPUT = 256 * 1024
"""Bytes that are kept of the end of a script's output: guests' output is hostile input."""
TIMEOUT = 1800.0
"""Seconds for one script on one clone."""
PLAYBOOK = "ansible-playbook"
# Its own file, not sh's input: its first line may name another interpreter, and what it starts may
# read from standard input. What it leaves running may keep ssh from ending, so its end is marked.
_IN_GUEST = (
    'f=$(mktemp) && cat >"$f" && chmod 700 "$f" || exit 126; '
    'if [ "$(head -c 2 "$f")" = "#!" ]; then "$f"; else sh "$f"; fi </dev/null 2>&1; '
    'r=$?; rm -f "$f"; printf "\\n%s:%d\\n" {mark} $r; exit $r'
)


@attrs.frozen(kw_only=True)
class Ran:
    """How a program ended, and the end of what it wrote to standard output and error."""

    code: int
    output: bytes


class _Late(Exception):
    """A program did not end in time; with the end of its output."""


def check_tools(scripts: Sequence[Script]) -> None:
    """Check that this host has what runs some scripts.

    :raises BackendError: it lacks ssh, or for a playbook Ansible.
    """
    for tool, package in (("ssh", "openssh-client"), (PLAYBOOK, "ansible-core")):
        wanted = any((s.playbook is not None) == (tool == PLAYBOOK) for s in scripts)
        if wanted and shutil.which(tool) is None:
            raise BackendError(f"{tool} isn't installed", hint=f"install {package}")


def run(script: Script, labels: Labels, access: Access, timeout: float = TIMEOUT) -> bytes:
    """Run a script in a clone; returns the end of its output.

    :raises HostCommandError: it failed; its ``__notes__`` have the output.
    :raises DeadlineExceeded: it did not end in time, and was given up.
    :raises Interrupted: the run is to end. In the guest, it may go on.
    """
    name = f"{labels.clone}: {script.name}"
    if script.playbook is None:
        mark = secrets.token_hex(8)  # no output has it by chance
        argv = ssh.command(access, _IN_GUEST.format(mark=mark), **ssh.unattended(timeout))
        ran = _run(argv, script.content, timeout, name, mark=mark)
    else:
        ran = _play(script.playbook, labels, access, timeout, name)
    if ran.code:
        lines = ran.output.decode(errors="replace").strip().splitlines() or ["no message"]
        error = HostCommandError(f"{name}: failed with {ran.code}: {shown(lines[-1].strip())}")
        error.add_note(ran.output.decode(errors="replace"))
        raise error
    return ran.output


def run_all(
    wanted: Sequence[Script],
    labels: Labels,
    access: Access,
    file: Path,
    noted: Callable[[Script], None],
) -> None:
    """Run scripts in a clone, in their order, until one fails.

    :param file: gets what they print. :param noted: called with each one that has succeeded.
    :raises VmclonerError: one has failed; names the file.
    """
    output = b""
    for script in wanted:
        output += f"== {script.name}\n".encode()
        try:
            output += run(script, labels, access)
        except VmclonerError as error:
            output += "\n".join(getattr(error, "__notes__", [error.message])).encode(
                errors="replace"
            )
            raise type(error)(error.message, hint=f"its output: {file}") from error
        finally:
            with contextlib.suppress(OSError), replacing(file, 0o600, lasting=False) as stream:
                stream.write(output)
        noted(script)


def _play(playbook: Path, labels: Labels, access: Access, timeout: float, name: str) -> Ran:
    """Run a playbook for one clone, in the playbook's folder: there is its ``ansible.cfg``."""
    program = shutil.which(PLAYBOOK)
    if program is None:
        raise BackendError(f"{PLAYBOOK} isn't installed", hint="install ansible-core")
    with tempfile.NamedTemporaryFile("w", suffix=".yml") as inventory:
        json.dump(ansible.inventory([(labels, access)]), inventory)  # which is YAML too
        inventory.flush()
        argv = [program, "-i", inventory.name, str(playbook)]
        return _run(argv, b"", timeout, name, folder=playbook.parent)


def _run(
    argv: Sequence[str],
    content: bytes,
    timeout: float,
    name: str,
    *,
    folder: Path = Path("/"),
    mark: str | None = None,
) -> Ran:
    """Run a program.

    :param mark: what it prints before its exit code when it has ended, None if it just ends.
    """
    deadline = time.monotonic() + timeout
    ended = None if mark is None else re.compile(rf"\n{mark}:(\d+)\n".encode())
    with tempfile.TemporaryFile() as stdin:
        stdin.write(content)
        stdin.seek(0)
        try:
            process = subprocess.Popen(
                bound(argv),
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                cwd=folder,
                start_new_session=True,
            )
        except OSError as error:
            raise HostCommandError(f"{name}: {argv[0]}: {error.strerror}") from error
    try:
        output = _output(process, deadline, ended)
        end = ended.search(output) if ended is not None else None
        if end is not None:
            return Ran(code=int(end[1]), output=output[: end.start()])
        return Ran(code=process.wait(max(0.1, deadline - time.monotonic())), output=output)
    except (_Late, subprocess.TimeoutExpired) as error:
        late = DeadlineExceeded(f"{name}: not done within {format_seconds(timeout)}")
        late.add_note(str(error))
        raise late from error
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        with process:  # closes its pipe, and waits for its end
            pass


def _output(
    process: subprocess.Popen[bytes], deadline: float, end: re.Pattern[bytes] | None
) -> bytes:
    """Return the last of what a process writes until it ends, or ``end`` is in it.

    :raises _Late: it doesn't by then; with what it wrote. :raises Interrupted: the run is to end.
    """
    assert process.stdout is not None  # noqa: S101 - it is a pipe
    stream, kept = process.stdout.fileno(), bytearray()
    poll = select.poll()
    poll.register(stream, select.POLLIN)
    while True:
        pause(0)  # ends with the run
        readable = poll.poll(500)
        data = os.read(stream, 65536) if readable else b""
        kept += data
        del kept[:-MAX_OUTPUT]
        if data and end is not None and end.search(kept):
            return bytes(kept)
        ended = process.poll() is not None
        if not data and (readable or ended):  # what it has started may keep the pipe open
            return bytes(kept)
        if time.monotonic() > deadline:
            raise _Late(kept.decode(errors="replace"))
