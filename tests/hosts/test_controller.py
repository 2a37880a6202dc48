"""A controller of three hosts, on engines of this process with the reference drivers."""

import json
import threading
import uuid
from collections import Counter

import attrs
import pytest

from vmcloner_core.errors import (
    BackendError,
    Conflict,
    HostCommandError,
    Interrupted,
    InvalidRequest,
    NotEnoughResources,
    NotFound,
    PartialFailure,
    RollbackIncomplete,
)
from vmcloner_core.hooks import hookimpl
from vmcloner_core.hosts import wire
from vmcloner_core.hosts.beside import Answered, Found
from vmcloner_core.hosts.carrier import InProcess, Unreachable
from vmcloner_core.hosts.links import Links
from vmcloner_core.hosts.opening import open_hosts
from vmcloner_core.model import RemoteHost, State
from vmcloner_core.placing import Placing, Where
from vmcloner_core.plan import OnFailure, Quota, StepEvent, StepStatus
from vmcloner_core.request import CreateRequest, TargetRequest
from vmcloner_core.results import check_result


def names(clones):
    return [clone.name for clone in clones]


def on_each(clones):
    return dict(Counter(clone.host for clone in clones))


class Watch:
    def __init__(self):
        self.events, self.plans, self.results = [], [], []

    @hookimpl
    def vmcloner_plan_ready(self, plan):
        self.plans.append(plan)

    @hookimpl
    def vmcloner_step_changed(self, event):
        self.events.append(event)

    @hookimpl
    def vmcloner_run_finished(self, result):
        self.results.append(result)


def test_a_fleet_is_spread_and_found_again_and_deleted(hosts):
    watch = Watch()
    all_hosts = hosts.controller(watch)
    result = all_hosts.create("web", "t1", count=30, ready=True)
    assert result.ok
    assert names(result.plan.clones) == [f"web-{n}" for n in range(1, 31)]
    clones = all_hosts.list("web")
    assert on_each(clones) == {"h1": 10, "h2": 10, "h3": 10}
    assert {clone.state for clone in clones} == {State.RUNNING}
    for unique in (
        [c.name for c in clones],
        [c.mac for c in clones],
        [c.domain.uuid for c in clones],
    ):
        assert len(set(unique)) == 30
    assert {c.labels.run for c in clones} == {result.plan.run}
    ended = (StepStatus.DONE, StepStatus.UNCHANGED)
    done = [e for e in watch.events if e.step == "wait" and e.status in ended]
    assert {event.clone for event in done} == {c.name for c in clones}
    assert len(watch.plans) == len(watch.results) == 1
    assert all_hosts.delete("web").ok
    assert all_hosts.list() == ()


def test_the_same_create_changes_nothing_and_a_larger_one_adds(hosts):
    all_hosts = hosts.controller()
    all_hosts.create("web", "t1", count=4)
    before = {clone.name: clone.host for clone in all_hosts.list()}
    assert all_hosts.create("web", "t1", count=4).results == ()
    result = all_hosts.create("web", "t1", count=7)
    assert names(result.plan.clones) == ["web-5", "web-6", "web-7"]
    after = {clone.name: clone.host for clone in all_hosts.list()}
    assert {name: after[name] for name in before} == before
    assert Counter(after.values()) == {"h1": 3, "h2": 2, "h3": 2}
    assert names(all_hosts.create("web", "t1", add=1).plan.clones) == ["web-8"]


def test_the_single_hosts_see_their_own(hosts):
    hosts.controller().create("web", "t1", count=3)
    for name, site in hosts.sites.items():
        (clone,) = site.engine.list()
        assert (clone.host, site.engine.show(clone.name).host) == ("local", "local"), name


def test_placing_packs_limits_and_names_hosts(hosts):
    all_hosts = hosts.controller()
    all_hosts.create("a", "t1", count=4, where=Where(how=Placing.PACK))
    assert on_each(all_hosts.list("a")) == {"h1": 4}
    all_hosts.create("b", "t1", count=4, where=Where(hosts=("h2", "h3")))
    assert on_each(all_hosts.list("b")) == {"h2": 2, "h3": 2}
    all_hosts.create("c", "t1", count=4, where=Where(how=Placing.PACK, each=3))
    assert on_each(all_hosts.list("c")) == {"h1": 3, "h2": 1}
    with pytest.raises(NotEnoughResources, match="can take 3 of 4"):
        all_hosts.create("d", "t1", count=4, where=Where(each=1))
    with pytest.raises(NotFound, match="unknown host 'h9'"):
        all_hosts.create("d", "t1", where=Where(hosts=("h9",)))
    assert all_hosts.list("a", "b", "c") == all_hosts.list()


def test_memory_decides_where(hosts, monkeypatch):
    full = hosts.sites["h2"].machines
    found = full.resources()
    monkeypatch.setattr(
        type(full),
        "resources",
        lambda self: attrs.evolve(found, memory_free=0) if self is full else found,
    )
    all_hosts = hosts.controller()
    all_hosts.create("web", "t1", count=4, start=True)
    assert on_each(all_hosts.list()) == {"h1": 2, "h3": 2}


def test_targets_are_found_wherever_they_are(hosts):
    all_hosts = hosts.controller()
    all_hosts.create("web", "t1", count=6)
    all_hosts.create("db", "t1", count=2)
    all_hosts.start("web-[2-4]", "db")
    running = [c.name for c in all_hosts.list() if c.state is State.RUNNING]
    assert running == ["db-1", "db-2", "web-2", "web-3", "web-4"]
    assert names(all_hosts.stop("web", count=2, kill=True).plan.clones) == ["web-3", "web-4"]
    with pytest.raises(NotFound, match=r"no clone web-\[7-9\]"):
        all_hosts.start("web-[5-9]")
    with pytest.raises(NotFound, match="no fleet 'nope'"):
        all_hosts.start("nope")
    assert all_hosts.delete("nope", "db").ok
    with pytest.raises(NotFound, match="no fleet 'nope'"):
        all_hosts.run(TargetRequest(action="delete", targets=("nope",), missing_ok=False))
    all_hosts.run(TargetRequest(action="delete", everything=True))
    assert all_hosts.list() == ()


def test_dry_run_changes_nothing(hosts):
    all_hosts = hosts.controller()
    plan = all_hosts.plan(CreateRequest(fleet="web", template="t1", count=5))
    assert len(plan.clones) == 5
    assert all_hosts.list() == ()


def test_macs_are_unique_although_hosts_choose_the_same(hosts, monkeypatch):
    """Three hosts with the same seed would give their clones the same addresses."""
    from vmcloner_core import planner

    monkeypatch.setattr(
        planner,
        "clone_mac",
        lambda prefix, _seed, _fleet, index, nic, attempt: (
            f"{prefix}:00:{(index % 2) + 2 * nic:02x}:{attempt:02x}"
        ),
    )
    all_hosts = hosts.controller()
    all_hosts.create("web", "t1", count=9)
    all_hosts.create("db", "t1", count=9)
    assert len({clone.mac for clone in all_hosts.list()}) == 18


def test_a_create_sees_the_clones_of_other_fleets_only_as_names_and_numbers(hosts):
    all_hosts = hosts.controller()
    all_hosts.create("db", "t1", count=3, where=Where(hosts=("h1",)))
    looks = []
    carrier_call = hosts.carrier.call

    def call(host, name, text, event):
        answer = carrier_call(host, name, text, event)
        if name == "hold" and host == "h1":
            value = wire.load(answer, Answered, whose="h1").value
            looks.append(wire.load(value, Found, whose="h1"))
        return answer

    hosts.carrier.call = call
    all_hosts.create("web", "t1", count=4)
    assert on_each(all_hosts.list("web")) == {"h1": 1, "h2": 2, "h3": 1}
    (look,) = looks
    assert (look.survey.clones, look.clones) == ((), 3)
    assert look.survey.foreign_names >= {"db-1", "db-2", "db-3"}


def test_a_host_that_is_down_refuses_runs_unless_it_is_left_out(hosts):
    all_hosts = hosts.controller()
    all_hosts.create("web", "t1", count=6)
    hosts.carrier.lose("h2")
    down = hosts.controller()
    with pytest.raises(BackendError, match="host 'h2' does not answer") as caught:
        down.create("web", "t1", count=9)
    assert "--without h2" in caught.value.hint
    found = down.survey()
    assert on_each(found.clones) == {"h1": 2, "h3": 2}
    assert [str(each) for each in found.unseen] == [
        "host 'h2' could not be read: host 'h2' does not answer"
    ]
    less = hosts.controller(without=["h2"])
    result = less.create("web", "t1", count=6)
    # web-2 and web-5 may be on h2: only indices above the highest known one are new
    assert names(result.plan.clones) == ["web-7", "web-8"]
    hosts.carrier._lost.clear()
    again = hosts.controller()
    assert len(names(again.list())) == len(set(names(again.list()))) == 8
    assert again.create("web", "t1", count=8).results == ()


class Dropping(InProcess):
    """Loses a host as it is asked to run."""

    def __init__(self, besides, host, after):
        super().__init__(besides)
        self.host, self.after = host, after

    def call(self, host, name, text, event):
        if (host, name) == (self.host, "run"):
            if self.after:
                super().call(host, name, text, event)
            self._besides[host].close()  # its connection's end releases what it held
            raise Unreachable(f"host {host!r} does not answer")
        return super().call(host, name, text, event)


@pytest.mark.parametrize("after", [False, True])
def test_a_host_lost_during_a_run_fails_its_clones_and_the_same_command_converges(hosts, after):
    carrier = Dropping(hosts.carrier._besides, "h3", after)
    with pytest.raises(PartialFailure, match="3 of 9 clones failed") as caught:
        hosts.controller(carrier=carrier).create("web", "t1", count=9)
    assert {name for name, _ in caught.value.failures} == {"web-3", "web-6", "web-9"}
    all_hosts = hosts.controller()
    assert all_hosts.create("web", "t1", count=9).ok
    assert names(all_hosts.list()) == [f"web-{n}" for n in range(1, 10)]


def test_a_roll_back_is_on_all_hosts(hosts):
    hosts.sites["h2"].machines.fail["start", "web-2"] = HostCommandError("no more threads")
    all_hosts = hosts.controller()
    with pytest.raises(
        PartialFailure, match="1 of 6 clones failed; 6 clones rolled back"
    ) as caught:
        all_hosts.create("web", "t1", count=6, start=True, on_failure=OnFailure.ROLLBACK)
    assert [(name, str(error)) for name, error in caught.value.failures] == [
        ("web-2", "no more threads")
    ]
    assert all_hosts.list() == ()


def test_a_name_on_two_hosts_is_a_conflict_that_says_how_to_end_it(hosts):
    for name in ("h1", "h3"):
        hosts.sites[name].engine.create("web", "t1", count=2)
    all_hosts = hosts.controller()
    assert names(all_hosts.list()) == ["web-1", "web-1", "web-2", "web-2"]
    with pytest.raises(Conflict, match="web-1 is on hosts h1 and h3"):
        all_hosts.create("web", "t1", count=4)
    assert all_hosts.delete("web").ok
    assert all_hosts.list() == ()


def test_another_version_is_refused_by_name(hosts):
    with pytest.raises(BackendError, match=r"host 'h1' has vmcloner .*, this machine 0\.0"):
        hosts.controller(version="0.0").create("web", "t1")


def test_the_list_of_hosts_says_who_can_be_used(hosts):
    all_hosts = hosts.controller()
    all_hosts.create("web", "t1", count=4)
    hosts.carrier.lose("h3")
    found = hosts.controller().hosts()
    assert [found[name].clones for name in ("h1", "h2")] == [2, 1]
    assert isinstance(found["h3"], Unreachable)
    checks = list(hosts.controller().check_host())
    assert {check.backend.partition("/")[0] for check in checks} == {"h1", "h2", "h3"}
    assert [c.detail for c in checks if c.backend == "h3"] == ["host 'h3' does not answer"]


def test_a_call_for_one_host_says_so(hosts):
    all_hosts = hosts.controller()
    all_hosts.create("web", "t1")
    assert all_hosts.console_log(all_hosts.show("web-1")) is None
    with pytest.raises(InvalidRequest, match="works on one host only"):
        all_hosts.display("web-1")
    with pytest.raises(AttributeError):
        all_hosts.nonsense()


def test_values_go_to_the_hosts_of_their_clones(hosts):
    all_hosts = hosts.controller()
    values = {n: {"memory": f"{64 + n}MiB"} for n in range(1, 5)}
    all_hosts.create("web", "t1", count=4, values=values)
    assert [c.domain.memory // 2**20 for c in all_hosts.list()] == [65, 66, 67, 68]
    with pytest.raises(InvalidRequest, match="web-9, outside the fleet"):
        all_hosts.create("web", "t1", count=4, values={9: {"memory": "1GiB"}})


def test_an_error_of_a_host_keeps_its_class_and_names_the_host(hosts):
    with pytest.raises(NotFound, match="host 'h1': unknown template 'nope'"):
        hosts.controller().create("web", "nope")


def test_clones_are_leased_on_each_host(hosts):
    all_hosts = hosts.controller()
    all_hosts.create("web", "t1", count=3, ttl=3600)
    all_hosts.create("db", "t1", count=3)
    clones = all_hosts.list()
    states = all_hosts.leases(clones)
    assert [state.clone.name for state in states] == names(clones)
    assert [state.lease and state.lease.ttl for state in states] == [None] * 3 + [3600] * 3
    assert all(0 < state.left <= 3600 for state in states[3:])


class Recording(InProcess):
    """Notes the calls, and calls something at one of them."""

    def __init__(self, besides, at=None, do=lambda: None):
        super().__init__(besides)
        self.calls, self.at, self.do = [], at, do

    def call(self, host, name, text, event):
        self.calls.append((host, name))
        if name == self.at:
            self.do()
        return super().call(host, name, text, event)


def test_a_roll_back_keeps_the_fleet_held(hosts):
    """A controller that waits for the fleet would get it on one host, and both would wait."""
    hosts.sites["h2"].machines.fail["start", "web-2"] = HostCommandError("no more threads")
    carrier = Recording(hosts.carrier._besides)
    with pytest.raises(PartialFailure, match="6 clones rolled back"):
        hosts.controller(carrier=carrier).create(
            "web", "t1", count=6, start=True, on_failure=OnFailure.ROLLBACK
        )
    assert [call for call in carrier.calls if call[1] == "hold"] == [
        ("h1", "hold"), ("h2", "hold"), ("h3", "hold"),
    ]  # fmt: skip


def test_a_roll_back_says_what_a_lost_host_may_have(hosts):
    carrier = Dropping(hosts.carrier._besides, "h3", after=True)
    with pytest.raises(RollbackIncomplete) as caught:
        hosts.controller(carrier=carrier).create(
            "web", "t1", count=6, on_failure=OnFailure.ROLLBACK
        )
    assert caught.value.hint == "vmcloner delete web-[3,6]"
    assert names(hosts.controller().list()) == ["web-3", "web-6"]


def test_a_host_that_is_left_out_may_have_the_highest_clones(hosts):
    hosts.controller().create("web", "t1", count=5)
    hosts.carrier.lose("h2")  # has web-2 and web-5
    result = hosts.controller(without=["h2"]).create("web", "t1", count=5)
    assert names(result.plan.clones) == ["web-6", "web-7"]
    hosts.carrier._lost.clear()
    assert names(hosts.controller().list()) == [f"web-{n}" for n in range(1, 8)]


def test_leaving_out_all_hosts_is_refused(hosts):
    with pytest.raises(InvalidRequest, match="no host is left"):
        hosts.controller(without=["h1", "h2", "h3"])


def test_two_names_of_one_machine_are_refused(hosts):
    """Its locks would be waited for for ever, and its clones be there twice."""
    besides = hosts.carrier._besides
    carrier = InProcess({**besides, "h2": besides["h1"]})
    with pytest.raises(InvalidRequest, match="hosts 'h1' and 'h2' are the same machine"):
        hosts.controller(carrier=carrier).delete("web")


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, BackendError("x")])
def test_observers_are_told_once_that_a_run_is_finished(hosts, monkeypatch, error):
    watch = Watch()
    all_hosts = hosts.controller(watch)

    def fail(*_):
        raise error

    monkeypatch.setattr(all_hosts, "_ran", fail)
    with pytest.raises(error if isinstance(error, type) else type(error)):
        all_hosts.create("web", "t1", count=3)
    (result,) = watch.results
    assert result.error is not None
    assert len(result.failures) == 3


def test_a_cancel_while_hosts_plan_stops_the_run(hosts):
    carrier = Recording(hosts.carrier._besides, "plan")
    all_hosts = hosts.controller(carrier=carrier)
    carrier.do = all_hosts.cancel
    with pytest.raises(Interrupted):
        all_hosts.create("web", "t1", count=6)
    assert all_hosts.list() == ()


def test_all_leaves_clones_of_other_state_folders_alone(hosts):
    hosts.controller().create("web", "t1", count=3)
    (hosts.sites["h2"].folder / "state/id").write_text(f"{uuid.uuid4().hex}\n")
    engine = hosts.sites["h2"].engine
    assert [clone.ours for clone in engine.list()] == [False]
    result = hosts.controller().run(TargetRequest(action="delete", everything=True))
    assert "left alone" in "".join(result.plan.warnings)
    assert names(hosts.controller().list()) == ["web-2"]


def test_all_touches_no_fleet_that_is_not_held(hosts):
    hosts.controller().create("web", "t1", count=3)
    new = hosts.sites["h2"].engine
    done = []

    def make():
        if not done:
            done.append(new.create("new", "t1"))

    carrier = Recording(hosts.carrier._besides, "hold", make)
    hosts.controller(carrier=carrier).run(TargetRequest(action="delete", everything=True))
    assert names(hosts.controller().list()) == ["new-1"]


def test_a_fleet_that_may_be_on_an_unread_pool_is_not_said_to_be_gone(hosts, monkeypatch):
    site = hosts.sites["h2"]
    site.pool.fail["inspect", ""] = BackendError("disk is gone")
    monkeypatch.setattr(
        type(site.machines), "inspect", lambda _self: (_ for _ in ()).throw(BackendError("dead"))
    )
    with pytest.raises(BackendError, match="delete web"):
        hosts.controller().delete("web")


def test_a_share_counts_only_where_clones_are_waited_for(hosts):
    hosts.sites["h2"].machines.fail["start", "web-2"] = HostCommandError("no more threads")
    with pytest.raises(PartialFailure, match="1 of 6 clones failed"):
        hosts.controller().create("web", "t1", count=6, start=True, min_ready=Quota.parse("50%"))


def test_a_host_that_makes_no_clones_needs_no_template(hosts, monkeypatch):
    engine = hosts.sites["h2"].engine
    real = type(engine).template

    def template(self, name):
        if self.host.state == engine.host.state:
            raise NotFound(f"unknown template {name!r}")
        return real(self, name)

    monkeypatch.setattr(type(engine), "template", template)
    all_hosts = hosts.controller()
    assert all_hosts.create("web", "t1", start=True, where=Where(hosts=("h1",))).ok
    with pytest.raises(NotFound, match="host 'h2': unknown template"):
        all_hosts.create("db", "t1", start=True)


def test_a_pause_of_a_fleet_leaves_its_stopped_clones(hosts):
    all_hosts = hosts.controller()
    all_hosts.create("web", "t1", count=6, start=True)
    all_hosts.stop("web-[4-6]", kill=True)
    assert all_hosts.run(TargetRequest(action="pause", targets=("web",))).ok


def test_a_clone_of_this_machine_is_reached_without_a_jump(hosts):
    links = Links(hosts.carrier, [RemoteHost(name="local", ssh="local", python="")], "1")
    assert links.destination("local") is None


def test_events_of_a_host_are_shown_without_control_characters(hosts):
    """The progress display writes them to a terminal."""

    class Hostile(InProcess):
        def call(self, host, name, text, event):
            if name == "run":
                step = StepEvent(
                    run="r", clone="\x1b[2J", step="\x07", status=StepStatus.DONE, at=0.0
                )
                event(wire.dump({"kind": "step", "value": wire.dump(step)}))
            return super().call(host, name, text, event)

    watch = Watch()
    hosts.controller(watch, carrier=Hostile(hosts.carrier._besides)).create("web", "t1", count=3)
    assert {(e.clone, e.step) for e in watch.events if e.run == "r"} == {(r"\x1b[2J", r"\x07")}


def test_a_host_with_only_stopped_clones_of_a_fleet_is_left_by_a_pause(hosts):
    all_hosts = hosts.controller()
    all_hosts.create("web", "t1", count=3, start=True)
    all_hosts.stop("web-2", kill=True)
    assert all_hosts.run(TargetRequest(action="pause", targets=("web",))).ok
    with pytest.raises(PartialFailure, match="1 of 1 clone failed"):
        check_result(all_hosts.run(TargetRequest(action="pause", targets=("web-2",))))


def test_a_fleet_that_is_larger_than_asked_is_said(hosts):
    all_hosts = hosts.controller()
    all_hosts.create("web", "t1", count=5)
    plan = all_hosts.plan(CreateRequest(fleet="web", template="t1", count=3))
    assert plan.warnings == (
        "web already has 5 clones; create removes none (vmcloner delete web -n 2)",
    )


def test_a_host_that_is_left_out_may_have_what_was_added_last(hosts):
    """Only the host that is off has the highest index."""
    hosts.controller().create("web", "t1", count=3)
    added = hosts.controller().create("web", "t1", add=1, where=Where(hosts=("h2",)))
    assert names(added.plan.clones) == ["web-4"]
    hosts.carrier.lose("h2")
    result = hosts.controller(without=["h2"]).create("web", "t1", add=2)
    assert names(result.plan.clones) == ["web-5", "web-6"]
    hosts.carrier._lost.clear()
    assert names(hosts.controller().list()) == [f"web-{n}" for n in range(1, 7)]


def test_a_fleet_that_is_gone_everywhere_begins_with_1_again(hosts):
    hosts.controller().create("web", "t1", count=6)
    hosts.controller().delete("web")
    assert not any(list(site.folder.glob("state/highest/*")) for site in hosts.sites.values())
    hosts.carrier.lose("h2")
    result = hosts.controller(without=["h2"]).create("web", "t1", add=1)
    assert names(result.plan.clones) == ["web-1"]


def test_one_host_alone_does_not_lower_what_is_known_of_the_highest(hosts):
    hosts.controller().create("web", "t1", count=6)
    hosts.controller(without=["h2", "h3"]).create("web", "t1", add=1)
    hosts.controller(without=["h2", "h3"]).delete("web")
    result = hosts.controller(without=["h2", "h3"]).create("web", "t1", add=1)
    assert names(result.plan.clones) == ["web-8"]


def test_all_sweeps_a_fleet_of_which_only_a_draft_is_left(hosts):
    """A run was killed between making a record's folder and giving it its name."""
    hosts.controller().create("web", "t1", count=3)
    records = hosts.sites["h2"].engine.host.records
    draft = records / ".old-1.draft"
    draft.mkdir(parents=True)
    assert "old" in hosts.sites["h2"].engine.all_fleets()
    hosts.controller().run(TargetRequest(action="delete", everything=True))
    assert not draft.exists()


def test_all_hosts_run_at_once(hosts, monkeypatch):
    """Those of a second wave would begin only when the guests of the first are ready."""
    monkeypatch.setattr("vmcloner_core.hosts.links.AT_ONCE", 1)
    together = threading.Barrier(3)
    carrier = Recording(hosts.carrier._besides, "run", lambda: together.wait(20))
    assert hosts.controller(carrier=carrier).create("web", "t1", count=3).ok


class Lying(InProcess):
    """Changes the answers of a host."""

    def __init__(self, besides, host, name, change):
        super().__init__(besides)
        self.lie = (host, name)
        self.change = change

    def call(self, host, name, text, event):
        said = super().call(host, name, text, event)
        if (host, name) != self.lie:
            return said
        answer = json.loads(said)
        return json.dumps({**answer, "value": json.dumps(self.change(json.loads(answer["value"])))})


def _with_clone(index, fleet):
    def change(plan):
        clone = json.loads(json.dumps(plan["clones"][0]))
        clone["labels"] |= {"index": index, "fleet": fleet}
        clone["spec"] = None
        return {**plan, "clones": [*plan["clones"], clone]}

    return change


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (_with_clone(1, "web"), "web-1"),  # another host's
        (_with_clone(9, "web"), "web-9"),
        (_with_clone(2, "web"), "web-2"),  # its own, twice
        (_with_clone(2, "db"), "db-2"),
        (lambda plan: {**plan, "existing": ["web-3"]}, "web-3"),
    ],
)
def test_a_plan_that_has_what_was_not_asked_for_is_refused(hosts, change, name):
    carrier = Lying(hosts.carrier._besides, "h2", "plan", change)
    with pytest.raises(BackendError, match=f"host 'h2': its plan has {name}, which it was not"):
        hosts.controller(carrier=carrier).create("web", "t1", count=3)
    assert hosts.controller().list() == ()


def test_a_plan_for_targets_may_have_those_of_its_host_only(hosts):
    hosts.controller().create("web", "t1", count=3)
    carrier = Lying(hosts.carrier._besides, "h2", "plan", _with_clone(1, "web"))
    with pytest.raises(BackendError, match="its plan has web-1, which it was not asked for"):
        hosts.controller(carrier=carrier).delete("web")
    carrier = Lying(hosts.carrier._besides, "h2", "plan", lambda p: {**p, "action": "start"})
    with pytest.raises(BackendError, match="its plan is to start"):
        hosts.controller(carrier=carrier).delete("web")
    assert len(hosts.controller().list()) == 3


def test_a_result_counts_for_the_clones_of_its_host_only(hosts):
    def change(result):
        result["results"][0]["name"] = "web-1"
        return result

    carrier = Lying(hosts.carrier._besides, "h2", "run", change)
    with pytest.raises(PartialFailure, match="1 of 3 clones failed") as caught:
        hosts.controller(carrier=carrier).create("web", "t1", count=3)
    assert [(name, str(error)) for name, error in caught.value.failures] == [
        ("web-2", "host 'h2' gave no result for it")
    ]


def test_one_host_and_others_to_leave_out_are_not_given_together(tmp_path):
    config = tmp_path / "vmcloner.toml"
    config.write_text('[hosts.h1]\nssh = "h1"\n[hosts.h2]\nssh = "h2"\n')
    for host, said in (("h1", "only h1 is worked on"), ("local", "--without needs several hosts")):
        with pytest.raises(InvalidRequest, match=said):
            open_hosts(config=config, host=host, without=["h2"])


def test_a_read_during_a_run_takes_none_of_its_events(hosts):
    """Reads may come from other threads: the run's observers hear all of it all the same."""
    watch, reads = Watch(), []
    all_hosts = hosts.controller(watch)
    define = hosts.sites["h1"].machines.define

    def defined(specs):
        if not reads:
            reads.append(threading.Thread(target=all_hosts.leases, args=(all_hosts.list(),)))
            reads[0].start()
            reads[0].join(60)
        return define(specs)

    hosts.sites["h1"].machines.define = defined
    all_hosts.create("web", "t1", count=3, start=True)
    assert reads
    ends = (StepStatus.DONE, StepStatus.UNCHANGED)
    done = [(e.clone, e.step) for e in watch.events if e.clone != "t1" and e.status in ends]
    assert sorted(done) == sorted(set(done))
    assert {clone for clone, step in done if step == "start"} == {"web-1", "web-2", "web-3"}
