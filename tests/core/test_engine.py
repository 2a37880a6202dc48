"""The engine as an embedder sees it, on the reference drivers."""

import threading
import time
from uuid import UUID

import pytest

from tests.conftest import TEMPLATE, forget_templates
from vmcloner_core import (
    CloneMode,
    CreateRequest,
    Engine,
    OnFailure,
    Readiness,
    State,
    TargetRequest,
)
from vmcloner_core.errors import (
    Conflict,
    DeadlineExceeded,
    HostCommandError,
    Interrupted,
    InvalidRequest,
    NotEnoughResources,
    NotFound,
    PartialFailure,
    RollbackIncomplete,
    VmclonerError,
)
from vmcloner_core.hooks import hookimpl
from vmcloner_core.locks import hold
from vmcloner_core.model import HostResources
from vmcloner_core.plan import StepStatus
from vmcloner_core.preflight import check_memory
from vmcloner_core.testing.reference import BootPlugin


def names(clones):
    return [clone.name for clone in clones]


def test_create_list_delete(lab):
    result = lab.engine.create("web", "t1", count=20, ready=True)
    assert result.ok
    assert len(result.results) == 20
    clones = lab.engine.list("web")
    assert names(clones) == [f"web-{n}" for n in range(1, 21)]
    assert {clone.state for clone in clones} == {State.RUNNING}
    assert len({clone.mac for clone in clones}) == 20
    assert len({clone.domain.uuid for clone in clones}) == 20
    lab.engine.delete("web")
    assert lab.engine.list() == ()
    assert not lab.pool.disks
    assert not lab.machines.machines


def test_count_is_the_fleet_in_all(lab):
    lab.engine.create("web", "t1", count=3)
    result = lab.engine.create("web", "t1", count=5)
    assert [r.name for r in result.results] == ["web-4", "web-5"]
    assert result.plan.existing == ("web-1", "web-2", "web-3")
    assert lab.engine.create("web", "t1", count=2).results == ()


def test_count_fills_gaps_and_add_goes_on_after_the_highest(lab):
    lab.engine.create("web", "t1", count=4)
    lab.engine.delete("web-2")
    assert [r.name for r in lab.engine.create("web", "t1", count=4).results] == ["web-2"]
    lab.engine.delete("web-[1-2]")
    assert [r.name for r in lab.engine.create("web", "t1", add=2).results] == ["web-5", "web-6"]


def test_a_crashed_run_is_completed(lab):
    """Whatever parts a killed run left, the same request again completes them."""
    lab.engine.create("web", "t1", count=6)
    del lab.machines.machines["web-2"]  # volume only
    del lab.pool.disks["web-3-disk0"]  # domain only
    assert lab.engine.show("web-2").state is State.ALLOCATED
    assert lab.engine.show("web-3").state is State.ORPHAN
    mac = lab.engine.show("web-3").mac
    result = lab.engine.create("web", "t1", count=6, start=True)
    assert result.ok
    assert {c.state for c in lab.engine.list()} == {State.RUNNING}
    assert lab.engine.show("web-3").mac == mac
    assert len(lab.pool.disks) == len(lab.machines.machines) == 6


def test_start_what_is_stopped_only(lab):
    lab.engine.create("web", "t1", count=3)
    lab.engine.start("web-2")
    result = lab.engine.start("web")
    assert [r.name for r in result.results] == ["web-1", "web-3"]
    assert lab.engine.start("web").results == ()


@pytest.mark.parametrize(
    ("action", "expected"),
    [("start", ["web-1", "web-2"]), ("delete", ["web-4", "web-5"])],
)
def test_up_to_n(lab, action, expected):
    lab.engine.create("web", "t1", count=5)
    plan = lab.engine.plan(TargetRequest(action=action, targets=("web",), count=2))
    assert [clone.name for clone in plan.clones] == expected


def test_up_to_n_counts_the_clones_that_are_changed(lab):
    lab.engine.create("web", "t1", count=6)
    lab.engine.start("web-1", "web-3")
    for ready in (False, True):
        request = TargetRequest(action="start", targets=("web",), count=3, ready=ready)
        plan = lab.engine.plan(request)
        assert [clone.name for clone in plan.clones] == ["web-2", "web-4", "web-5"]
    lab.engine.start("web")
    for ready in (False, True):
        request = TargetRequest(action="start", targets=("web",), count=3, ready=ready)
        assert lab.engine.plan(request).clones == ()
    request = TargetRequest(action="wait", targets=("web",), count=3, ready=True)
    assert [clone.name for clone in lab.engine.plan(request).clones] == ["web-1", "web-2", "web-3"]


def test_restart_goes_down_and_up(lab):
    lab.engine.create("web", "t1", count=1, start=True)
    plan = lab.engine.plan(TargetRequest(action="restart", targets=("web",)))
    assert plan.clones[0].steps == ("shutdown", "start")
    assert lab.engine.restart("web", kill=True).ok
    assert lab.engine.show("web-1").state is State.RUNNING


def test_plan_changes_nothing(lab):
    plan = lab.engine.plan(CreateRequest(fleet="web", template="t1", count=3, start=True))
    assert [c.name for c in plan.clones] == ["web-1", "web-2", "web-3"]
    assert plan.import_image
    assert plan.memory == 3 * 256 * 1024**2
    assert lab.engine.list() == ()
    assert not lab.pool.images
    assert not (lab.folder / "state").exists()


def test_partial_failure_says_which_and_why(lab):
    lab.pool.fail["web-2"] = HostCommandError("disk on fire")
    with pytest.raises(PartialFailure) as caught:
        lab.engine.create("web", "t1", count=3, start=True)
    assert [(n, str(e)) for n, e in caught.value.failures] == [("web-2", "disk on fire")]
    assert caught.value.exit_code == 10
    assert names(lab.engine.list()) == ["web-1", "web-3"]
    assert lab.engine.create("web", "t1", count=3, start=True).ok


def test_rollback_removes_what_this_run_made_only(lab):
    lab.engine.create("web", "t1", count=1)
    lab.machines.fail["define", "web-3"] = HostCommandError("no")
    request = CreateRequest(
        fleet="web", template="t1", count=4, start=True, on_failure=OnFailure.ROLLBACK
    )
    result = lab.engine.run(request)
    assert [f.name for f in result.failures] == ["web-3"]
    assert set(result.rolled_back) == {"web-1", "web-2", "web-3", "web-4"}
    assert names(lab.engine.list()) == ["web-1"]
    assert lab.engine.show("web-1").state is State.STOPPED


def test_failed_rollback_names_what_is_left(lab):
    lab.machines.fail["define", "web-2"] = HostCommandError("no")
    lab.machines.fail["undefine", "web-1"] = HostCommandError("neither")
    with pytest.raises(RollbackIncomplete, match="web-1") as caught:
        lab.engine.create("web", "t1", count=2, on_failure=OnFailure.ROLLBACK)
    assert caught.value.failures[0][0] == "web-2"


def test_a_roll_back_names_what_it_keeps_and_what_removes_that(lab):
    """As what a killed run had made: whole clones, and a volume."""
    lab.engine.create("web", "t1", count=2)
    lab.machines.undefine(["web-2"]).__next__()
    lab.machines.fail["define", "web-4"] = HostCommandError("no")
    with pytest.raises(PartialFailure) as caught:
        lab.engine.create("web", "t1", count=4, on_failure=OnFailure.ROLLBACK)
    assert str(caught.value) == (
        "create: 1 of 3 clones failed; 2 clones rolled back, kept web-[1-2]: there before this run "
        "(to remove also these: vmcloner delete web-[1-2])"
    )
    assert names(lab.engine.list()) == ["web-1", "web-2"]


def test_fleet_of_another_template_is_a_conflict(lab):
    lab.engine.create("web", "t1", count=1)
    with pytest.raises(Conflict, match="t1"):
        lab.engine.create("web", "t2", count=2)


def test_foreign_domain_is_a_conflict_before_anything_is_made(lab):
    lab.machines.foreign |= {"web-2", "web-3"}
    with pytest.raises(Conflict, match=r"web-\[2-3\]"):
        lab.engine.create("web", "t1", count=4)
    assert not lab.pool.disks


def test_foreign_mac_is_avoided(lab):
    first = lab.engine.plan(CreateRequest(fleet="web", template="t1")).clones[0].spec.macs[0]
    lab.machines.foreign_macs.add(first)
    second = lab.engine.plan(CreateRequest(fleet="web", template="t1")).clones[0].spec.macs[0]
    assert first != second


def test_space_is_checked_before(lab):
    lab.engine.import_template("t1")
    lab.pool.free = int(3.5 * 1024**2)
    with pytest.raises(NotEnoughResources, match="3 would fit"):
        lab.engine.create("web", "t1", count=10, mode=CloneMode.FULL)
    assert not lab.pool.disks


def test_memory_is_checked_before(lab):
    lab.machines.memory_free = 1024**3
    with pytest.raises(NotEnoughResources, match="4 would fit"):
        lab.engine.create("web", "t1", count=10, start=True)
    assert lab.engine.create("web", "t1", count=10).ok
    with pytest.raises(NotEnoughResources, match="4 would fit"):
        lab.engine.start("web")
    assert lab.engine.start("web", count=4).ok
    with pytest.raises(NotEnoughResources, match="4 would fit"):
        lab.engine.restart("web", kill=True)
    assert lab.engine.restart("web-[1-4]", kill=True).ok


def test_memory_that_cannot_be_overcommitted():
    host = HostResources(
        memory_total=64, memory_free=35, cpus=1, memory_overhead=2, memory_hint="the host keeps 29"
    )
    check_memory([10, 10], host, overcommit=1.0)
    with pytest.raises(NotEnoughResources) as caught:
        check_memory([10, 10, 10], host, overcommit=9.0)
    assert str(caught.value) == (
        "starting 3 clones takes 36 B of memory, 35 B are available "
        "(2 would fit; the host keeps 29)"
    )


def test_names_must_exist(lab):
    lab.engine.create("web", "t1", count=2)
    with pytest.raises(NotFound, match="did you mean 'web'"):
        lab.engine.list("wep")
    with pytest.raises(NotFound, match="web-7"):
        lab.engine.start("web-[1,7]")
    with pytest.raises(NotFound, match="did you mean 't1'"):
        lab.engine.create("web", "t1x")
    with pytest.raises(NotFound, match="did you mean 'reference'"):
        lab.engine.create("web", "t1", storage="referenc")
    assert lab.engine.delete("gone").results == ()


def test_wait_fails_early_for_the_dead_and_late_for_the_silent(lab):
    lab.engine.create("web", "t1", count=2)
    lab.engine.start("web-1")
    result = lab.engine.run(
        TargetRequest(
            action="wait",
            targets=("web",),
            wait=Readiness(kind="console", argument="never", timeout=1.5),
        )
    )
    late, dead = result.failures
    assert isinstance(late.error, DeadlineExceeded)
    assert "ready name=web-1" in str(late.error)
    assert "web-2 is stopped" in str(dead.error)


def test_start_waits_for_what_each_template_calls_ready(lab):
    lab.engine.create("web", "t1", count=2)
    plan = lab.engine.plan(TargetRequest(action="start", targets=("web",), ready=True))
    assert str(plan.clones[0].wait) == "console:ready name=web-1 "
    assert lab.engine.start("web", ready=True).ok
    assert [r.seconds.keys() for r in lab.engine.wait("web", ready=True).results]


@pytest.mark.parametrize("action", ["wait", "start", "restart", "reset"])
def test_what_is_waited_for_names_a_clones_own_values_and_its_address(lab, action):
    ready = "'console:{{ mac }} {{ role }} {{ index }}'"
    text = TEMPLATE.replace("'console:ready name={{ name }} '", ready)
    lab.template("t1", text + '[values]\nrole = "of-{{ fleet }}"\n')
    created = lab.engine.plan(CreateRequest(fleet="web", template="t1", count=2, ready=True))
    lab.engine.create("web", "t1", count=2)
    first, second = lab.engine.list("web")
    expected = [f"console:{first.mac} of-web 1", f"console:{second.mac} of-web 2"]
    plan = lab.engine.plan(TargetRequest(action=action, targets=("web",), ready=True))
    for asked in (created, plan):
        assert [str(clone.wait) for clone in asked.clones] == expected


def test_a_wait_for_a_name_and_an_address_needs_no_template(lab):
    lab.engine.create("web", "t1", count=1, start=True)
    (lab.folder / "templates" / "t1.toml").unlink()
    wait = Readiness.parse("console:{{ name }}|{{ mac }}$")
    plan = lab.engine.plan(TargetRequest(action="wait", targets=("web",), wait=wait))
    assert str(plan.clones[0].wait) == f"console:web-1|{lab.engine.show('web-1').mac}$"
    assert lab.engine.wait("web", wait=wait).ok


@pytest.mark.parametrize("pattern", ["{{ nam }}", "{% if %}", "{{ '(' }}"])
@pytest.mark.parametrize("there", [True, False])
def test_what_cannot_be_waited_for_changes_nothing(lab, pattern, there):
    wait = Readiness(kind="console", argument=pattern)
    if there:
        lab.engine.create("web", "t1", count=1)
    with pytest.raises(InvalidRequest):
        lab.engine.create("web", "t1", count=2, wait=wait)
    assert names(lab.engine.list()) == (["web-1"] if there else [])
    if there:
        with pytest.raises(InvalidRequest):
            lab.engine.start("web", wait=wait)
        assert lab.engine.show("web-1").state is State.STOPPED


def test_two_creates_at_once_make_n_in_all(lab):
    errors = []

    def create():
        try:
            lab.engine.create("web", "t1", count=30)
        except VmclonerError as error:
            errors.append(error)

    threads = [threading.Thread(target=create) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(lab.engine.list("web")) == 30


def test_all_are_the_fleets_that_were_there_when_it_was_asked_for(lab, caplog):
    """What another run makes while it waits is that run's: no lock on it is held."""
    lab.engine.create("web", "t1", count=2)
    deleting = threading.Thread(target=lambda: lab.engine.delete(everything=True))
    other = Engine.open(plugins=[lab.storage_plugin, lab.hypervisor_plugin, BootPlugin()])
    with other, hold(lab.engine.host.state, ["fleet/web"]):
        deleting.start()
        while "waiting for another run on fleet/web" not in caplog.text:
            time.sleep(0.01)
        other.create("new", "t1", count=2)
    deleting.join()
    assert names(lab.engine.list()) == ["new-1", "new-2"]


def test_cancel_stops_cleanly_and_the_same_again_goes_on(lab):
    class Stopper:
        @hookimpl
        def vmcloner_step_changed(self, event):
            if event.clone == "web-3" and event.status is StepStatus.DONE:
                lab.engine.cancel()

    stop = lab.engine.plugins.watch(Stopper())
    with pytest.raises(Interrupted, match="run the same command again"):
        lab.engine.create("web", "t1", count=40)
    stop()
    assert len(lab.machines.machines) < 40
    assert lab.engine.create("web", "t1", count=40).ok
    assert len(lab.machines.machines) == 40


def test_observers_see_each_step_and_cannot_break_a_run(lab):
    seen, ready, finished = [], [], []

    class Observer:
        @hookimpl
        def vmcloner_step_changed(self, event):
            seen.append((event.clone, event.step, event.status))
            raise RuntimeError("observer's own trouble")

        @hookimpl
        def vmcloner_clone_ready(self, clone):
            ready.append(clone)

        @hookimpl
        def vmcloner_run_finished(self, result):
            finished.append(result)

    lab.engine.plugins.watch(Observer())
    result = lab.engine.create("web", "t1", count=2, start=True)
    assert ("web-1", "define", StepStatus.DONE) in seen
    assert ("t1", "import", StepStatus.DONE) in seen
    assert sorted(ready) == ["web-1", "web-2"]
    assert finished == [result]


def test_preflight_vetoes(lab):
    class Veto:
        @hookimpl
        def vmcloner_preflight(self, plan):
            raise NotEnoughResources(f"not {len(plan.clones)} on a Friday")

    lab.engine.plugins.watch(Veto())
    with pytest.raises(NotEnoughResources, match="Friday"):
        lab.engine.create("web", "t1", count=2)
    assert not lab.pool.disks


def test_mac_policy(lab):
    class Policy:
        @hookimpl
        def vmcloner_clone_mac(self, labels, nic, attempt):
            return f"02:00:00:00:{nic:02x}:{labels.index + 16 * attempt:02x}"

    lab.engine.plugins.watch(Policy())
    lab.machines.foreign_macs.add("02:00:00:00:00:01")
    lab.engine.create("web", "t1", count=2)
    assert [c.mac for c in lab.engine.list()] == ["02:00:00:00:00:11", "02:00:00:00:00:02"]


def test_templates_and_their_images(lab):
    assert lab.engine.import_template("t1").changed
    assert not lab.engine.import_template("t1").changed
    lab.engine.create("web", "t1", count=1)
    with pytest.raises(VmclonerError, match="linked"):
        lab.engine.delete_template("t1")
    lab.engine.delete("web")
    assert lab.engine.delete_template("t1").changed
    assert lab.engine.origins("t1") == ()


def test_jobs_bounds_calls_at_once(lab):
    at_once, most = 0, 0
    lock = threading.Lock()
    start = lab.machines.start

    def counted(names):
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        yield from start(names)
        with lock:
            at_once -= 1

    lab.machines.start = counted
    lab.engine.create("web", "t1", count=30, start=True, jobs=1)
    assert most == 1


@pytest.mark.parametrize("count", [0, -1, 10**6])
def test_counts_out_of_range(count):
    with pytest.raises(InvalidRequest, match="count must be 1 to"):
        CreateRequest(fleet="web", template="t1", count=count)


def test_uuid_is_stable(lab):
    lab.engine.create("web", "t1", count=1)
    first = lab.engine.show("web-1").domain.uuid
    lab.engine.delete("web")
    lab.engine.create("web", "t1", count=1)
    assert lab.engine.show("web-1").domain.uuid == first
    assert isinstance(first, UUID)


def test_reset_starts_again_what_ran(lab):
    lab.engine.create("web", "t1", count=4, start=True)
    lab.engine.stop("web-[3-4]")
    before = lab.engine.list("web")
    plan = lab.engine.plan(TargetRequest(action="reset", targets=("web",)))
    assert [clone.steps for clone in plan.clones] == [
        ("check", "destroy", "renew", "reset", "start"),
        ("check", "destroy", "renew", "reset", "start"),
        ("check", "renew", "reset"),
        ("check", "renew", "reset"),
    ]
    assert lab.engine.reset("web").ok
    assert lab.engine.list("web") == before
    assert lab.engine.reset("web", start=True).ok
    assert {clone.state for clone in lab.engine.list("web")} == {State.RUNNING}


def test_reset_waits_for_what_it_starts(lab):
    lab.engine.create("web", "t1", count=2)
    plan = lab.engine.plan(TargetRequest(action="reset", targets=("web",), ready=True))
    assert plan.clones[0].steps == ("check", "renew", "reset", "start", "wait")
    assert lab.engine.reset("web", ready=True).ok


def test_reset_makes_lost_volumes_anew(lab):
    """As a reset does that was killed between deleting and cloning."""
    lab.template("t3", TEMPLATE + '[[disks]]\nsize = "1MiB"\n')
    lab.engine.create("web", "t3", count=2, start=True)
    identity = [(c.mac, c.domain.uuid) for c in lab.engine.list("web")]
    for name in ("web-1-disk0", "web-1-disk1", "web-2-disk1"):
        del lab.pool.disks[name]
    assert lab.engine.show("web-1").state is State.ORPHAN
    assert lab.engine.reset("web").ok
    assert {clone.state for clone in lab.engine.list("web")} == {State.RUNNING}
    assert sorted(lab.pool.disks) == [f"web-{n}-disk{d}" for n in (1, 2) for d in (0, 1)]
    assert [(c.mac, c.domain.uuid) for c in lab.engine.list("web")] == identity


def test_reset_needs_the_template_and_its_image(lab):
    lab.engine.create("web", "t1", count=2)
    del lab.pool.images["t1"]
    with pytest.raises(PartialFailure) as caught:
        lab.engine.reset("web")
    assert "vmcloner template import t1" in str(caught.value.failures[0][1])
    assert len(lab.pool.disks) == 2
    forget_templates(lab.folder / "state")
    (lab.folder / "templates" / "t1.toml").unlink()
    with pytest.raises(NotFound, match="its reset needs template 't1'"):
        lab.engine.reset("web")


def test_reset_keeps_a_disks_size(lab):
    lab.engine.create("web", "t1", count=1)
    lab.template("t1", TEMPLATE.replace("[image]", 'disk_size = "8MiB"\n[image]'))
    assert lab.engine.reset("web").ok
    assert lab.engine.show("web-1").volumes[0].size == 1024**2


def test_choices_may_be_given_by_their_values():
    request = CreateRequest(fleet="web", template="t1", mode="full", on_failure="rollback")
    assert (request.mode, request.on_failure) == (CloneMode.FULL, OnFailure.ROLLBACK)
    with pytest.raises(InvalidRequest, match="on_failure 'undo' is unknown"):
        CreateRequest(fleet="web", template="t1", on_failure="undo")
    with pytest.raises(InvalidRequest, match="mode 'thin' is unknown"):
        CreateRequest(fleet="web", template="t1", mode="thin")
