"""Hosts that are drained or lost: on engines of this process with the reference drivers."""

import json
from collections import Counter

import pytest

from vmcloner_core.errors import NotFound, PartialFailure, WrongState
from vmcloner_core.hosts.carrier import Unreachable
from vmcloner_core.hosts.draining import Why, drain
from vmcloner_core.local_host import LocalHost
from vmcloner_core.placing import Where
from vmcloner_core.request import CreateRequest, TargetRequest


def on_each(clones):
    return dict(Counter(clone.host for clone in clones))


def test_a_drained_host_gets_no_new_clones(hosts):
    all_hosts = hosts.controller()
    all_hosts.create("web", "t1", count=3)
    before = {clone.name for clone in all_hosts.list() if clone.host == "h2"}
    found = drain(all_hosts, "h2")
    assert {each.clone for each in found} == before
    assert {(each.action, each.failed) for each in found} == {("leave", False)}
    later = hosts.controller()
    assert later.drained.read() == {"h2": Why.DRAINED}
    later.create("web", "t1", count=7)
    assert on_each(later.list()) == {"h1": 3, "h2": 1, "h3": 3}
    assert not later.create("web", "t1", count=7).results, "its own clones count"
    with pytest.raises(WrongState, match="no new clones are placed on h2"):
        later.create("db", "t1", where=Where(hosts=("h2",)))
    with pytest.raises(WrongState, match="h2"):
        later.plan(CreateRequest(fleet="db", template="t1", where=Where(hosts=("h2",))))
    later.create("db", "t1", count=2, where=Where(hosts=("h2", "h3")))
    assert on_each(later.list("db")) == {"h3": 2}
    assert later.drained.remove("h2")
    assert not later.drained.remove("h2")
    later.create("dc", "t1", where=Where(hosts=("h2",)))
    assert on_each(later.list("dc")) == {"h2": 1}


def test_all_hosts_drained(hosts):
    all_hosts = hosts.controller()
    for name in hosts.sites:
        drain(all_hosts, name)
    with pytest.raises(WrongState, match=r"no new clones are placed on h\[1-3\]"):
        all_hosts.create("web", "t1")


def test_draining_deletes_stopped_clones_and_names_running_ones(hosts):
    all_hosts = hosts.controller()
    all_hosts.create("web", "t1", count=6)
    here = [clone.name for clone in all_hosts.list() if clone.host == "h1"]
    all_hosts.start(here[0])
    dry = drain(all_hosts, "h1", delete=True, dry_run=True)
    assert [(each.clone, each.action) for each in dry] == [(here[0], "leave"), (here[1], "delete")]
    assert len(all_hosts.list()) == 6
    assert all_hosts.drained.read() == {}
    for _ in range(2):
        found = drain(all_hosts, "h1", delete=True)
        assert (found[0].clone, found[0].why, found[0].failed) == (here[0], "is running", True)
        assert on_each(all_hosts.list()) == {"h1": 1, "h2": 2, "h3": 2}
    all_hosts.stop(here[0])
    assert not any(each.failed for each in drain(all_hosts, "h1", delete=True))
    assert on_each(all_hosts.list()) == {"h2": 2, "h3": 2}


def test_what_a_warm_origin_is_being_made_from_stays(hosts, monkeypatch):
    all_hosts = hosts.controller()
    all_hosts.create("web", "t1", count=3)
    all_hosts.create("db", "t1", count=3, start=True, ttl=600)
    monkeypatch.setattr(LocalHost, "parents", lambda _host: frozenset({"web"}))
    for move in (False, True):
        found = drain(all_hosts, "h1", delete=not move, move=move, dry_run=True)
        (why,) = (each.why for each in found if each.clone.startswith("web"))
        assert why == "is what a warm origin is being made from"
    assert {state.clone.fleet for state in all_hosts.end_lease(everything=True)} == {"db"}
    assert {outcome.key[:2] for outcome in all_hosts.access()} == {"db"}
    result = all_hosts.run(TargetRequest(action="delete", everything=True))
    assert {each.name[:2] for each in result.results} == {"db"}


def test_a_clone_that_is_started_meanwhile_is_not_deleted(hosts):
    all_hosts = hosts.controller()
    all_hosts.create("web", "t1", count=3)
    (clone,) = [clone for clone in all_hosts.list() if clone.host == "h1"]
    with pytest.raises(WrongState, match=f"{clone.name} was started meanwhile"):
        drain(all_hosts, "h1", delete=True, on_found=lambda _found: all_hosts.start(clone.name))
    assert len(all_hosts.list()) == 3


def test_a_host_that_is_down_can_be_drained_but_not_emptied(hosts, caplog):
    all_hosts = hosts.controller()
    all_hosts.create("web", "t1", count=3)
    hosts.carrier.lose("h2")
    assert drain(all_hosts, "h2") == ()
    assert "'h2'" in caplog.text
    with pytest.raises(Exception, match="h2"):
        drain(all_hosts, "h2", delete=True)
    with pytest.raises(NotFound, match="unknown host 'h9'"):
        drain(all_hosts, "h9")


def test_a_damaged_file_is_said(hosts):
    all_hosts = hosts.controller()
    drain(all_hosts, "h2")
    (hosts.folder / "controller/drained.json").write_text('{"h2": "perhaps"}')
    with pytest.raises(WrongState, match="damaged"):
        all_hosts.create("web", "t1")


# --- hosts that are gone for good -----------------------------------------------------------------


@pytest.fixture
def back(hosts):
    """Return what brings a lost host back."""
    return hosts.carrier._lost.discard


def test_clones_of_a_lost_host_are_made_anew_under_new_names(hosts, back):
    all_hosts = hosts.controller()
    all_hosts.create("web", "t1", count=6)
    lost = {clone.name for clone in all_hosts.list() if clone.host == "h2"}
    hosts.carrier.lose("h2")
    with pytest.raises(Unreachable):
        all_hosts.create("web", "t1", count=6)
    replace = Where(replace_lost=True)
    all_hosts.plan(CreateRequest(fleet="web", template="t1", count=6, where=replace))
    assert all_hosts.drained.read() == {}, "a dry run remembers nothing"
    made = all_hosts.create("web", "t1", count=6, where=replace)
    assert [clone.name for clone in made.plan.clones] == ["web-7", "web-8"]
    assert all_hosts.drained.read() == {"h2": Why.LOST}
    later = hosts.controller()
    assert not later.create("web", "t1", count=6, where=replace).results, "once is enough"
    assert not later.create("web", "t1", count=6).results, "it is known to be lost"
    assert len(later.survey().unseen) == 1, "but still said to be missing"
    later.stop("web")

    back("h2")
    clones = later.list()
    assert len({clone.name for clone in clones}) == len(clones) == 8
    later.create("web", "t1", count=10)
    assert on_each(later.list()) == {"h1": 4, "h2": 2, "h3": 4}, "nothing new is placed there"
    found = drain(later, "h2", delete=True)
    assert {each.clone for each in found} == lost
    assert not any(each.failed for each in found)
    later.drained.remove("h2")
    assert len(later.list()) == 8


def test_replacing_lost_clones_while_no_host_is_lost(hosts):
    all_hosts = hosts.controller()
    all_hosts.create("web", "t1", count=3, where=Where(replace_lost=True))
    assert on_each(all_hosts.list()) == {"h1": 1, "h2": 1, "h3": 1}
    assert all_hosts.drained.read() == {}


def test_a_host_of_another_version_is_not_lost(hosts):
    all_hosts = hosts.controller(version="0.0")
    with pytest.raises(Exception, match="has vmcloner"):
        all_hosts.create("web", "t1", where=Where(replace_lost=True))


def test_all_hosts_lost(hosts):
    all_hosts = hosts.controller()
    for name in hosts.sites:
        hosts.carrier.lose(name)
    with pytest.raises(Unreachable, match="no host can be reached"):
        all_hosts.create("web", "t1", where=Where(replace_lost=True))
    assert all_hosts.drained.read() == {}


# --- the commands ---------------------------------------------------------------------------------


@pytest.fixture
def shell(hosts, monkeypatch, capsys):
    """Return what runs a command with a controller of the hosts."""
    from vmcloner_core.cli.app import Shell

    def run(*words):
        shell = Shell()
        monkeypatch.setattr(type(shell), "engine", hosts.controller())
        code = shell.run([*words])
        told = capsys.readouterr()
        return code, told.out, told.err

    return run


def test_the_commands(hosts, shell):
    hosts.controller().create("web", "t1", count=6)
    here = [clone.name for clone in hosts.controller().list() if clone.host == "h3"]
    hosts.controller().start(here[1])
    code, out, _ = shell("host", "drain", "h3", "-f", "json")
    assert code == 0
    assert json.loads(out)[0] == {
        "clone": here[0], "state": "stopped", "action": "leave", "error": None,
    }  # fmt: skip
    code, out, _ = shell("host", "list", "-f", "json")
    assert {row["host"]: row["drained"] for row in json.loads(out)} == {
        "h1": None, "h2": None, "h3": "drained",
    }  # fmt: skip
    code, _, err = shell("host", "drain", "h3", "--delete")
    assert (code, "needs a terminal" in err) == (2, True)
    code, out, err = shell("host", "drain", "h3", "--delete", "--yes", "-f", "json")
    assert code == PartialFailure.exit_code == 10
    assert f"{here[1]}: still on h3" in err
    assert [row["error"] for row in json.loads(out)] == [None, "is running"]
    assert shell("host", "undrain", "h3", "-f", "json")[:2] == (
        0, '{\n  "host": "h3",\n  "changed": true\n}\n',
    )  # fmt: skip
    assert shell("host", "undrain", "h4")[0] == 4
