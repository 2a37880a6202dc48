"""A look at real guests: their consoles, what they use, and what runs did to them."""

import json
import os
import pty
import subprocess
import time

import pytest

pytestmark = [pytest.mark.libvirt, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def web(real_site):
    fleet = real_site.fleet("looks")
    real_site.run("create", fleet, "-t", "tiny", "-n", "2", "--start", "--wait")
    yield fleet
    real_site.run("delete", fleet, "--yes")


def test_logs_of_many(real_site, web):
    lines = real_site.run("logs", web).splitlines()
    assert {line.partition(": ")[0] for line in lines} == {f"{web}-1", f"{web}-2"}
    assert any("ready name=" in line for line in lines)
    assert not [line for line in lines if "\x1b" in line or "\r" in line]
    assert len(real_site.run("logs", web, "--lines", "1").splitlines()) == 2


def test_logs_that_are_followed_across_a_restart(real_site, web):
    with real_site.popen("logs", f"{web}-1", "--follow", "--lines", "0") as process:
        try:
            real_site.run("restart", f"{web}-1", "--kill", "--wait")
            line = process.stdout.readline()
            while "ready name=" not in line:
                assert line.startswith(f"{web}-1: ")
                line = process.stdout.readline()
        finally:
            process.terminate()
            process.wait(30)
    assert process.returncode == 130


def test_what_guests_use(real_site, web):
    rows = json.loads(real_site.run("top", web, "-f", "json"))
    assert [row["state"] for row in rows] == ["running"] * 2
    for row in rows:
        assert row["cpu"] >= 0
        assert row["vcpus"] >= 1
        assert row["resident"] > 1024**2
        assert row["disk_read"] is not None
        assert row["disk_written"] is not None


@pytest.mark.parametrize("key", [b"q", b"\x03"])
def test_a_table_on_a_terminal(real_site, web, key):
    """Both keys leave it with exit code 0, and the terminal as it was."""
    ours, theirs = pty.openpty()
    os.set_inheritable(theirs, True)
    process = subprocess.Popen(
        ["setsid", "-c", "-w", *real_site.argv("top", web, "--interval", "1")],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "COLUMNS": "80", "LINES": "24", "TERM": "xterm"},
    )
    os.close(theirs)
    shown = b""
    end = time.monotonic() + 60
    while shown.count(f"{web}-1".encode()) < 2:
        assert time.monotonic() < end, shown
        shown += os.read(ours, 65536)
    os.write(ours, key)
    assert process.wait(30) == 0
    while b"\x1b[?1049l" not in shown:
        shown += os.read(ours, 65536)
    os.close(ours)
    lines = shown.decode().split("\x1b[H")[1].splitlines()  # the last may be cut off by the key
    assert any("2 clones, 2 running" in line for line in lines)


def test_events_of_another_process(real_site, web):
    with real_site.popen("events", "--follow") as process:
        try:
            time.sleep(2)
            real_site.run("stop", f"{web}-2", "--kill")
            events = []
            while not events or events[-1]["event"] != "result":
                events.append(json.loads(process.stdout.readline()))
        finally:
            process.terminate()
            process.wait(30)
    assert process.returncode == 130
    assert events[0]["action"] == "stop"
    assert {event["run"] for event in events} == {events[0]["run"]}
    real_site.run("start", f"{web}-2", "--wait")
