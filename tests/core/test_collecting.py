"""gc removes what nothing needs, and nothing else."""

import json
import os
import threading
from pathlib import Path

import attrs
import pytest

from tests.core.test_sweeping import leave, places, there
from vmcloner_core import State
from vmcloner_core.drivers import image_cache
from vmcloner_core.errors import Conflict, HostCommandError, Interrupted, WrongState
from vmcloner_core.locks import hold, hold_free
from vmcloner_core.model import Leftover
from vmcloner_core.request import CreateRequest


def kinds(left):
    return sorted(each.kind for each in left)


def names(lab):
    return {clone.name for clone in lab.engine.list()}


@pytest.fixture
def fleet(lab):
    """A fleet whose second clone has no domain, whose third no disks; the first is complete."""
    lab.engine.create("web", "t1", count=3)
    del lab.machines.machines["web-2"]
    list(lab.pool.delete([volume for volume in lab.pool.volumes() if volume.labels.index == 3]))
    states = {clone.name: clone.state for clone in lab.engine.list()}
    assert states == {"web-1": State.STOPPED, "web-2": State.ALLOCATED, "web-3": State.ORPHAN}
    return lab


def test_leftovers_are_listed_with_their_sizes_and_then_removed(lab):
    host = lab.engine.host
    left = leave(*places(host, "old-1"), host.records / ".old-2.draft" / "record.json")
    found = lab.engine.gc(dry_run=True)
    assert kinds(found) == ["boot", "console", "console", "draft"]
    assert all(each.size >= 4096 and each.error is None and each.why for each in found)
    assert there(left) == list(left)
    assert lab.engine.gc() == found
    assert there(left) == []
    assert lab.engine.gc() == ()


def test_orphans_are_only_collected_when_asked_for(fleet):
    assert fleet.engine.gc() == ()
    assert names(fleet) == {"web-1", "web-2", "web-3"}
    planned = fleet.engine.gc(orphans=True, dry_run=True)
    assert names(fleet) == {"web-1", "web-2", "web-3"}
    done = fleet.engine.gc(orphans=True)
    assert done == planned
    assert kinds(done) == ["disk", "domain", "record", "record"]
    assert names(fleet) == {"web-1"}
    assert fleet.engine.show("web-1").state is State.STOPPED
    assert fleet.engine.gc(orphans=True) == ()


def test_a_refusal_changes_nothing(fleet):
    def refuse(left):
        assert len(left) == 4
        raise Interrupted("no")

    with pytest.raises(Interrupted):
        fleet.engine.gc(orphans=True, on_found=refuse)
    assert names(fleet) == {"web-1", "web-2", "web-3"}


def test_what_a_run_is_making_is_left(fleet, caplog):
    with hold(fleet.engine.host.state, ["fleet/web"]):
        assert fleet.engine.gc(orphans=True) == ()
        assert "fleet web is left alone: another run works on it" in caplog.text
    assert len(fleet.engine.gc(orphans=True)) == 4


def test_a_running_create_keeps_all_that_it_makes(lab):
    """gc comes between the volumes and the domains of a create of the same engine's host."""
    from vmcloner_core import Engine

    collected = []
    other = Engine(lab.engine.settings, lab.engine.plugins, lab.engine._host)

    def while_it_runs(_plan):
        collected.append(other.gc(orphans=True))

    lab.engine.run(CreateRequest(fleet="web", template="t1", count=3), on_plan=while_it_runs)
    assert collected == [()]
    assert len(lab.engine.list()) == 3


@pytest.mark.parametrize("owner", ["another", "none"])
def test_clones_of_other_state_folders_are_left(fleet, owner):
    """Those without an id, of older versions, may be any state folder's."""
    state = "0" * 32 if owner == "another" else None
    for clone in fleet.engine.list():
        relabelled(fleet, clone, state)
    assert fleet.engine.gc(orphans=True) == ()
    assert len(fleet.engine.list()) == 3


def relabelled(lab, clone, state):
    labels = attrs.evolve(clone.labels, state=state)
    for volume in clone.volumes:
        lab.pool.disks[volume.name] = attrs.evolve(volume, labels=labels)
    if clone.domain is not None:
        domain = attrs.evolve(clone.domain, labels=labels)
        lab.machines.machines[clone.name] = domain
    path = lab.engine.host.records / clone.name / "record.json"
    record = json.loads(path.read_text())
    record["labels"] = labels.to_mapping()
    path.write_text(json.dumps(record))


def test_a_clone_without_a_state_id_can_be_used_and_deleted(lab):
    lab.engine.create("web", "t1", count=2)
    for clone in lab.engine.list():
        relabelled(lab, clone, None)
    assert all(clone.ours for clone in lab.engine.list())
    lab.engine.start("web")
    lab.engine.create("web", "t1", count=3)
    lab.engine.delete("web")
    assert lab.engine.list() == ()


def test_a_running_guest_without_disks_is_left(fleet):
    fleet.machines.machines["web-3"] = attrs.evolve(
        fleet.machines.machines["web-3"], state=State.RUNNING
    )
    fleet.engine.gc(orphans=True)
    assert names(fleet) == {"web-1", "web-3"}


def test_a_domain_whose_disks_are_in_no_pool_of_the_settings_is_left(fleet, tmp_path):
    disk = tmp_path / "disk"
    disk.touch()
    domain = fleet.machines.machines["web-3"]
    fleet.machines.machines["web-3"] = attrs.evolve(domain, disks=(disk,))
    fleet.engine.gc(orphans=True)
    assert names(fleet) == {"web-1", "web-3"}


@pytest.mark.parametrize("kind", ["storage", "hypervisor"])
def test_nothing_is_an_orphan_by_a_backend_that_cannot_be_read(fleet, monkeypatch, kind):
    def fail():
        raise HostCommandError("no answer")

    broken = fleet.pool if kind == "storage" else fleet.machines
    monkeypatch.setattr(broken, "volumes" if kind == "storage" else "inspect", fail)
    assert fleet.engine.gc(orphans=True) == ()


def test_a_damaged_record_stops_it_before_anything_is_removed(fleet):
    (fleet.engine.host.records / "web-2" / "record.json").write_text("{")
    with pytest.raises(Conflict, match="damaged"):
        fleet.engine.gc(orphans=True)
    assert names(fleet) == {"web-1", "web-2", "web-3"}


def test_a_fault_is_that_things_alone(fleet, monkeypatch):
    delete = fleet.pool.delete_one

    def fail(volume):
        raise HostCommandError(f"{volume.name}: Input/output error")

    monkeypatch.setattr(fleet.pool, "delete_one", fail)
    done = {(each.kind, each.error is None) for each in fleet.engine.gc(orphans=True)}
    assert done == {("disk", False), ("record", False), ("domain", True), ("record", True)}
    monkeypatch.setattr(fleet.pool, "delete_one", delete)
    assert kinds(fleet.engine.gc(orphans=True)) == ["disk", "record"]


def test_drafts_in_records_and_of_the_id(lab):
    lab.engine.create("web", "t1", count=1)
    state = lab.engine.host.state
    left = leave(
        state / "identity" / "web-1" / ".record.json-abcd1234",
        state / "identity" / "web-1" / ".seed.iso.draft",
        state / ".id-abcd1234",
    )
    with hold(state, ["id", "fleet/web"]):
        assert lab.engine.gc() == ()
    assert kinds(lab.engine.gc()) == ["draft"] * 3
    assert there(left) == []
    assert (state / "identity" / "web-1" / "record.json").exists()


def test_drafts_of_image_builders_caches(lab, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    cache = image_cache()
    left = leave(cache / ".0a1b-abcd1234" / "filled" / "disk.raw")
    kept = leave(cache / "0a1b" / "disk.raw")
    with hold(cache, ["image/0a1b"]):
        lab.engine.create("web", "t1", count=1)
        assert there(left) == list(left)
    assert kinds(lab.engine.gc(dry_run=True)) == ["image"]
    lab.engine.create("web", "t1", count=2)
    assert there(left) == []
    assert there(kept) == list(kept)


def test_logs_that_a_hypervisor_keeps_go_with_what_is_left_of_the_clone(lab, monkeypatch, tmp_path):
    lab.engine.create("web", "t1", count=2)
    monkeypatch.setattr(
        type(lab.machines),
        "logs",
        lambda _self, name: tuple(p for p in [tmp_path / f"guest-{name}.log"] if p.exists()),
    )
    left, kept, foreign = leave(*(tmp_path / f"guest-{n}.log" for n in ("web-1", "web-2", "vm-1")))
    del lab.machines.machines["web-1"]
    assert kinds(lab.engine.gc()) == ["log"]
    assert there([left, kept, foreign]) == [kept, foreign]


def test_pools_say_what_they_would_sweep(lab, monkeypatch):
    swept = []
    draft = Leftover(kind="draft", name="/p/x", size=1, why="killed")
    monkeypatch.setattr(lab.pool, "leftovers", lambda: (draft,), raising=False)
    monkeypatch.setattr(lab.pool, "sweep", lambda: swept.append(1))
    assert lab.engine.gc(dry_run=True) == (draft,)
    assert not swept
    assert lab.engine.gc() == (draft,)
    assert swept


def test_a_plan_that_is_carried_out_later_sweeps_too(lab):
    request = CreateRequest(fleet="web", template="t1", count=1)
    lab.engine.create("first", "t1", count=1)
    plan = lab.engine.plan(request)
    left = leave(*places(lab.engine.host, "old-1"))
    lab.engine.apply(plan)
    assert there(left) == []


def test_a_dry_run_makes_no_state_folder(lab):
    assert lab.engine.gc(orphans=True, dry_run=True) == ()
    assert not lab.engine.host.state.exists()


# --- the command --------------------------------------------------------------------------------


def test_the_command_needs_a_yes(fleet, run):
    code, _out, err = run("gc", "--orphans")
    assert code == 2
    assert "--yes" in err
    assert names(fleet) == {"web-1", "web-2", "web-3"}


def test_the_command_as_json(fleet, run):
    code, out, err = run("gc", "--orphans", "--dry-run", "-f", "json")
    assert code == 0
    rows = json.loads(out)
    assert [sorted(row) for row in rows] == [["error", "kind", "name", "size", "why"]] * 4
    assert all(isinstance(row["size"], int) and row["error"] is None for row in rows)
    assert "would remove 4 leftovers" in err
    code, out, err = run("gc", "--orphans", "--yes", "-f", "json")
    assert code == 0
    assert json.loads(out) == rows
    assert "removed 4 leftovers" in err
    code, out, err = run("gc", "--orphans", "--yes")
    assert (code, out) == (0, "")
    assert "nothing to remove" in err


@pytest.mark.parametrize(("word", "left"), [("y", 1), ("", 3)])
def test_the_command_asks(fleet, run, monkeypatch, word, left):
    import io

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr("builtins.input", lambda _prompt: word)
    code, _out, err = run("gc", "--orphans", stdin=Terminal())
    assert len(names(fleet)) == left
    assert code == (0 if word else 130)
    assert "its disks are gone" in err


def test_the_command_fails_where_something_stays(fleet, run, monkeypatch):
    def fail(volume):
        raise HostCommandError(f"{volume.name}: Input/output error")

    monkeypatch.setattr(fleet.pool, "delete_one", fail)
    code, _out, err = run("gc", "--orphans", "--yes")
    assert code == 10
    assert "Input/output error" in err


# --- the state folder's id ----------------------------------------------------------------------


def test_an_id_that_cannot_be_written_leaves_no_draft(lab, monkeypatch):
    local = lab.engine._host

    def fail(_path, _target):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", fail)
        with pytest.raises(Exception, match="can't write"):
            local.keep_state_id()
    assert [path.name for path in local.host.state.iterdir()] == ["lock"]
    assert local.keep_state_id() == (local.host.state / "id").read_text().strip()


def test_many_that_give_a_folder_its_id_agree(lab):
    from vmcloner_core.local_host import LocalHost

    hosts = [LocalHost(lab.engine.host, lab.engine.plugins) for _ in range(8)]
    found = []
    threads = [
        threading.Thread(target=lambda each=each: found.append(each.keep_state_id()))
        for each in hosts
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert len(found) == 8
    assert [p.name for p in lab.engine.host.state.iterdir() if p.name.startswith(".")] == []


# --- clones of other state folders --------------------------------------------------------------


def test_what_is_skipped_is_counted_and_how_to_adopt_it_works(fleet, run):
    state = fleet.engine.host.state
    owner = (state / "id").read_text().strip()
    lost = state.with_name("lost")
    state.rename(lost)
    fleet.engine._host._state_id = None
    code, out, err = run("list", "-f", "json")
    assert code == 0
    assert len(json.loads(out)) == 3
    assert "3 clones left alone: of another state folder" in err
    assert owner in err
    code, _out, err = run("delete", "--all", "--yes")
    assert code == 0
    assert "3 clones left alone" in err
    assert owner in err
    assert len(fleet.engine.list()) == 3
    (state / "id").write_text(f"{owner}\n")
    fleet.engine._host._state_id = None
    code, _out, err = run("delete", "--all", "--yes")
    assert code == 0
    assert "left alone" not in err
    assert fleet.engine.list() == ()
    assert os.path.lexists(lost)


def test_a_plan_for_another_state_folder_is_still_refused(lab):
    plan = lab.engine.plan(CreateRequest(fleet="web", template="t1", count=1))
    (lab.engine.host.state).mkdir(exist_ok=True)
    (lab.engine.host.state / "id").write_text("0" * 32)
    lab.engine._host._state_id = None
    with pytest.raises(WrongState):
        lab.engine.apply(plan)
    with hold_free(lab.engine.host.state, ["fleet/web"]) as free:
        assert free
