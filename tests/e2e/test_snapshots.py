"""Snapshots of real guests: they go on from where they were."""

import json
import re
import subprocess
import time

import libvirt
import pytest

pytestmark = pytest.mark.libvirt
COUNT = "i=0; while :; do i=$((i+1)); echo tick $i; sleep 0.2; done &"
MARK = "echo marked | dd of=/dev/vda bs=512 seek=3 conv=notrunc; sync; echo mark is written"


class Guest:
    """The console of a guest with a shell."""

    def __init__(self, site, name):
        self.site, self.name = site, name

    def type(self, line):
        connection = libvirt.open("qemu:///system")
        stream = connection.newStream()
        connection.lookupByName(self.name).openConsole(
            None, stream, libvirt.VIR_DOMAIN_CONSOLE_FORCE
        )
        try:
            stream.send(f"\n{line}\n".encode())
            time.sleep(3)  # QEMU looks once a second whether anybody has opened its terminal
        finally:
            stream.abort()
            connection.close()

    def said(self):
        return self.site.run("console", self.name, "--log")

    def ticks(self):
        return [int(n) for n in re.findall(r"^tick (\d+)\r?$", self.said(), re.MULTILINE)]

    def wait(self, pattern, seconds=90):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if found := re.search(pattern, self.said(), re.MULTILINE):
                return found
            time.sleep(0.3)
        raise AssertionError(f"{self.name} did not say {pattern}: {self.said()[-2000:]}")


def disk(site, name):
    (row,) = json.loads(f"[{site.run('show', name, '-f', 'json')}]")
    path, kind = row["disks"][0]["path"], row["disks"][0]["format"]
    raw = site.folder / "disk.raw"
    command = ["qemu-img", "convert", "-U", "-f", kind, "-O", "raw", path, str(raw)]
    subprocess.run(command, check=True, timeout=60)
    with raw.open("rb") as stream:
        stream.seek(3 * 512)
        return stream.read(6)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("count", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_running_guests_go_on_from_where_they_were(site, count):
    web = site.fleet("web")
    site.run("create", web, "-t", "tiny", "-n", str(count), "--start", "--wait", timeout=600)
    guests = [Guest(site, f"{web}-{n}") for n in range(1, count + 1)]
    for guest in guests:
        guest.type(COUNT)
        guest.wait(r"^tick 3\r?$")
    site.run("pause", guests[-1].name)
    site.run("snapshot", "create", web, "there", "--memory")
    states = ["running"] * (count - 1) + ["paused"]
    assert [row["state"] for row in site.rows(web)] == states
    site.run("resume", guests[-1].name)
    before = {}
    for guest in guests:
        guest.wait(r"^tick \d+\r?$")
        before[guest.name] = guest.ticks()[0]
        guest.type(MARK)
        guest.wait(r"^mark is written\r?$")
        assert disk(site, guest.name) == b"marked"
    latest = {guest.name: guest.ticks()[-1] for guest in guests}
    assert "is running" in site.run("snapshot", "revert", web, "there", "--yes", code=6)
    site.run("snapshot", "revert", web, "there", "--yes", "--force")
    assert [row["state"] for row in site.rows(web)] == states
    site.run("resume", guests[-1].name)
    for guest in guests:
        guest.wait(r"^tick \d+\r?$")
        first = guest.ticks()[0]
        assert before[guest.name] <= first <= before[guest.name] + 3 < latest[guest.name]
        assert "vmcloner-ready" not in guest.said(), "it has booted"
        assert disk(site, guest.name) != b"marked"
    # What was reverted to is still there; so are figures of it.
    rows = json.loads(site.run("snapshot", "list", web, "-f", "json"))
    assert [(row["name"], row["memory"], row["complete"]) for row in rows] == [
        ("there", True, True)
    ] * count
    site.run("delete", web, "--yes")
    assert site.remains() == []
