"""In CI, a test that can't run for lack of something fails."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.child_pytest import argv

TOP = Path(__file__).parents[2]
MARK = """
import pytest
@pytest.mark.skipif(True, reason="tmux is missing")
def test_it(): pass
"""
FIXTURE = """
import pytest
@pytest.fixture
def server(): pytest.skip("tmux is missing")
def test_it(server): pass
"""
MODULE = 'import pytest\npytest.importorskip("tmux", reason="tmux is missing")\n'
UNPACKAGED = """
import platform, shutil
platform.freedesktop_os_release = lambda: {"ID": "ubuntu"}
shutil.which = lambda _program: None
from tests.reports.browser import needs_chromium
@needs_chromium
def test_it(): pass
"""
KNOWN = """
import pytest
@pytest.mark.xfail(reason="a fault that is known")
def test_it(): assert 0
"""
SUITE = """
import sys
import pytest
from vmcloner_core.hooks import hookimpl
from vmcloner_core.testing.observer import ObserverConformance
@hookimpl
def vmcloner_run_finished(): pass
class TestIt(ObserverConformance):
    @pytest.fixture
    def observer(self): return sys.modules[__name__]
"""


def ended(folder, text, **environment):
    """Run a module of tests; return the exit code and what pytest said."""
    (folder / "test_it.py").write_text(text)
    known = {name: value for name, value in os.environ.items() if name != "CI"}
    done = subprocess.run(
        argv("-q", "-rA", "-c", "/dev/null", "-p", "tests.skipping", "--rootdir", folder, folder),
        cwd=TOP, env={**known, "PYTHONPATH": str(TOP), **environment},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout


@pytest.mark.parametrize("text", [MARK, FIXTURE, MODULE])
def test_what_is_missing_fails_in_ci_alone(tmp_path, text):
    code, said = ended(tmp_path, text, CI="true")
    assert code in (1, 2), said
    assert "tmux is missing; in CI that fails" in said
    code, said = ended(tmp_path, text)
    assert code in (0, 5), said
    assert "1 skipped" in said


@pytest.mark.parametrize(
    ("text", "found"),
    [(KNOWN, "1 xfailed"), (SUITE, "skipped"), (UNPACKAGED, "1 skipped")],
)
def test_what_no_machine_can_change_stays(tmp_path, text, found):
    code, said = ended(tmp_path, text, CI="true")
    assert (code, found in said) == (0, True), said
