"""Clones that somebody saved, paused, renamed or shares disks with, on the reference drivers."""

import json
import shutil
import uuid

import attrs
import pytest

from vmcloner_core.engine import Engine
from vmcloner_core.errors import Conflict, InvalidRequest, PartialFailure
from vmcloner_core.model import Outcome, State
from vmcloner_core.plan import Readiness, Sizes
from vmcloner_core.request import TargetRequest

MIB = 1024**2


def steps(engine: Engine, action: str, **options: object) -> list[tuple[str, ...]]:
    plan = engine.plan(TargetRequest(action=action, targets=("web",), **options))
    return [clone.steps for clone in plan.clones]


def states(engine: Engine) -> list[str]:
    return [clone.state.value for clone in engine.list("web")]


def failures(call, *targets: str, **options: object) -> dict[str, str]:
    with pytest.raises(PartialFailure) as caught:
        call(*targets, **options)
    return {name: str(error) for name, error in caught.value.failures}


def test_saved_clones(lab):
    lab.engine.create("web", "t1", count=2, start=True)
    lab.engine.save("web")
    assert states(lab.engine) == ["saved", "saved"]
    assert steps(lab.engine, "start") == [("restore",)] * 2
    assert steps(lab.engine, "restart") == [("restore", "shutdown", "start")] * 2
    assert steps(lab.engine, "restart", kill=True) == [("discard", "start")] * 2
    assert steps(lab.engine, "stop") == []
    plan = lab.engine.plan(TargetRequest(action="start", targets=("web",)))
    assert "web-[1-2] continue from saved memory" in plan.warnings[0]
    lab.engine.reset("web-1")
    assert states(lab.engine) == ["stopped", "saved"]
    plan = lab.engine.plan(TargetRequest(action="restore", targets=("web",)))
    assert plan.warnings[0].startswith("web-2 continues from saved memory")
    lab.engine.restore("web-2")
    assert states(lab.engine) == ["stopped", "running"]
    lab.engine.save("web-2")
    lab.engine.stop("web", kill=True)
    assert states(lab.engine) == ["stopped", "stopped"]


def test_paused_clones(lab):
    lab.engine.create("web", "t1", count=2, start=True)
    lab.engine.pause("web")
    lab.engine.pause("web")
    assert states(lab.engine) == ["paused", "paused"]
    lab.engine.resume("web-1")
    lab.engine.resume("web-1")
    assert states(lab.engine) == ["running", "paused"]
    lab.engine.stop("web-1", kill=True)
    assert "web-1 is stopped, not paused" in failures(lab.engine.resume, "web-1")["web-1"]
    lab.engine.resume("web")
    assert states(lab.engine) == ["stopped", "running"]
    assert "web-1" in failures(lab.engine.pause, "web-[1-2]")
    assert "not saved" in failures(lab.engine.restore, "web-1")["web-1"]


def test_a_hypervisor_without_memory_states_is_named(lab):
    lab.engine.create("web", "t1", count=1, start=True)
    lab.machines.memory = None
    assert "'reference' can't pause or save guests" in failures(lab.engine.save, "web")["web-1"]


def test_clocks_are_set_after_a_pause_and_a_save(lab):
    class Agents:
        set: list[str] = []  # noqa: RUF012

        def set_clocks(self, names):
            self.set += names

    lab.machines.agents = Agents()
    lab.engine.create("web", "t1", count=3, start=True)
    lab.engine.pause("web-1")
    lab.engine.save("web-2")
    lab.engine.stop("web-3")
    lab.engine.start("web")
    assert sorted(Agents.set) == ["web-1", "web-2"]


def renamed(lab, name: str, new: str) -> None:
    """Rename a domain, as virsh does: it keeps its labels."""
    domain = attrs.evolve(lab.machines.machines.pop(name), name=new)
    inspect = lab.machines.inspect
    lab.machines.inspect = lambda: attrs.evolve(inspect(), strays=(domain,))


def test_a_renamed_domain_is_its_clones(lab):
    lab.engine.create("web", "t1", count=3)
    renamed(lab, "web-2", "other")
    clone = lab.engine.show("web-2")
    assert (clone.state, clone.renamed) == (State.STOPPED, "other")
    assert clone.reason == "its domain was renamed to 'other'"
    for call in (lab.engine.start, lab.engine.reset, lab.engine.delete):
        found = failures(call, "web-2")
        assert "virsh domrename other web-2" in found["web-2"]
    assert "renamed" in failures(lab.engine.create, "web", template="t1", count=3)["web-2"]
    assert set(failures(lab.engine.delete, "web")) == {"web-2"}
    assert "web-2-disk0" in lab.pool.disks


def test_a_copy_under_another_name_is_none(lab):
    lab.engine.create("web", "t1", count=1)
    other = attrs.evolve(lab.machines.machines["web-1"], name="copy")
    inspect = lab.machines.inspect
    lab.machines.inspect = lambda: attrs.evolve(inspect(), strays=(other,))
    assert lab.engine.show("web-1").renamed is None


@pytest.mark.parametrize("action", ["reset", "delete"])
def test_a_disk_of_another_domain_is_left_and_the_others_go_on(lab, action):
    lab.engine.create("web", "t1", count=3, start=True)
    uses = lab.machines.uses

    def shared(names):
        ours = uses(names)
        (second,) = (use for use in ours if use.name == "web-2")
        return (*ours, attrs.evolve(second, name="other", uuid=uuid.uuid4()))

    lab.machines.uses = shared
    found = failures(getattr(lab.engine, action), "web")
    assert list(found) == ["web-2"]
    assert "domain 'other'" in found["web-2"]
    assert lab.engine.show("web-2").state is State.RUNNING


def test_paused_clones_are_not_ready(lab, monkeypatch):
    monkeypatch.setattr("vmcloner_core.watching.PAUSED", 0.0)
    lab.engine.create("web", "t1", count=1, start=True)
    lab.engine.pause("web")
    lab.machines.machines["web-1"] = attrs.evolve(lab.machines.machines["web-1"], reason="by user")
    for what in ("running", "console:ready"):
        found = failures(lab.engine.wait, "web", wait=Readiness.parse(what, timeout=5))
        assert f"web-1 is paused (by user), not {what}" in found["web-1"]


def test_a_console_that_was_ready_stays_so_for_this_run(lab):
    started = 1.0
    lab.machines.started = lambda _name: started
    wait = Readiness.parse("console:ready name={{ name }}", timeout=0.5)
    lab.engine.create("web", "t1", count=1, wait=wait)
    lab.machines.said["web-1"] = b"much else\n"
    assert lab.engine.wait("web", wait=wait).ok
    assert lab.engine.create("web", "t1", count=1, wait=wait).ok
    other = Readiness.parse("console:other", timeout=0.2)
    assert "web-1" in failures(lab.engine.wait, "web", wait=other)
    started = 2.0  # somebody has stopped and started it
    assert "web-1" in failures(lab.engine.wait, "web", wait=wait)


def test_a_console_that_was_ready_and_is_paused_is_told_as_not_running(lab, monkeypatch):
    monkeypatch.setattr("vmcloner_core.watching.PAUSED", 0.0)
    lab.machines.started = lambda _name: 1.0
    wait = Readiness.parse("console:ready name={{ name }}", timeout=5)
    lab.engine.create("web", "t1", count=1, wait=wait)
    lab.engine.pause("web")
    message = failures(lab.engine.wait, "web", wait=wait)["web-1"]
    assert "web-1 is paused" in message
    assert "not running" in message
    assert "running:" not in message


def test_sizes_at_create(lab):
    sizes = Sizes(memory=96 * MIB, vcpus=3, disk=8 * MIB)
    lab.engine.create("web", "t1", count=2, sizes=sizes)
    assert {clone.domain.memory for clone in lab.engine.list("web")} == {96 * MIB}
    assert {volume.size for volume in lab.pool.disks.values()} == {8 * MIB}
    assert lab.engine.create("web", "t1", count=2, sizes=sizes).ok
    assert lab.engine.create("web", "t1", count=2).ok
    for other in (Sizes(memory=97 * MIB), Sizes(vcpus=1), Sizes(disk=9 * MIB)):
        with pytest.raises(Conflict, match="other values"):
            lab.engine.create("web", "t1", count=2, sizes=other)


def test_sizes_are_set_and_kept(lab):
    lab.engine.create("web", "t1", count=2, start=True)
    lab.engine.set("web-1", sizes=Sizes(memory=96 * MIB, disk=8 * MIB))
    first = lab.engine.show("web-1")
    assert (first.domain.memory, first.volumes[0].size) == (96 * MIB, 8 * MIB)
    lab.engine.reset("web")
    assert lab.engine.show("web-1").volumes[0].size == 8 * MIB
    del lab.machines.machines["web-1"]
    lab.engine.create("web", "t1", count=2)
    assert lab.engine.show("web-1").domain.memory == 96 * MIB
    again = lab.engine.set("web-1", sizes=Sizes(disk=8 * MIB))
    assert [result.changed for result in again.results] == [()]
    assert Sizes(disk=8 * MIB - 1) == Sizes(disk=8 * MIB)  # pools round up: the same request again
    assert "can only grow" in failures(lab.engine.set, "web-1", sizes=Sizes(disk=MIB))["web-1"]
    lab.engine.start("web-1")
    lab.engine.save("web-1")
    assert "is saved" in failures(lab.engine.set, "web-1", sizes=Sizes(disk=9 * MIB))["web-1"]


def test_what_a_domain_that_is_gone_left_is_asked_for_by_its_records_uuid(lab, monkeypatch):
    """Somebody else undefined it, and kept its NVRAM, say."""
    asked = {}

    def forget(domains):
        asked.update(domains)
        return (Outcome(key=name) for name in domains)

    lab.engine.create("web", "t1", count=3)
    number = lab.engine.show("web-1").domain.uuid
    for name in ("web-1", "web-2"):
        del lab.machines.machines[name]
    shutil.rmtree(lab.engine.host.records / "web-2")
    monkeypatch.setattr(lab.machines, "forget", forget)
    lab.engine.delete("web")
    assert asked == {"web-1": number, "web-2": None}
    assert lab.engine.list() == ()


def test_a_size_whose_run_was_killed_is_told_and_noted(lab, monkeypatch):
    """The disk has its size already: the guest and the record don't know of it."""
    lab.engine.create("web", "t1", count=1, start=True)
    (volume,) = lab.pool.disks.values()
    list(lab.pool.grow([volume], 8 * MIB))
    lab.pool.disks = {n: attrs.evolve(v, kind="block") for n, v in lab.pool.disks.items()}
    told = []
    monkeypatch.setattr(lab.machines.sizes, "grow_disk", lambda *words: told.append(words[2]))
    assert lab.engine.set("web", sizes=Sizes(disk=8 * MIB)).ok
    assert told == [8 * MIB]
    record = json.loads((lab.engine.host.records / "web-1" / "record.json").read_text())
    assert record["values"]["disk_size"] == 8 * MIB


@pytest.mark.parametrize(
    "sizes", [{}, {"memory": 0}, {"memory": -1}, {"vcpus": 0}, {"vcpus": 9999}, {"disk": 2**63}]
)
def test_sizes_out_of_range(lab, sizes):
    with pytest.raises(InvalidRequest):
        lab.engine.set("web", sizes=Sizes(**sizes))


def test_what_can_not_change_sizes_is_named(lab):
    lab.engine.create("web", "t1", count=1)
    lab.machines.sizes = None
    found = failures(lab.engine.set, "web", sizes=Sizes(vcpus=2))
    assert "'reference' can't change the size" in found["web-1"]


def test_a_lost_disk_of_a_saved_clone(lab):
    """A new disk is never put under the memory of the old one."""
    lab.engine.create("web", "t1", count=1, start=True)
    lab.engine.save("web")
    lab.pool.disks.clear()
    lab.engine.create("web", "t1", count=1)
    assert lab.machines.states()["web-1"] is State.STOPPED
