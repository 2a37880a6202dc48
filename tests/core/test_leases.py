"""Leases: who gets one, when they end, and that no clock ends one early."""

import json
import os
import threading
import time

import attrs
import pytest

from vmcloner_core import Engine, State, clock
from vmcloner_core.errors import Conflict, HostCommandError, InvalidRequest, NotFound, WrongState
from vmcloner_core.hooks import hookimpl
from vmcloner_core.locks import hold
from vmcloner_core.model import Lease, Moment
from vmcloner_core.request import CreateRequest
from vmcloner_core.units import parse_duration

HOUR = 3600


@attrs.define
class Clock:
    """The host's clock: ``later`` lets time pass, ``set`` sets the wall clock, ``reboot``."""

    moment: Moment

    def later(self, seconds):
        moment = self.moment
        up, wall = moment.up + seconds, moment.wall + seconds
        self.moment = attrs.evolve(moment, up=up, wall=wall)

    def set(self, seconds):
        self.moment = attrs.evolve(self.moment, wall=self.moment.wall + seconds)

    def reboot(self):
        self.moment = attrs.evolve(self.moment, boot=self.moment.boot + "x", up=1.0)


@pytest.fixture
def time_here(monkeypatch):
    now = clock.now()  # in whole seconds, so that sums are exact
    here = Clock(attrs.evolve(now, up=float(int(now.up)), wall=float(int(now.wall))))
    monkeypatch.setattr(clock, "now", lambda: here.moment)
    return here


def names(lab):
    return [clone.name for clone in lab.engine.list()]


def lease(lab, name="web-1"):
    [state] = lab.engine.leases(lab.engine.list(name))
    return state


def test_an_expired_clone_is_removed_and_no_other(lab, time_here):
    lab.engine.create("web", "t1", count=2, ttl=HOUR, start=True)
    lab.engine.create("db", "t1", count=1, ttl=2 * HOUR)
    lab.engine.create("ever", "t1", count=1)
    time_here.later(HOUR - 1)
    assert lab.engine.gc(expired=True) == ()
    time_here.later(1)
    assert lab.engine.gc() == ()
    planned = lab.engine.gc(expired=True, dry_run=True)
    assert names(lab) == ["db-1", "ever-1", "web-1", "web-2"]
    assert lab.engine.gc(expired=True) == planned
    assert sorted({left.kind for left in planned}) == ["disk", "domain", "record"]
    assert "ended" in planned[0].why
    assert names(lab) == ["db-1", "ever-1"]
    assert lab.engine.gc(expired=True) == ()


@pytest.mark.parametrize("jump", [-30 * HOUR, -5, 5 * HOUR, 300 * 24 * HOUR])
def test_a_clock_that_is_set_ends_no_lease_early(lab, time_here, jump):
    lab.engine.create("web", "t1", count=1, ttl=4 * HOUR)
    time_here.set(jump)
    try:
        lab.engine.gc(expired=True)
    except WrongState as refused:
        assert jump == -30 * HOUR, refused
        assert "clock is wrong" in refused.message
    time_here.later(4 * HOUR - 10)
    if jump != -30 * HOUR:
        lab.engine.gc(expired=True)
    assert names(lab) == ["web-1"]


def test_after_a_reboot_the_clock_counts(lab, time_here):
    lab.engine.create("web", "t1", count=1, ttl=4 * HOUR)
    time_here.reboot()
    time_here.later(4 * HOUR - 10)
    lab.engine.gc(expired=True)
    assert names(lab) == ["web-1"]
    time_here.later(10)
    lab.engine.gc(expired=True)
    assert names(lab) == []


@pytest.mark.parametrize("jump", [-2 * HOUR, -40 * 365 * 24 * HOUR, 400 * 24 * HOUR])
@pytest.mark.parametrize("reboots", [True, False])
def test_a_clock_that_is_plainly_wrong_is_refused(lab, time_here, run, jump, reboots):
    lab.engine.create("web", "t1", count=1, ttl=1)
    time_here.later(2)
    if reboots:
        time_here.reboot()
    time_here.set(jump)
    code, out, err = run("gc", "--expired", "--yes")
    assert (code, out) == (WrongState.exit_code, "")
    assert len(err.splitlines()) == 1
    assert "this host's clock is wrong" in err
    assert names(lab) == ["web-1"]
    assert lab.engine.gc() == ()  # it doesn't depend on the clock


def test_no_lease_is_granted_by_a_clock_that_is_behind(lab, time_here):
    lab.engine.create("web", "t1", count=1)
    time_here.set(-40 * 365 * 24 * HOUR)
    with pytest.raises(WrongState, match="clock"):
        lab.engine.create("db", "t1", count=1, ttl=HOUR)
    with pytest.raises(WrongState, match="clock"):
        lab.engine.extend_lease("web", ttl=HOUR)
    assert names(lab) == ["web-1"]


def test_a_clock_beyond_all_dates_is_one_line(lab, time_here):
    time_here.set(1e15)
    lab.engine.create("web", "t1", count=1)
    with pytest.raises(WrongState):
        lab.engine.gc(expired=True)


@pytest.mark.parametrize("ttl", [0, -1, 100 * 365 * 86_400, 367 * 86_400, "forever", 1.5, True])
def test_lengths_that_are_refused(lab, ttl):
    with pytest.raises(InvalidRequest, match="ttl out of range"):
        CreateRequest(fleet="web", template="t1", ttl=ttl)
    lab.engine.create("web", "t1", count=1)
    with pytest.raises(InvalidRequest):
        lab.engine.extend_lease("web", ttl=ttl)


@pytest.mark.parametrize(
    ("text", "code"), [("0", 3), ("0h", 3), ("5300w", 3), ("4 hours", 2), ("-1h", 2), ("", 2)]
)
def test_lengths_that_the_command_refuses(lab, run, text, code):
    found, _out, err = run("create", "web", "-t", "t1", f"--ttl={text}")
    assert found == code, err
    assert names(lab) == []


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("45", 45), ("30s", 30), ("15m", 900), ("15min", 900), ("4h", 14_400), (" 2 d ", 172_800),
     ("1w", 604_800), (7, 7)],
)  # fmt: skip
def test_durations(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "h", "1.5h", "4H", "1h30min", True, None, 1.5, "1" * 99])
def test_no_durations(text):
    with pytest.raises(InvalidRequest, match="not a duration"):
        parse_duration(text)


def test_the_settings_give_a_default(lab):
    defaults = attrs.evolve(lab.engine.settings.defaults, ttl=HOUR)
    engine = Engine(
        attrs.evolve(lab.engine.settings, defaults=defaults), lab.engine.plugins, lab.engine._host
    )
    engine.create("web", "t1", count=1)
    engine.create("ever", "t1", count=1, ttl="never")
    assert lease(lab).lease.ttl == HOUR
    assert lease(lab, "ever-1").lease is None


def test_a_create_again_changes_no_lease(lab, time_here, caplog):
    lab.engine.create("web", "t1", count=1, ttl=HOUR)
    before = lease(lab).lease
    time_here.later(60)
    del lab.machines.machines["web-1"]  # as if it had been killed between record and domain
    lab.engine.create("web", "t1", count=2, ttl=2 * HOUR)
    assert lease(lab).lease == before
    assert lease(lab, "web-2").lease.ttl == 2 * HOUR
    lab.engine.reset("web")
    lab.engine.start("web")
    lab.engine.stop("web", kill=True)
    assert lease(lab).lease == before


def test_that_existing_clones_have_no_lease_is_said(lab):
    lab.engine.create("web", "t1", count=1)
    plan = lab.engine.plan(CreateRequest(fleet="web", template="t1", count=2, ttl=HOUR))
    assert any("web-1 was made without a lease" in warning for warning in plan.warnings)


def test_a_lease_is_extended_from_now_and_never_shortened(lab, time_here):
    lab.engine.create("web", "t1", count=1, ttl=HOUR)
    time_here.later(1800)
    [state] = lab.engine.extend_lease("web", dry_run=True)
    assert (state.changed, state.left, lease(lab).left) == (True, HOUR, 1800)
    lab.engine.extend_lease("web")
    assert lease(lab).left == HOUR
    [state] = lab.engine.extend_lease("web", ttl=60)
    assert (state.changed, state.left) == (False, HOUR)
    lab.engine.extend_lease("web", ttl="never")
    assert lease(lab).lease is None
    with pytest.raises(InvalidRequest, match="has no lease to extend"):
        lab.engine.extend_lease("web")
    time_here.later(10 * HOUR)
    assert lab.engine.gc(expired=True) == ()


def test_an_ended_lease_can_be_extended_until_gc_runs(lab):
    lab.engine.create("web", "t1", count=2)
    assert [state.changed for state in lab.engine.end_lease("web-2")] == [True]
    assert [state.changed for state in lab.engine.end_lease("web-2")] == [False]
    lab.engine.extend_lease("web-2", ttl=HOUR)
    assert lab.engine.gc(expired=True) == ()
    lab.engine.end_lease("web-2")
    lab.engine.gc(expired=True)
    assert names(lab) == ["web-1"]


def test_nothing_is_changed_if_one_clone_cannot_be(lab):
    lab.engine.create("web", "t1", count=2)
    for path in (lab.engine.host.records / "web-2").iterdir():
        path.unlink()
    (lab.engine.host.records / "web-2").rmdir()
    with pytest.raises(NotFound, match="web-2 has no record"):
        lab.engine.end_lease("web")
    with pytest.raises(NotFound):
        lab.engine.end_lease("nothing")
    assert lease(lab).lease is None


@pytest.mark.parametrize("state", ["0" * 32, None])
def test_clones_of_other_state_folders_are_left(lab, state):
    lab.engine.create("web", "t1", count=1)
    lab.engine.end_lease("web")
    domain = lab.machines.machines["web-1"]
    labels = attrs.evolve(domain.labels, state=state)
    lab.machines.machines["web-1"] = attrs.evolve(domain, labels=labels)
    assert lab.engine.gc(expired=True) == ()
    if state is not None:
        with pytest.raises(Conflict):
            lab.engine.extend_lease("web", ttl=HOUR)
        assert lab.engine.extend_lease(everything=True, ttl=HOUR) == ()


@pytest.mark.parametrize(
    "damage",
    [
        5, "x", [], {}, {"ttl": 1}, {"granted": None, "ttl": 1},
        {"granted": {"wall": "x", "boot": "b", "up": 1}, "ttl": 1},
        {"granted": {"wall": 1e300, "boot": "b", "up": 1}, "ttl": 1},
        {"granted": {"wall": 1, "boot": "b", "up": float("nan")}, "ttl": 1},
        {"granted": {"wall": 1, "boot": 7, "up": 1}, "ttl": 1},
        {"granted": {"wall": 1, "boot": "b", "up": 1}, "ttl": -1},
        {"granted": {"wall": 1, "boot": "b", "up": 1}, "ttl": 10**30},
    ],
)  # fmt: skip
def test_a_damaged_lease_never_ends(lab, run, damage):
    lab.engine.create("web", "t1", count=1, ttl=1)
    path = lab.engine.host.records / "web-1" / "record.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"lease": damage}))
    assert lab.engine.gc(expired=True) == ()
    assert run("lease", "show", "web")[0] == 0
    assert run("show", "web-1")[0] == 0
    assert names(lab) == ["web-1"]


@pytest.mark.parametrize("kind", ["storage", "hypervisor"])
def test_what_could_not_be_read_is_not_expired(lab, run, monkeypatch, kind):
    lab.engine.create("web", "t1", count=1)
    lab.engine.end_lease("web")

    def fail():
        raise HostCommandError("no answer")

    broken = lab.pool if kind == "storage" else lab.machines
    monkeypatch.setattr(broken, "volumes" if kind == "storage" else "inspect", fail)
    left = lab.engine.host.state / "identity" / ".old-1.draft"
    left.mkdir()
    code, out, err = run("gc", "--expired", "--orphans", "--yes", "-f", "json")
    assert code == 10
    assert [row["kind"] for row in json.loads(out)] == ["draft"], "the rest is done"
    assert not left.exists()
    assert "could not be read: no answer" in err
    monkeypatch.undo()
    assert names(lab) == ["web-1"]


def test_what_a_run_works_on_is_left(lab):
    lab.engine.create("web", "t1", count=1)
    lab.engine.end_lease("web")
    with hold(lab.engine.host.state, ["fleet/web"]):
        assert lab.engine.gc(expired=True) == ()
    assert len(lab.engine.gc(expired=True)) == 3


def test_a_lease_that_is_extended_while_gc_waits_keeps_its_clone(lab, monkeypatch):
    """The lease is looked at again under the fleet's lock."""
    lab.engine.create("web", "t1", count=1)
    lab.engine.end_lease("web")
    host = lab.engine._host
    free = host.hold_free

    def extended_meanwhile(names):
        host.records.update("web-1", lease=Lease(granted=clock.now(), ttl=HOUR))
        return free(names)

    monkeypatch.setattr(host, "hold_free", extended_meanwhile)
    assert lab.engine.gc(expired=True) == ()
    assert names(lab) == ["web-1"]


def test_a_create_that_runs_beside_gc_loses_nothing(lab):
    """Its leases end at once, and gc runs again and again, as long as it is being made."""
    other = Engine(lab.engine.settings, lab.engine.plugins, lab.engine._host)
    made, stop = [], threading.Event()

    def collect():
        while not stop.is_set():
            other.gc(expired=True, orphans=True)

    thread = threading.Thread(target=collect)
    thread.start()
    try:
        for _ in range(5):
            made.append(len(lab.engine.create("web", "t1", add=4, ttl=1).results))
    finally:
        stop.set()
        thread.join(60)
    assert made == [4] * 5


class Watcher:
    def __init__(self):
        self.told = []

    @hookimpl
    def vmcloner_lease_expiring(self, clone, lease, left):
        self.told.append((clone.name, lease.ttl, left))


def test_observers_are_warned_before_the_end(lab, time_here):
    watcher = Watcher()
    lab.engine.plugins.watch(watcher)
    lab.engine.create("web", "t1", count=1, ttl=3 * HOUR)
    lab.engine.create("ever", "t1", count=1)
    lab.engine.gc(expired=True)
    time_here.later(2 * HOUR)
    lab.engine.gc(expired=True, dry_run=True)
    assert watcher.told == []
    lab.engine.gc(expired=True)
    time_here.later(1800)
    lab.engine.gc()
    left = [pytest.approx(HOUR), pytest.approx(1800)]
    assert watcher.told == [("web-1", 3 * HOUR, each) for each in left]
    time_here.later(1800)
    lab.engine.gc(expired=True)
    assert len(watcher.told) == 2
    assert names(lab) == ["ever-1"]


def test_an_observer_that_fails_stops_nothing(lab, time_here):
    class Broken:
        @hookimpl
        def vmcloner_lease_expiring(self, clone):
            raise SystemExit(clone.name)

    lab.engine.plugins.watch(Broken())
    lab.engine.create("web", "t1", count=1, ttl=HOUR)
    assert lab.engine.gc(expired=True) == ()


def test_the_commands(lab, run, time_here):
    assert run("create", "web", "-t", "t1", "-n", "2", "--ttl", "4h")[0] == 0
    code, out, err = run("lease", "show", "web-1", "-f", "json")
    [row] = json.loads(out)
    assert (row["name"], row["left"], row["expired"]) == ("web-1", 4 * HOUR, False)
    assert "4 h" in run("lease", "show", "--all")[1]
    assert json.loads(run("show", "web-1", "-f", "json")[1])["expires"] == row["expires"]
    assert json.loads(run("list", "-f", "json")[1])[0]["expires"] == row["expires"]
    assert row["expires"] in run("list", "--wide")[1]
    assert "no clone is expired" in run("list", "--expired")[2]
    code, out, err = run("lease", "end", "web-2", "--dry-run")
    assert "1 lease would be ended" in err
    assert run("lease", "end", "web-2")[0] == 0
    assert json.loads(run("list", "--expired", "-f", "json")[1])[0]["name"] == "web-2"
    assert "web-2" in run("list", "--expired")[1]
    assert "0 leases ended" in run("lease", "end", "web-2")[2]
    code, out, _err = run("lease", "extend", "web", "--ttl", "5h", "-f", "json")
    assert [row["changed"] for row in json.loads(out)] == [True, True]
    assert code == 0
    assert run("lease", "extend")[0] == 3
    assert run("lease", "end", "--all")[0] == 0
    assert run("gc", "--expired", "--yes")[0] == 0
    assert names(lab) == []


def test_clones_of_one_owner(lab, run, monkeypatch):
    monkeypatch.setattr(os, "getuid", lambda: 0)
    for user in ("alice", "bob"):
        monkeypatch.setenv("SUDO_USER", user)
        assert run("create", user, "-t", "t1")[0] == 0
    for name, found in (("me", "bob-1"), ("bob", "bob-1"), ("alice", "alice-1")):
        rows = json.loads(run("list", "--owner", name, "-f", "json")[1])
        assert [(row["name"], row["owner"]) for row in rows] == [(found, found[:-2])]
    code, _out, err = run("list", "--owner", "Bob")
    assert (code, "no clone of Bob is here" in err) == (0, True)


def test_a_name_of_another_user_is_not_believed(lab, monkeypatch):
    """Anybody can set variables; only root's sudo sets this one for a process of root."""
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000)
    for variable in ("SUDO_USER", "LOGNAME", "USER"):
        monkeypatch.setenv(variable, "alice")
    lab.engine.create("web", "t1", count=1)
    assert lab.engine.show("web-1").labels.owner == "4000000"
    assert lab.engine.show("web-1").state is State.STOPPED


def test_the_hosts_own_clock():
    first = clock.now()
    time.sleep(0.01)
    second = clock.now()
    assert first.boot == second.boot
    assert 0.01 <= second.since(first) < 60
    assert first.since(second) == 0
