"""Clones with several disks: templates, plans, runs, and what a swap area begins with."""

import subprocess

import attrs
import pytest

from vmcloner_core import CreateRequest, Engine, OnFailure
from vmcloner_core.disks import disk_requests, swap_header
from vmcloner_core.errors import (
    Conflict,
    HostCommandError,
    InvalidRequest,
    NotEnoughResources,
    PartialFailure,
    WrongState,
)
from vmcloner_core.hooks import hookimpl
from vmcloner_core.model import Capacity, CloneMode, State
from vmcloner_core.names import split_volume, volume_name
from vmcloner_core.testing.reference import BootPlugin

MIB = 1024**2
THREE = """
extends = "t1"
swap = "1MiB"
[[disks]]
size = "4MiB"
"""


@pytest.fixture
def three(lab):
    lab.template("three", THREE)
    return lab


def disks(lab, fleet="web"):
    return sorted(name for name in lab.pool.disks if name.startswith(fleet))


def test_names_of_volumes():
    assert split_volume(volume_name("web-1", 12)) == ("web-1", 12)
    for name in ("web-1-disk", "web-1-disk01", "web-disk0", "web-1-disk0-copy", "-1-disk0", ""):
        assert split_volume(name) is None


def test_a_clone_has_all_its_disks_in_order(three):
    three.engine.create("web", "three", count=3)
    clone = three.engine.show("web-2")
    assert [volume.name for volume in clone.volumes] == [f"web-2-disk{n}" for n in range(3)]
    assert [volume.size for volume in clone.volumes] == [MIB, MIB, 4 * MIB]
    assert clone.domain.disks == tuple(volume.path for volume in clone.volumes)
    three.engine.delete("web-2")
    assert disks(three) == [f"web-{c}-disk{n}" for c in (1, 3) for n in range(3)]


def test_calls_have_no_more_members_than_the_driver_takes(three):
    calls = []
    clone, delete = three.pool.clone, three.pool.delete
    three.pool.clone = lambda requests, told: calls.append(len(requests)) or clone(requests, told)
    three.pool.delete = lambda volumes: calls.append(len(volumes)) or delete(volumes)
    three.engine.create("web", "three", count=5)
    assert max(calls) <= three.pool.clone_lane.batch
    assert sum(calls) == 15
    calls.clear()
    three.engine.delete("web")
    assert max(calls) <= three.pool.delete_lane.batch
    assert sum(calls) == 15


def test_one_disks_failure_is_its_clones_and_the_same_command_completes_it(three):
    three.pool.fail["web-2-disk1"] = HostCommandError("web-2-disk1: no")
    with pytest.raises(PartialFailure) as caught:
        three.engine.create("web", "three", count=3)
    assert [(n, str(e)) for n, e in caught.value.failures] == [("web-2", "web-2-disk1: no")]
    assert disks(three, "web-2") == ["web-2-disk0", "web-2-disk2"]
    assert three.engine.show("web-2").state is State.ALLOCATED
    plan = three.engine.plan(CreateRequest(fleet="web", template="three", count=3))
    assert [(c.name, c.disks) for c in plan.clones] == [("web-2", (1,))]
    assert three.engine.create("web", "three", count=3).ok
    assert len(disks(three)) == 9
    assert len(three.engine.show("web-2").domain.disks) == 3


def test_rollback_removes_the_disks_that_this_run_made(three):
    three.engine.create("web", "three")
    del three.pool.disks["web-1-disk2"]
    three.pool.fail["web-2-disk2"] = HostCommandError("no")
    request = CreateRequest(fleet="web", template="three", count=2, on_failure=OnFailure.ROLLBACK)
    result = three.engine.run(request)
    assert set(result.rolled_back) == {"web-1", "web-2"}
    assert disks(three) == ["web-1-disk0", "web-1-disk1"]


def test_a_clone_keeps_the_disks_that_it_was_defined_with(three):
    """A template that gets a disk gives it to new clones."""
    three.engine.create("web", "three")
    three.template("three", THREE + '[[disks]]\nsize = "1MiB"\n')
    assert three.engine.create("web", "three").results == ()
    three.engine.create("web", "three", count=2)
    assert [len(clone.volumes) for clone in three.engine.list()] == [3, 4]


def test_a_lost_disk_is_made_again(three):
    three.engine.create("web", "three")
    del three.pool.disks["web-1-disk1"]
    (clone,) = three.engine.plan(CreateRequest(fleet="web", template="three")).clones
    assert (clone.steps, clone.disks) == (("clone",), (1,))
    assert three.engine.create("web", "three").ok
    assert [v.disk for v in three.engine.show("web-1").volumes] == [0, 1, 2]


def test_a_disk_that_cannot_go_keeps_its_clone(three, monkeypatch):
    three.engine.create("web", "three", count=2)
    delete_one = type(three.pool).delete_one

    def busy(pool, volume):
        if volume.name == "web-1-disk2":
            raise WrongState(f"{volume.name} is in use")
        return delete_one(pool, volume)

    with monkeypatch.context() as patch:
        patch.setattr(type(three.pool), "delete_one", busy)
        with pytest.raises(PartialFailure) as caught:
            three.engine.delete("web")
    assert [(n, str(e)) for n, e in caught.value.failures] == [("web-1", "web-1-disk2 is in use")]
    assert disks(three) == ["web-1-disk2"]
    assert three.engine.delete("web").ok
    assert disks(three) == []


def test_a_missing_disk_belongs_in_its_clones_pool(three):
    config = three.folder / "vmcloner.toml"
    config.write_text(config.read_text() + '[hosts.local.storage.other]\ndriver = "reference"\n')
    three.engine.create("web", "three")
    del three.pool.disks["web-1-disk1"]
    plugins = [three.storage_plugin, three.hypervisor_plugin, BootPlugin()]
    with (
        Engine.open(config=config, plugins=plugins) as engine,
        pytest.raises(Conflict, match="'reference', not 'other'"),
    ):
        engine.create("web", "three", storage="other")


# --- room ---------------------------------------------------------------------------------------


def test_all_disks_count(three):
    three.engine.import_template("three")
    three.pool.free = 13 * MIB
    with pytest.raises(NotEnoughResources, match="2 would fit"):
        three.engine.create("web", "three", count=5, mode=CloneMode.FULL)
    plan = three.engine.plan(
        CreateRequest(fleet="web", template="three", count=2, mode=CloneMode.FULL)
    )
    assert plan.space == 12 * MIB


def test_room_for_volumes_is_checked_before(three):
    three.pool.volumes_free = 14
    with pytest.raises(NotEnoughResources, match=r"15 volumes.*room for 14 more.*4 would fit"):
        three.engine.create("web", "three", count=5)
    assert three.pool.disks == {}
    assert three.engine.create("web", "three", count=4).ok


def test_what_a_pool_warns_of_is_told(three):
    three.pool.warnings, three.pool.volumes_free = ("metadata 83 % full",), 20
    plan = three.engine.plan(CreateRequest(fleet="web", template="three"))
    assert plan.warnings == ("pool reference: metadata 83 % full",)
    checks = [c for c in three.engine.check_host("reference") if c.name == "space"]
    assert [(c.status.value, c.detail) for c in checks] == [
        ("ok", "1.0 TiB of 1.0 TiB free, for at most 20 more volumes"),
        ("warning", "metadata 83 % full"),
    ]
    assert Capacity(total=1, free=1).warnings == ()


# --- templates ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("swap = 0\n", "swap: size out of range"),
        ('[[disks]]\nsize = "1MiB"\nkind = "x"\n', "disks.*unknown key 'kind'"),
        ("[[disks]]\n", "disks.*'size' is missing"),
        ('[[disks]]\nsize = "1MiB"\ncontent = "ext4"\n', "disks"),
        ('[[disks]]\nsize = "1MiB"\n' * 26, "at most 26 disks"),
    ],
)
def test_disks_that_cannot_be(lab, text, message):
    lab.template("bad", f'extends = "t1"\n{text}')
    with pytest.raises(InvalidRequest, match=f"bad.toml.*{message}"):
        lab.engine.template("bad")


def test_swap_too_small(lab):
    lab.template("bad", 'extends = "t1"\nswap = 4096\n')
    with pytest.raises(InvalidRequest, match=r"web-1-disk1.*too few for swap"):
        lab.engine.create("web", "bad")


def test_a_swap_area_is_one_for_other_tools(tmp_path):
    file = tmp_path / "swap"
    file.write_bytes(swap_header(8 * MIB, "web-1-disk1").ljust(8 * MIB, b"\0"))
    found = subprocess.run(
        ["blkid", "-p", "-o", "export", file], check=True, capture_output=True, text=True
    ).stdout.splitlines()
    assert {"TYPE=swap", "LABEL=swap", "VERSION=1"} <= set(found)
    theirs = tmp_path / "theirs"
    theirs.write_bytes(bytes(8 * MIB))
    identity = next(line for line in found if line.startswith("UUID="))[5:]
    subprocess.run(
        ["mkswap", "-q", "-L", "swap", "-U", identity, theirs], check=True, capture_output=True
    )
    assert file.read_bytes() == theirs.read_bytes()


def test_swap_of_two_clones_differs(three):
    template = three.engine.template("three")
    three.engine.create("web", "three", count=2)
    labels = [clone.labels for clone in three.engine.list()]
    heads = [disk_requests(template, each, None, CloneMode.LINKED)[0].head for each in labels]
    assert heads[0] != heads[1]
    assert heads[0] == disk_requests(template, labels[0], None, CloneMode.FULL)[0].head


# --- how bytes are copied -----------------------------------------------------------------------


def test_bandwidth_and_verification_reach_the_pool(three):
    three.engine.create("web", "three", count=2, bandwidth=MIB, verify=True)
    assert len(three.pool.copyings) == 1 + 6  # an import, and each disk
    assert {(c.bandwidth, c.verify) for c in three.pool.copyings} == {(MIB, True)}
    with pytest.raises(InvalidRequest, match="bandwidth must be positive"):
        CreateRequest(fleet="web", template="three", bandwidth=0)


def test_progress_of_a_run_adds_its_calls_up(three):
    told = []

    class Watcher:
        @hookimpl
        def vmcloner_progress(self, event):
            if event.what == "copy":
                told.append((event.done, event.total))

    stop = three.engine.plugins.watch(Watcher())
    three.engine.create("web", "three", count=3)
    stop()
    assert told == sorted(told)
    assert told[-1] == (18 * MIB, 18 * MIB)
    assert all(done <= total for done, total in told)


def test_an_incomplete_disk_is_made_again(three):
    three.engine.create("web", "three", count=2)
    volume = three.pool.disks["web-2-disk0"]
    three.pool.disks[volume.name] = attrs.evolve(volume, complete=False)
    plan = three.engine.plan(CreateRequest(fleet="web", template="three", count=2))
    assert [(clone.name, clone.disks) for clone in plan.clones] == [("web-2", (0,))]


def test_a_pool_that_makes_full_clones_only_does_that(three, monkeypatch):
    monkeypatch.setattr(type(three.pool), "modes", frozenset({CloneMode.FULL}))
    plan = three.engine.plan(CreateRequest(fleet="web", template="three"))
    assert plan.mode is CloneMode.FULL
    with pytest.raises(InvalidRequest, match="can't make linked clones"):
        three.engine.plan(CreateRequest(fleet="web", template="three", mode=CloneMode.LINKED))
