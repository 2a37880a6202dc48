"""A plugin for pytest inside a lab: writes which tests passed to the lab's console.

The console's log is on the host, so it is still there if the lab is lost.
"""

from __future__ import annotations

import os

import pytest

MARK = "LAB-PASSED "
"""Begin of a line; a test's id follows."""
CONSOLE = "/dev/console"


def passed(console: str) -> list[str]:
    """Return the ids of the tests that a console's text says passed."""
    return [line.removeprefix(MARK) for line in console.splitlines() if line.startswith(MARK)]


_called: set[str] = set()
"""Ids of the tests that passed, and whose clean-up goes on."""


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Tell of a test that has ended well, clean-up included."""
    if report.when == "call" and report.passed:
        _called.add(report.nodeid)
    elif report.when == "teardown" and report.passed and report.nodeid in _called:
        _say(report.nodeid)
    else:  # it failed, is skipped, or runs again
        _called.discard(report.nodeid)


def _say(test: str) -> None:
    descriptor = os.open(CONSOLE, os.O_WRONLY | os.O_NOCTTY)
    try:
        # A line of its own, whatever else is being written.
        os.write(descriptor, f"\r\n{MARK}{test}\r\n".encode())
    finally:
        os.close(descriptor)
