"""Forks of a real guest: one boot, then clones that continue from its memory."""

import json
import os
import re
import subprocess
import time

import pytest

pytestmark = [pytest.mark.libvirt, pytest.mark.slow]  # make test-warm
READY = re.compile(r"vmcloner-ready name=(\S+) mac=(\S+) disk=\S+ boots=(\d+) random=(\S+)")


@pytest.fixture
def site(real_site):
    yield real_site
    fleet = real_site.fleet("fork")
    real_site.run("delete", fleet, "--yes", "--missing-ok")
    assert real_site.remains() == []


def said(site, name):
    """Return what a guest last said that it is."""
    log = (site.folder / "state" / "console" / f"{name}.log").read_text(errors="replace")
    return READY.findall(log)[-1]


def test_forks_of_a_guest(site):
    """One boot; three forks of three identities, whose disks are the parent's; and what is left."""
    fleet = site.fleet("fork")
    names = [f"{fleet}-{n}" for n in (1, 2, 3)]
    site.run("create", fleet, "-t", "tiny", "-n", "3", "--warm")
    assert {row["state"] for row in site.rows(fleet)} == {"saved"}
    (origin,) = json.loads(site.run("template", "show", "tiny", "-f", "json"))["warm"]
    memory = site.folder / "state" / "warm" / origin["key"] / "memory"
    before = memory.stat().st_mtime_ns
    site.run("start", fleet, "--wait", "--timeout", "120")
    found = {name: said(site, name) for name in names}
    assert {name: each[0] for name, each in found.items()} == {name: name for name in names}
    macs = {row["name"]: row["mac"] for row in site.rows(fleet)}
    assert {name: each[1] for name, each in found.items()} == macs
    assert {each[2] for each in found.values()} == {"1"}, "the disk isn't that of the parent"
    assert len({each[3] for each in found.values()}) == 3
    maps = [process for process in processes(fleet) if str(memory) in process]
    assert len(maps) == 3
    assert memory.stat().st_mtime_ns == before
    taken = [row["memory"] for row in json.loads(site.run("report", "--clones", "-f", "json"))]
    assert len(taken) == 3
    assert all(each is not None and 2**20 < each < 2**30 for each in taken)

    # One whose QEMU is killed boots from its disk; one that is reset is forked again.
    site.run("stop", names[0], "--kill")
    site.run("start", names[0], "--wait", "--timeout", "120")
    assert said(site, names[0])[::2][:2] == (names[0], "2")
    site.run("reset", names[1], "--wait", "--timeout", "120")
    assert said(site, names[1])[::2][:2] == (names[1], "1")
    again = site.run("template", "warm", "tiny", "-f", "json")
    assert json.loads(again)["changed"] is False

    # What is saved of a fork has all of its memory: it continues from there as others do.
    site.run("save", names[1])
    site.run("start", names[1])
    site.run("snapshot", "create", names[1], "s1", "--memory")
    site.run("snapshot", "revert", names[1], "s1", "--force", "--yes")
    assert {row["state"] for row in site.rows(names[1])} == {"running"}
    site.run("snapshot", "delete", names[1], "s1", "--yes")

    # Memory that was cut short is never used.
    site.run("stop", fleet, "--kill")
    os.truncate(memory, 4096)
    site.run("reset", names[2])
    site.run("start", names[2], code=10)
    assert [row["state"] for row in site.rows(names[2])] == ["saved"]
    site.run("stop", names[2], "--kill")
    site.run("start", names[2], "--wait", "--timeout", "120")


def test_exact_copies_of_a_guest(site):
    """They say nothing of a seed, and are their parent still when they boot from their disks."""
    fleet = site.fleet("fork")
    names = [f"{fleet}-{n}" for n in (1, 2)]
    site.run("create", fleet, "-t", "tiny", "-n", "2", "--warm", "--identical")
    site.run("start", fleet, "--wait", "--timeout", "120")  # ready as their parent was: at once
    consoles = [site.folder / "state" / "console" / f"{name}.log" for name in names]
    assert [b"vmcloner-re" in log.read_bytes() for log in consoles] == [False, False]
    assert {row["state"] for row in site.rows(fleet)} == {"running"}
    assert len({row["mac"] for row in site.rows(fleet)}) == 2
    origins = json.loads(site.run("template", "show", "tiny", "-f", "json"))["warm"]
    (origin,) = [each for each in origins if "identical" in each["depends"]]
    assert len([p for p in processes(fleet) if origin["key"] in p]) == 2
    site.run("stop", names[0], "--kill")
    site.run("start", names[0], "--wait", "--timeout", "120")
    assert said(site, names[0])[::2][:2] == (names[0], "2"), "the disk isn't that of the parent"
    site.run("reset", names[0])
    assert len([p for p in processes(fleet) if origin["key"] in p]) == 2


def test_a_seed_that_a_guest_cannot_read(site):
    """Its clone fails by name, and boots from its disk; the other is not affected."""
    fleet = site.fleet("fork")
    site.run("create", fleet, "-t", "tiny", "-n", "2", "--warm")
    (seed,) = (site.folder / "state" / "identity" / f"{fleet}-1").rglob("*.iso")
    seed.write_bytes(bytes(seed.stat().st_size))
    site.run("start", fleet, code=10)
    states = {row["name"]: row["state"] for row in site.rows(fleet)}
    assert states == {f"{fleet}-1": "stopped", f"{fleet}-2": "running"}
    site.run("start", f"{fleet}-1", "--wait", "--timeout", "120")
    assert said(site, f"{fleet}-1")[0] == f"{fleet}-1"


@pytest.mark.parametrize("seconds", [0.8, 1.5, 2.5, 4.0, 6.0])
def test_the_making_of_an_origin_that_is_killed(site, seconds):
    """Nothing is left of it but what gc shows and removes; the next making succeeds."""
    fleet = site.fleet("fork")
    process = site.popen("template", "warm", "tiny", "--at", f"console:disk=|{seconds}")
    time.sleep(seconds)
    process.kill()
    process.communicate()
    warm = site.folder / "state" / "warm"
    whole = {file.parent.name for file in warm.glob("*/origin.json")}
    site.run("gc", "--yes")
    left = {path.name for path in warm.iterdir()} - {"forks"} if warm.exists() else set()
    assert left == whole
    assert {row["fleet"] for row in site.rows()} <= {fleet}
    site.run("create", fleet, "-t", "tiny", "--warm", "--start", "--wait", "--timeout", "120")
    assert said(site, f"{fleet}-1")[0] == f"{fleet}-1"


def processes(fleet):
    argv = ["ps", "-wweo", "args"]
    lines = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    return [line for line in lines.splitlines() if f"guest={fleet}-" in line]


@pytest.mark.parametrize("seconds", [0.6, 1.0, 1.5, 2.0, 3.0])
def test_forks_that_are_killed(site, seconds):
    """The same command completes them, wherever it was killed."""
    fleet = site.fleet("fork")
    site.run("template", "warm", "tiny")
    words = ("create", fleet, "-t", "tiny", "-n", "4", "--warm", "--start", "--wait")
    process = site.popen(*words)
    time.sleep(seconds)
    process.kill()
    process.communicate()
    site.run(*words, "--timeout", "200")
    names = {f"{fleet}-{n}" for n in range(1, 5)}
    assert {said(site, name)[0] for name in names} == names
    assert {row["state"] for row in site.rows(fleet)} == {"running"}
