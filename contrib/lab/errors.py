"""Failures of the lab itself, as opposed to failures of commands inside."""

from __future__ import annotations


class LabError(Exception):
    """The lab cannot do what was requested. The message says what to do."""


class TimeUp(LabError):
    """A time limit was exceeded."""


class LabLost(LabError):
    """A lab no longer answers.

    :param console: what was written to its console; None if another one can't take its place.
    """

    def __init__(self, message: str, console: str | None = None) -> None:
        super().__init__(message)
        self.console = console
