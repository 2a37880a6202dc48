"""How long a clone is waited for, if nobody says."""

import attrs
import pytest

from vmcloner_core.plan import DEFAULT_TIMEOUT, EMULATED, Readiness
from vmcloner_core.request import CreateRequest, TargetRequest


def limits(plan):
    return {clone.wait.timeout for clone in plan.clones}


@pytest.fixture
def emulated(lab, monkeypatch):
    found = lab.machines.resources()
    monkeypatch.setattr(lab.machines, "resources", lambda: attrs.evolve(found, emulated=True))


def test_a_default_on_fast_hosts(lab):
    plan = lab.engine.plan(CreateRequest(fleet="web", template="t1", count=2, ready=True))
    assert limits(plan) == {DEFAULT_TIMEOUT}


@pytest.mark.usefixtures("emulated")
def test_more_where_guests_are_emulated(lab, run):
    request = CreateRequest(fleet="web", template="t1", count=2, ready=True)
    assert limits(lab.engine.plan(request)) == {DEFAULT_TIMEOUT * EMULATED}
    _, _, said = run("create", "web", "-t", "t1", "--wait", "--dry-run")
    assert "waits up to 20 min" in said
    lab.engine.create("web", "t1")
    for given in ({"ready": True}, {"wait": Readiness.parse("running")}):
        plan = lab.engine.plan(TargetRequest(action="start", targets=("web",), **given))
        assert limits(plan) == {DEFAULT_TIMEOUT * EMULATED}


@pytest.mark.usefixtures("emulated")
def test_what_the_user_says_holds(lab):
    wait = Readiness.parse("running", timeout=20)
    for given in ({"ready": True, "timeout": 20.0}, {"wait": wait}):
        plan = lab.engine.plan(CreateRequest(fleet="web", template="t1", **given))
        assert limits(plan) == {20.0}
