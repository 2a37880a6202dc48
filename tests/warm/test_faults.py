"""Kills, full disks, damaged files and guests that do not answer."""

import contextlib
import os
import shutil

import pytest

from tests.warm.forking import Killed, killed, leftovers, memory, states
from vmcloner_core.drivers import ImageFile
from vmcloner_core.errors import (
    BackendError,
    HostCommandError,
    NotEnoughResources,
    PartialFailure,
    VmclonerError,
)
from vmcloner_core.model import CloneMode, Outcome, State
from vmcloner_core.request import CreateRequest
from vmcloner_core.running import PlannedRun
from vmcloner_core.warm_origins import WarmOrigins


def test_what_a_kill_left_of_a_clone_that_never_was(warm):
    warm.warm_template("warm")
    (origin,) = warm.warm_origins()
    WarmOrigins(memory(warm)).wait("web-1", origin.key)
    warm.delete("web", missing_ok=True)
    assert list((memory(warm) / "forks").iterdir()) == []


def test_a_guest_that_does_not_answer(warm, lab):
    """It is powered off, by name, and boots from its disk; the others are not affected."""
    lab.machines.warm.deaf = {"web-2"}
    with pytest.raises(PartialFailure) as caught:
        warm.create("web", "warm", count=3, warm=True, start=True)
    assert "web-2" in str(caught.value.failures)
    assert states(warm, "web") == {
        "web-1": State.RUNNING,
        "web-2": State.STOPPED,
        "web-3": State.RUNNING,
    }
    warm.create("web", "warm", count=3, warm=True, start=True)
    assert states(warm, "web")["web-2"] is State.RUNNING


def test_a_file_that_is_cut_short(warm):
    warm.create("web", "warm", warm=True)
    (origin,) = warm.warm_origins()
    os.truncate(origin.folder / "memory", 100)
    with pytest.raises(PartialFailure, match="1 of 1 clone failed"):
        warm.start("web")
    assert states(warm, "web") == {"web-1": State.SAVED}
    assert warm.warm_template("warm").changed  # another one, which fits
    warm.stop("web", kill=True)
    warm.start("web")
    assert states(warm, "web") == {"web-1": State.RUNNING}


def test_an_origin_that_is_gone(warm, caplog):
    warm.create("web", "warm", warm=True)
    (origin,) = warm.warm_origins()
    shutil.rmtree(origin.folder)
    warm.start("web")
    assert states(warm, "web") == {"web-1": State.RUNNING}
    assert "web-1 boots from its disk: its warm origin is gone" in caplog.text


@pytest.mark.parametrize("replaced", [False, True])
def test_a_disk_that_is_gone_from_its_pool_or_another(warm, lab, replaced):
    """The next create makes another origin; nothing is made of half of one."""
    old = warm.warm_template("warm").unwrap()
    warm._host.images.delete_origin("files", old.image)
    if replaced:
        pool = warm._host.drivers.storage("files")
        file = lab.folder / "templates" / "image.raw"
        image = ImageFile(path=file, format="raw", size=file.stat().st_size, digest="x")
        warm._host.images.imported(pool, old.image, image, lambda *_: None).unwrap()
    plan = warm.plan(CreateRequest(fleet="web", template="warm", warm=True))
    assert "booted once before" in plan.warnings[-1]
    warm.create("web", "warm", warm=True, start=True)
    (new,) = warm.warm_origins()
    assert new.key != old.key
    assert warm.list("web")[0].labels.warm == new.key
    assert leftovers(warm) == ([new.key], [new.image], [])


def test_a_reset_whose_origin_is_gone(warm):
    """It says so; the clone stays as it is."""
    warm.create("web", "warm", warm=True, start=True, mode=CloneMode.FULL)
    (origin,) = warm.warm_origins()
    warm._host.images.delete_origin("files", origin.image)
    with pytest.raises(PartialFailure) as caught:
        warm.reset("web")
    assert "web-1: pool 'files' has no image of its warm origin" in str(caught.value.failures)
    assert warm.list("web")[0].volumes[0].complete


def test_a_disk_that_is_gone_since_its_origin_was_found(warm, monkeypatch):
    """It is said of each clone, and no clone is left that waits for it."""
    origin, real = warm.warm_template("warm").unwrap(), PlannedRun.__call__

    def late(run):
        warm._host.images.delete_origin("files", origin.image)
        return real(run)

    monkeypatch.setattr(PlannedRun, "__call__", late)
    with pytest.raises(PartialFailure) as caught:
        warm.create("web", "warm", warm=True)
    assert "web-1: pool 'files' has no image of its warm origin" in str(caught.value.failures)
    assert warm._host.warm.waiting() == {}
    assert warm.list() == ()


FULL = NotEnoughResources("no room", hint="free space")


@pytest.mark.parametrize("part", ["draft", "boot", "save", "capture", "keep"])
def test_no_room_while_an_origin_is_made(warm, lab, monkeypatch, part):
    """It is said, and nothing is left; with room, the same command makes it."""

    def full(*_):
        raise FULL

    owners = {"boot": lab.machines.warm, "save": lab.machines.warm}
    owners["capture"] = type(warm._host.drivers.storage("files").capturing)
    with monkeypatch.context() as patch:
        patch.setattr(owners.get(part, WarmOrigins), part, full)
        with pytest.raises(NotEnoughResources, match="no room"):
            warm.create("web", "warm", warm=True)
    found = leftovers(warm) if memory(warm).exists() else ([], [], [])
    assert found == ([], [], [])
    assert warm.list() == ()
    warm.create("web", "warm", warm=True)


@pytest.mark.parametrize("part", ["wait", "begin", "end"])
def test_no_room_while_a_clone_is_forked(warm, monkeypatch, part):
    """Its clone fails by name, half of it runs nowhere, and the same command completes it."""
    real = getattr(WarmOrigins, part)

    def full(origins, clone, *words):
        if clone == "web-2":
            raise FULL
        return real(origins, clone, *words)

    warm.warm_template("warm")
    with monkeypatch.context() as patch:
        patch.setattr(WarmOrigins, part, full)
        with pytest.raises(PartialFailure) as caught:
            warm.create("web", "warm", count=3, warm=True, start=True)
        assert {name for name, _ in caught.value.failures} == {"web-2"}
        found = states(warm, "web")
    assert found.pop("web-2", None) is not State.RUNNING
    assert found == {"web-1": State.RUNNING, "web-3": State.RUNNING}
    warm.create("web", "warm", count=3, warm=True, start=True)
    assert set(states(warm, "web").values()) == {State.RUNNING}
    assert list((memory(warm) / "forks").iterdir()) == []


def let_run(warm, lab):
    """Have the console of web-1 say that somebody else has started it."""
    log = warm.host.consoles / "web-1.log"
    lab.machines.consoles.log = lambda _name: log
    log.parent.mkdir(exist_ok=True)
    log.write_text("it has run")
    os.utime(log, (2**32, 2**32))


def test_what_was_started_by_other_means(warm, lab, caplog):
    warm.create("web", "warm", warm=True)
    let_run(warm, lab)
    warm.start("web")
    assert "web-1 boots from its disk: it was started by other means" in caplog.text
    assert "web-1" in lab.machines.boots


@pytest.mark.parametrize("part", ["boot", "save", "capture", "check"])
def test_a_call_that_is_killed_while_an_origin_is_made(warm, lab, monkeypatch, part):
    """The next one removes what it left, and makes it."""
    monkeypatch.setattr("vmcloner_core.warm_calls._Making._undo", lambda _self: None)
    owner = lab.machines.warm
    if part == "capture":
        owner = type(warm._host.drivers.storage("files").capturing)
    before = getattr(owner, part)
    monkeypatch.setattr(owner, part, killed(before))
    if part == "check":
        warm.warm_template("warm")  # which nothing checks before the next
    with pytest.raises(BackendError, match="Killed"):
        warm.warm_template("warm")
    monkeypatch.setattr(owner, part, before)
    warm.create("web", "warm", warm=True, start=True)
    (origin,) = warm.warm_origins()
    folders, images, parents = leftovers(warm)
    assert (folders, images, parents) == ([origin.key], [origin.image], [])


@pytest.mark.parametrize("part", ["boot", "save", "keep"])
def test_gc_removes_what_a_killed_making_left(warm, lab, monkeypatch, part):
    monkeypatch.setattr("vmcloner_core.warm_calls._Making._undo", lambda _self: None)
    owner = WarmOrigins if part == "keep" else lab.machines.warm
    with monkeypatch.context() as patch:
        instead = killed(lambda *_: None) if part == "keep" else killed(getattr(owner, part))
        patch.setattr(owner, part, instead)
        with pytest.raises((Killed, BackendError)):
            warm.warm_template("warm")
    left = leftovers(warm)
    assert len(left[0]) == 1
    (key,) = left[0]
    shown = [(each.kind, each.name) for each in warm.gc(dry_run=True)]
    assert ("warm", str(memory(warm) / key)) in shown
    assert (("domain", f"warm{key}-1") in shown) is (part != "keep")
    assert (("image", f"warm-{key} in pool files") in shown) is (part == "keep")
    assert leftovers(warm) == left
    with warm._held(["warm"]):  # somebody makes one now
        assert [each.kind for each in warm.gc(dry_run=True) if key in each.name] == []
    removed = warm.gc()
    assert [(each.kind, each.name) for each in removed] == shown
    assert {each.error for each in removed} == {None}
    assert leftovers(warm) == ([], [], [])


def test_gc_keeps_the_folder_while_the_parent_is_there(warm, lab, killed_saving, monkeypatch):
    """Else nothing would tell that the parent is one."""
    ((key,), _, _) = leftovers(warm)
    stuck = HostCommandError("nobody may do that")
    with monkeypatch.context() as patch:
        patch.setattr(lab.machines, "undefine", lambda n: (Outcome(key=x, error=stuck) for x in n))
        assert stuck in [each.error for each in warm.gc()]
    assert leftovers(warm)[0] == [key]
    assert warm.gc() != ()
    assert leftovers(warm) == ([], [], [])


@pytest.mark.parametrize("part", ["load", "go_on", "connect"])
@pytest.mark.parametrize("before", [True, False])
def test_a_fork_that_is_killed(warm, lab, monkeypatch, part, before):
    """The same command completes it: by a fork if its guest hadn't continued, else by a boot."""
    real = getattr(lab.machines.warm, part)
    forget = WarmOrigins.end

    def killed(*words):
        if not before:
            list(real(*words))
        monkeypatch.setattr(WarmOrigins, "end", lambda *_: None)
        monkeypatch.setattr(lab.machines, "destroy", lambda names: iter(()))
        raise HostCommandError("killed")

    destroy = lab.machines.destroy
    with monkeypatch.context() as patch:
        patch.setattr(lab.machines.warm, part, killed)
        with pytest.raises(VmclonerError):
            warm.create("web", "warm", warm=True, start=True)
    monkeypatch.setattr(lab.machines.warm, part, real)
    monkeypatch.setattr(WarmOrigins, "end", forget)
    monkeypatch.setattr(lab.machines, "destroy", destroy)
    assert states(warm, "web")["web-1"] is not State.RUNNING
    warm.create("web", "warm", warm=True, start=True)
    assert states(warm, "web") == {"web-1": State.RUNNING}
    forked = b"reseeded" in warm.read_console("web-1")[0]
    assert forked is (part == "load")
    assert list((memory(warm) / "forks").iterdir()) == []


@pytest.mark.parametrize("part", ["draft", "keep"])
def test_a_kill_at_either_end_of_the_making(warm, monkeypatch, part):
    monkeypatch.setattr("vmcloner_core.warm_calls._Making._undo", lambda _self: None)
    with monkeypatch.context() as patch:
        patch.setattr(WarmOrigins, part, killed(getattr(WarmOrigins, part)))
        with pytest.raises(Killed):
            warm.warm_template("warm")
    warm.warm_template("warm")
    (origin,) = warm.warm_origins()
    assert leftovers(warm) == ([origin.key], [origin.image], [])


def test_a_guest_that_somebody_else_started_is_not_powered_off(warm, lab):
    warm.create("web", "warm", warm=True)
    let_run(warm, lab)
    lab.machines.set_state("pause", "web-1", State.PAUSED).unwrap()
    lab.machines.fail["destroy", "web-1"] = HostCommandError("nobody may do that")
    warm.resume("web")
    assert states(warm, "web") == {"web-1": State.RUNNING}
    assert list((memory(warm) / "forks").iterdir()) == []


def test_one_that_cannot_be_powered_off(warm, lab, monkeypatch):
    """It isn't started as what it is not; the others are powered off, and start."""
    lab.machines.warm.deaf = {"web-1", "web-2", "web-3"}
    destroy, stuck = lab.machines.destroy, HostCommandError("web-1 can't be powered off")

    def all_but_one(names):
        for name in names:
            yield Outcome(key=name, error=stuck) if name == "web-1" else next(destroy([name]))

    monkeypatch.setattr(lab.machines, "destroy", all_but_one)
    with pytest.raises(PartialFailure) as first:
        warm.create("web", "warm", count=3, warm=True, start=True)
    assert str(first.value.failures).count("its guest didn't become web-") == 3
    assert states(warm, "web") == {
        "web-1": State.PAUSED,
        "web-2": State.STOPPED,
        "web-3": State.STOPPED,
    }
    with pytest.raises(PartialFailure, match="1 of 3 clones failed") as caught:
        warm.start("web")
    assert "web-1 can't be powered off" in str(caught.value.failures)
    assert states(warm, "web") == {
        "web-1": State.PAUSED,
        "web-2": State.RUNNING,
        "web-3": State.RUNNING,
    }


@pytest.mark.parametrize("part", ["load", "go_on", "connect"])
@pytest.mark.parametrize("action", ["save", "pause", "stop"])
def test_a_guest_that_is_half_somebody_is_kept_by_nothing(warm, lab, monkeypatch, part, action):
    """Whatever comes after a kill: its guest is powered off first."""
    real = getattr(lab.machines.warm, part)

    def killed(*words):
        list(real(*words))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(lab.machines.warm, part, killed)
        with pytest.raises(BaseException):  # noqa: B017, PT011 - however a run tells of that
            warm.create("web", "warm", warm=True, start=True)
    assert states(warm, "web") == {"web-1": State.PAUSED}
    with contextlib.suppress(PartialFailure):  # a save or pause of one that is off
        getattr(warm, action)("web")
    assert lab.machines.states()["web-1"] is State.STOPPED
    warm.start("web")
    assert states(warm, "web") == {"web-1": State.RUNNING}
    assert (b"reseeded" in warm.read_console("web-1")[0]) is (part == "load")
