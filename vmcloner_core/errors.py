"""What can go wrong, as exceptions that a shell, a test suite and a service can all act on.

Each class has one exit code (see docs/exit-codes.md). A message is one line: it names the
object, the reason and, by ``hint``, the way out. Exceptions of libvirt, of the operating
system and of host commands are translated into these at the boundary, with ``raise … from``.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

MAX_SHOWN = 500


def shown(text: str, limit: int = MAX_SHOWN) -> str:
    """Return what a guest or a network says as it may be shown: on one line, unable to act.

    A terminal acts on control characters, a log file has lines, and bytes that are no text can't be
    written. What is longer than ``limit`` characters is cut.
    """
    cut = text if len(text) <= limit else f"{text[:limit]}…"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in cut)


class VmclonerError(Exception):
    """Base of all errors that vmcloner raises on purpose.

    :param message: one line, no trailing full stop.
    :param hint: the next thing to do, a command where there is one; shown after the message.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class UsageError(VmclonerError):
    """The command line can't be understood."""

    exit_code = 2


class InvalidRequest(VmclonerError):
    """A template, a settings file or a request breaks a rule."""

    exit_code = 3


class NotFound(VmclonerError):
    """What was named doesn't exist."""

    exit_code = 4


class Conflict(VmclonerError):
    """A name is taken by something else, which is never touched."""

    exit_code = 5


class WrongState(VmclonerError):
    """The object exists, but its state doesn't allow the operation."""

    exit_code = 6


class NotEnoughResources(VmclonerError):
    """Space, memory, names or addresses don't suffice; the message says how many would fit."""

    exit_code = 7


class BackendError(VmclonerError):
    """A backend is missing, incompatible or broken, or its service doesn't answer."""

    exit_code = 8


class HostCommandError(VmclonerError):
    """A host command or a hypervisor call failed."""

    exit_code = 9


class DeadlineExceeded(HostCommandError):
    """A host command, a hypervisor call or a wait didn't end in its time."""


class PartialFailure(VmclonerError):
    """Some of a batch failed.

    :param failures: (name, error) of each clone that failed.
    """

    exit_code = 10

    def __init__(
        self,
        message: str,
        *,
        failures: Sequence[tuple[str, VmclonerError]] = (),
        hint: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.failures = tuple(failures)


class RollbackIncomplete(PartialFailure):
    """What a failed run had created could not all be removed; the message says what is left."""

    exit_code = 11


class Interrupted(VmclonerError):
    """The user stopped the run; what was done stays, and the same command continues it."""

    exit_code = 130


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """Return a hint for a name that isn't known: its closest relative, or all there are."""
    close = get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known: {', '.join(sorted(set(known)))}" if known else "there are none"
