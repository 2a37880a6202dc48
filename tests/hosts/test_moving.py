"""Clones that are moved between hosts: on engines of this process, with pools of real files."""

import contextlib
import gc
import hashlib
import itertools
import json
import os
import random
import shutil
import subprocess
import tempfile
import weakref
from collections import Counter
from pathlib import Path

import attrs
import pytest

from tests.hosts.conftest import Hosts, site
from vmcloner_core.cli.app import Shell
from vmcloner_core.drivers import NetworkInterface, StorageDriver
from vmcloner_core.errors import (
    BackendError,
    Conflict,
    InvalidRequest,
    NotEnoughResources,
    NotFound,
    VmclonerError,
    WrongState,
)
from vmcloner_core.extents import GRANULE
from vmcloner_core.hosts import arriving, moved_disks, wire
from vmcloner_core.hosts.beside import Answered, Asked
from vmcloner_core.hosts.cargo import CargoDisk
from vmcloner_core.hosts.carrier import Carrier, InProcess, Unreachable
from vmcloner_core.hosts.chunks import CHUNK, Chunk
from vmcloner_core.hosts.draining import Why, drain
from vmcloner_core.hosts.sending import Parts
from vmcloner_core.model import Capacity, Network, Outcome
from vmcloner_core.moves import Moves
from vmcloner_core.placing import Where
from vmcloner_core.records import Records
from vmcloner_core.request import TargetRequest
from vmcloner_core.testing.reference import ReferenceHypervisor
from vmcloner_files.driver import FilesDriver

IMAGE = bytes(2 * GRANULE) + random.Random(2).randbytes(CHUNK + 4096) + bytes(CHUNK)
SHARED = Path(tempfile.gettempdir()) / f"vmcloner-move-{os.getpid()}"
CONTENT = random.Random(3).randbytes(2 * GRANULE)


@pytest.fixture(params=["overlay", "copy"])
def method(request):
    return request.param


@pytest.fixture
def options(method, request):
    """The settings of the hosts' pools."""
    return request.getfixturevalue("shared") if method == "shared" else f'clone = "{method}"'


@pytest.fixture
def lab(tmp_path, monkeypatch, options):
    """Three hosts with pools of files, and a template that the controller has."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    templates = tmp_path / "config/vmcloner/templates"
    templates.mkdir(parents=True)
    (templates / "t1.toml").write_text(TEXT)
    (templates / "image.raw").write_bytes(IMAGE)
    sites, besides = {}, {}
    for name in ("h1", "h2", "h3"):
        sites[name], besides[name] = site(tmp_path / name, name, "files", options)
    hosts = Hosts(tmp_path, sites, InProcess(besides))
    yield hosts
    hosts.carrier.close()


TEXT = """
hypervisors = ["reference"]
boot = "reference"
memory = "128MiB"
swap = "1MiB"
[image]
path = "image.raw"
[identity]
provider = "cloud-init"
authorized_keys = []
"""


class Killed(BaseException):
    """The controller is killed."""


class Spy(Carrier):
    """Passes calls on, and notes them; ``fault`` may raise before or after one of them."""

    def __init__(self, carrier):
        self.carrier, self.calls = carrier, []
        self.fault = lambda host, name, when: None

    def connect(self, hosts):
        return self.carrier.connect(hosts)

    def call(self, host, name, text, event):
        self.fault(host, name, "before")
        self.calls.append((host, name))
        answer = self.carrier.call(host, name, text, event)
        self.fault(host, name, "after")
        return answer

    def close(self):
        self.carrier.close()


@attrs.frozen
class Seen:
    """What a clone is, wherever it is: nothing of it may change by a move."""

    uuid: object
    macs: tuple
    identity: object
    host_key: str
    disks: tuple


def content(volume):
    """Return the bytes of a disk, whatever its format."""
    if volume.format == "raw":
        return volume.path.read_bytes()
    with tempfile.NamedTemporaryFile() as raw:
        words = ["qemu-img", "convert", "-O", "raw", volume.path, raw.name]
        subprocess.run(words, check=True, capture_output=True, timeout=60)
        return Path(raw.name).read_bytes()


def seen(lab, name):
    """Return the host of a clone that only one host has, and what it is there."""
    (clone,) = lab.controller().list(name)
    assert clone.moving is None
    records = lab.sites[clone.host].engine._local.records
    return clone.host, Seen(
        clone.domain.uuid,
        clone.domain.macs,
        records.find(name).identity,
        records.home(name).host_key,
        tuple(hashlib.sha256(content(volume)).hexdigest() for volume in clone.volumes),
    )


def written(volume, octets):
    """Write to the beginning of a disk, as a guest would."""
    if volume.format == "raw":
        with volume.path.open("r+b") as stream:
            stream.write(octets)
        return
    words = ["qemu-io", "-f", "qcow2", "-c", f"write -P 0x5a 4096 {len(octets)}", volume.path]
    subprocess.run(words, check=True, capture_output=True, timeout=60)


def nothing_left(lab, host, name):
    """Check that a host has nothing of a clone."""
    its = lab.sites[host]
    state = its.folder / "state"
    assert name not in its.machines.machines
    left = [p for p in state.rglob(f"*{name}*") if "runs" not in p.parts and "locks" not in p.parts]
    assert left == []


@pytest.fixture
def made(lab):
    """A fleet of three, one on each host, of which the first has been written to."""
    all_hosts = lab.controller()
    all_hosts.create("web", "t1", count=3)
    clone = all_hosts.show("web-1")
    assert clone.host == "h1"
    for volume in clone.volumes:
        written(volume, CONTENT)
    return lab


def startable(lab, name):
    """Return the hosts on which a clone can be started, by whoever is there."""
    found = []
    for host, its in lab.sites.items():
        try:
            result = its.engine.start(name)
        except VmclonerError:
            continue
        assert result.ok
        found.append(host)
        its.engine.stop(name, kill=True)
    return found


def test_a_clone_moves_with_its_disks_and_its_identity(made):
    before = seen(made, "web-1")
    all_hosts = made.controller()
    (dry,) = all_hosts.move("web-1", host="h2", dry_run=True)
    assert (dry.clone, dry.source, dry.target, dry.action) == ("web-1", "h1", "h2", "move")
    assert seen(made, "web-1") == before
    (moved,) = all_hosts.move("web-1", host="h2")
    assert moved.error is None
    host, now = seen(made, "web-1")
    assert (before[0], host) == ("h1", "h2")
    assert now == before[1]
    nothing_left(made, "h1", "web-1")
    assert startable(made, "web-1") == ["h2"]
    (again,) = all_hosts.move("web-1", host="h2")
    assert again.action == "stays"
    assert not all_hosts.create("web", "t1", count=3).results, "it is part of its fleet"
    clone = all_hosts.show("web-1")
    assert {v.labels.state for v in clone.volumes} == {made.sites["h2"].engine._local.state_id}
    all_hosts.reset("web-1")
    assert content(all_hosts.show("web-1").volumes[0])[: len(IMAGE)] == IMAGE
    all_hosts.move("web-1", host="h1")
    all_hosts.delete("web")
    for name in made.sites:
        nothing_left(made, name, "web-1")


def test_several_clones_move_at_once(made):
    before = {name: seen(made, name)[1] for name in ("web-1", "web-2", "web-3")}
    moved = made.controller().move("web-[1-3]", host="h3")
    assert [(m.clone, m.action, m.error) for m in moved] == [
        ("web-1", "move", None), ("web-2", "move", None), ("web-3", "stays", None),
    ]  # fmt: skip
    assert {name: seen(made, name) for name in before} == {
        name: ("h3", was) for name, was in before.items()
    }


# --- kills ----------------------------------------------------------------------------------------


def killed_at(number):
    """Return a fault that kills at the call of this number."""
    count = 0

    def fault(_host, _name, moment):
        nonlocal count
        count += moment == "before"
        if moment == "before" and count == number:
            raise Killed

    return fault


def ended(lab):
    """End what works beside the hosts, as it does when its controller is killed."""
    for beside in lab.carrier._besides.values():
        beside._release()


def after_a_kill(lab, before, source="h1", host="h2", name="web-1"):
    """Check that nothing is lost or twice, that the clone can't be started, and finish the move."""
    ended(lab)
    assert len(startable(lab, name)) <= 1
    all_hosts = lab.controller()
    (moved,) = all_hosts.move(name, host=host)
    assert moved.error is None
    assert seen(lab, name) == (host, before)
    nothing_left(lab, source, name)
    assert startable(lab, name) == [host]
    assert not any(list((its.folder / "state/moves").glob("*")) for its in lab.sites.values())


@pytest.mark.parametrize("method", ["copy"], indirect=True)
def test_a_controller_that_is_killed_at_any_call(made):
    before, (source, target) = seen(made, "web-1")[1], ("h1", "h2")
    for number in itertools.count(1):
        spy = Spy(made.carrier)
        spy.fault = killed_at(number)
        try:
            made.controller(carrier=spy).move("web-1", host=target)
        except Killed:
            after_a_kill(made, before, source, target)
            source, target = target, source
        else:
            break
    assert number >= 20, "there are so many calls"


STEPS = (
    (Moves, "note"), (Moves, "remove"), (Records, "adopt"), (FilesDriver, "clone"),
    (FilesDriver, "delete"), (ReferenceHypervisor, "define"), (ReferenceHypervisor, "undefine"),
    (Records, "remove"), (arriving, "content_digest"), (arriving, "written"),
)  # fmt: skip


def killed_after(patch, owner, name, number):
    """Kill after the call of this number; returns what counts the calls."""
    count, there = itertools.count(1), getattr(owner, name)

    def fatal(*args, **options):
        found = there(*args, **options)
        if next(count) == number:
            if owner in (FilesDriver, ReferenceHypervisor):
                list(found)
            raise Killed
        return found

    patch.setattr(owner, name, fatal)
    return count


@pytest.mark.parametrize("method", ["overlay"], indirect=True)
@pytest.mark.parametrize(("owner", "name"), STEPS, ids=[name for _, name in STEPS])
def test_an_engine_that_is_killed_after_any_step(made, monkeypatch, owner, name):
    before = seen(made, "web-1")[1]
    for number in range(1, 4):
        with monkeypatch.context() as patch:
            killed_after(patch, owner, name, number)
            try:
                (moved,) = made.controller().move("web-1", host="h2")
            except Killed:
                moved = None
            if moved is not None and moved.error is None:  # a driver's end is an error
                assert number > 1, "it is called at least once"
                return
        after_a_kill(made, before)
        assert made.controller().move("web-1", host="h1")[0].error is None


def cut_off(lab, number=None, call=None):
    """Move web-1 to h2, and stop before a call."""
    spy = Spy(lab.carrier)

    def fault(_host, name, when):
        if when == "before" and name == call:
            raise Killed

    spy.fault = fault if call else killed_at(number)
    with pytest.raises(Killed):
        lab.controller(carrier=spy).move("web-1", host="h2")
    ended(lab)


@pytest.mark.parametrize("method", ["copy"], indirect=True)
def test_what_has_arrived_is_not_sent_again(made):
    spy = Spy(made.carrier)
    landed = 0

    def fault(_host, name, when):
        nonlocal landed
        landed += name == "land" and when == "after"
        if landed == 1 and when == "after" and name == "land":
            raise Killed

    spy.fault = fault
    with pytest.raises(Killed):
        made.controller(carrier=spy).move("web-1", host="h2")
    again = Spy(made.carrier)
    before = content(made.sites["h1"].engine.show("web-1").volumes[0])
    made.controller(carrier=again).move("web-1", host="h2")
    whole = Spy(made.carrier)
    made.controller(carrier=whole).move("web-1", host="h3")
    lands = [sum(name == "land" for _, name in each.calls) for each in (again, whole)]
    assert lands[0] == lands[1] - 1
    assert content(made.controller().show("web-1").volumes[0]) == before


def live_chunks(count):
    """Read so many parts for one host; returns the most that were in memory, and the reads."""
    there, reads = weakref.WeakSet(), []

    def read(_item, offset):
        reads.append(offset)
        chunk = Parted(at=offset, octets=b"x")
        there.add(chunk)
        return chunk

    most = 0
    with Parts(read, keep=2) as parts:
        for number in range(count):
            parts("0", number * CHUNK)
            gc.collect()
            most = max(most, len(there))
    return most, reads


@attrs.frozen(kw_only=True, eq=False)
class Parted(Chunk):
    """A part that can be counted."""


def test_of_a_disk_that_is_sent_two_parts_are_kept():
    most, reads = live_chunks(12)
    assert most <= 3, "one may still be in the reader's hands"
    assert reads == [number * CHUNK for number in range(13)][: len(reads)], "each is read once"


@pytest.mark.parametrize("method", ["copy"], indirect=True)
def test_a_disk_that_was_changed_meanwhile_is_sent_anew(made):
    cut_off(made, call="landed")
    clone = made.sites["h1"].engine.show("web-1")
    written(clone.volumes[0], bytes(GRANULE) + b"changed")
    disk = content(clone.volumes[0])
    assert made.controller().move("web-1", host="h2")[0].error is None
    assert content(made.controller().show("web-1").volumes[0]) == disk


@pytest.mark.parametrize("method", ["copy"], indirect=True)
def test_a_disk_that_was_changed_when_all_had_arrived_is_sent_anew(made):
    """Somebody started the guest by its hypervisor's own tools, and stopped it again."""
    cut_off(made, call="undefine")
    clone = made.sites["h1"].engine.show("web-1")
    written(clone.volumes[0], bytes(GRANULE) + b"newer")
    disk = content(clone.volumes[0])
    cut_off(made, call="define")
    assert made.controller().move("web-1", host="h2")[0].action == "finish"
    assert content(made.controller().show("web-1").volumes[0]) == disk
    nothing_left(made, "h1", "web-1")


@pytest.mark.parametrize("method", ["copy"], indirect=True)
def test_disks_that_have_arrived_are_compared_and_not_sent_again(made):
    before = seen(made, "web-1")[1]
    cut_off(made, call="undefine")
    spy = Spy(made.carrier)
    (moved,) = made.controller(carrier=spy).move("web-1", host="h2")
    assert (moved.action, moved.error) == ("move", None)
    assert "land" not in {name for _, name in spy.calls}
    assert seen(made, "web-1") == ("h2", before)


@pytest.mark.parametrize("size", [GRANULE, GRANULE + 512])
def test_what_is_beyond_a_disk_does_not_count(tmp_path, size):
    """A pool that rounds sizes up may have the bytes of a deleted disk there."""
    own = CONTENT[:GRANULE] + bytes(size - GRANULE)
    digests = set()
    for number, rest in enumerate((b"", bytes(4096), b"old" * GRANULE)):
        file = tmp_path / str(number)
        file.write_bytes(own + rest)
        with file.open("rb") as stream:
            digests.add(moved_disks.content_digest(stream.fileno(), size))
    assert len(digests) == 1


@pytest.mark.parametrize("method", ["copy"], indirect=True)
def test_a_disk_that_arrives_damaged_is_not_used(made, monkeypatch):
    before = seen(made, "web-1")
    with monkeypatch.context() as patch:
        patch.setattr(arriving, "written", lambda *_: None)
        (moved,) = made.controller().move("web-1", host="h2")
    assert isinstance(moved.error, BackendError)
    assert "arrived damaged" in str(moved.error)
    assert startable(made, "web-1") == []
    after_a_kill(made, before[1])


@pytest.mark.parametrize("method", ["copy"], indirect=True)
def test_what_a_clone_that_is_being_moved_refuses(made):
    cut_off(made, call="define")
    all_hosts = made.controller()
    for act in (
        lambda: all_hosts.start("web-1"),
        lambda: all_hosts.delete("web-1"),
        lambda: all_hosts.create("web", "t1", count=5),
        lambda: all_hosts.create_snapshot("web-1", name="s"),
        lambda: made.sites["h1"].engine.create("web", "t1", count=5),
        lambda: made.sites["h2"].engine.create("web", "t1", count=5),
        lambda: made.sites["h2"].engine.start("web-1"),
    ):
        with pytest.raises(WrongState, match="web-1 is being moved") as caught:
            act()
        assert "vmcloner move web-1 h" in caught.value.hint.lower()
    with pytest.raises(WrongState, match="web-1 is being moved to host 'h2'") as caught:
        all_hosts.move("web-1", host="h3")
    assert caught.value.hint == "vmcloner move web-1 h2 finishes it"
    result = all_hosts.run(TargetRequest(action="start", everything=True))
    assert {each.name for each in result.results} == {"web-2", "web-3"}
    assert any("web-1 is being moved" in warning for warning in result.plan.warnings)
    left = made.sites["h2"].engine.gc(orphans=True, dry_run=True)
    assert not [each for each in left if "web-1" in each.name]
    assert all_hosts.move("web-1", host="h2")[0].action == "finish"


def taken_back(lab, before):
    """Take web-1 back to h1, where it was, and check that it is as it was."""
    assert startable(lab, "web-1") == []
    (moved,) = lab.controller().move("web-1", host="h1")
    assert (moved.action, moved.error) == ("undo", None)
    at_home(lab, before)


def at_home(lab, before):
    """Check that web-1 is on h1 as it was, and nothing of it on h2."""
    assert seen(lab, "web-1") == before
    nothing_left(lab, "h2", "web-1")
    assert startable(lab, "web-1") == ["h1"]
    assert not any(list((its.folder / "state/moves").glob("*")) for its in lab.sites.values())


@pytest.mark.parametrize("call", ["arrive", "land", "landed", "undefine", "give", "define"])
@pytest.mark.parametrize("method", ["copy"], indirect=True)
def test_a_move_that_is_taken_back(made, call):
    before = seen(made, "web-1")
    cut_off(made, call=call)
    taken_back(made, before)
    assert made.controller().move("web-1", host="h2")[0].error is None
    assert seen(made, "web-1") == ("h2", before[1])


@pytest.mark.parametrize("call", ["take", "undefine", "give", "define"])
@pytest.mark.parametrize("method", ["shared"], indirect=True)
def test_a_move_in_a_shared_pool_that_is_taken_back(made, call):
    before = seen(made, "web-1")
    cut_off(made, call=call)
    taken_back(made, before)
    assert len(volumes("web-1")) == 2
    assert made.controller().move("web-1", host="h2")[0].error is None


def unable(lab, host, monkeypatch):
    """Have a host define nothing."""
    there = ReferenceHypervisor.define

    def define(self, specs):
        if self is not lab.sites[host].machines:
            yield from there(self, specs)
            return
        for spec in specs:
            yield Outcome(key=spec.name, error=BackendError("no bridge br9"))

    monkeypatch.setattr(ReferenceHypervisor, "define", define)


@pytest.mark.parametrize("method", ["copy", "shared"], indirect=True)
def test_a_new_host_that_cannot_define_the_clone(made, monkeypatch):
    before = seen(made, "web-1")
    unable(made, "h2", monkeypatch)
    for _ in range(2):
        (moved,) = made.controller().move("web-1", host="h2")
        assert isinstance(moved.error, BackendError)
        assert "no bridge br9" in str(moved.error)
        assert moved.error.hint == "vmcloner move web-1 h1 takes it back"
    taken_back(made, before)


@pytest.mark.parametrize("method", ["copy"], indirect=True)
def test_a_clone_goes_back_to_a_host_that_is_being_emptied(made, monkeypatch):
    before = seen(made, "web-1")
    unable(made, "h2", monkeypatch)
    drain(made.controller(), "h3")
    (left,) = drain(made.controller(), "h1", move=True)
    assert left.failed
    refused_move(made.controller(), "h3", "h3: it is drained", clone="web-2")
    taken_back(made, before)


@pytest.mark.parametrize("method", ["copy", "shared"], indirect=True)
def test_a_kill_at_any_call_of_the_way_back(made, monkeypatch):
    before = seen(made, "web-1")
    for number in itertools.count(1):
        cut_off(made, call="define")
        spy = Spy(made.carrier)
        spy.fault = killed_at(number)
        try:
            made.controller(carrier=spy).move("web-1", host="h1")
        except Killed:
            ended(made)
            assert startable(made, "web-1") in ([], ["h1"])
            assert made.controller().move("web-1", host="h1")[0].error is None
            at_home(made, before)
        else:
            break
    assert number >= 10, "there are so many calls"


BACK = (
    (Moves, "note"), (Moves, "remove"), (FilesDriver, "hand_over"), (FilesDriver, "delete"),
    (ReferenceHypervisor, "define"), (Records, "remove"),
)  # fmt: skip


@pytest.mark.parametrize("method", ["copy", "shared"], indirect=True)
@pytest.mark.parametrize(("owner", "name"), BACK, ids=[name for _, name in BACK])
def test_an_engine_that_is_killed_on_the_way_back(made, method, monkeypatch, owner, name):
    before = seen(made, "web-1")
    for number in itertools.count(1):
        cut_off(made, call="define")
        with monkeypatch.context() as patch:
            count = killed_after(patch, owner, name, number)
            with contextlib.suppress(Killed):
                made.controller().move("web-1", host="h1")
        ended(made)
        if next(count) <= number:
            break
        assert len(startable(made, "web-1")) <= 1
        assert made.controller().move("web-1", host="h1")[0].error is None
        at_home(made, before)
    assert number > 1 or name == {"copy": "hand_over", "shared": "delete"}[method]


@pytest.mark.parametrize("method", ["copy"], indirect=True)
def test_what_is_on_its_way_back_goes_on_there(made):
    cut_off(made, call="define")
    back_until(made, "drop")
    hint = refused_move(made.controller(), "h2", "web-1 is being moved back to host 'h1'")
    assert hint == "vmcloner move web-1 h1 finishes it"
    with pytest.raises(WrongState, match="is being moved back to host 'h1'") as caught:
        made.sites["h2"].engine.start("web-1")
    assert caught.value.hint == "vmcloner move web-1 h1 finishes it"
    made.carrier.lose("h2")
    without = made.controller(without=("h2",))
    refused_move(without, "h1", "may be whole on host 'h2', which is not seen")


def back_until(lab, call):
    """Take web-1 back to h1, and stop before a call."""
    spy = Spy(lab.carrier)

    def fault(_host, name, when):
        if when == "before" and name == call:
            raise Killed

    spy.fault = fault
    with pytest.raises(Killed):
        lab.controller(carrier=spy).move("web-1", host="h1")
    ended(lab)


@pytest.mark.parametrize("method", ["copy"], indirect=True)
def test_a_clone_that_the_new_host_has_defined_goes_on(made):
    cut_off(made, call="drop")
    hint = refused_move(made.controller(), "h1", "web-1 is being moved to host 'h2'")
    assert hint == "vmcloner move web-1 h2 finishes it"
    with pytest.raises(WrongState, match="is whole"):
        made.carrier._besides["h2"].call_return(Asked(name="web-1"), print)


@pytest.mark.parametrize("method", ["copy"], indirect=True)
def test_a_clone_is_not_taken_back_to_where_its_disks_are_gone(made, monkeypatch):
    """The only ones are where it has arrived, also if somebody has removed its domain there."""
    _, before = seen(made, "web-1")
    with monkeypatch.context() as patch:
        killed_after(patch, FilesDriver, "delete", 2)  # the first one removes nothing
        made.controller().move("web-1", host="h2")  # a driver's end is an error
    ended(made)
    assert len(list((made.folder / "h2/state").rglob("web-1-disk*"))) == 2
    assert list((made.folder / "h1/state").rglob("web-1-disk*")) == []
    del made.sites["h2"].machines.machines["web-1"]
    (moved,) = made.controller().move("web-1", host="h1")
    assert isinstance(moved.error, WrongState)
    assert moved.error.hint == "vmcloner move web-1 h2 finishes its move"
    assert made.controller().move("web-1", host="h2")[0].error is None
    assert seen(made, "web-1") == ("h2", before)


@pytest.mark.parametrize("method", ["copy"], indirect=True)
def test_disks_that_were_copied_are_handed_to_nobody(made):
    before = seen(made, "web-1")
    cut_off(made, call="define")
    with pytest.raises(InvalidRequest, match="are not handed back"):
        made.carrier._besides["h2"].call_return(Asked(name="web-1", heir="0" * 32), print)
    taken_back(made, before)


@pytest.mark.parametrize("method", ["copy"], indirect=True)
def test_a_source_that_is_lost_when_all_has_arrived(made):
    before = seen(made, "web-1")[1]
    cut_off(made, call="undefine")
    made.carrier.lose("h1")
    with pytest.raises(Unreachable):
        made.controller().move("web-1", host="h2")
    without = made.controller(without=("h1",))
    with pytest.raises(WrongState, match="its disk is on host 'h1', which is not seen"):
        without.move("web-1", host="h2")
    made.carrier._lost.discard("h1")
    after_a_kill(made, before)


@pytest.mark.parametrize("method", ["copy"], indirect=True)
def test_a_source_that_is_lost_when_its_domain_is_gone(made):
    before = seen(made, "web-1")[1]
    cut_off(made, call="drop")
    made.carrier.lose("h1")
    without = made.controller(without=("h1",))
    assert without.move("web-1", host="h2")[0].error is None
    assert without.list("web-1")[0].moving is None
    made.carrier._lost.discard("h1")
    assert startable(made, "web-1") == ["h2"]
    after_a_kill(made, before)


def refused_move(controller, host, words, clone="web-1"):
    """Check that web-1 is not moved to a host; returns the way out."""
    with pytest.raises(WrongState, match=words) as caught:
        controller.move(clone, host=host)
    return caught.value.hint


@pytest.mark.parametrize("method", ["copy"], indirect=True)
@pytest.mark.parametrize("call", ["undefine", "define", "drop"])
def test_a_clone_that_may_be_whole_on_a_host_that_is_not_seen(made, call):
    """It is neither taken back nor sent elsewhere: it would run twice."""
    before = seen(made, "web-1")[1]
    cut_off(made, call=call)
    words = "web-1 may be whole on host 'h2', which is not seen"
    for host in ("h1", "h3"):
        hint = refused_move(made.controller(without=("h2",)), host, words)
        assert "rm moves/web-1 in the state folder of h1" in hint
    alone = made.controller(only=("h1",))
    refused_move(alone, "h1", words)
    made.carrier.lose("h2")
    all_hosts = made.controller()
    all_hosts.drained.add({"h2": Why.LOST})
    refused_move(all_hosts, "h1", words)
    all_hosts.drained.remove("h2")
    made.carrier._lost.discard("h2")
    after_a_kill(made, before)


@pytest.mark.parametrize("method", ["copy"], indirect=True)
def test_a_host_that_is_gone_for_good(made):
    """Whoever knows that says so by removing the mark."""
    cut_off(made, call="landed")
    before = content(made.sites["h1"].engine.show("web-1").volumes[0])
    without = made.controller(without=("h2",))
    refused_move(without, "h1", "may be whole on host 'h2'")
    (made.folder / "h1/state/moves/web-1").unlink()
    assert without.start("web-1").ok
    without.stop("web-1", kill=True)
    hint = refused_move(made.controller(), "h2", "web-1 is on hosts h1 and h2")
    assert "rm moves/web-1 in its state folder" in hint
    (made.folder / "h2/state/moves/web-1").unlink()
    made.sites["h2"].engine.delete("web-1")
    nothing_left(made, "h2", "web-1")
    assert content(made.controller().show("web-1").volumes[0]) == before


@pytest.mark.parametrize("method", ["copy"], indirect=True)
@pytest.mark.parametrize(("call", "finished"), [("undefine", False), ("define", True)])
def test_an_old_host_that_was_gone_for_good_and_is_back(made, call, finished):
    """What it has is removed if it had given the clone away."""
    cut_off(made, call=call)
    (made.folder / "h2/state/moves/web-1").unlink()
    assert made.controller(without=("h1",)).create("web", "t1", count=3).ok
    if finished:
        assert made.controller().move("web-1", host="h2")[0].action == "finish"
        nothing_left(made, "h1", "web-1")
    else:
        refused_move(made.controller(), "h2", "web-1 is on hosts h1 and h2")
        assert "web-1" in made.sites["h1"].machines.machines


@pytest.mark.parametrize("method", ["copy"], indirect=True)
def test_what_is_left_of_a_clone_that_has_moved_on(made):
    """h1 was down while it was finished on h2, and moved to h3."""
    before = seen(made, "web-1")[1]
    cut_off(made, call="drop")
    without = made.controller(without=("h1",))
    assert without.move("web-1", host="h2")[0].error is None
    assert without.move("web-1", host="h3")[0].error is None
    for host in ("h1", "h2"):
        refused_move(made.controller(without=("h3",)), host, "web-1 was whole on host 'h2'")
    after_a_kill(made, before, host="h3")


@pytest.mark.parametrize("method", ["copy"], indirect=True)
def test_a_whole_clone_whose_old_host_has_nothing_of_it(made):
    """It was never that host's to give: it may be anywhere by now."""
    cut_off(made, call="undefine")
    (made.folder / "h1/state/moves/web-1").unlink()
    assert made.controller(without=("h2",)).move("web-1", host="h3")[0].error is None
    words = "its disk is on host 'h1', which has nothing of it any more"
    hint = refused_move(made.controller(without=("h3",)), "h2", words)
    assert "rm moves/web-1 in the state folder of h2" in hint
    assert startable(made, "web-1") == ["h3"]


def test_hosts_that_are_lost_on_the_way(made):
    before = seen(made, "web-1")[1]
    for victim in ("h1", "h2"):
        spy = Spy(made.carrier)

        def fault(_host, name, when, victim=victim):
            if name == "land" and when == "after":
                made.carrier.lose(victim)

        spy.fault = fault
        (moved,) = made.controller(carrier=spy).move("web-1", host="h2")
        assert isinstance(moved.error, Unreachable)
        made.carrier._besides[victim]._release()  # as its engine ends
        made.carrier._lost.discard(victim)
        assert startable(made, "web-1") == []
    after_a_kill(made, before)


# --- what can't be moved --------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["copy"], indirect=True)
def test_what_is_refused_before_anything_is_changed(made, monkeypatch):
    before = seen(made, "web-1")
    all_hosts = made.controller()

    def refused(kind, words, targets=("web-1",), host="h2", hint=""):
        for dry in (True, False):
            with pytest.raises(kind, match=words) as caught:
                all_hosts.move(*targets, host=host, dry_run=dry)
            assert hint in (caught.value.hint or "")
        assert not any((s.folder / "state/moves").exists() for s in made.sites.values())

    refused(NotFound, "unknown host 'h9'", host="h9")
    refused(NotFound, "no clone web-9", targets=("web-9",))
    refused(NotFound, "no fleet 'nope'", targets=("nope",))
    all_hosts.start("web-1")
    refused(WrongState, "web-1 is running", ("web-[1-2]",), hint="vmcloner stop web-1")
    all_hosts.stop("web-1", kill=True)
    machines = made.sites["h2"].machines
    machines.foreign.add("web-1")
    refused(Conflict, "web-1: another machine has that name")
    machines.foreign.clear()
    machines.foreign_macs.add(before[1].macs[0])
    refused(Conflict, "another machine has its MAC address")
    machines.foreign_macs.clear()
    with monkeypatch.context() as patch:
        patch.setattr(FilesDriver, "capacity", lambda self: Capacity(total=4096, free=4096))
        refused(NotEnoughResources, r"the disks take .*; 4 ?KiB are free in pool 'files'")
    drain(all_hosts, "h2")
    refused(WrongState, "no clones are moved to h2", hint="vmcloner host undrain h2")
    all_hosts.drained.remove("h2")
    made.carrier.lose("h3")
    refused(Unreachable, "host 'h3'")
    made.carrier._lost.discard("h3")
    all_hosts.create_snapshot("web-1", name="first")
    refused(WrongState, "snapshots, which are not taken along: first", hint="snapshot delete web-1")
    all_hosts.delete_snapshot("web-1", name="first")
    assert seen(made, "web-1") == before


CARD = """
[[nics]]
kind = "bridge"
source = "br9"
"""


class Nets(NetworkInterface):
    """Networks of a host: one that vmcloner made, and one of somebody else's."""

    def inspect(self):
        return Network(name="made", active=True, ours=True), Network(name="default", active=True)

    def prepare(self, request):
        raise NotImplementedError

    def remove(self, request):
        raise NotImplementedError


def carded(lab, card):
    """Have the record of web-1, on h1, say that the clone has this card."""
    records = lab.sites["h1"].engine._local.records
    made_of = dict(records.find("web-1").made_of)
    made_of["nics"] = [{"model": "virtio", "forward": None, "source": None, **card}]
    records.update("web-1", made_of=made_of)


@pytest.mark.parametrize("method", ["copy"], indirect=True)
def test_a_clone_comes_only_to_networks_that_its_new_host_knows(made):
    before = seen(made, "web-1")
    made.sites["h2"].machines.networks = Nets()
    for kind, key in (("bridge", "bridge:br9"), ("network", "default"), ("bridge", "bridge:made")):
        carded(made, {"kind": kind, "source": key.removeprefix("bridge:")})
        for dry in (True, False):
            with pytest.raises(InvalidRequest, match=f"web-1 is on network '{key}'") as caught:
                made.controller().move("web-1", host="h2", dry_run=dry)
            assert f'[hosts.local] networks = ["{key}"]' in caught.value.hint
            assert "or a card on it in template 't1', here or there" in caught.value.hint
        assert startable(made, "web-1") == ["h1"]
        assert not (made.folder / "h2/state/moves").exists()
    assert seen(made, "web-1") == before
    carded(made, {"kind": "network", "source": "made"})
    assert made.controller().move("web-1", host="h2")[0].error is None


@pytest.mark.parametrize("method", ["copy"], indirect=True)
@pytest.mark.parametrize("knows", ["settings", "host", "controller"])
def test_who_says_that_a_network_is_for_clones(made, knows):
    carded(made, {"kind": "bridge", "source": "br9"})
    template = made.folder / "config/vmcloner/templates/t1.toml"
    if knows == "settings":
        engine = made.carrier._besides["h2"]._engine
        engine._local.host = attrs.evolve(engine._local.host, networks=("bridge:br9",))
    elif knows == "host":
        template.rename(made.folder / "t1.toml")
        (made.folder / "h2/own").mkdir()
        catalog = made.carrier._besides["h2"]._engine._local.catalog
        catalog._own = (made.folder / "h2/own", *catalog._own)
        (made.folder / "h2/own/t1.toml").write_text(TEXT + CARD)
        (made.folder / "h2/own/image.raw").write_bytes(IMAGE)
    else:
        template.write_text(TEXT + CARD)
    assert made.controller().move("web-1", host="h2")[0].error is None


@pytest.mark.parametrize("method", ["copy"], indirect=True)
def test_a_template_that_another_host_sent_opens_no_network(made):
    """A host that somebody has taken over could send one with any card."""
    carded(made, {"kind": "bridge", "source": "br9"})
    (made.folder / "config/vmcloner/templates/t1.toml").unlink()
    received = made.folder / "h2/state/received/t1.toml"
    received.parent.mkdir(exist_ok=True)
    received.write_text(TEXT + CARD)
    with pytest.raises(InvalidRequest, match="which its new host does not know"):
        made.controller().move("web-1", host="h2")


@pytest.mark.parametrize("method", ["copy"], indirect=True)
@pytest.mark.parametrize("lacking", ["storage", "hypervisors"])
def test_a_target_without_the_backend(made, lacking):
    host = made.carrier._besides["h2"]._engine._local.host
    tables = {name: table for name, table in getattr(host, lacking).items() if name == "x"}
    before = made.carrier._besides["h2"]._engine._local.drivers
    before.host = attrs.evolve(host, **{lacking: tables})
    before._drivers.clear()
    with pytest.raises(VmclonerError, match=r"'(files|reference)'"):
        made.controller().move("web-1", host="h2")
    assert made.sites["h1"].engine.show("web-1").moving is None


@pytest.mark.parametrize("method", ["copy"], indirect=True)
def test_hosts_of_another_version(made):
    with pytest.raises(BackendError, match="has vmcloner"):
        made.controller(version="0.0").move("web-1", host="h2")


@pytest.fixture
def shared():
    """The settings of a pool that all hosts share."""
    shutil.rmtree(SHARED, ignore_errors=True)
    yield f'path = "{SHARED}"\nshared = true'
    shutil.rmtree(SHARED, ignore_errors=True)


@pytest.mark.parametrize("method", ["shared"], indirect=True)
def test_in_a_pool_that_the_hosts_share_nothing_is_copied(made):
    before, disks = seen(made, "web-1")[1], sorted(p.stat().st_ino for p in volumes("web-1"))
    spy = Spy(made.carrier)
    moved = made.controller(carrier=spy).move("web-[1-2]", host="h3")
    assert [each.error for each in moved] == [None, None]
    assert seen(made, "web-1") == ("h3", before)
    assert sorted(p.stat().st_ino for p in volumes("web-1")) == disks
    assert "land" not in {name for _, name in spy.calls}
    nothing_left(made, "h1", "web-1")
    assert startable(made, "web-1") == ["h3"]
    assert made.controller().move("web", host="h1")[0].error is None
    made.controller().delete("web")
    assert volumes("web-1") == []


def volumes(name):
    return [path for path in SHARED.rglob(f"{name}-disk*") if path.is_file()]


@pytest.mark.parametrize("method", ["shared"], indirect=True)
def test_a_disk_of_a_shared_pool_is_never_lost(made):
    """Whatever is killed, also when it is taken back."""
    before = seen(made, "web-1")[1]
    for call in ("take", "undefine", "give", "define", "drop", "stay"):
        cut_off(made, call=call)
        assert len(volumes("web-1")) == 2
        after_a_kill(made, before)
        back = made.controller().move("web-1", host="h1")
        assert [each.error for each in back] == [None]
    cut_off(made, call="take")
    assert made.controller().move("web-1", host="h1")[0].action == "undo"
    assert seen(made, "web-1") == ("h1", before)


@pytest.mark.parametrize("method", ["shared"], indirect=True)
def test_a_kill_between_the_disks_of_a_shared_pool(made, monkeypatch):
    before = seen(made, "web-1")[1]
    there = FilesDriver.hand_over
    with monkeypatch.context() as patch:

        def fatal(self, volumes, state):
            if volumes[0].disk == 1:
                raise Killed
            return there(self, volumes, state)

        patch.setattr(FilesDriver, "hand_over", fatal)
        (moved,) = made.controller().move("web-1", host="h2")
        assert moved.error is not None
    assert startable(made, "web-1") == []
    after_a_kill(made, before)


@pytest.mark.parametrize("method", ["shared"], indirect=True)
def test_a_shared_pool_that_hands_nothing_over(made, monkeypatch):
    """Its disks can't be copied to where they are."""
    before = seen(made, "web-1")
    monkeypatch.setattr(FilesDriver, "hands_over", StorageDriver.hands_over)
    (moved,) = made.controller().move("web-1", host="h2")
    assert isinstance(moved.error, Conflict)
    assert made.controller().move("web-1", host="h1")[0].action == "undo"
    assert seen(made, "web-1") == before
    assert startable(made, "web-1") == ["h1"]


def of_one_image(lab):
    """Give the pools of all hosts one id, as those of hosts made from one disk image have."""
    for its in lab.sites.values():
        for file in (its.folder / "state/pools/files", its.folder / "state/pool/.id"):
            file.write_text("0123456789abcdef" * 2 + "\n")


def test_hosts_that_were_made_from_one_disk_image(made):
    """Their pools have one id, and are not one: disks are copied."""
    before = seen(made, "web-1")[1]
    of_one_image(made)
    for host in ("h2", "h1"):
        spy = Spy(made.carrier)
        assert made.controller(carrier=spy).move("web-1", host=host)[0].error is None
        assert "land" in {name for _, name in spy.calls}
        assert seen(made, "web-1") == (host, before)
    nothing_left(made, "h2", "web-1")


@pytest.mark.parametrize("method", ["copy"], indirect=True)
def test_a_host_that_says_that_it_shares_a_pool(made):
    before = seen(made, "web-1")
    of_one_image(made)
    with pytest.raises(InvalidRequest, match="hands no disks over"):
        raise answering(made, "fit", lambda _host: "0123456789abcdef" * 2)
    assert seen(made, "web-1") == before


@pytest.mark.parametrize("method", ["shared"], indirect=True)
def test_an_heir_that_is_none(made):
    before = seen(made, "web-1")
    with pytest.raises(InvalidRequest, match="hands no disks over"):
        raise answering(made, "fit", lambda _host: "../x")
    assert seen(made, "web-1") == before


@pytest.mark.parametrize("method", ["copy"], indirect=True)
def test_pools_that_are_said_to_be_shared_and_are_not(made, monkeypatch):
    before = seen(made, "web-1")
    of_one_image(made)
    monkeypatch.setattr(FilesDriver, "hands_over", True)
    with pytest.raises(InvalidRequest, match="its disks are not in pool 'files' as this host"):
        made.controller().move("web-1", host="h2")
    assert seen(made, "web-1") == before


@pytest.mark.parametrize(
    "change",
    [
        {"host_key": ("-----BEGIN OPENSSH PRIVATE KEY-----\n", "@cert-authority * ssh-ed25519 A")},
        {"host_key": ("x" * 10_000, "ssh-ed25519 " + "A" * 64)},
        {"record": "{}"},
        {"disks": ()},
        {"disks": (CargoDisk(number=0, size=512, data=0),) * 100},
    ],
)
def test_what_a_host_says_of_a_clone_is_checked(made, change):
    found = made.carrier._besides["h1"].call_cargo(Asked(name="web-1"), print)
    with pytest.raises(InvalidRequest):
        attrs.evolve(found, **change)
    with pytest.raises(InvalidRequest):
        CargoDisk(number=0, size=2**80, data=0)
    with pytest.raises(InvalidRequest):
        CargoDisk(number=0, size=512, data=0, digest="../../etc")


@pytest.mark.parametrize(
    "values", [{"note": ["<hostdev/>"]}, {"note": {"a": 1}}, {"a b": "c"}, {"name": "x"}, ["x"]]
)
def test_own_values_that_a_host_gives_are_checked(made, values):
    """They get into the text of a domain: what is no string would not be escaped there."""
    found = made.carrier._besides["h1"].call_cargo(Asked(name="web-1"), print)
    record = json.loads(found.record)
    attrs.evolve(found, record=json.dumps({**record, "values": {"note": "<a>", "size": 3}}))
    with pytest.raises(InvalidRequest):
        attrs.evolve(found, record=json.dumps({**record, "values": values}))


def test_files_and_devices_of_a_moved_clone_are_those_of_its_new_host(made):
    """A host that somebody has taken over gives another one no paths and no XML."""
    local = made.sites["h1"].engine._local
    record = local.records.find("web-1")
    evil = dict(record.made_of)
    evil["kernel"] = {"path": "/etc/shadow", "initrd": None, "cmdline": ""}
    evil["domain"] = {**evil["domain"], "devices": "<hostdev/>"}
    local.records.update("web-1", made_of=evil)
    made.controller().move("web-1", host="h2")
    now = made.sites["h2"].engine._local.records.find("web-1").template()
    assert now.kernel is None
    assert now.domain.devices is None


@pytest.mark.parametrize("method", ["copy"], indirect=True)
@pytest.mark.parametrize("other", ["controller", "move_calls"])
def test_the_word_of_a_host_gives_no_clone_devices(made, other, monkeypatch):
    """It could name any template of the controller's, or of the new host's own: the user has to."""
    # Each of the two looks by itself: they may have different templates.
    monkeypatch.setattr(f"vmcloner_core.hosts.{other}.check_devices", lambda *_: None)
    templates, all_hosts = made.folder / "config/vmcloner/templates", made.controller()
    (templates / "gpu.toml").write_text(TEXT + "[domain]\ndevices = '<hostdev/>'\n")
    all_hosts.create("gpu", "gpu", count=1, where=Where(hosts=("h1",)))
    for template in (None, "t1"):
        with pytest.raises(InvalidRequest, match=r"gpu-1 would get domain\.devices of"):
            all_hosts.move("gpu-1", host="h2", template=template, dry_run=True)
    drained = drain(all_hosts, "h1", move=True, dry_run=True)
    assert {each.clone: each.action for each in drained} == {"web-1": "move", "gpu-1": "leave"}
    (moved,) = all_hosts.move("gpu-1", host="h2", template="gpu")
    assert moved.error is None
    assert made.sites["h2"].engine._local.records.find("gpu-1").template().domain.devices


@pytest.mark.parametrize("method", ["copy"], indirect=True)
def test_a_template_that_is_gone_everywhere(made):
    """The clone stays as it was: nothing is marked."""
    for name in ("t1.toml", "image.raw"):
        (made.folder / "config/vmcloner/templates" / name).unlink()
    (moved,) = made.controller().move("web-1", host="h2")
    assert isinstance(moved.error, NotFound)
    assert startable(made, "web-1") == ["h1"]


def answering(lab, call, answer):
    """Move web-1 to h2 with hosts that lie; returns the error."""
    spy = Spy(lab.carrier)
    honest = spy.call

    def lying(host, name, text, event):
        assert len(spy.calls) < 100, "it goes on for ever"
        found = honest(host, name, text, event)
        return wire.dump(Answered(value=wire.dump(answer(host)))) if name == call else found

    spy.call = lying
    return lab.controller(carrier=spy).move("web-1", host="h2")[0].error


@pytest.mark.parametrize("method", ["copy"], indirect=True)
def test_hosts_that_lie(made):
    of_another = made.carrier._besides["h3"].call_cargo(Asked(name="web-3"), print)
    with pytest.raises(BackendError, match="host 'h1' gave web-3 for web-1"):
        raise answering(made, "depart", lambda _host: of_another)
    with pytest.raises(BackendError, match="host 'h2': it has other disks of web-1"):
        raise answering(made, "arrive", lambda _host: (0,))
    octets = itertools.count(1)
    with pytest.raises(WrongState, match="another move began anew"):
        raise answering(made, "land", lambda _host: next(octets))
    with pytest.raises(BackendError, match=r"no part of a file|not the next part"):
        raise answering(made, "piece", lambda _host: Chunk(at=0, octets=b"junk"))
    with pytest.raises(BackendError, match="arrived damaged"):
        raise answering(made, "piece", lambda _host: Chunk(at=0))
    assert made.controller().move("web-1", host="h2")[0].error is None


def test_one_host(tmp_path, made):
    engine = made.sites["h1"].engine
    assert [each.action for each in engine.move("web-1", host="local")] == ["stays"]
    with pytest.raises(InvalidRequest, match="no other hosts"):
        engine.move("web-1", host="h2")


def test_the_files_of_a_clone_with_a_longer_name_stay(tmp_path):
    moves = Moves(tmp_path)
    for clone in ("web-1", "web-1-1"):
        for disk in (0, 1):
            moves.draft(clone, disk).touch()
    moves.remove("web-1")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".web-1-1-0.raw", ".web-1-1-1.raw"]


def test_a_damaged_mark_is_said(made):
    folder = made.folder / "h1/state/moves"
    folder.mkdir()
    (folder / "web-1").write_text("{}")
    with pytest.raises(WrongState, match="moves/web-1 is damaged"):
        made.sites["h1"].engine.start("web-1")


# --- drain ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["copy"], indirect=True)
def test_draining_moves_stopped_clones(made):
    all_hosts = made.controller()
    all_hosts.create("web", "t1", count=9)
    here = [clone.name for clone in all_hosts.list() if clone.host == "h1"]
    all_hosts.start(here[1])
    dry = drain(all_hosts, "h1", move=True, dry_run=True)
    assert [each.action for each in dry] == ["move", "leave", "move"]
    assert all_hosts.drained.read() == {}
    found = drain(all_hosts, "h1", move=True)
    assert [(each.clone, each.why, each.failed) for each in found] == [
        (here[0], "", False), (here[1], "is running", True), (here[2], "", False),
    ]  # fmt: skip
    assert {each.target for each in found if not each.failed} == {"h2", "h3"}
    assert Counter(c.host for c in all_hosts.list()) == {"h1": 1, "h2": 4, "h3": 4}
    all_hosts.stop(here[1], kill=True)
    assert not any(each.failed for each in drain(all_hosts, "h1", move=True))
    assert drain(all_hosts, "h1", move=True) == ()
    drain(all_hosts, "h2")
    drain(all_hosts, "h3")
    with pytest.raises(WrongState, match="no host is left"):
        drain(all_hosts, "h2", move=True)


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture
def shell(made, monkeypatch, capsys):
    """Return what runs a command with a controller of the hosts."""

    def run(*words):
        shell = Shell()
        monkeypatch.setattr(type(shell), "engine", made.controller())
        code = shell.run([*words])
        told = capsys.readouterr()
        return code, told.out, told.err

    return run


@pytest.mark.parametrize("method", ["copy"], indirect=True)
def test_the_command(made, shell, monkeypatch):
    row = {"clone": "web-1", "source": "h1", "target": "h2", "action": "move", "error": None}
    code, out, _ = shell("move", "web-1", "h2", "--dry-run", "-f", "json")
    assert (code, json.loads(out)) == (0, [row])
    code, out, err = shell("move", "web-1", "h2", "-f", "json")
    assert (code, json.loads(out)) == (0, [row])
    assert "web-1: on h2" in err
    code, out, err = shell("move", "web-1", "h2")
    assert code == 0
    assert "nothing to move" in err
    with monkeypatch.context() as patch:
        patch.setattr(arriving, "written", lambda *_: None)
        code, out, err = shell("move", "web-1", "h3", "-f", "json")
    assert code == 10
    assert "arrived damaged" in json.loads(out)[0]["error"]
    assert "move: 1 of 1 clone not moved" in err
    code, out, _ = shell("move", "web", "h3", "-f", "json")
    assert code == 0
    code, out, _ = shell("host", "drain", "h3", "--move", "-f", "json")
    assert code == 0
    assert [(r["action"], r["target"]) for r in json.loads(out)] == [
        ("move", "h1"), ("move", "h2"), ("move", "h1"),
    ]  # fmt: skip
    assert shell("move", "web-1", "h9")[0] == 4
    with pytest.raises(SystemExit, match="2"):
        shell("host", "drain", "h3", "--move", "--delete")
