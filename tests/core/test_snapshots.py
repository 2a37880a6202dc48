"""Snapshots on the reference drivers: what is asked, refused, interrupted and undone."""

import json
import re
import shutil

import attrs
import pytest

from vmcloner_core import SnapshotAim, State, TargetRequest
from vmcloner_core.errors import (
    BackendError,
    Conflict,
    HostCommandError,
    InvalidRequest,
    NotEnoughResources,
    NotFound,
    PartialFailure,
    VmclonerError,
    WrongState,
)
from vmcloner_core.model import SnapshotLabels
from vmcloner_core.names import check_snapshot
from vmcloner_core.plan import Sizes
from vmcloner_core.testing.samples import make_labels


def states(lab):
    return [clone.state for clone in lab.engine.list()]


def snapshots(lab):
    return {
        clone.name: [each.name for each in clone.snapshots if each.complete]
        for clone in lab.engine.list()
        if clone.kept
    }


def folders(lab):
    """Return what the state folder has of snapshots."""
    folder = lab.engine.host.snapshots
    return sorted(str(path.relative_to(folder)) for path in folder.glob("*/*"))


def failures(call, *targets, **options):
    """Return the messages of the clones that fail."""
    with pytest.raises(PartialFailure) as caught:
        call(*targets, **options)
    return "; ".join(f"{name}: {error}" for name, error in caught.value.failures)


def write(lab, clone, data):
    lab.pool.contents[f"{clone}-disk0"] = data


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "a/b",
        "../x",
        "-f",
        ".x",
        "a..b",
        "x.",
        "a b",
        "a\n",
        "é",
        "x" * 33,
        "a;b",
        "a@b",
    ],
)
def test_hostile_names(lab, name):
    lab.engine.create("web", "t1")
    for call in (
        lab.engine.create_snapshot,
        lab.engine.revert_snapshot,
        lab.engine.delete_snapshot,
    ):
        with pytest.raises(InvalidRequest, match="snapshot name"):
            call("web", name=name)
    assert folders(lab) == []


@pytest.mark.parametrize("name", ["ready", "Before-1", "v1.0", "a", "a_b", "x" * 32])
def test_good_names(name):
    assert check_snapshot(name) == name


def test_labels_survive_a_pool():
    labels = SnapshotLabels(labels=make_labels(), name="ready", taken="now", disk=1, disks=2)
    for each in (labels, attrs.evolve(labels, memory=True)):
        assert SnapshotLabels.from_mapping(each.to_mapping()) == each
    for wrong in ({"disk": "x"}, {"snapshot": "../x"}, {"version": "9"}, {"index": "no"}):
        assert SnapshotLabels.from_mapping(labels.to_mapping() | wrong) is None
    assert SnapshotLabels.from_mapping(make_labels().to_mapping()) is None


def test_a_fleet_is_reverted(lab):
    lab.engine.create("web", "t1", count=5)
    before = dict(lab.pool.contents)
    assert len(lab.engine.create_snapshot("web", name="clean").results) == 5
    assert snapshots(lab) == {f"web-{n}": ["clean"] for n in range(1, 6)}
    for n in range(1, 6):
        write(lab, f"web-{n}", b"broken")
    lab.engine.revert_snapshot("web", name="clean")
    assert lab.pool.contents == before
    assert set(states(lab)) == {State.STOPPED}
    assert lab.engine.create_snapshot("web", name="clean").results == ()
    lab.engine.delete_snapshot("web", name="clean")
    assert lab.engine.delete_snapshot("web", name="clean").results == ()
    assert (snapshots(lab), folders(lab)) == ({}, [])


def test_running_clones_go_on_after_a_revert(lab):
    lab.engine.create("web", "t1", count=3, start=True)
    lab.engine.pause("web-3")
    lab.engine.create_snapshot("web", name="there", memory=True)
    assert states(lab) == [State.RUNNING, State.RUNNING, State.PAUSED]
    lab.machines.said["web-1"] = b"failed"
    write(lab, "web-1", b"broken")
    with pytest.raises(WrongState, match="web-1 is running"):
        lab.engine.revert_snapshot("web", name="there")
    assert lab.pool.contents["web-1-disk0"] == b"broken"
    lab.engine.revert_snapshot("web", name="there", force=True)
    assert states(lab) == [State.RUNNING, State.RUNNING, State.PAUSED]
    assert lab.machines.said["web-1"] != b"failed"
    assert lab.pool.contents["web-1-disk0"] != b"broken"


def test_a_killed_revert_is_repeated_without_force(lab, monkeypatch):
    """Its clones were off; one of them has continued from its memory when the run is killed."""
    lab.engine.create("web", "t1", count=2, start=True)
    lab.engine.create_snapshot("web", name="there", memory=True)
    lab.engine.create_snapshot("web", name="other", memory=True)
    lab.engine.stop("web", kill=True)
    host = type(lab.engine._host)
    with monkeypatch.context() as killed:
        killed.setattr(host, "end_reverts", lambda *_: None)
        lab.engine.revert_snapshot("web", name="there")
    lab.engine.stop("web-2", kill=True)
    with pytest.raises(WrongState, match="web-1 is running"):
        lab.engine.revert_snapshot("web", name="other")
    lab.engine.revert_snapshot("web", name="there")
    assert states(lab) == [State.RUNNING, State.RUNNING]
    with pytest.raises(WrongState, match="web-1 is running"):
        lab.engine.revert_snapshot("web", name="there")


def test_guests_without_agents_are_refused_alone(lab):
    lab.engine.create("web", "t1", count=3, start=True)
    lab.machines.snapshots.mute = {"web-2"}
    assert re.search("web-2", failures(lab.engine.create_snapshot, "web", name="live"))
    assert set(states(lab)) == {State.RUNNING}
    assert snapshots(lab) == {"web-1": ["live"], "web-3": ["live"]}
    assert folders(lab) == ["web-1/live", "web-3/live"]
    lab.machines.snapshots.mute = set()
    assert len(lab.engine.create_snapshot("web", name="live").results) == 1
    assert not lab.machines.snapshots.frozen


def test_a_disk_snapshot_reverts_to_a_stopped_clone(lab):
    lab.engine.create("web", "t1", start=True)
    lab.engine.create_snapshot("web", name="live")
    lab.engine.revert_snapshot("web", name="live", force=True)
    assert states(lab) == [State.STOPPED]
    lab.engine.revert_snapshot("web", name="live", start=True)
    assert states(lab) == [State.RUNNING]


def test_one_member_lacks_the_snapshot(lab):
    lab.engine.create("web", "t1", count=3)
    lab.engine.create_snapshot("web-[1-2]", name="clean")
    write(lab, "web-1", b"broken")
    with pytest.raises(NotFound, match="web-3 has no snapshot 'clean'"):
        lab.engine.revert_snapshot("web", name="clean")
    assert lab.pool.contents["web-1-disk0"] == b"broken"
    lab.engine.delete_snapshot("web", name="clean")
    assert snapshots(lab) == {}


def test_snapshots_of_another_kind_are_conflicts(lab):
    lab.engine.create("web", "t1", count=2)
    lab.engine.create_snapshot("web-1", name="one")
    lab.engine.start("web")
    with pytest.raises(Conflict, match="web-1 has a snapshot 'one' without memory"):
        lab.engine.create_snapshot("web", name="one", memory=True)
    assert snapshots(lab) == {"web-1": ["one"]}
    assert set(states(lab)) == {State.RUNNING}


def test_clones_that_lack_disks(lab):
    lab.engine.create("web", "t1", count=2)
    lab.engine.create_snapshot("web-1", name="old")
    del lab.pool.disks["web-1-disk0"]
    with pytest.raises(WrongState, match="web-1 lacks web-1-disk0"):
        lab.engine.create_snapshot("web", name="new")
    assert snapshots(lab) == {"web-1": ["old"]}
    lab.engine.revert_snapshot("web-1", name="old")
    assert "web-1-disk0" in lab.pool.disks
    del lab.machines.machines["web-2"]
    with pytest.raises(WrongState, match="web-2 lacks its domain"):
        lab.engine.create_snapshot("web-2", name="new")


def test_states_that_have_no_quiet_disks(lab):
    lab.engine.create("web", "t1", count=2, start=True)
    lab.engine.pause("web-1")
    lab.engine.save("web-2")
    for name in ("web-1", "web-2"):
        with pytest.raises(WrongState, match="memory"):
            lab.engine.create_snapshot(name, name="x")
    lab.engine.create_snapshot("web-2", name="kept", memory=True)
    assert states(lab) == [State.PAUSED, State.SAVED]
    lab.engine.stop("web", kill=True)
    with pytest.raises(WrongState, match="it has no memory to keep"):
        lab.engine.create_snapshot("web", name="x", memory=True)
    lab.engine.revert_snapshot("web-2", name="kept")
    assert states(lab) == [State.STOPPED, State.RUNNING]


def test_memory_of_another_size_is_refused_before_anything_stops(lab):
    lab.engine.create("web", "t1", start=True)
    lab.engine.create_snapshot("web", name="big", memory=True)
    lab.engine.set("web", sizes=Sizes(memory=512 * 1024**2))
    write(lab, "web-1", b"new")
    assert re.search(
        "devices have changed", failures(lab.engine.revert_snapshot, "web", name="big", force=True)
    )
    assert states(lab) == [State.RUNNING]
    assert lab.pool.contents["web-1-disk0"] == b"new"


def test_memory_that_is_lost_is_refused_before_anything_stops(lab):
    lab.engine.create("web", "t1", count=2, start=True)
    lab.engine.create_snapshot("web", name="m", memory=True)
    machine = lab.engine.host.snapshots / "web-1/m/machine/machine"
    machine.write_text(machine.read_text()[:5])
    assert re.search(
        "web-1.*damaged", failures(lab.engine.revert_snapshot, "web", name="m", force=True)
    )
    assert states(lab) == [State.RUNNING] * 2

    shutil.rmtree(machine.parents[1])
    assert re.search(
        "memory of snapshot 'm' is gone",
        failures(lab.engine.revert_snapshot, "web-1", name="m", force=True),
    )
    lab.engine.delete_snapshot("web", name="m")
    assert (snapshots(lab), folders(lab)) == ({}, [])


@pytest.mark.parametrize("memory", [False, True])
def test_a_failure_leaves_guests_as_they_were(lab, memory):
    """A pool without room for one disk: its guest goes on, and the same command does the rest."""
    lab.engine.create("web", "t1", count=3, start=True)
    lab.pool.snapshots.fail["web-2-disk0.x"] = NotEnoughResources("full")
    assert re.search(
        "web-2: full", failures(lab.engine.create_snapshot, "web", name="x", memory=memory)
    )
    assert set(states(lab)) == {State.RUNNING}
    assert sorted(snapshots(lab)) == ["web-1", "web-3"]
    assert folders(lab) == ["web-1/x", "web-3/x"]
    assert len(lab.engine.create_snapshot("web", name="x", memory=memory).results) == 1
    assert sorted(snapshots(lab)) == ["web-1", "web-2", "web-3"]


@pytest.mark.parametrize("memory", [False, True])
@pytest.mark.parametrize("after", ["begin", "quiet", "keep", "create", "continue", "commit"])
def test_a_killed_run_is_undone_by_the_next(lab, monkeypatch, memory, after):
    lab.engine.create("web", "t1", count=2, start=True)
    monkeypatch.setattr(lab.engine._host, "undo_snapshots", lambda *_: ())
    host, driver = lab.engine._host, lab.machines.snapshots
    quiet = (lab.machines.memory, "save") if memory else (driver, "quiesce")
    place, name = {
        "begin": (host.snapshots, "begin"),
        "quiet": quiet,
        "keep": (driver, "keep"),
        "create": (lab.pool.snapshots, "create"),
        "continue": (driver, "resume" if memory else "release"),
        "commit": (host.snapshots, "commit"),
    }[after]
    real = getattr(place, name)

    def dies(*args, **options):
        if name != "commit":
            list(real(*args, **options) or ())
        raise HostCommandError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(place, name, dies)
        with pytest.raises(VmclonerError):
            lab.engine.create_snapshot("web", name="x", memory=memory)
    assert any(folder.partition("/")[2] == ".x" for folder in folders(lab))
    monkeypatch.undo()
    assert {each.kind for each in lab.engine.gc(dry_run=True)} == {"snapshot"}
    lab.engine.create_snapshot("web", name="x", memory=memory)
    assert set(states(lab)) == {State.RUNNING}
    assert snapshots(lab) == {"web-1": ["x"], "web-2": ["x"]}
    assert folders(lab) == ["web-1/x", "web-2/x"]


def test_a_name_that_a_pool_reserves_is_refused_before_anything_stops(lab, monkeypatch):
    lab.engine.create("web", "t1", count=2, start=True)

    def refuse(key):
        raise InvalidRequest(f"reserved: {key}")

    monkeypatch.setattr(lab.pool.snapshots, "check_name", refuse)
    monkeypatch.setattr(lab.machines.memory, "save", None)
    with pytest.raises(InvalidRequest, match=r"reserved: web-1-disk0\.a_tmeta"):
        lab.engine.create_snapshot("web", name="a_tmeta", memory=True)
    assert folders(lab) == []


def test_gc_undoes_what_nobody_works_on(lab):
    lab.engine.create("web", "t1", start=True)
    lab.engine._host.snapshots.begin("web-1", "x", State.RUNNING, memory=True)
    list(lab.machines.memory.save(["web-1"]))
    [left] = lab.engine.gc(dry_run=True)
    assert (left.kind, left.name) == ("snapshot", "web-1 x")
    assert states(lab) == [State.SAVED]
    lab.engine.gc()
    assert states(lab) == [State.RUNNING]
    assert lab.engine.gc() == ()
    assert folders(lab) == []


def test_a_killed_removal_is_finished(lab):
    lab.engine.create("web", "t1", count=2)
    lab.engine.create_snapshot("web", name="x")
    lab.engine._host.snapshots.begin_removal("web-1", "x")
    lab.engine.start("web-2")
    assert snapshots(lab) == {"web-2": ["x"]}
    assert folders(lab) == ["web-2/x"]


def test_delete_takes_snapshots_and_reset_keeps_them(lab):
    lab.engine.create("web", "t1", count=2)
    write(lab, "web-1", b"mine")
    lab.engine.create_snapshot("web", name="x")
    lab.engine.reset("web")
    assert lab.pool.contents["web-1-disk0"] != b"mine"
    lab.engine.revert_snapshot("web", name="x")
    assert lab.pool.contents["web-1-disk0"] == b"mine"
    lab.engine.delete("web-1")
    assert snapshots(lab) == {"web-2": ["x"]}
    lab.pool.disks.clear()
    lab.machines.machines.clear()
    assert [clone.name for clone in lab.engine.list()] == ["web-2"]
    lab.engine.delete("web")
    assert (lab.engine.list(), lab.pool.snapshots.kept, folders(lab)) == ((), {}, [])


def test_a_pool_without_snapshots_is_refused_by_name(lab):
    lab.engine.create("web", "t1")
    lab.pool.snapshots = None
    with pytest.raises(BackendError, match="storage 'reference' has no snapshots"):
        lab.engine.create_snapshot("web", name="x")
    lab.engine.delete("web")
    assert lab.engine.list() == ()


def test_a_hypervisor_without_snapshots_has_those_of_disks(lab):
    lab.engine.create("web", "t1", count=2)
    lab.machines.snapshots = None
    lab.engine.create_snapshot("web", name="x")
    lab.engine.revert_snapshot("web", name="x")
    lab.engine.start("web")
    with pytest.raises(BackendError, match="hypervisor 'reference' can't keep"):
        lab.engine.create_snapshot("web", name="y", memory=True)


def test_room_is_checked_before_anything_is_done(lab):
    lab.engine.create("web", "t1", count=2, start=True)
    lab.pool.free = 0
    with pytest.raises(NotEnoughResources, match="snapshots need"):
        lab.engine.create_snapshot("web", name="x", memory=True)
    assert folders(lab) == []
    lab.pool.free, lab.pool.volumes_free = 10**12, 1
    with pytest.raises(NotEnoughResources, match="1 more volumes fit"):
        lab.engine.create_snapshot("web", name="x")


def test_plans_say_what_will_be_done(lab):
    lab.engine.create("web", "t1", start=True)
    aim = SnapshotAim(name="x", memory=True)
    request = TargetRequest(action="snapshot-create", targets=("web",), snapshot=aim)
    [clone] = lab.engine.plan(request).clones
    assert clone.steps == ("check", "note", "save", "keep", "snapshot", "continue", "commit")
    assert folders(lab) == []
    with pytest.raises(InvalidRequest):
        TargetRequest(action="snapshot-create", targets=("web",))
    with pytest.raises(InvalidRequest):
        TargetRequest(action="start", targets=("web",), snapshot=aim)


def test_notes_of_drafts_are_hostile_input(lab):
    folder = lab.engine.host.snapshots
    for name, note in (("web-1", "[]"), ("web-2", "{"), ("db-1", '{"was": 1, "memory": 2}')):
        draft = folder / name / ".x"
        draft.mkdir(parents=True)
        (draft / "note.json").write_text(note)
    (folder / "web-1" / ".a..b").mkdir()
    (folder / "note-a-clone" / ".x").mkdir(parents=True)
    drafts = lab.engine._host.snapshots.drafts()
    assert [(draft.clone, draft.was) for draft in drafts] == [
        ("db-1", None),
        ("web-1", None),
        ("web-2", None),
    ]
    json.dumps([draft.name for draft in drafts])


def test_scripts_that_ran_after_a_snapshot_run_again_after_a_revert(lab):
    lab.engine.create("web", "t1", count=2)
    records = lab.engine._host.records
    records.update("web-1", ran={"setup.sh": "1"})
    lab.engine.create_snapshot("web", name="clean")
    for clone in ("web-1", "web-2"):
        records.update(clone, ran={"setup.sh": "2", "more.sh": "1"})
    lab.engine.revert_snapshot("web", name="clean")
    assert records.find("web-1").ran == {"setup.sh": "1"}
    assert records.find("web-2").ran == {}
