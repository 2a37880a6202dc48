"""Shell scripts in guests, by the guest agent's guest-exec. What a guest answers is bounded.

https://qemu-project.gitlab.io/qemu/interop/qemu-ga-ref.html
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from vmcloner_core.cancelling import pauses
from vmcloner_core.errors import WrongState
from vmcloner_libvirt import operations
from vmcloner_libvirt.binding import libvirt, libvirt_qemu
from vmcloner_libvirt.errors import is_code, is_disconnect

T = TypeVar("T")
ANSWER = 10
"""Seconds for an agent's answer to one command: it only begins the script, or looks."""
POLL = 1.0
"""Most seconds between two looks."""
MAX_ANSWER = 1024**2
"""Characters of an agent's answer. libvirt itself takes 10 MiB."""
_LINE = 300
_SILENT = ("VIR_ERR_AGENT_UNRESPONSIVE", "VIR_ERR_AGENT_UNSYNCED", "VIR_ERR_OPERATION_TIMEOUT")


class Ask(Protocol):
    """Runs an operation on a connection, which it holds only so long."""

    def __call__(self, operation: Callable[[Any], T], /) -> T:
        """Return ``operation(connection)``."""


def run(ask: Ask, *, name: str, script: bytes, timeout: float) -> None:
    """Run a script as root; see :meth:`AgentInterface.run`. It goes through a pipe of the agent's.

    An agent may be silent for a moment: after a restore libvirt learns late that it is there.
    """
    deadline, looks = time.monotonic() + timeout, pauses(POLL)
    began = {
        "path": "/bin/sh",
        "arg": ["-s"],
        "input-data": base64.b64encode(script).decode(),
        "capture-output": True,
    }
    started = _asked(ask, name, "guest-exec", began, deadline)
    pid = started.get("pid")
    while isinstance(pid, int):
        answer = _asked(ask, name, "guest-exec-status", {"pid": pid}, deadline)
        if answer.get("exited"):
            _check(name, answer)
            return
        if time.monotonic() > deadline:
            raise WrongState(f"{name}: a script in the guest didn't end within {timeout:g} s")
        next(looks)
    raise WrongState(f"{name}: the guest agent's answer makes no sense")


def _check(name: str, answer: dict[str, Any]) -> None:
    code = answer.get("exitcode")
    if code == 0:
        return
    said = _text(answer.get("err-data")) or _text(answer.get("out-data"))
    how = f"exit code {code}" if isinstance(code, int) else f"signal {answer.get('signal')!s:.20}"
    raise WrongState(f"{name}: a script in the guest failed: {said or how}")


def _text(data: object) -> str:
    """Return the last line of a program's output in base64, printable."""
    if not isinstance(data, str):
        return ""
    try:
        lines = base64.b64decode(data).decode(errors="replace").strip().splitlines()
    except ValueError:
        return ""
    last = lines[-1] if lines else ""
    return "".join(c if c.isprintable() else "?" for c in last[-_LINE:])


def _asked(
    ask: Ask, name: str, command: str, arguments: dict[str, Any], deadline: float
) -> dict[str, Any]:
    """Return an agent's answer to a command; one that is silent is asked again until a time."""
    question = json.dumps({"execute": command, "arguments": arguments})

    def once(connection: Any) -> str | None:
        return _answer(connection, name, question, last=time.monotonic() > deadline)

    looks = pauses(POLL)
    while (answer := ask(once)) is None:
        next(looks)
    return _parsed(name, answer)


def _answer(connection: Any, name: str, question: str, *, last: bool) -> str | None:
    """Return an agent's answer, None if it was silent.

    :param last: that is an error.
    """
    domain = operations.running(connection, name)
    module = libvirt()
    try:
        return str(libvirt_qemu().qemuAgentCommand(domain, question, ANSWER, 0))
    except module.libvirtError as error:
        if is_disconnect(error):
            raise
        if not is_code(error, *_SILENT) or last:
            raise WrongState(
                f"{name}: no agent in the guest runs scripts: {error}",
                hint="it needs qemu-guest-agent, with guest-exec allowed",
            ) from error
    return None


def _parsed(name: str, text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)["return"] if len(text) <= MAX_ANSWER else None
    except (ValueError, KeyError, TypeError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise WrongState(f"{name}: the guest agent's answer makes no sense")
    return found
