"""``host prepare lvm``: what it would do, and what it refuses to touch."""

import json
import os
import stat

import pytest

from vmcloner_core.errors import (
    BackendError,
    Conflict,
    InvalidRequest,
    NotEnoughResources,
    NotFound,
)
from vmcloner_core.process import CommandResult
from vmcloner_lvm.commands import bound
from vmcloner_lvm.prepare import GIB, MIB, Ground, carry_out, plan

EMPTY = {"name": "sdb", "type": "disk", "ro": False, "size": 8 * GIB, "mountpoints": [None]}


class Runner:
    """Answers as the tools of a host with one empty disk, or with what it is told to have."""

    def __init__(self, **answers):
        self.answers = {
            "pvs": [], "vgs": [], "lvs": [], "disk": EMPTY, "signatures": [], "missing": "",
        } | answers  # fmt: skip
        self.ran = []

    def which(self, program):
        return None if program == self.answers["missing"] else f"/sbin/{program}"

    def run(self, argv, *, timeout=60.0, input=b"", env=None):  # noqa: A002
        words = [*argv][len(bound([])) :] if argv[0] == "setpriv" else [*argv]
        command = words[0]
        if command in ("pvs", "vgs", "lvs"):
            kind = command[:-1]
            answer = {"report": [{kind: self.answers[command]}]}
        elif command == "lsblk":
            answer = {"blockdevices": [self.answers["disk"]]}
        elif command == "wipefs":
            answer = {"signatures": self.answers["signatures"]}
        else:
            self.ran.append(words)
            answer = {}
        return CommandResult(stdout=json.dumps(answer).encode(), stderr=b"")


@pytest.fixture
def device(tmp_path, monkeypatch):
    """Have a file that passes for a block device, and be root."""
    path = tmp_path / "sdb"
    path.write_bytes(b"")
    monkeypatch.setattr(stat, "S_ISBLK", lambda _mode: True)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    return path


def unused(device, area):
    """Return a host with a physical volume that is in no group."""
    volume = {"pv_name": str(device), "vg_name": "", "pv_mda_size": str(area)}
    return Runner(pvs=[volume], signatures=[{"type": "LVM2_member"}])


def ground(device=None, **changes):
    return Ground(vg="VG01", thinpool="thinpool", device=device, **changes)


def test_an_empty_disk_becomes_a_pool(device):
    runner = Runner()
    tasks = plan(ground(device), runner)
    assert runner.ran == []
    carry_out(tasks, runner)
    assert [words[0] for words in runner.ran] == [
        "pvcreate", "vgcreate", "lvcreate", "tee", "lvchange", "lvchange",
    ]  # fmt: skip
    assert "67108864b" in runner.ran[0]
    assert {"80%FREE", "thinpool", "passdown", "-Zy"} <= {*runner.ran[2]}


def test_what_is_there_stays(device):
    pool = {"lv_name": "thinpool", "segtype": "thin-pool", "lv_profile": "vmcloner-thin",
            "seg_monitor": "monitored"}  # fmt: skip
    runner = Runner(
        pvs=[{"pv_name": str(device), "vg_name": "VG01"}], vgs=[{"vg_name": "VG01"}], lvs=[pool]
    )
    tasks = plan(ground(device), runner)
    assert [task.done for task in tasks if "profile vm" not in task.what] == [True] * 5


def test_a_disk_joins_a_group_that_exists(device):
    tasks = plan(ground(device), Runner(vgs=[{"vg_name": "VG01"}]))
    assert tasks[1].argv[0] == "vgextend"


def test_an_interrupted_run_goes_on(device):
    """The physical volume was made, its group wasn't."""
    tasks = plan(ground(device), unused(device, 64 * MIB - 4096))
    assert [task.done for task in tasks[:2]] == [True, False]


def test_an_unused_physical_volume_whose_metadata_area_is_too_small(device):
    runner = unused(device, 1020 * 1024)
    with pytest.raises(Conflict, match=r"metadata area of 1020 KiB, not 64 MiB .*pvremove"):
        plan(ground(device), runner)
    tasks = plan(ground(device, area=MIB), runner)
    assert [task.done for task in tasks[:2]] == [True, False]


@pytest.mark.parametrize(
    ("answers", "error", "message"),
    [
        ({"signatures": [{"type": "ext4"}, {"type": "gpt"}]}, Conflict, "is not empty: ext4, gpt"),
        ({"disk": EMPTY | {"children": [{"name": "sdb1"}]}}, Conflict, "in use: sdb1"),
        ({"disk": EMPTY | {"mountpoints": ["/srv"]}}, Conflict, "in use: /srv"),
        ({"disk": EMPTY | {"ro": True}}, Conflict, "read-only"),
        ({"disk": EMPTY | {"size": GIB}}, NotEnoughResources, "1 GiB"),
        ({"missing": "thin_check"}, BackendError, "thin_check is not installed"),
    ],
)
def test_what_is_refused(device, answers, error, message):
    with pytest.raises(error, match=message):
        plan(ground(device), Runner(**answers))


def test_a_disk_of_another_group(device):
    runner = Runner(pvs=[{"pv_name": str(device), "vg_name": "other"}])
    with pytest.raises(Conflict, match="belongs to volume group other"):
        plan(ground(device), runner)


def test_a_name_that_is_taken(device):
    linear = {"lv_name": "thinpool", "segtype": "linear", "lv_profile": "", "seg_monitor": ""}
    with pytest.raises(Conflict, match="is not a thin pool"):
        plan(ground(), Runner(vgs=[{"vg_name": "VG01"}], lvs=[linear]))


def test_neither_a_group_nor_a_device(device):
    with pytest.raises(NotFound, match="no volume group VG01"):
        plan(ground(), Runner())


def test_a_device_that_isnt_there(device):
    with pytest.raises(NotFound, match="no device"):
        plan(ground(device.with_name("sdx")), Runner())


def test_a_file_is_no_device(device, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(InvalidRequest, match="is not a block device"):
        plan(ground(device), Runner())


@pytest.mark.parametrize(
    "changes", [{"size": 1024}, {"area": 1024}, {"vg": "../x"}, {"thinpool": "-x"}, {"vg": "a b"}]
)
def test_requests_that_cant_be(changes):
    with pytest.raises(InvalidRequest):
        Ground(**{"vg": "VG01", "thinpool": "thinpool"} | changes)


def test_others_than_root(device, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(BackendError, match="root"):
        plan(ground(device), Runner())
