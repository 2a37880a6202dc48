"""In CI, nothing is left untested because the machine lacks a program: what is skipped fails.

Skips of the conformance suites stay: what a driver declares decides those. So do those for lack of
a package that the system's distribution doesn't have.
"""

import os
from pathlib import Path

import pytest

from vmcloner_core import testing

SUITES = Path(testing.__file__).parent
NO_PACKAGE = "there is no package here of"
"""Begins the reason of a skip that no set-up of the machine can help."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    """A test, or its fixture."""
    report = yield
    _check(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report():
    """A module, by ``importorskip``."""
    report = yield
    _check(report)
    return report


def _check(report):
    if not (os.environ.get("CI") and report.skipped) or hasattr(report, "wasxfail"):
        return
    file, line, reason = report.longrepr
    stays = reason.removeprefix("Skipped: ").startswith(NO_PACKAGE)
    if not stays and not Path(file).is_relative_to(SUITES):
        report.outcome, report.longrepr = "failed", f"{file}:{line}: {reason}; in CI that fails"
