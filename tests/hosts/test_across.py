"""Calls of a controller that are no runs: asked of all hosts, merged; one of them may be down."""

import inspect
import itertools
import json
import re
from pathlib import Path

import attrs
import pytest

from vmcloner_core import entry_points
from vmcloner_core.console_lines import ConsoleLine
from vmcloner_core.engine import Engine
from vmcloner_core.errors import BackendError, InvalidRequest, NotFound
from vmcloner_core.hosts import wire
from vmcloner_core.hosts.calls import CALLS, ON_ONE
from vmcloner_core.hosts.carrier import InProcess
from vmcloner_core.hosts.controller import Controller
from vmcloner_core.model import Host, NetworkRequest, Outcome, RemoteHost
from vmcloner_core.plan import Sizes
from vmcloner_core.plugins import PluginHost
from vmcloner_core.reports import phases, report_of
from vmcloner_core.request import TargetRequest
from vmcloner_core.settings import Settings


def names(clones):
    return [clone.name for clone in clones]


def test_each_call_takes_what_the_engine_does():
    for name, call in CALLS.items():
        method = inspect.signature(getattr(Engine, name, call.do))
        takes = set(method.parameters) - {"self"}
        given = set(call.takes)
        if name == "survey":  # the controller selects
            assert given == set()
        elif call.do is getattr(Engine, name, None):
            assert given == takes, name
        else:
            assert given <= set(inspect.signature(call.do).parameters), name


@pytest.mark.parametrize(
    ("call", "text", "said"),
    [
        ("gc", '{"expired": true, "evil": 1}', "no such argument: evil"),
        ("gc", "[]", "is no dict"),
        ("gc", "{", "is no JSON"),
        ("statistics", '{"targets": "web"}', None),
        ("statistics", '{"targets": [{}]}', None),
        ("close", "{}", "no call 'close'"),
        ("__init__", "{}", "no call '__init__'"),
    ],
)
def test_arguments_are_checked_beside_the_host(hosts, call, text, said):
    answer = json.loads(hosts.carrier.call("h1", call, text, lambda _text: None))
    assert answer["error"] is not None
    assert said is None or said in answer["error"]["message"]


def test_every_action_is_a_call_on_all_hosts(hosts):
    """They are the engine's: what is added there need not be added here."""
    all_hosts = hosts.controller()
    all_hosts.create("web", "t1", count=3)
    all_hosts.create_snapshot("web", name="s1")
    assert [[s.name for s in clone.snapshots] for clone in all_hosts.list()] == [["s1"]] * 3
    all_hosts.start("web")
    all_hosts.revert_snapshot("web", name="s1", force=True)
    all_hosts.delete_snapshot("web", name="s1")
    assert not any(clone.snapshots for clone in all_hosts.list())
    all_hosts.set("web", sizes=Sizes(memory=100 * 1024**2))
    assert {clone.domain.memory for clone in all_hosts.list()} == {100 * 1024**2}
    for action in ("start", "pause", "resume", "restart", "reset"):
        assert len(getattr(all_hosts, action)("web").results) == 3, action


def test_leases_change_on_all_hosts_or_on_none(hosts):
    all_hosts = hosts.controller()
    all_hosts.create("web", "t1", count=3, ttl=3600)
    all_hosts.create("db", "t1", count=2)
    states = all_hosts.extend_lease("web", ttl=7200, dry_run=True)
    assert [(state.clone.name, state.clone.host, state.changed) for state in states] == [
        ("web-1", "h1", True), ("web-2", "h2", True), ("web-3", "h3", True),
    ]  # fmt: skip
    assert {state.lease.ttl for state in all_hosts.leases(all_hosts.list("web"))} == {3600}
    all_hosts.extend_lease("web", ttl=7200)
    assert {state.lease.ttl for state in all_hosts.leases(all_hosts.list("web"))} == {7200}
    with pytest.raises(InvalidRequest, match=r"db-\d has no lease to extend"):
        all_hosts.extend_lease(everything=True)
    ended = all_hosts.end_lease(everything=True)
    assert len(ended) == 5
    assert all(state.left <= 0 for state in ended)
    with pytest.raises(NotFound, match="no fleet 'nope'"):
        all_hosts.end_lease("nope")
    for wrong in ({}, {"everything": True}):
        with pytest.raises(InvalidRequest, match="end lease"):
            all_hosts.end_lease(*(["web"] if wrong else []), **wrong)


def test_no_lease_is_changed_if_one_can_not_be(hosts):
    all_hosts = hosts.controller()
    all_hosts.create("web", "t1", count=3, ttl=3600)
    all_hosts.create("db", "t1", count=1)  # has no lease, on one host
    before = [state.lease for state in all_hosts.leases(all_hosts.list("web"))]
    with pytest.raises(InvalidRequest, match=r"db-\d has no lease to extend"):
        all_hosts.extend_lease("web", "db")
    assert [state.lease for state in all_hosts.leases(all_hosts.list("web"))] == before


def test_the_rest_is_done_while_a_host_is_down(hosts):
    hosts.controller().create("web", "t1", count=6, ttl=3600)
    hosts.carrier.lose("h2")
    down = hosts.controller()
    assert [s.clone.name for s in down.end_lease("web")] == ["web-1", "web-3", "web-4", "web-6"]
    (missed,) = down.missed()
    assert (missed.host, str(missed)) == (
        "h2", "host 'h2' could not be read: host 'h2' does not answer",
    )  # fmt: skip
    assert down.missed() == ()
    for ask in (
        lambda: down.list("web"),
        lambda: down.statistics("web"),
        lambda: list(down.events()),
        down.template_rows,
        lambda: list(down.console_lines("web")),
        lambda: down.execute("web", command="true"),
    ):
        ask()
        assert [each.host for each in down.missed()] == ["h2"]
    unseen = []
    down.gc(expired=True, on_unseen=unseen.append)
    assert [each.host for each in unseen] == ["h2"]
    assert names(down.list()) == []
    hosts.carrier._lost.clear()
    assert names(hosts.controller().list()) == ["web-2", "web-5"]


def test_gc_shows_first_what_it_removes_on_all_hosts(hosts):
    all_hosts = hosts.controller()
    all_hosts.create("web", "t1", count=3, start=True, ttl=3600)
    all_hosts.create("db", "t1", count=3)
    all_hosts.end_lease("web-[1-2]")

    def no(left):
        raise BackendError(f"{len(left)} shown")

    with pytest.raises(BackendError, match="shown"):
        all_hosts.gc(expired=True, on_found=no)
    shown = all_hosts.gc(expired=True, dry_run=True)
    assert {each.host for each in shown} == {"h1", "h2"}
    assert len(all_hosts.list()) == 6
    removed = all_hosts.gc(expired=True)
    assert [(e.kind, e.name, e.host) for e in removed] == [(e.kind, e.name, e.host) for e in shown]
    assert names(all_hosts.list()) == ["db-1", "db-2", "db-3", "web-3"]
    assert all_hosts.gc(expired=True, on_found=no) == ()


def test_use_is_read_on_all_hosts(hosts):
    all_hosts = hosts.controller()
    all_hosts.create("web", "t1", count=3, start=True)
    assert [each.name for each in all_hosts.usage("web", seconds=0)] == ["web-1", "web-2", "web-3"]
    assert [(clone.name, clone.host) for clone, _ in all_hosts.statistics("web-2")] == [
        ("web-2", "h2")
    ]


def test_events_of_all_hosts_come_by_their_time(hosts):
    all_hosts = hosts.controller()
    run = all_hosts.create("web", "t1", count=6).plan.run
    all_hosts.start("web")
    assert {event.host for event in all_hosts.events()} == {"h1", "h2", "h3"}
    one = list(all_hosts.events(run=run))
    assert [event.time for event in one] == sorted(event.time for event in one)
    assert {event.run for event in one} == {run}
    assert {event.host for event in one} == {"h1", "h2", "h3"}
    assert one[0].json()["host"] in hosts.sites
    with pytest.raises(NotFound, match="no log of a run 'nope'"):
        list(all_hosts.events(run="nope"))
    assert all_hosts.missed() == ()


def test_a_run_that_concerns_one_host_is_found(hosts):
    run = hosts.sites["h2"].engine.create("web", "t1").plan.run
    all_hosts = hosts.controller()
    assert {event.host for event in all_hosts.events(run=run)} == {"h2"}
    followed = all_hosts.events(run=run, follow=True)  # it has ended, and so does this
    assert {event.host for event in followed} == {"h2"}
    assert all_hosts.missed() == ()


@pytest.fixture
def talking(hosts, monkeypatch):
    """Consoles that say something."""

    def console_lines(self, *targets, lines=None, since=None, follow=False):
        for clone in self.list(*targets):
            yield ConsoleLine(clone.name, f"hello of {clone.name}")
        for number in itertools.count() if follow else ():
            yield ConsoleLine(clone.name, f"more {number}")

    monkeypatch.setattr("vmcloner_core.hosts.calls.CALLS", CALLS)
    monkeypatch.setitem(
        CALLS, "console_lines", attrs.evolve(CALLS["console_lines"], do=console_lines)
    )
    hosts.controller().create("web", "t1", count=12, start=True)
    return hosts


def test_console_lines_are_in_the_order_of_the_clones(talking):
    lines = list(talking.controller().console_lines("web"))
    assert [(line.clone, line.text) for line in lines] == [
        (f"web-{n}", f"hello of web-{n}") for n in range(1, 13)
    ]


def test_console_lines_are_followed_on_all_hosts_until_nobody_reads(talking):
    following = talking.controller().console_lines("web", follow=True)
    found = set()
    for line in following:
        if line.text.startswith("more"):
            found.add(line.clone)
        if len(found) == 3:
            break
    following.close()
    assert found == {"web-10", "web-11", "web-12"}


def test_a_line_of_another_host_is_left_out_and_a_long_one_is_cut(talking):
    class Hostile(InProcess):
        def call(self, host, name, text, event):
            if (host, name) == ("h2", "console_lines"):
                event(wire.dump(ConsoleLine("web-1", "from h2")))
                event(wire.dump(ConsoleLine("\x1b[2J", "from nobody")))
                event(wire.dump(ConsoleLine("web-2", "x" * 10**6)))
            return super().call(host, name, text, event)

    lines = list(talking.controller(carrier=Hostile(talking.carrier._besides)).console_lines("web"))
    assert not [line for line in lines if line.text.startswith("from")]
    assert max(len(line.text) for line in lines) == 16 * 1024


def test_a_stream_that_is_no_such_thing_is_that_hosts_error(talking):
    class Hostile(InProcess):
        def call(self, host, name, text, event):
            if (host, name) == ("h2", "console_lines"):
                event('{"nobody": 5}')
            return super().call(host, name, text, event)

    all_hosts = talking.controller(carrier=Hostile(talking.carrier._besides))
    assert {line.clone for line in all_hosts.console_lines("web-[1-3]")} == {"web-1", "web-3"}
    (missed,) = all_hosts.missed()
    assert missed.host == "h2"


# --- templates and networks ---------------------------------------------------------------------


def one_host(hosts, name, own):
    return Controller(
        Settings.load(own),
        PluginHost([]),
        hosts.carrier,
        [RemoteHost(name=name, ssh=name, python="python3")],
        Host(name="all", state=hosts.folder / "controller"),
        version=hosts.controller()._links._version,
    )


def test_templates_are_listed_of_each_host_and_of_this_machine(hosts, monkeypatch):
    hosts.controller().create("web", "t1", count=1)
    all_hosts = hosts.controller()
    monkeypatch.setattr(all_hosts, "_own_engine", lambda: hosts.sites["h3"].engine)
    rows = {row.host: row for row in all_hosts.template_rows() if row.name == "t1"}
    assert {host: row.pools for host, row in rows.items()} == {
        "h1": ("reference",), "h2": (), "h3": (), "local": (),
    }  # fmt: skip


def test_calls_about_templates_go_to_the_only_host_else_to_this_machine(hosts, monkeypatch):
    all_hosts = hosts.controller()
    monkeypatch.setattr(all_hosts, "_own_engine", lambda: hosts.sites["h3"].engine)
    assert all_hosts.import_template("t1").changed
    assert [len(site.engine.origins()) for site in hosts.sites.values()] == [0, 0, 1]
    only = one_host(hosts, "h2", hosts.sites["h1"].folder / "vmcloner.toml")
    outcome = only.import_template("t1")
    assert (outcome.unwrap().template, outcome.changed) == ("t1", True)
    assert [len(site.engine.origins()) for site in hosts.sites.values()] == [0, 1, 1]
    assert not only.import_template("t1").changed
    assert [each.pool for each in only.origins("t1")] == ["reference"]
    assert only.template("t1").memory == hosts.sites["h2"].engine.template("t1").memory
    assert {check.status.value for check in only.check_template("t1")} <= {"ok", "warning"}
    assert only.delete_template("t1") == Outcome(key="t1", changed=True)
    assert only.leftovers() == ()
    assert only.prune_templates(()) == ()
    with pytest.raises(NotFound, match="unknown template 'nope'"):
        only.template("nope")
    with pytest.raises(InvalidRequest, match="not a whole path"):
        only.export_template("t1", Path("t1.raw"))
    with pytest.raises(BackendError, match="makes no networks"):
        only.prepare_network(NetworkRequest(name="n1"))


def test_the_calls_of_one_host_are_calls_that_cross():
    assert set(CALLS) >= ON_ONE


def test_a_clone_is_captured_on_its_host(hosts):
    all_hosts = hosts.controller()
    all_hosts.create("web", "t1", count=2)
    try:
        outcome = all_hosts.capture_template("web-2", "mine", dry_run=True)
    except BackendError as error:
        assert "web-2" in str(error) or "reference" in str(error)
    else:
        assert outcome.unwrap().clone == "web-2"
    with pytest.raises(NotFound, match="no clone 'web-9'"):
        all_hosts.capture_template("web-9", "mine")


def test_what_clones_would_boot_is_asked_of_their_hosts(hosts):
    all_hosts = hosts.controller()
    all_hosts.create("web", "t1", count=3)
    assert [preview.name for preview in all_hosts.boots("web")] == ["web-1", "web-2", "web-3"]


def test_a_provision_is_a_run_on_all_hosts(hosts):
    all_hosts = hosts.controller()
    all_hosts.create("web", "t1", count=3)
    plan = all_hosts.plan(TargetRequest(action="wait", targets=("web",), ready=True))
    assert names(plan.clones) == ["web-1", "web-2", "web-3"]


def test_a_report_is_on_all_hosts(hosts):
    all_hosts = hosts.controller()
    all_hosts.create("web", "t1", count=3, ready=True)
    for of in (None, "web"):
        report = report_of(all_hosts.events, of)
        assert names(report.clones) == ["web-1", "web-2", "web-3"]
        assert {clone.host for clone in report.clones} == {"h1", "h2", "h3"}
        assert {row.clones for row in phases(report) if row.phase != "output"} == {3}
        assert report.finished
        assert len(report.runs) == 1


def test_the_documentation_says_what_each_command_works_on():
    """A new command has to be put there."""
    page = (Path(__file__).parents[2] / "docs/hosts.md").read_text()
    table = page.partition("## What each command works on")[2].partition("\n\n")[2]
    rows = table.partition("\n\n")[0].splitlines()[2:]
    told = [name for row in rows for name in re.findall("`([^`]+)`", row.split("|")[2])]
    known = [entry.name.replace("_", " ") for entry in entry_points.of_group("vmcloner.cli")]
    assert sorted(told) == sorted(set(known))
