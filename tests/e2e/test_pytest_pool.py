"""Real guests for a user's tests: four workers of xdist share a pool, and one pytest is killed.

The guests are reached by ssh, as those of a user are.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from tests.e2e.ssh_guest import make_template

pytestmark = [pytest.mark.libvirt, pytest.mark.timeout(900)]
TESTS = """
import pathlib, time
import pytest

@pytest.mark.parametrize("n", range(8))
def test_a_guest_is_ready_as_new_and_nobody_elses(clone, vmcloner, n):
    mine = pathlib.Path("using-" + clone.name)
    mine.touch(exist_ok=False)
    assert vmcloner.show(clone.name).state.value == "running"
    assert clone.ssh("hostname; ls /root; touch /root/used").split() == [clone.name]
    mine.unlink()

def test_files_are_ready_to_go_there_and_back(clone, tmp_path):
    (tmp_path / "to").write_text(clone.name)
    clone.put(tmp_path / "to", to="/root/")
    assert clone.ssh("cat /root/to") == clone.name
    clone.get("/root/to", folder=tmp_path / "back")
    assert [p.read_text() for p in (tmp_path / "back").rglob("to")] == [clone.name]
    failed = clone.exec("echo no >&2; exit 3")
    assert (failed.code, failed.stderr) == (3, b"no\\n")

def test_endless(clone):
    pathlib.Path("reached").write_text(clone.name)
    time.sleep(1000)
"""
BASE = ("-p", "no:cacheprovider", "-p", "no:rerunfailures", "-v")


@pytest.fixture
def project(site, tmp_path):
    """A folder with tests over a pool of two; returns a function that starts a pytest in it."""
    (tmp_path / "test_it.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text(
        f"[pytest]\nvmcloner_ttl = 5s\nvmcloner_pool = {{template = 'reached', size = 2, "
        f"name = '{site.fleet('pool')}', memory = true}}\n"
    )
    (tmp_path / "templates").symlink_to(site.folder / "templates")
    environment = {**os.environ, "VMCLONER_CONFIG": str(site.folder / "vmcloner.toml")}
    for name in [n for n in environment if n.startswith(("PYTEST_", "COV_CORE"))]:
        del environment[name]

    def start(*words):
        return subprocess.Popen(
            [sys.executable, "-m", "pytest", *BASE, *words],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    return start


def end(run):
    """Kill a pytest with its workers, whatever has become of it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(run.pid, signal.SIGKILL)


def test_workers_share_a_pool_of_guests_and_a_killed_pytest_leaves_none(site, project, tmp_path):
    site.run("template", "import", "tiny", timeout=600)
    make_template(site, "reached")
    with project("-n", "4", "-k", "ready", "--vmcloner-keep-pool", "--vmcloner-require") as run:
        try:
            said, _ = run.communicate(timeout=600)
        finally:
            end(run)
    assert run.returncode == 0, said
    assert "9 passed" in said, said
    assert not re.search(r"\d (skipped|error)", said), said
    assert len(site.rows(site.fleet("pool"))) == 2  # a reset may have been cut off at the end
    with project("-k", "endless", "--vmcloner-require") as run:
        try:
            late = time.monotonic() + 300
            while not (tmp_path / "reached").exists():
                assert time.monotonic() < late
                assert run.poll() is None, run.stdout.read()
                time.sleep(0.2)
            time.sleep(6)
            site.run("gc", "--expired", "--yes")
            assert len(site.rows(site.fleet("pool"))) == 2
            states = json.loads(site.run("pool", "list", site.fleet("pool"), "-f", "json"))
            taken = [row["name"] for row in states if row["state"] == "taken"]
            assert taken == [(tmp_path / "reached").read_text()]
        finally:
            end(run)
    time.sleep(5.5)
    site.run("gc", "--expired", "--yes")
    assert site.remains() == []
