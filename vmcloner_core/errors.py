"""The exceptions of vmcloner, for use by the command line, test suites and services.

Each class has one exit code (see docs/exit-codes.md). A message is one line: it names the
object and the reason; ``hint`` says what to do. Exceptions of libvirt, of the operating system and
of host commands are translated into these at the boundary, with ``raise … from``.
"""

from __future__ import annotations

from collections.abc import Sequence

MAX_SHOWN = 500


def shown(text: str, limit: int = MAX_SHOWN) -> str:
    """Return untrusted text from a guest or a network so that it is safe to display, on one line.

    Control characters, which terminals interpret, line breaks and bytes that are not text are
    escaped. Text longer than ``limit`` characters is cut.
    """
    cut = text if len(text) <= limit else f"{text[:limit]}…"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in cut)


def said(error: BaseException) -> str:
    """Return what an exception that isn't vmcloner's says, on one line."""
    if isinstance(error, OSError) and error.strerror:
        what = f"{error.filename}: " if error.filename is not None else ""
        return shown(f"{what}{error.strerror}")
    reason = " ".join(str(error).split())
    return shown(f"{type(error).__name__}: {reason}" if reason else type(error).__name__)


class VmclonerError(Exception):
    """Base class of all errors that vmcloner raises deliberately.

    :param message: one line, no trailing full stop.
    :param hint: what to do next, a command if possible; shown after the message.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class UsageError(VmclonerError):
    """The command line is invalid."""

    exit_code = 2


class InvalidRequest(VmclonerError):
    """A template, a settings file or a request breaks a rule."""

    exit_code = 3


class NotFound(VmclonerError):
    """A named object does not exist."""

    exit_code = 4


class NotPulled(NotFound):
    """A template's image was not downloaded yet, and nobody said that it should be."""


class Conflict(VmclonerError):
    """A name is taken by something else, which is left unchanged."""

    exit_code = 5


class WrongState(VmclonerError):
    """The object exists, but its state does not allow the operation."""

    exit_code = 6


class NotEnoughResources(VmclonerError):
    """Not enough space, memory, names or addresses; the message says how many would fit."""

    exit_code = 7


class BackendError(VmclonerError):
    """A backend is missing, incompatible or broken, or its service does not respond."""

    exit_code = 8


class HostCommandError(VmclonerError):
    """A host command or a hypervisor call failed.

    :param output: what the command wrote to its standard error, all of it.
    """

    exit_code = 9

    def __init__(self, message: str, *, hint: str | None = None, output: str = "") -> None:
        super().__init__(message, hint=hint)
        self.output = output


class DeadlineExceeded(HostCommandError):
    """A host command, a hypervisor call or a wait exceeded its time limit."""


class PartialFailure(VmclonerError):
    """Some members of a batch failed.

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
    """A failed run could not remove everything it had created; the message says what is left."""

    exit_code = 11


class Interrupted(VmclonerError):
    """The user interrupted the run. Completed work stays; the same command continues."""

    exit_code = 130


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """Return a hint for an unknown name: the closest known name, or all known names."""
    from difflib import get_close_matches  # few commands fail

    close = get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known: {', '.join(sorted(set(known)))}" if known else "there are none"
