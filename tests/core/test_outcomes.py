"""What drivers yield against their contract: named with what they did, and the run ends."""

import logging
import threading

import pytest

from vmcloner_core import State
from vmcloner_core.errors import BackendError, HostCommandError, PartialFailure
from vmcloner_core.hooks import hookimpl
from vmcloner_core.model import Outcome
from vmcloner_core.outcomes import Backend, Untrusted, checked, settled
from vmcloner_core.steps.step import HypervisorStep, StorageStep

BACKEND = Backend("storage 'zfs'", lambda: "; its plugin is of acme")


def heard(call, kind=None, keys=("web-1", "web-2")):
    return {outcome.key: outcome for outcome in checked(call, keys, BACKEND, kind)}


def errors(found):
    return {key: str(outcome.error) for key, outcome in found.items() if outcome.error is not None}


def test_what_is_right_passes():
    found = [Outcome(key="web-2", value=3), Outcome(key="web-1", error=HostCommandError("no"))]
    assert list(checked(lambda: found, ["web-1", "web-2"], BACKEND, int)) == found


WHOLE = {
    "a word": (lambda: ["web-1"], "yielded a str, not an Outcome"),
    "nothing": (lambda: None, "failed: TypeError: 'NoneType' object is not iterable"),
    "bug": (lambda: 1 / 0, "failed: ZeroDivisionError: division by zero"),
    "key": (lambda: [Outcome(key=[])], "yielded an outcome whose key is a list, not a str"),
}


@pytest.mark.parametrize(("call", "message"), WHOLE.values(), ids=WHOLE)
def test_a_call_that_is_wrong_as_a_whole(call, message):
    with pytest.raises(BackendError) as caught:
        heard(call)
    assert str(caught.value) == (
        f"storage 'zfs' {message}; its plugin is of acme (vmcloner plugin list)"
    )


@pytest.mark.parametrize("raised", [SystemExit(3), pytest.fail.Exception("no"), MemoryError()])
def test_a_call_that_leaves_the_process(raised):
    def call():
        yield Outcome(key="web-1")
        raise raised

    with pytest.raises(BackendError, match=rf"'zfs' failed: {type(raised).__name__}"):
        heard(call)


def test_what_the_driver_means_to_raise_is_its_own_word():
    def call():
        raise HostCommandError("the pool is gone")

    with pytest.raises(HostCommandError, match=r"^the pool is gone$"):
        heard(call)


MEMBERS = {
    "missing": ([], "web-2: storage 'zfs' yielded no outcome"),
    "no value": ([Outcome(key="web-2")], "web-2: storage 'zfs' gave no int"),
    "other value": ([Outcome(key="web-2", value="3")], "'zfs' gave a str, not a int"),
    "other error": (
        [Outcome(key="web-2", error=ValueError("bad"))],
        "'zfs' gave an error that is none of vmcloner's: ValueError: bad",
    ),
}


@pytest.mark.parametrize(("outcomes", "message"), MEMBERS.values(), ids=MEMBERS)
def test_one_member_that_is_wrong(outcomes, message):
    found = heard(lambda: [Outcome(key="web-1", value=1), *outcomes], int)
    assert list(errors(found)) == ["web-2"]
    assert message in errors(found)["web-2"]
    assert "acme" in errors(found)["web-2"]


def test_another_members_value():
    class Volume:
        name = "web-1"

    found = heard(lambda: [Outcome(key="web-2", value=Volume())], Volume, ["web-2"])
    assert "web-2: storage 'zfs' gave what is of web-1" in errors(found)["web-2"]


STRAYS = {
    "second": (("web-1", "web-1", "web-2"), "a second outcome for web-1"),
    "unasked": (("web-1", "db-\n1", "web-2"), "an outcome unasked for db-\\n1"),
}


@pytest.mark.parametrize(("keys", "what"), STRAYS.values(), ids=STRAYS)
def test_strangers_and_doubles_fail_the_call(keys, what):
    with pytest.raises(Untrusted) as caught:
        list(checked(lambda: [Outcome(key=key) for key in keys], ("web-1", "web-2"), BACKEND))
    assert str(caught.value) == (
        f"storage 'zfs' yielded {what}; its plugin is of acme (vmcloner plugin list)"
    )
    found = settled(lambda: [Outcome(key=key) for key in keys], ("web-1", "web-2"), BACKEND)
    assert {outcome.key: outcome.error for outcome in found}.keys() == {"web-1", "web-2"}
    assert all(isinstance(outcome.error, Untrusted) for outcome in found)


# --- in runs ------------------------------------------------------------------------------------

STEPS = {
    "clone": ("pool", "clone"),
    "define": ("machines", "define"),
    "start": ("machines", "start"),
}


@pytest.mark.parametrize("what", ["stray", "words", "leaves", "none"])
@pytest.mark.parametrize("step", STEPS)
def test_a_run_with_a_driver_that_breaks_the_contract(lab, step, what):
    driver, method = getattr(lab, STEPS[step][0]), STEPS[step][1]
    inner = getattr(driver, method)

    def call(members, *rest):
        if what == "none":
            return None
        return wrong(members, *rest)

    def wrong(members, *rest):
        if what == "words":
            yield "web-1"
        if what == "leaves":
            raise SystemExit(3)
        for outcome in inner(members, *rest):
            yield outcome
            yield outcome

    setattr(driver, method, call)
    with pytest.raises(PartialFailure) as caught:
        lab.engine.create("web", "t1", count=2, start=True)
    assert len(caught.value.failures) == 2
    assert all("'reference'" in str(error) for _, error in caught.value.failures)
    setattr(driver, method, inner)
    assert lab.engine.create("web", "t1", count=2, start=True).ok
    assert {clone.state for clone in lab.engine.list()} == {State.RUNNING}


@pytest.mark.parametrize("step", STEPS)
def test_a_driver_that_hangs_is_given_up(lab, step, monkeypatch):
    """The others of its lane, too: they would only hang after one another."""
    driver, method = getattr(lab, STEPS[step][0]), STEPS[step][1]
    inner, end = getattr(driver, method), threading.Event()
    for kind in (StorageStep, HypervisorStep):
        monkeypatch.setattr(kind, "patience", -59.0)  # and a shutdown's timeout

    def hangs(members, *rest):
        outcomes = inner(members, *rest)
        yield next(outcomes)
        end.wait(60)
        yield from outcomes

    setattr(driver, method, hangs)
    try:
        with pytest.raises(PartialFailure) as caught:
            lab.engine.create("web", "t1", count=12, start=True)
    finally:
        end.set()
    said = [str(error) for _, error in caught.value.failures]
    assert said
    assert all("'reference' gave no sign of life for" in text for text in said), said
    setattr(driver, method, inner)
    assert lab.engine.create("web", "t1", count=12, start=True).ok


class Late:
    """An observer that knows when a clone is ready."""

    def __init__(self):
        self.ready = []

    @hookimpl
    def vmcloner_clone_ready(self, clone):
        self.ready.append(clone)


def test_an_outcome_that_comes_too_late_changes_nothing(lab, monkeypatch, caplog):
    caplog.set_level(logging.ERROR)
    late, end, over = Late(), threading.Event(), threading.Event()
    lab.engine.plugins.watch(late)
    monkeypatch.setattr(HypervisorStep, "patience", -59.0)
    inner = lab.machines.start

    def slow(names, *rest):
        end.wait(60)
        yield from inner(names, *rest)
        over.set()

    lab.machines.start = slow
    with pytest.raises(PartialFailure):
        lab.engine.create("web", "t1", count=1, start=True)
    end.set()
    assert over.wait(60)
    assert late.ready == []
