"""What a host does around a power cut, each in a process of its own, inside the lab.

``python -m tests.lvm.surviving prepare``: make a template and two fleets of it.
``… write``: use a clone of theirs: write block after block, and print each that is on the disk.
``… clone FLEET COUNT``: make another fleet, to be deleted.
``… check WORK FLEET COUNT BLOCKS``: what the next run finds and makes of it, and that all is whole.
"""

import itertools
import os
import subprocess
import sys
from pathlib import Path

from tests.lvm.conftest import POOL, VG, lvm
from tests.lvm.dying import HEAD, open_driver, requests
from vmcloner_core.testing.storage import make_image, no_progress

STATE = Path("/root/state")
BLOCK = 4096
FIRST = 256
"""The sibling's block that is written first."""


def prepare():
    STATE.mkdir(exist_ok=True)
    driver = open_driver(STATE)
    driver.import_image("tiny", image(), no_progress).unwrap()
    clone("sibling", "1")
    clone("bystander", "5")


def image():
    """Return the template's image: the same bytes at each call."""
    return make_image(STATE / "image.raw", seed=1)


def sibling(driver):
    """Return the sibling's disk, active."""
    [volume] = [v for v in driver.volumes() if v.name == "sibling-1-disk0"]
    assert all(outcome.ok for outcome in driver.activate([volume]))
    return volume


def block(number):
    return f"block {number} ".encode().ljust(BLOCK, b"*")


def clone(fleet, count):
    driver = open_driver(STATE)
    for outcome in driver.clone(requests(driver.origins()[0], fleet, int(count))):
        outcome.unwrap()


def write():
    volume = sibling(open_driver(STATE))
    fd = os.open(volume.path, os.O_WRONLY)
    room = volume.size // BLOCK - FIRST
    for number in itertools.count():
        os.pwrite(fd, block(number), (FIRST + number % room) * BLOCK)
        os.fsync(fd)
        print(number, flush=True)


def check(work, fleet, count, blocks):
    STATE.mkdir(exist_ok=True)
    driver = open_driver(STATE)
    found = sorted(v.name for v in driver.volumes() if v.labels.fleet == fleet)
    wanted = requests(driver.origins()[0], fleet, int(count))
    every = sorted(request.volume_name for request in wanted)
    agreed()
    if work == "clone":
        assert set(found) <= set(every), found
    else:
        assert found in ([], every), found
    made = {o.key: o.unwrap() for o in driver.clone(wanted)}
    assert sorted(made) == every
    bystanders = [v for v in driver.volumes() if v.labels.fleet == "bystander"]
    assert len(bystanders) == 5 + 1
    whole(driver, [*made.values(), *bystanders])
    written(driver, int(blocks))
    assert all(outcome.ok for outcome in driver.delete(list(made.values())))
    assert {v.labels.fleet for v in driver.volumes()} == {"sibling", "bystander"}
    agreed()
    print(f"{len(found)} of {len(every)} found, {blocks} blocks written meanwhile are there")


def agreed():
    """Check that LVM is content, and the kernel of its opinion."""
    subprocess.run(["vgck", VG], check=True)
    text = subprocess.run(
        ["vgcfgbackup", "-f", "/dev/stdout", VG], check=True, capture_output=True, text=True
    ).stdout
    assert "message" not in text
    [noted] = lvm("lvs", "--noheadings", "-o", "transaction_id", f"{VG}/{POOL}")
    [line] = subprocess.run(
        ["dmsetup", "status", f"{VG}-{POOL}-tpool"], check=True, capture_output=True, text=True
    ).stdout.splitlines()
    assert line.split()[3] == noted, line


def whole(driver, volumes):
    """Check that snapshots are as their template, and swap disks as they are made."""
    volumes = list(volumes)
    assert all(outcome.ok for outcome in driver.activate(volumes))
    template = image().path.read_bytes()
    for volume in volumes:
        data = volume.path.read_bytes()
        if volume.name.endswith("-disk0"):
            assert data[: len(template)] == template, volume.name
        else:
            assert data.rstrip(b"\0") == HEAD.rstrip(b"\0"), volume.name
    assert all(outcome.ok for outcome in driver.deactivate(volumes))


def written(driver, blocks):
    """Check the sibling: the template's bytes, and all blocks that were said to be written."""
    volume = sibling(driver)
    template, data = image().path.read_bytes(), volume.path.read_bytes()
    assert data[: min(len(template), FIRST * BLOCK)] == template[: FIRST * BLOCK]
    room = volume.size // BLOCK - FIRST
    for place in range(min(room, blocks)):
        last = blocks - 1 - (blocks - 1 - place) % room
        at = (FIRST + place) * BLOCK
        here = data[at : at + BLOCK]
        # The one after the last may be there, or not.
        assert here in (block(last), block(last + room)), (place, here[:40])
    assert all(outcome.ok for outcome in driver.deactivate([volume]))


if __name__ == "__main__":
    {"prepare": prepare, "write": write, "clone": clone, "check": check}[sys.argv[1]](*sys.argv[2:])
