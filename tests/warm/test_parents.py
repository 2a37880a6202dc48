"""The guest that boots to become a warm origin: what it is waited for, and who leaves it alone."""

import contextlib
import threading
import time

import pytest

from tests.warm.forking import TEMPLATE, leftovers, memory
from vmcloner_core import reseeding
from vmcloner_core.cancelling import Cancellation, ending_with
from vmcloner_core.drivers import AgentInterface
from vmcloner_core.errors import (
    Interrupted,
    InvalidRequest,
    WrongState,
)
from vmcloner_core.hosts import wire
from vmcloner_core.hosts.beside import Asked, Beside, Found
from vmcloner_core.model import State
from vmcloner_core.request import TargetRequest


def test_a_parent_that_cannot_become_somebody_else(warm, mute):
    with pytest.raises(WrongState, match="template warm: its guest can't take a new identity"):
        warm.warm_template("warm")
    assert leftovers(warm) == ([], [], [])


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


def test_a_parent_whose_making_was_killed_is_one_of_all(warm, killed_saving):
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
