"""What goes wrong with the lab itself, told apart from what goes wrong inside."""

from __future__ import annotations


class LabError(Exception):
    """The lab can't do what it was asked. The message says what to do."""


class TimeUp(LabError):
    """It took longer than it was allowed to."""
