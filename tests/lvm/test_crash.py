"""What kill -9 leaves at each step of a transaction on a real device-mapper; who repairs it."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lvm.conftest import POOL, VG, empty, lvm
from tests.lvm.dying import HEAD, open_driver, requests
from vmcloner_core.testing.storage import make_image, no_progress
from vmcloner_lvm.devmapper import device_name

pytestmark = pytest.mark.lvm
TOP = Path(__file__).parents[2]


def slow(*how):
    """Return a way to die for the long run: tests with a faked host have it at each step."""
    return pytest.param([*how], marks=pytest.mark.slow)


def slow_only(value):
    return pytest.param(value, marks=pytest.mark.slow)


class Ground:
    """A template in the pool, a clone of it that is in use all the time, and a way to crash."""

    def __init__(self, folder):
        self.folder = folder
        self.driver = open_driver(folder)
        self.image = make_image(folder / "image.raw", seed=1)
        self.origin = self.driver.import_image("tiny", self.image, no_progress).unwrap()
        [self.sibling, _] = [
            outcome.unwrap() for outcome in self.driver.clone(requests(self.origin, "sibling", 1))
        ]
        assert all(outcome.ok for outcome in self.driver.activate([self.sibling]))
        self.stream = self.sibling.path.open("r+b", buffering=0)
        self.fleets = 0

    def close(self):
        self.stream.close()
        list(self.driver.deactivate([self.sibling]))
        empty()

    def fleet(self):
        self.fleets += 1
        return f"f{'abcdefghijklmnopqrstuvwxyz'[self.fleets]}"

    def crash(self, work, fleet, *how):
        """Work in another process until it is killed, and write to the sibling meanwhile."""
        argv = [sys.executable, "-m", "tests.lvm.dying", work, fleet, str(self.folder), *how]
        with subprocess.Popen(argv, cwd=TOP) as process:
            self.stream.seek(0)
            self.stream.write(fleet.encode() * 2048)
            assert process.wait(120) == -signal.SIGKILL

    def names(self, fleet):
        return sorted(v.name for v in self.driver.volumes() if v.labels.fleet == fleet)

    def check(self, fleet):
        """Check that LVM is content, and the sibling's data whole."""
        lvm("vgck", VG)
        assert "message" not in metadata(self.folder)
        self.stream.seek(0)
        assert self.stream.read(4096) == fleet.encode() * 2048


def metadata(folder):
    """Return the group's metadata text."""
    lvm("vgcfgbackup", "-f", str(folder / "now.vg"), VG)
    return (folder / "now.vg").read_text()


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    ground = Ground(tmp_path_factory.mktemp("crash"))
    yield ground
    ground.close()


@pytest.mark.parametrize(
    "how",
    [
        slow("^vgcfgrestore"),
        ["^vgcfgrestore", "1", "within"],
        slow("^create_snap"),
        slow("^create_snap", "2"),
        slow("^write_head"),
        ["^set_transaction_id"],
        slow("^vgcfgrestore", "2"),
        slow("^vgcfgrestore", "2", "within"),
    ],
    ids=lambda how: "-".join(how).replace("^", ""),
)
def test_killed_while_cloning(ground, how):
    fleet = ground.fleet()
    ground.crash("clone", fleet, *how)
    full = [f"{fleet}-1-disk0", f"{fleet}-1-disk1", f"{fleet}-2-disk0"]
    assert set(ground.names(fleet)) <= set(full)
    ground.check(fleet)
    made = {o.key: o.unwrap() for o in ground.driver.clone(requests(ground.origin, fleet))}
    assert sorted(made) == full == ground.names(fleet)
    assert all(outcome.ok for outcome in ground.driver.activate(list(made.values())))
    assert made[full[2]].path.read_bytes() == ground.image.path.read_bytes()
    with made[full[1]].path.open("rb") as stream:
        assert stream.read(8192) == HEAD.ljust(8192, b"\0")
    assert all(outcome.ok for outcome in ground.driver.delete(list(made.values())))
    ground.check(fleet)


@pytest.mark.parametrize("strategy", ["lvcreate", slow_only("transaction")])
def test_killed_while_first_bytes_are_written(ground, monkeypatch, strategy):
    """The device that they are written by is left, and keeps its volume busy."""
    monkeypatch.setenv("STRATEGY", strategy)
    fleet = ground.fleet()
    ground.crash("clone", fleet, "^drop_head")
    assert any("vmcloner-head" in word for word in lvm("dmsetup", "ls"))
    assert ground.names(fleet) == [f"{fleet}-1-disk0", f"{fleet}-2-disk0"]
    assert not any("vmcloner-head" in word for word in lvm("dmsetup", "ls"))
    ground.check(fleet)
    made = {o.key: o.unwrap() for o in ground.driver.clone(requests(ground.origin, fleet))}
    [swap] = ground.driver.activate([made[f"{fleet}-1-disk1"]])
    assert swap.ok
    with made[swap.key].path.open("rb") as stream:
        assert stream.read(8192) == HEAD.ljust(8192, b"\0")
    assert all(outcome.ok for outcome in ground.driver.delete(list(made.values())))
    ground.check(fleet)


def test_a_pending_volume_in_use_is_kept(ground):
    fleet = ground.fleet()
    ground.crash("clone", fleet, "^set_transaction_id")
    text = metadata(ground.folder)
    [number] = re.findall(rf"{fleet}-1-disk0 {{.*?device_id = (\d+)", text, re.DOTALL)
    name = device_name(VG, f"{fleet}-1-disk0")
    table = f"0 {ground.image.size // 512} thin /dev/mapper/{VG}-{POOL}-tpool {number}"
    lvm("dmsetup", "create", name, "--table", table)
    try:
        with open(f"/dev/mapper/{name}", "rb") as stream:  # noqa: PTH123
            assert ground.names(fleet) == [f"{fleet}-1-disk0", f"{fleet}-2-disk0"]
            assert stream.read() == ground.image.path.read_bytes()
    finally:
        lvm("dmsetup", "remove", "--retry", name)
    ground.check(fleet)
    made = [o.unwrap() for o in ground.driver.clone(requests(ground.origin, fleet))]
    assert all(outcome.ok for outcome in ground.driver.delete(made))


@pytest.mark.parametrize(
    "how",
    [slow("^delete", "2"), ["^set_transaction_id"], slow("^vgcfgrestore", "2")],
    ids=lambda how: "-".join(how).replace("^", ""),
)
def test_killed_while_deleting(ground, how):
    fleet = ground.fleet()
    volumes = [outcome.unwrap() for outcome in ground.driver.clone(requests(ground.origin, fleet))]
    ground.crash("delete", fleet, *how)
    assert ground.names(fleet) == []
    ground.check(fleet)
    outcomes = list(ground.driver.delete(volumes))
    assert [(outcome.ok, outcome.changed) for outcome in outcomes] == [(True, False)] * 3


def test_booted_after_a_power_cut(ground):
    """A part was carried out and committed; LVM itself can't go on from there, at boot or later."""
    fleet = ground.fleet()
    ground.crash("clone", fleet, "^create_snap", "2")
    ground.stream.close()
    lvm("vgchange", "-an", VG)
    lvm("vgchange", "-ay", VG)
    refused = subprocess.run(
        ["lvcreate", "-an", "-V", "8m", "-T", f"{VG}/{POOL}", "-n", "other"],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert refused.returncode
    assert "File exists" in refused.stderr
    assert len(ground.names(fleet)) == 2
    assert all(outcome.ok for outcome in ground.driver.activate([ground.sibling]))
    ground.stream = ground.sibling.path.open("r+b", buffering=0)
    ground.check(fleet)
    lvm("lvcreate", "-an", "-V", "8m", "-T", f"{VG}/{POOL}", "-n", "other")


def test_others_create_while_we_do(ground):
    """Foreign lvcreates wait for our lock, and we for theirs; nobody's volumes get lost."""
    fleet = ground.fleet()
    argv = ["lvcreate", "-an", "-V", "8m", "-T", f"{VG}/{POOL}", "-n"]
    others = [subprocess.Popen([*argv, f"foreign{number}"]) for number in range(3)]
    outcomes = list(ground.driver.clone(requests(ground.origin, fleet, 20)))
    assert [other.wait(120) for other in others] == [0, 0, 0]
    assert [outcome.error for outcome in outcomes] == [None] * 21
    assert len(ground.names(fleet)) == 21
    found = lvm("lvs", "--noheadings", "-o", "lv_name", VG)
    assert {"foreign0", "foreign1", "foreign2"} <= {*found}
    ids = re.findall(r"device_id = (\d+)", metadata(ground.folder))
    assert len({*ids}) == len(ids) > 24
    mine = [volume for volume in ground.driver.volumes() if volume.labels.fleet == fleet]
    assert all(outcome.ok for outcome in ground.driver.delete(mine))
