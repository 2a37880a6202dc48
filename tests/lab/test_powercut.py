"""The power is cut in the middle of a transaction, while a clone beside is written to.

The machine is killed, boots from its disks, and the next run has to find and make it whole.
"""

import threading
import time

import pytest

from contrib.lab import labs, tree

pytestmark = [pytest.mark.guests, pytest.mark.slow, pytest.mark.timeout(3600)]

TESTS = "/root/tests"
COUNT = 40
COMMITS = 2.5
"""Seconds in which dm-thin has committed by itself what it was told (once a second)."""
PYTHON = ("python3", "-u", "-m")


@pytest.fixture(scope="module")
def power():
    """Have a lab with a template, and a clone of it, ``sibling``; its power can be cut."""
    with labs.breakable(labs.MODES["kvm"], 3600) as power:
        unpack(power)
        inside(power, "prepare")
        yield power


def unpack(power):
    power.lab.channel.call(f"mkdir -p {TESTS}; tar -x -C {TESTS} -f -; sync", tree.tests())


def inside(power, *words):
    argv = " ".join(("PYTHONDONTWRITEBYTECODE=1", *PYTHON, "tests.lvm.surviving", *words))
    return power.lab.channel.call(f"cd {TESTS}; {argv}", timeout=900).decode()


class Writer:
    """Writes to the sibling until the power is cut; knows how many blocks are on its disk."""

    def __init__(self, power):
        self.blocks = 0
        self.process = power.lab.channel.start([*PYTHON, "tests.lvm.surviving", "write"], TESTS)
        self.reader = threading.Thread(target=self.read)
        self.reader.start()
        while not self.blocks:
            assert self.process.poll() is None
            time.sleep(0.1)

    def read(self):
        for line in self.process.stdout:
            self.blocks = int(line) + 1

    def end(self):
        self.process.kill()
        self.reader.join()
        self.process.wait()


def until_here(power, *words):
    """Let a process come to a step."""
    process = power.lab.channel.start([*PYTHON, "tests.lvm.dying", *words], TESTS)
    line = process.stdout.readline()
    assert line == b"HERE\n", (line, process.poll())
    return process


@pytest.mark.parametrize(
    ("fleet", "work", "step", "number", "how"),
    [
        ("a", "clone", "^vgcfgrestore", 1, "held-within"),
        ("b", "clone", "^create_snap", 1, "held"),
        ("c", "clone", "^create_snap", 25, "held"),
        ("d", "clone", "^set_transaction_id", 1, "held"),
        ("e", "clone", "^vgcfgrestore", 2, "held"),
        ("f", "clone", "^vgcfgrestore", 2, "held-within"),
        ("g", "delete", "^delete", 25, "held"),
        ("h", "delete", "^set_transaction_id", 1, "held"),
        ("i", "delete", "^vgcfgrestore", 2, "held"),
    ],
    ids=lambda value: str(value).replace("^", ""),
)
def test_a_power_cut(power, fleet, work, step, number, how):
    if work == "delete":
        inside(power, "clone", fleet, str(COUNT))
    writer = Writer(power)
    try:
        process = until_here(power, work, fleet, "/root/state", step, str(number), how, str(COUNT))
        if how == "held":
            time.sleep(COMMITS)
    finally:
        power.cut()
        writer.end()
    process.kill()
    process.wait()
    power.boot()
    unpack(power)
    print(inside(power, "check", work, fleet, str(COUNT), str(writer.blocks)))
