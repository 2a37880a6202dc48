"""Clones that continue from a warm origin: their lives."""

import json
import threading

import attrs
import pytest

from tests.pauses import until
from tests.warm.forking import TEMPLATE, memory, states
from vmcloner_core.deadlines import answers
from vmcloner_core.errors import (
    InvalidRequest,
    PartialFailure,
    WrongState,
)
from vmcloner_core.model import State
from vmcloner_core.plan import Sizes
from vmcloner_core.pools import Pool
from vmcloner_core.request import CreateRequest


def test_clones_are_born_saved_and_become_themselves(warm):
    warm.create("web", "warm", count=3, warm=True)
    assert set(states(warm, "web").values()) == {State.SAVED}
    (origin,) = warm.warm_origins()
    disks = [volume for clone in warm.list("web") for volume in clone.volumes]
    assert [origin.image in str(disk.backing) for disk in disks] == [True] * 3
    warm.start("web")
    assert set(states(warm, "web").values()) == {State.RUNNING}
    assert list((memory(warm) / "forks").iterdir()) == []


def test_start_comes_at_once(warm):
    warm.create("web", "warm", count=3, warm=True, start=True)
    assert set(states(warm, "web").values()) == {State.RUNNING}
    said = warm.read_console("web-2")[0]
    assert said == b"vmcloner-reseeded web-2\n"


def test_the_second_start_boots(warm, lab):
    warm.create("web", "warm", warm=True, start=True)
    warm.stop("web", kill=True)
    assert states(warm, "web") == {"web-1": State.STOPPED}
    warm.start("web")
    assert b"reseeded" not in warm.read_console("web-1")[0]
    assert "web-1" in lab.machines.boots


def test_discarded_memory_is_not_used(warm):
    warm.create("web", "warm", warm=True)
    assert [r.changed for r in warm.stop("web", kill=True).results] == [("discard",)]
    assert states(warm, "web") == {"web-1": State.STOPPED}
    warm.start("web")
    assert b"reseeded" not in warm.read_console("web-1")[0]


def test_reset_makes_it_as_it_was_born(warm):
    warm.create("web", "warm", warm=True, start=True)
    warm.reset("web")
    assert warm.read_console("web-1")[0] == b"vmcloner-reseeded web-1\n"
    warm.stop("web", kill=True)
    warm.reset("web")
    assert states(warm, "web") == {"web-1": State.SAVED}


def test_a_pool_of_forks(warm):
    """New machines and those that were used are forked."""
    pool = Pool(template="warm", name="box", size=2, warm=True, ready="console:vmcloner-reseeded")
    assert {each.state for each in warm.fill_pool(pool)} == {"ready"}
    (origin,) = warm.warm_origins("warm")
    assert {clone.labels.warm for clone in warm.list("box")} == {origin.key}
    (taken,) = warm.acquire("box")
    warm.stop(taken.name, kill=True)
    warm.release(taken)
    until(lambda: {each.state for each in warm.pool_members("box")} == {"ready"})
    assert warm.read_console(taken.name)[0] == f"vmcloner-reseeded {taken.name}\n".encode()
    assert len(warm.warm_origins("warm")) == 1


def test_a_pool_saves_a_boot_in_one_way():
    with pytest.raises(InvalidRequest, match="memory and warm are two ways"):
        Pool(template="t", warm=True, memory=True)


def test_a_disk_that_is_reverted_has_no_memory(warm):
    warm.create("web", "warm", warm=True, start=True)
    warm.stop("web", kill=True)
    warm.create_snapshot("web", name="s1")
    warm.reset("web")
    assert states(warm, "web") == {"web-1": State.SAVED}
    warm.revert_snapshot("web", name="s1", force=True)
    assert states(warm, "web") == {"web-1": State.STOPPED}


def test_delete_forgets_it(warm):
    warm.create("web", "warm", warm=True)
    warm.delete("web")
    assert list((memory(warm) / "forks").iterdir()) == []
    warm.create("web", "warm")
    assert states(warm, "web") == {"web-1": State.STOPPED}


def test_devices_that_differ(warm, lab):
    warm.create("web", "warm", warm=True)
    list(lab.machines.sizes.resize(["web-1"], 512 * 1024**2, None))
    with pytest.raises(PartialFailure, match="1 of 1 clone failed"):
        warm.start("web")
    assert states(warm, "web") == {"web-1": State.SAVED}


def test_sizes_of_its_own(warm):
    with pytest.raises(InvalidRequest, match="web-1: a fork has the template's memory"):
        warm.create("web", "warm", warm=True, values={1: {"memory": "512MiB"}})
    assert warm.list() == ()


def test_a_plan_changes_nothing(warm):
    plan = warm.plan(CreateRequest(fleet="web", template="warm", warm=True))
    assert "booted once before" in plan.warnings[-1]
    assert warm.warm_origins() == ()
    warm.warm_template("warm")
    plan = warm.plan(CreateRequest(fleet="web", template="warm", warm=True))
    assert plan.warnings == ()


def test_a_plan_for_forks_is_carried_out_by_no_boot(warm):
    """Its clones would be booted ones, with the identity of forks or none."""
    request = CreateRequest(fleet="web", template="warm", warm=True)
    plan = warm.plan(request)
    with pytest.raises(WrongState, match="template warm has no warm origin in pool 'files'"):
        warm.apply(plan)
    assert warm.list() == ()
    warm.warm_template("warm")
    warm.apply(warm.plan(request))
    assert states(warm, "web") == {"web-1": State.SAVED}


def test_a_clone_that_waits_does_not_grow(warm):
    """Its memory knows its disk as it is."""
    warm.create("web", "warm", warm=True)
    with pytest.raises(PartialFailure) as caught:
        warm.set("web", sizes=Sizes(disk=64 * 1024**2))
    assert "web-1 is saved: its memory knows its disk as it is" in str(caught.value.failures)
    warm.start("web")
    warm.set("web", sizes=Sizes(disk=64 * 1024**2))


def test_a_reset_of_one_with_other_sizes_boots_it(warm):
    warm.create("web", "warm", warm=True, start=True)
    warm.stop("web", kill=True)
    warm.set("web", sizes=Sizes(memory=512 * 1024**2))
    warm.reset("web")
    assert states(warm, "web") == {"web-1": State.STOPPED}
    warm.create("web", "warm", warm=True, start=True)  # which makes nothing: it may have any size
    assert states(warm, "web") == {"web-1": State.RUNNING}
    assert b"reseeded" not in warm.read_console("web-1")[0]


def test_another_network_is_no_other_memory(warm):
    """Forks get their cards when they run."""
    origin = warm.warm_template("warm").unwrap()
    warm.create("web", "warm", warm=True, start=True, network="bridge:br0")
    assert states(warm, "web") == {"web-1": State.RUNNING}
    assert warm.warm_origins() == (origin,)


def test_what_its_parent_said_a_fork_does_not_say_again(warm, lab, monkeypatch):
    monkeypatch.setattr(lab.machines, "started", lambda _name: 1.0)
    warm.create("web", "warm", count=2, warm=True, ready=True, timeout=3)
    assert set(states(warm, "web").values()) == {State.RUNNING}
    warm.create("db", "warm", warm=True)
    warm.start("db")
    warm.wait("db", timeout=3)


def test_its_own_name_a_fork_says_itself(warm, lab, monkeypatch):
    monkeypatch.setattr(lab.machines, "started", lambda _name: 1.0)
    lab.template("own", TEMPLATE.replace("here is the parent", "{{ name }}|here is the parent"))
    warm.create("web", "own", warm=True, ready=True, timeout=5)
    warm.create("db", "own", warm=True, start=True)
    record = json.loads((warm.host.records / "db-1" / "record.json").read_text())
    assert not record.get("ready")


def test_a_snapshot_of_memory_that_it_has_not_got_yet(warm):
    warm.create("web", "warm", warm=True)
    with pytest.raises(PartialFailure) as caught:
        warm.create_snapshot("web", name="s1", memory=True)
    assert "web-1 has no memory of its own before its first start" in str(caught.value.failures)
    warm.start("web")
    warm.create_snapshot("web", name="s1", memory=True)


def test_emulated_guests_have_more_time(warm, lab, monkeypatch):
    """As for everything that is waited for."""
    slow = attrs.evolve(lab.machines.resources(), emulated=True)
    monkeypatch.setattr(lab.machines, "resources", lambda: slow)
    monkeypatch.setattr("vmcloner_core.warm_forks.PATIENCE", 0.1)
    lab.machines.warm.deaf = {"web-1"}
    with pytest.raises(PartialFailure) as caught:
        warm.create("web", "warm", warm=True, start=True)
    assert "within 0.4 s" in str(caught.value.failures)


@pytest.mark.parametrize("call", ["boot", "load"])
def test_a_hypervisor_that_does_not_say_whether_guests_are_emulated(warm, lab, monkeypatch, call):
    """It hangs once a guest is there: who waits for that is not kept for ever."""
    real, hung = getattr(lab.machines.warm, call), threading.Event()

    def hangs(*words):
        monkeypatch.setattr(lab.machines, "resources", hung.wait)
        return real(*words)

    if call == "load":
        warm.warm_template("warm")
    monkeypatch.setattr(lab.machines.warm, call, hangs)
    monkeypatch.setattr(answers, "__defaults__", (1.0,))
    late = threading.Timer(20, hung.set)
    late.start()
    try:
        if call == "boot":
            assert warm.warm_template("warm").changed
        else:
            warm.create("web", "warm", warm=True, start=True)
        assert not hung.is_set()
    finally:
        late.cancel()
        hung.set()
