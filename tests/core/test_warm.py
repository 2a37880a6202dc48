"""Clones that are forked from a guest that has booted: a reference hypervisor, and real files."""

import contextlib
import json
import os
import shutil
import threading
import time
from types import SimpleNamespace

import attrs
import pytest

from tests.pauses import until
from vmcloner_core import Engine, reseeding
from vmcloner_core.cancelling import Cancellation, ending_with
from vmcloner_core.deadlines import answers
from vmcloner_core.drivers import AgentInterface, ImageFile
from vmcloner_core.errors import (
    BackendError,
    Conflict,
    HostCommandError,
    Interrupted,
    InvalidRequest,
    NotEnoughResources,
    PartialFailure,
    VmclonerError,
    WrongState,
)
from vmcloner_core.hosts import wire
from vmcloner_core.hosts.beside import Asked, Beside, Found
from vmcloner_core.labs import read_lab
from vmcloner_core.local_host import LocalHost
from vmcloner_core.model import CloneMode, Outcome, State
from vmcloner_core.plan import Sizes
from vmcloner_core.pools import Pool
from vmcloner_core.request import CreateRequest, TargetRequest
from vmcloner_core.running import PlannedRun
from vmcloner_core.testing.reference import BootPlugin
from vmcloner_core.warm_origins import WarmOrigins

TEMPLATE = """
hypervisors = ["reference"]
boot = "reference"
memory = "256MiB"
ready = "console:here is the parent"
[image]
path = "image.raw"
[[nics]]
"""


class Killed(BaseException):
    """What a kill -9 leaves is what nothing cleans up."""


@pytest.fixture
def warm(lab, monkeypatch):
    lab.template("warm", TEMPLATE)
    settings = lab.engine.settings
    defaults = attrs.evolve(settings.defaults, storage="files")
    with Engine.open(
        settings=attrs.evolve(settings, defaults=defaults),
        plugins=[lab.hypervisor_plugin, BootPlugin()],
    ) as engine:
        monkeypatch.setattr("vmcloner_core.warm_forks.PATIENCE", 0.5)
        monkeypatch.setattr("vmcloner_core.warm_calls.ANSWER", 0.5)
        monkeypatch.setattr("vmcloner_core.reseeding.POLL", 0.01)
        engine.list()
        yield engine


def states(engine, fleet):
    return {clone.name: clone.state for clone in engine.list(fleet)}


def memory(engine):
    return engine.host.warm


def leftovers(engine):
    """Return what a call that failed must not leave."""
    folders = [p.name for p in memory(engine).iterdir() if p.name != "forks"]
    images = [o.template for o in engine.origins() if o.template.startswith("warm-")]
    parents = [c.name for c in engine.list() if c.fleet.startswith("warm")]
    return folders, images, parents


def test_an_origin_is_made_once(warm):
    first = warm.warm_template("warm")
    assert first.changed
    assert not warm.warm_template("warm").changed
    (origin,) = warm.warm_origins("warm")
    assert origin == first.value
    assert (origin.depends["version"], origin.depends["at"]) == ("1", "ready")
    assert leftovers(warm) == ([origin.key], [origin.image], [])
    assert oct((memory(warm) / origin.key).stat().st_mode)[-2:] in ("00", "11")
    assert warm.leftovers() == ()  # template prune leaves it


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


def test_what_a_kill_left_of_a_clone_that_never_was(warm):
    warm.warm_template("warm")
    (origin,) = warm.warm_origins()
    WarmOrigins(memory(warm)).wait("web-1", origin.key)
    warm.delete("web", missing_ok=True)
    assert list((memory(warm) / "forks").iterdir()) == []


def test_delete_forgets_it(warm):
    warm.create("web", "warm", warm=True)
    warm.delete("web")
    assert list((memory(warm) / "forks").iterdir()) == []
    warm.create("web", "warm")
    assert states(warm, "web") == {"web-1": State.STOPPED}


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


def test_a_parent_that_cannot_become_somebody_else(warm, lab, monkeypatch):
    boot = lab.machines.warm.boot

    def silent(name, folder):
        boot(name, folder)
        lab.machines.said[name] = b"here is the parent\n"

    monkeypatch.setattr(lab.machines.warm, "boot", silent)
    with pytest.raises(WrongState, match="template warm: its guest can't take a new identity"):
        warm.warm_template("warm")
    assert leftovers(warm) == ([], [], [])


# --- exact copies ---------------------------------------------------------------------------------


@pytest.fixture
def mute(lab, monkeypatch):
    """Have guests say that they have booted, and nothing of a seed."""
    boot = lab.machines.warm.boot

    def silent(name, folder):
        boot(name, folder)
        lab.machines.said[name] = b"here is the parent\n"

    monkeypatch.setattr(lab.machines.warm, "boot", silent)


def test_a_guest_that_cannot_be_reseeded_is_copied_on_request(warm, mute):
    with pytest.raises(WrongState, match="can't take a new identity") as caught:
        warm.create("web", "warm", warm=True)
    assert "--identical" in caught.value.hint
    warm.create("web", "warm", count=2, warm=True, identical=True, start=True)
    assert states(warm, "web") == {"web-1": State.RUNNING, "web-2": State.RUNNING}
    assert warm.read_console("web-1")[0] == b""
    assert list((memory(warm) / "forks").iterdir()) == []
    assert len({clone.mac for clone in warm.list("web")}) == 2
    (origin,) = warm.warm_origins()
    assert origin.depends["identical"] == "yes"
    assert not warm.warm_template("warm", identical=True).changed


def test_a_copy_has_no_identity_of_its_own(warm, mute):
    """So nothing says that it has one: there is no seed, and no host key that ssh would expect."""
    warm.create("web", "warm", warm=True, identical=True, start=True)
    record = warm._host.records.find("web-1")
    assert (record.identity, record.seed.image) == (None, None)
    assert warm._host.records.known_hosts("web-1") is None
    with pytest.raises(WrongState, match="web-1 has no known host key") as caught:
        warm._host.access(warm.list("web")[0].labels, "192.0.2.1")
    assert "without --identical" in caught.value.hint


def test_a_guest_that_nobody_has_asked_is_not_forked_to_others(warm, mute):
    """An origin of copies is of no use for clones that shall be somebody of their own."""
    copies = warm.warm_template("warm", identical=True).unwrap()
    with pytest.raises(WrongState, match="can't take a new identity"):
        warm.create("db", "warm", warm=True)
    assert warm.warm_origins() == (copies,)


def test_both_kinds_of_origins_stay(warm):
    own, copies = (warm.warm_template("warm", identical=each).unwrap() for each in (False, True))
    assert {origin.key for origin in warm.warm_origins()} == {own.key, copies.key}
    warm.create("web", "warm", warm=True, start=True)
    warm.create("db", "warm", warm=True, identical=True, start=True)
    keys = {clone.fleet: clone.labels.warm for clone in warm.list()}
    assert keys == {"web": own.key, "db": copies.key}
    assert warm.read_console("web-1")[0] == b"vmcloner-reseeded web-1\n"
    assert warm.read_console("db-1")[0] == b""


def test_a_copy_that_is_reset_is_a_copy_again(warm, mute):
    warm.create("web", "warm", warm=True, identical=True, start=True)
    warm.reset("web")
    assert states(warm, "web") == {"web-1": State.RUNNING}
    assert warm.read_console("web-1")[0] == b""


def test_only_forks_are_copies(warm):
    with pytest.raises(InvalidRequest, match="only forks are copies"):
        warm.create("web", "warm", identical=True)
    with pytest.raises(InvalidRequest, match="only forks are copies"):
        Pool(template="warm", identical=True)


def test_copies_of_a_guest_whose_console_tells_nothing(warm, lab, mute):
    """Nobody knows when it has booted, as nobody asks it anything else."""
    lab.template("dumb", TEMPLATE.replace("console:here is the parent", "port:22"))
    with pytest.raises(InvalidRequest, match="ready = port:22 doesn't tell when") as caught:
        warm.create("web", "dumb", warm=True, identical=True)
    assert "template warm dumb --identical --at console:REGEX" in caught.value.hint
    with pytest.raises(InvalidRequest, match="ready = port:22 doesn't tell when"):
        warm.plan(CreateRequest(fleet="web", template="dumb", warm=True, identical=True))
    lab.template("agent", TEMPLATE + "[domain]\nagent = true\n")
    with pytest.raises(InvalidRequest, match="template agent: --at ssh doesn't tell when"):
        warm.warm_template("agent", identical=True, at="ssh")
    assert warm.origins("dumb") == ()  # which is said before anything is imported
    warm.warm_template("dumb", identical=True, at="console:the parent")
    warm.create("web", "dumb", warm=True, identical=True, start=True)
    assert states(warm, "web") == {"web-1": State.RUNNING}


def test_copies_have_any_provider_of_identities(warm, lab, mute):
    """None of it is told to them."""
    lab.template("args", TEMPLATE + '[identity]\nprovider = "kernel-args"\n')
    with pytest.raises(InvalidRequest, match="not by kernel-args"):
        warm.create("web", "args", warm=True)
    warm.create("web", "args", warm=True, identical=True, start=True)
    assert warm._host.records.find("web-1").template().identity.provider == "none"


def test_a_copy_is_ready_when_its_parent_was(warm, lab, monkeypatch):
    """It says its parent's name, if any, and only once."""
    monkeypatch.setattr(lab.machines, "started", lambda _name: 1.0)
    lab.template("own", TEMPLATE.replace("here is the parent", "{{ name }}|here is the parent"))
    warm.create("web", "own", warm=True, identical=True, start=True)
    warm.wait("web", timeout=3)
    record = json.loads((warm.host.records / "web-1" / "record.json").read_text())
    assert record["ready"] == "1.0 console:web-1|here is the parent"


def test_copies_get_the_time_from_their_agents(warm, lab, mute, caplog):
    late = []
    lab.machines.agents = SimpleNamespace(
        set_clocks=late.extend, reported=lambda _names: frozenset(), freeze=None, thaw=None
    )
    warm.create("web", "warm", count=2, warm=True, identical=True, start=True)
    assert sorted(late) == ["web-1", "web-2"]

    def fails(_names):
        raise HostCommandError("the daemon is gone")

    lab.machines.agents.set_clocks = fails
    warm.create("db", "warm", warm=True, identical=True, start=True)
    assert "the clocks of db-1: the daemon is gone" in caplog.text
    assert list((memory(warm) / "forks").iterdir()) == []


def test_a_pool_of_copies(warm, mute):
    pool = Pool(template="warm", name="box", warm=True, identical=True, size=1, ready="running")
    assert {each.state for each in warm.fill_pool(pool)} == {"ready"}
    (origin,) = warm.warm_origins()
    assert origin.identical
    assert warm.pool("box").identical


def test_what_an_origin_depends_on_is_asked_once(warm, lab, monkeypatch):
    depends, asked = lab.machines.warm.depends, []
    monkeypatch.setattr(lab.machines.warm, "depends", lambda s: asked.append(s) or depends(s))
    warm.create("web", "warm", warm=True)
    assert len(asked) == 2  # before its image was imported, and once it was
    warm.create("web", "warm", count=2, warm=True)
    assert len(asked) == 3
    lab.machines.warm.version = "2"
    warm.create("web", "warm", count=3, warm=True)
    assert len(asked) == 4


def test_what_a_builder_makes_beside_the_image_counts_from_the_first_time(warm, lab, monkeypatch):
    """The kernel of tiny, for example: it isn't there before the import."""
    lab.template("built", TEMPLATE + '[kernel]\npath = "vmlinuz"\n')
    folder, real = warm.template("built").folder, LocalHost.import_image

    def built(*words):
        (folder / "vmlinuz").write_bytes(b"kernel")
        return real(*words)

    monkeypatch.setattr(LocalHost, "import_image", built)
    warm.create("web", "built", warm=True)
    assert not warm.warm_template("built").changed


def test_another_version_is_never_forked(warm, lab):
    old = warm.warm_template("warm").unwrap()
    lab.machines.warm.version = "2"
    warm.create("web", "warm", warm=True, start=True)
    (new,) = warm.warm_origins()
    assert new.depends["version"] == "2"
    assert new.key != old.key


def test_an_origin_that_clones_need_stays(warm, lab):
    warm.create("web", "warm", warm=True)
    old = warm.warm_origins()[0]
    lab.machines.warm.version = "2"
    warm.warm_template("warm")
    assert [o.depends["version"] for o in warm.warm_origins()] == ["2", "1"]
    with pytest.raises(WrongState, match="web-1 is to be forked"):
        warm.delete_template("warm")
    warm.start("web")
    with pytest.raises(WrongState, match="web-1"):
        warm.delete_template("warm")
    warm.delete("web")
    warm.delete_template("warm")
    assert warm.warm_origins() == ()
    assert leftovers(warm) == ([], [], [])
    assert not (memory(warm) / old.key).exists()


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


def test_what_was_started_by_other_means(warm, lab, caplog):
    warm.create("web", "warm", warm=True)
    log = warm.host.consoles / "web-1.log"
    lab.machines.consoles.log = lambda _name: log
    log.parent.mkdir(exist_ok=True)
    log.write_text("it has run")
    os.utime(log, (2**32, 2**32))
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
    monkeypatch.setattr(owner, part, _killed(before))
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
        instead = _killed(lambda *_: None) if part == "keep" else _killed(getattr(owner, part))
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


def test_gc_leaves_what_somebody_begins_meanwhile(warm, monkeypatch):
    """It holds no lock then: nothing was there when it looked."""
    real, begun = warm._host.survey, []

    def survey():
        if not begun:
            begun.append(warm._host.warm.new("warm", "files", "reference", {}))
            warm._host.warm.draft(begun[0])
        return real()

    monkeypatch.setattr(warm._host, "survey", survey)
    with warm._held(["warm"]):
        assert warm.gc() == ()
    assert begun[0].folder.is_dir()


def test_gc_leaves_what_is_whole_or_used(warm):
    warm.create("web", "warm", warm=True)
    (origin,) = warm.warm_origins()
    assert warm.gc() == ()
    (origin.folder / "origin.json").write_text("{")  # the clone's disk is linked to its image
    assert warm.gc() == ()
    assert leftovers(warm) == ([origin.key], [origin.image], [])


def test_gc_keeps_the_folder_while_the_parent_is_there(warm, lab, monkeypatch):
    """Else nothing would tell that the parent is one."""
    monkeypatch.setattr("vmcloner_core.warm_calls._Making._undo", lambda _self: None)
    with monkeypatch.context() as patch:
        patch.setattr(lab.machines.warm, "save", _killed(lab.machines.warm.save))
        with pytest.raises(BackendError, match="Killed"):
            warm.warm_template("warm")
    ((key,), _, _) = leftovers(warm)
    stuck = HostCommandError("nobody may do that")
    with monkeypatch.context() as patch:
        patch.setattr(lab.machines, "undefine", lambda n: (Outcome(key=x, error=stuck) for x in n))
        assert stuck in [each.error for each in warm.gc()]
    assert leftovers(warm)[0] == [key]
    assert warm.gc() != ()
    assert leftovers(warm) == ([], [], [])


def _killed(after):
    def call(*words):
        after(*words)
        raise Killed

    return call


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


def test_a_hypervisor_without_forks(warm, lab):
    lab.machines.warm = None
    lab.machines.not_warm = "its guests share nothing"
    with pytest.raises(BackendError, match="no warm forks: its guests share nothing"):
        warm.create("web", "warm", warm=True)
    with pytest.raises(BackendError, match="no warm forks"):
        warm.warm_template("warm")


def test_a_pool_that_captures_nothing(lab):
    lab.template("warm", TEMPLATE)
    with pytest.raises(BackendError, match="pool 'reference' captures no disks"):
        lab.engine.create("web", "warm", warm=True)


def test_more_disks(warm, lab):
    lab.template("more", TEMPLATE.replace("[image]", 'swap = "64MiB"\n[image]'))
    with pytest.raises(InvalidRequest, match="disks beside its image"):
        warm.warm_template("more")


@pytest.mark.parametrize(
    ("at", "why"), [("ip", "without a network card"), ("console:(", "can't wait for")]
)
def test_a_parent_has_no_card(warm, at, why):
    """Which is said before one is booted."""
    with pytest.raises(InvalidRequest, match=why):
        warm.warm_template("warm", at=at)
    assert not memory(warm).exists()


@pytest.mark.parametrize(
    "at", ["foo", "", "ip", "port", "port:80", "console", "console:", "ssh:22"]
)
def test_what_a_parent_can_be_waited_for_is_said(warm, at):
    with pytest.raises(InvalidRequest) as caught:
        warm.warm_template("warm", at=at)
    assert caught.value.hint == "--at ready, --at ssh, or --at console:REGEX"


def test_ssh_is_told_by_an_agent(warm, lab):
    """A template without one is refused by name, before a guest is booted."""
    with pytest.raises(InvalidRequest, match="template warm: --at ssh needs a guest agent"):
        warm.warm_template("warm", at="ssh")
    assert not memory(warm).exists()
    other = TEMPLATE.replace("console:here is the parent", "running")
    lab.template("asked", other + "[domain]\nagent = true\n[ssh]\nport = 2022\n")
    with pytest.raises(WrongState, match=r"template asked: .* no agent in it has reported"):
        warm.warm_template("asked", at="ssh")
    assert leftovers(warm) == ([], [], [])
    lab.machines.agents = agents = Agents()
    assert warm.warm_template("asked", at="ssh").unwrap().depends["at"] == "ssh"
    assert agents.settled == ["set -- settle 2022"]


def test_an_agent_that_reports_late_is_waited_for(warm, lab, monkeypatch):
    """A guest that waits for its seed says so by its console, maybe before its agent does."""
    monkeypatch.setattr("vmcloner_core.warm_calls.ANSWER", 30)
    monkeypatch.setattr("vmcloner_core.warm_calls.LOOK", 0.01)
    lab.template("late", TEMPLATE + "[domain]\nagent = true\n")
    lab.machines.agents = agents = Agents()
    asked = []

    def reported(names):
        asked.append(names)
        return frozenset(names if len(asked) > 3 else ())

    monkeypatch.setattr(agents, "reported", reported)
    assert warm.warm_template("late", at="ssh").changed
    assert agents.settled == ["set -- settle 22"]


def test_a_template_that_is_ready_by_ssh_is_asked_where_there_is_an_agent(warm, lab):
    lab.template("ssh", TEMPLATE.replace("console:here is the parent", "ssh"))
    assert warm.warm_template("ssh").changed
    warm.delete_warm("ssh")
    lab.machines.agents = agents = Agents()
    assert warm.warm_template("ssh").changed
    assert agents.settled == ["set -- settle 22"]
    warm.delete_warm("ssh")
    agents.silent = True
    with pytest.raises(WrongState, match=r"template ssh: .* no SSH server answers"):
        warm.warm_template("ssh")
    assert leftovers(warm) == ([], [], [])


class Agents(AgentInterface):
    """Agents that have reported; the words of their scripts. In silent guests sshd is missing."""

    def __init__(self):
        self.settled, self.silent = [], False

    def reported(self, names):
        return frozenset(names)

    def run(self, name, script, *, timeout):
        assert timeout > 0
        self.settled.append(script.partition(b"\n")[0].decode())
        if self.silent:
            raise WrongState(f"{name}: a script in the guest failed: no SSH server answers")

    def freeze(self, name):
        pass


@pytest.mark.parametrize("line", ["never said", "here"])
@pytest.mark.parametrize("given", [True, False])
def test_a_making_that_is_cancelled(warm, lab, mute, monkeypatch, line, given):
    """Whatever it waits for: its guest is powered off, and nothing is left."""
    lab.template("never", TEMPLATE.replace("here is the parent", line))
    boot, ending = lab.machines.warm.boot, Cancellation()

    def booted(name, folder):
        boot(name, folder)
        cancel = ending.cancel if given else warm.cancel
        threading.Timer(0.3, cancel).start()

    monkeypatch.setattr(lab.machines.warm, "boot", booted)
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        if given:
            stack.enter_context(ending_with(ending))
        stack.enter_context(pytest.raises(Interrupted))
        warm.warm_template("never", timeout=60)
    assert time.monotonic() - began < 30
    assert leftovers(warm) == ([], [], [])


class Waiting:
    """A guest that has booted, and never says that it is ready."""

    def __init__(self, warm, lab, monkeypatch):
        self.warm, self.ending, self._booted = warm, Cancellation(), threading.Event()
        lab.template("never", TEMPLATE.replace("here is the parent", "never said"))
        boot = lab.machines.warm.boot

        def booted(name, folder):
            boot(name, folder)
            self._booted.set()

        monkeypatch.setattr(lab.machines.warm, "boot", booted)

    def __enter__(self):
        self._thread = threading.Thread(target=self._make)
        self._thread.start()
        assert self._booted.wait(30)
        (self.parent,) = (c.name for c in self.warm.list() if c.fleet.startswith("warm"))
        return self

    def _make(self):
        with ending_with(self.ending), contextlib.suppress(Interrupted):
            self.warm.warm_template("never", timeout=60)

    def __exit__(self, *_):
        self.ending.cancel()
        self._thread.join()


@pytest.fixture
def making(warm, lab, monkeypatch):
    with Waiting(warm, lab, monkeypatch) as making:
        yield making


@pytest.mark.parametrize("action", ["stop", "delete", "pause"])
def test_all_clones_are_without_the_parent_that_somebody_boots(warm, making, action):
    warm.create("web", "warm", start=True)
    request = TargetRequest(action=action, everything=True)
    assert [c.labels.clone for c in warm.plan(request).clones] == ["web-1"]
    assert [each.name for each in warm.run(request).results] == ["web-1"]
    assert warm.show(making.parent).state is State.RUNNING


def test_all_clones_are_without_that_parent_for_a_controller_too(warm, making):
    warm.create("web", "warm", start=True)
    request = TargetRequest(action="stop", everything=True, kill=True)
    beside = Beside(lambda _plugin: warm)
    fleets = beside.call_fleets(Asked(), print)
    assert fleets == ("web",)
    found = beside.call_hold(Asked(fleets=(*fleets, making.parent.removesuffix("-1"))), print)
    assert [clone.making for clone in found.survey.clones] == [True, False]
    assert found == wire.load(wire.dump(found), Found, whose="a test")
    assert [c.labels.clone for c in beside.call_plan(Asked(request=request), print).clones] == [
        "web-1"
    ]
    beside.call_release(Asked(), print)


def test_leases_of_all_clones_are_without_that_parents(warm, making):
    warm.create("web", "warm")
    assert [state.clone.name for state in warm.end_lease(everything=True)] == ["web-1"]
    (lease,) = warm.leases([warm.show(making.parent)])
    assert lease.left > 0


def test_what_reaches_into_all_clones_leaves_that_parent(warm, making, run, monkeypatch):
    """It has no network card."""
    monkeypatch.setattr("vmcloner_core.cli.app.Shell.engine", warm)
    assert warm.access() == ()
    assert [outcome.key for outcome in warm.access(making.parent)] == [making.parent]
    assert run("inventory", "--all", "--format", "json")[:2] == (0, "[]\n")


def test_that_parent_is_deleted_by_its_name(warm, making):
    warm.delete(making.parent)
    assert leftovers(warm)[2] == []


def test_gc_leaves_that_parent_whatever_its_lease(warm, making):
    warm.end_lease(making.parent)
    assert warm.gc(expired=True, orphans=True) == ()
    assert warm.show(making.parent).state is State.RUNNING


def test_a_parent_whose_making_was_killed_is_one_of_all(warm, lab, monkeypatch):
    monkeypatch.setattr("vmcloner_core.warm_calls._Making._undo", lambda _self: None)
    with monkeypatch.context() as patch:
        patch.setattr(lab.machines.warm, "save", _killed(lab.machines.warm.save))
        with pytest.raises(BackendError, match="Killed"):
            warm.warm_template("warm")
    (parent,) = leftovers(warm)[2]
    result = warm.run(TargetRequest(action="delete", everything=True))
    assert [each.name for each in result.results] == [parent]
    assert warm.gc() != ()
    assert leftovers(warm) == ([], [], [])


@pytest.mark.parametrize(
    ("timeout", "least", "most"), [(None, 3600, 3600), (7200, 7200, 86_400), (1e308, 2**24, 2**26)]
)
def test_the_lease_of_a_parent_lasts_as_long_as_it_is_waited_for(
    warm, lab, monkeypatch, timeout, least, most
):
    boot, found = lab.machines.warm.boot, []

    def booted(name, folder):
        found.extend(state.lease.ttl for state in warm.leases(warm.list(name)))
        boot(name, folder)

    monkeypatch.setattr(lab.machines.warm, "boot", booted)
    warm.warm_template("warm", timeout=timeout)
    assert least <= found[0] <= most


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_a_time_that_is_none(warm, seconds):
    """It is refused before anything is imported or booted."""
    with pytest.raises(InvalidRequest, match="timeout"):
        warm.warm_template("warm", timeout=seconds)
    assert warm.origins("warm") == ()


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


def test_labels_name_the_origin(warm):
    warm.create("web", "warm", warm=True)
    (clone,) = warm.list("web")
    (origin,) = warm.warm_origins()
    assert clone.labels.warm == origin.key
    assert clone.volumes[0].labels.warm == origin.key
    record = json.loads((warm.host.records / "web-1" / "record.json").read_text())
    assert record["labels"]["warm"] == origin.key


def test_a_note_that_is_damaged(warm):
    warm.warm_template("warm")
    (origin,) = warm.warm_origins()
    (origin.folder / "origin.json").write_text("{")
    assert warm.warm_origins() == ()
    assert warm.warm_template("warm").changed
    assert not origin.folder.exists()


def test_an_origin_stays_while_there_are_forks(warm):
    """A saved fork's memory is above the origin's; a reset needs its disk, also of full clones."""
    warm.create("web", "warm", warm=True, start=True, mode=CloneMode.FULL)
    (origin,) = warm.warm_origins()
    warm.save("web")
    with pytest.raises(WrongState, match="origin of warm is needed by what was forked: web-1"):
        warm.delete_warm("warm")
    assert warm.warm_origins() == (origin,)
    warm.delete("web")
    assert warm.delete_warm("warm") == (origin,)


def test_origins_of_others_in_a_shared_pool_stay(warm, tmp_path):
    """Images that have no folder here can be another host's; fleets can have any name."""
    other = warm.warm_template("warm").unwrap()
    shutil.move(other.folder, tmp_path / "of another host")
    warm.create(f"warm{'0' * 20}", "warm")
    own = warm.warm_template("warm").unwrap()
    assert warm.leftovers() == ()  # template prune leaves it
    images = {o.template for o in warm.origins() if o.template.startswith("warm-")}
    assert images == {other.image, own.image}
    assert states(warm, f"warm{'0' * 20}") != {}


@pytest.mark.parametrize("part", ["draft", "keep"])
def test_a_kill_at_either_end_of_the_making(warm, monkeypatch, part):
    monkeypatch.setattr("vmcloner_core.warm_calls._Making._undo", lambda _self: None)
    with monkeypatch.context() as patch:
        patch.setattr(WarmOrigins, part, _killed(getattr(WarmOrigins, part)))
        with pytest.raises(Killed):
            warm.warm_template("warm")
    warm.warm_template("warm")
    (origin,) = warm.warm_origins()
    assert leftovers(warm) == ([origin.key], [origin.image], [])


def test_a_guest_that_somebody_else_started_is_not_powered_off(warm, lab):
    warm.create("web", "warm", warm=True)
    log = warm.host.consoles / "web-1.log"
    lab.machines.consoles.log = lambda _name: log
    log.parent.mkdir(exist_ok=True)
    log.write_text("it has run")
    os.utime(log, (2**32, 2**32))
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


def test_a_host_makes_its_origin_for_a_controller(warm):
    request = CreateRequest(fleet="web", template="warm", warm=True, start=True)
    beside = Beside(lambda _plugin: warm)
    beside.call_hold(Asked(fleets=("web",)), print)
    plan = beside.call_plan(Asked(request=request), print)
    assert beside.call_run(Asked(run=plan.run), print).ok
    beside.call_release(Asked(), print)
    assert states(warm, "web") == {"web-1": State.RUNNING}
    assert b"reseeded" in warm.read_console("web-1")[0]


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


def test_a_parent_that_is_emulated_has_more_time(warm, monkeypatch):
    """Its agent answers only when it has booted."""
    check, looks = reseeding.check, []

    def late(*words, timeout):
        looks.append(words)
        if len(looks) < 3:
            raise WrongState("not yet")
        check(*words, timeout=timeout)

    monkeypatch.setattr(reseeding, "check", late)
    monkeypatch.setattr("vmcloner_core.warm_calls.LOOK", 0.0)
    monkeypatch.setattr("vmcloner_core.warm_calls.ANSWER", 0.0)
    monkeypatch.setattr("vmcloner_core.warm_calls.patience", lambda least, **_: least + 60.0)
    assert warm.warm_template("warm").changed


def test_a_template_that_cannot_be_deleted_keeps_its_origin(warm):
    origin = warm.warm_template("warm").unwrap()
    warm.create("web", "warm")
    with pytest.raises(WrongState, match="web-1"):
        warm.delete_template("warm")
    assert warm.warm_origins() == (origin,)
    warm.delete("web")
    assert warm.delete_template("warm").changed
    assert leftovers(warm) == ([], [], [])


def test_prune_leaves_the_disk_of_an_origin_that_is_made(warm, monkeypatch):
    found, keep = [], WarmOrigins.keep

    def kept(origins, origin):
        found.append([o.template for o in warm.origins() if o.template == origin.image])
        found.append(warm.leftovers())
        keep(origins, origin)

    monkeypatch.setattr(WarmOrigins, "keep", kept)
    origin = warm.warm_template("warm").unwrap()
    assert found == [[origin.image], ()]


# --- what is completed later ----------------------------------------------------------------------

SEEDED = TEMPLATE + '[identity]\nprovider = "cloud-init"\n'
KINDS = {"cold": {}, "own": {"warm": True}, "copy": {"warm": True, "identical": True}}


@pytest.mark.parametrize("then", KINDS)
@pytest.mark.parametrize("first", KINDS)
def test_a_clone_is_completed_as_what_it_was_begun(warm, lab, first, then):
    """Else a copy of its parent would have a host key, or a fork no seed that it could read."""
    lab.template("seeded", SEEDED)
    warm.create("web", "seeded", count=2, **KINDS[first])
    assert [each.ok for each in lab.machines.undefine(["web-2"])] == [True]
    before = warm._host.records.find("web-2")
    if first == then:
        warm.create("web", "seeded", count=2, start=True, **KINDS[then])
        assert states(warm, "web") == {"web-1": State.RUNNING, "web-2": State.RUNNING}
        return
    with pytest.raises(Conflict, match="web-2 is incomplete and was made with") as caught:
        warm.create("web", "seeded", count=2, start=True, **KINDS[then])
    assert "vmcloner delete web-2 first" in caught.value.hint
    assert warm._host.records.find("web-2") == before


@pytest.mark.parametrize("recorded", [True, False])
def test_a_copy_that_is_off_gets_no_identity(warm, lab, shop, mute, recorded):
    """Not by a create without the options, and not by the lab that starts it again."""
    lab.template("warm", SEEDED)
    shop_lab = shop("identical = true\n")
    warm.apply_lab(shop_lab)
    warm.stop("web", kill=True)
    if not recorded:
        shutil.rmtree(warm.host.records / "web-1")
    warm.apply_lab(shop_lab)
    warm.stop("web", kill=True)
    warm.create("web", "warm", count=2, start=True)
    assert states(warm, "web") == {"web-1": State.RUNNING, "web-2": State.RUNNING}
    assert [warm._host.records.known_hosts(name) for name in ("web-1", "web-2")] == [None, None]


def test_one_that_was_made_without_identity_gets_none_from_forks_beside_it(warm):
    warm.create("web", "warm", start=True)
    warm.stop("web", kill=True)
    warm.create("web", "warm", count=2, warm=True)
    found = {name: warm._host.records.find(name).identity for name in ("web-1", "web-2")}
    assert found["web-1"] is None
    assert found["web-2"] is not None


def test_a_fleet_that_is_complete_needs_no_origin(warm, lab):
    warm.create("web", "warm", count=2, warm=True)
    origins = warm.warm_origins()
    lab.machines.warm.version = "2"
    request = CreateRequest(fleet="web", template="warm", count=2, warm=True)
    assert warm.plan(request).warnings == ()
    warm.create("web", "warm", count=2, warm=True)
    assert warm.warm_origins() == origins
    assert "booted once before" in warm.plan(attrs.evolve(request, count=3)).warnings[-1]


def test_a_pool_that_is_full_needs_no_origin(warm, lab):
    pool = Pool(template="warm", name="box", size=1, warm=True, ready="running")
    warm.fill_pool(pool)
    origins = warm.warm_origins()
    lab.machines.warm.version = "2"
    warm.fill_pool(pool)
    assert warm.warm_origins() == origins
    warm.fill_pool(attrs.evolve(pool, size=2))
    assert len(warm.warm_origins()) == 2


@pytest.mark.parametrize("other", ["kind", "template", "gone"])
def test_an_origin_of_another_purpose_is_not_used(warm, lab, other):
    lab.template("more", TEMPLATE)
    key = warm.warm_template("more" if other == "template" else "warm", identical=other == "kind")
    origin = "0" * 20 if other == "gone" else key.unwrap().key
    with pytest.raises(WrongState, match="template warm has no warm origin in pool 'files'"):
        warm.run(CreateRequest(fleet="web", template="warm", warm=True, origin=origin))
    assert warm.list() == ()


# --- labs -----------------------------------------------------------------------------------------

LAB = """
name = "shop"
[fleets.web]
template = "warm"
count = 2
warm = true
ready = "running"
"""


@pytest.fixture
def shop(tmp_path):
    def write(more=""):
        file = tmp_path / "lab.toml"
        file.write_text(LAB + more)
        return read_lab(file)

    return write


def test_a_lab_of_forks(warm, shop):
    lab = shop()
    assert [(c.action, c.why) for c in warm.diff_lab(lab)] == [
        ("create", "forked from a booted guest")
    ] * 2
    warm.apply_lab(lab, dry_run=True)
    assert warm.warm_origins() == ()
    warm.apply_lab(lab)
    assert states(warm, "web") == {"web-1": State.RUNNING, "web-2": State.RUNNING}
    assert warm.read_console("web-2")[0] == b"vmcloner-reseeded web-2\n"
    assert warm.diff_lab(lab) == ()
    assert warm.apply_lab(lab).changes == ()


def test_a_fork_that_a_lab_starts_again_needs_no_origin(warm, shop, lab):
    shop_lab = shop()
    warm.apply_lab(shop_lab)
    warm.stop("web-1", kill=True)
    lab.machines.warm.version = "2"
    (origin,) = warm.warm_origins()
    warm.apply_lab(shop_lab)
    assert states(warm, "web") == {"web-1": State.RUNNING, "web-2": State.RUNNING}
    assert warm.warm_origins() == (origin,)


def test_a_lab_of_copies(warm, shop, mute):
    lab = shop("identical = true\n")
    assert {c.why for c in warm.diff_lab(lab)} == {"an exact copy of a booted guest"}
    warm.apply_lab(lab)
    assert states(warm, "web") == {"web-1": State.RUNNING, "web-2": State.RUNNING}
    assert warm.diff_lab(lab) == ()


def test_nothing_that_logs_in_is_for_copies(shop):
    with pytest.raises(InvalidRequest, match=r"fleets.web.playbook: nothing logs in to exact cop"):
        shop('identical = true\nplaybook = "site.yml"\n')


def test_clones_that_a_lab_has_booted_stay(warm, shop):
    """The key is about new ones."""
    cold = attrs.evolve(shop().fleets["web"], warm=False, count=1)
    warm.apply_lab(attrs.evolve(shop(), fleets={"web": cold}))
    warm.apply_lab(shop())
    found = {clone.name: clone.labels.warm is not None for clone in warm.list("web")}
    assert found == {"web-1": False, "web-2": True}


def test_what_stands_against_a_labs_forks_is_said_before_anything_is_made(warm, shop, lab):
    file = shop().file
    file.write_text(LAB.replace("warm = true", "") + "identical = true\n")
    with pytest.raises(InvalidRequest, match=r"lab.toml:8: fleets.web.identical: only forks"):
        read_lab(file)
    lab.machines.warm = None
    lab.machines.not_warm = "its guests share nothing"
    more = '[fleets.aaa]\ntemplate = "warm"\nready = "running"\n'
    with pytest.raises(BackendError, match=r"fleets.web: hypervisor .* has no warm forks"):
        warm.apply_lab(shop(more))
    assert warm.list() == ()
