"""Leases on the real libvirtd."""

import json
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.libvirt


def test_gc_beside_a_running_create_takes_nothing_of_it(site):
    """gc runs again and again from before its first volume until it has ended."""
    fleet, rounds = site.fleet("web"), 0
    with site.popen("create", fleet, "-t", "plain", "-n", "12", "--ttl", "300d") as creating:
        while creating.poll() is None:
            left = site.run("gc", "--expired", "--orphans", "--yes", "-f", "json")
            assert [row for row in json.loads(left) if fleet in row["name"]] == []
            rounds += 1
        assert creating.returncode == 0, creating.stderr.read()
    assert rounds
    rows = site.rows(fleet)
    assert [row["state"] for row in rows] == ["stopped"] * 12
    assert all(row["expires"] for row in rows)


def test_what_has_expired_is_removed_with_all_its_parts(site):
    fleet, other = site.fleet("web"), site.fleet("db")
    site.run("create", fleet, "-t", "plain", "-n", "2", "--ttl", "1s", "--start")
    site.run("create", other, "-t", "plain", "--ttl", "1h")
    site.run("lease", "extend", f"{fleet}-2", "--ttl", "1h")
    time.sleep(1.1)
    assert [row["name"] for row in site.rows("--expired")] == [f"{fleet}-1"]
    site.run("gc", "--expired", "--yes")
    assert [row["name"] for row in site.rows()] == [f"{other}-1", f"{fleet}-2"]
    site.run("lease", "end", fleet, other)
    site.run("gc", "--expired", "--yes")
    assert site.remains() == []


def test_the_real_clock_set_back_deletes_nothing(site):
    """The process sees another wall clock; a clock that is years ahead deletes nothing either."""
    fleet = site.fleet("web")
    site.run("create", fleet, "-t", "plain", "--ttl", "1s")
    time.sleep(1.1)
    argv = site.argv("gc", "--expired", "--yes")
    code = (
        "import sys, time; real, jump = time.time, float(sys.argv[1]);"
        "time.time = lambda: real() + jump;"
        "sys.argv[:2] = ['vmcloner']; from vmcloner_core.cli.app import main; "
        "sys.exit(main(sys.argv[1:]))"
    )
    for jump in ("-7200", "-9e8", "9e8"):
        words = [sys.executable, "-c", code, jump, *argv[1:]]
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=100)
        assert (done.returncode, done.stdout) == (6, ""), done
        assert "this host's clock is wrong" in done.stderr
    assert len(site.rows()) == 1
