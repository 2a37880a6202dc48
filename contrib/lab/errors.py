"""Failures of the lab itself, as opposed to failures of commands inside."""

from __future__ import annotations


class LabError(Exception):
    """The lab cannot do what was requested. The message says what to do."""


class TimeUp(LabError):
    """A time limit was exceeded."""
