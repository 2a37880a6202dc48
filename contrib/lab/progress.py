"""A plugin for pytest inside a lab: writes which tests passed to the lab's console.

The console's log is on the host, so it is still there if the lab is lost. What passed in such a one
is left out in the next one.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

MARK = "LAB-PASSED "
"""Begin of a line; a test's id follows."""
CONSOLE = "/dev/console"
DONE = "passed-before"
"""The file, where pytest runs, with the ids of tests that need not run, one a line. pytest's own
``--deselect`` would leave out all whose ids begin with one of these."""


def passed(console: str) -> list[str]:
    """Return the ids of the tests that a console's text says passed."""
    return [line.removeprefix(MARK) for line in console.splitlines() if line.startswith(MARK)]


_left_out: set[str] = set()
"""Ids of the tests that passed before."""
_called: set[str] = set()
"""Ids of the tests that passed, and whose clean-up goes on."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what has passed before."""
    done = Path(DONE).read_text().splitlines() if Path(DONE).exists() else []
    _left_out.update(item.nodeid for item in items if item.nodeid in done)
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in _left_out])
    items[:] = [item for item in items if item.nodeid not in _left_out]


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """End well if all had passed before: a lab can be lost after its last test."""
    if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and _left_out:
        session.exitstatus = pytest.ExitCode.OK


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
