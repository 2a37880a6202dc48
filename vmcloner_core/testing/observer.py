"""Conformance suite for observers, vetoes and MAC policies: plugins of ``vmcloner.observer``.

Example::

    from vmcloner_core.testing.observer import ObserverConformance

    class TestMine(ObserverConformance):
        @pytest.fixture
        def observer(self):
            return vmcloner_mine      # the module, or the object, that the entry point names

The suite tells it of two runs, as vmcloner would. What it would send elsewhere, the fixture should
catch.
"""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any, Final

import attrs
import pluggy
import pytest

from vmcloner_core.deadlines import Late, Unanswered, answers
from vmcloner_core.errors import HostCommandError, InvalidRequest, VmclonerError, said
from vmcloner_core.hooks import API_VERSION, PROJECT, Hooks
from vmcloner_core.model import Clone, Lease, Moment, State, check_mac
from vmcloner_core.plan import (
    ClonePlan,
    CloneResult,
    Plan,
    ProgressEvent,
    RunResult,
    Sample,
    Seen,
    StepEvent,
    StepStatus,
    Waiting,
)
from vmcloner_core.plugins import OBSERVER_API, OBSERVING
from vmcloner_core.testing.samples import make_labels
from vmcloner_core.testing.suite import Suite

ORDER: Final = ("clone", "define", "start", "wait")
Told = tuple[str, Mapping[str, Any]]


def plan_of(run: str, fleet: str = "web", count: int = 2) -> Plan:
    """Return the plan of a run that creates clones."""
    labels = [make_labels(fleet, n, run=run) for n in range(1, count + 1)]
    return Plan(
        action="create",
        run=run,
        host="local",
        hypervisor="kvm",
        storage="pool",
        order=ORDER,
        clones=tuple(ClonePlan(labels=each, steps=ORDER) for each in labels),
    )


def events_of(plan: Plan) -> list[Told]:
    """Return what observers are told of a run whose last clone fails, hook by hook."""
    *sound, bad = (clone.name for clone in plan.clones)
    lost = HostCommandError(f"{bad}: the pool is gone\n\x1b[31m", hint="look at the host")
    told: list[Told] = [("plan_ready", {"plan": plan})]

    def step(clone: str, name: str, status: StepStatus, error: VmclonerError | None = None) -> None:
        event = StepEvent(run=plan.run, clone=clone, step=name, status=status, at=1.0, error=error)
        told.append(("step_changed", {"event": event}))

    for name in sound:
        for each in (*ORDER, "a-step-of-a-later-version"):
            step(name, each, StepStatus.STARTED)
            step(name, each, StepStatus.UNCHANGED if each == "define" else StepStatus.DONE)
        told.append(("clone_ready", {"run": plan.run, "clone": name}))
    step(bad, "clone", StepStatus.STARTED)
    step(bad, "clone", StepStatus.FAILED, lost)
    for done, total in ((0, 0), (1, 2), (2, 2)):
        event = ProgressEvent(run=plan.run, what="import tiny", done=done, total=total)
        told.append(("progress", {"event": event}))
    waiting = Waiting(phases={"booting": 1}, slowest=bad, seconds=1.5, said="\u00fc \U0001f40d")
    told.append(("waiting", {"run": plan.run, "waiting": waiting}))
    for what, text in (("output", "\u00fc \U0001f40d"), ("a-later-one", ""), ("log", "a\nb")):
        seen = Seen(run=plan.run, clone=bad, what=what, at=1.5, text=text)
        told.append(("clone_seen", {"seen": seen}))
    sample = Sample(run=plan.run, at=1.0, cpu=12.5, memory_used=1, memory_total=2)
    told.append(("host_sampled", {"sample": sample}))
    told.append(("run_stopping", {"run": plan.run, "calls": {"clone": 1}}))
    clone = Clone(labels=plan.clones[0].labels, state=State.RUNNING, host="local")
    told.append(
        (
            "lease_expiring",
            {
                "clone": clone,
                "lease": Lease(granted=Moment(wall=0.0, boot="boot", up=0.0), ttl=120),
                "left": 60.0,
            },
        )
    )
    results = (
        *(CloneResult(name=name, seconds={"clone": 0.5}, created=True) for name in sound),
        CloneResult(name=bad, error=lost, failed_step="clone"),
    )
    result = RunResult(plan=plan, results=results, seconds=2.0, interrupted=True, error=lost)
    told.append(("run_finished", {"result": result}))
    return told


class ObserverConformance(Suite):
    """What every plugin of the group ``vmcloner.observer`` must do. Define :meth:`observer`."""

    made_by = "observer"

    @pytest.fixture
    def observer(self) -> object:
        """Return the module or the object that the entry point names."""
        raise NotImplementedError("define a fixture observer")

    def wrong_with(self, made: object) -> str | None:
        """Return why vmcloner wouldn't use the observer, None if it would."""
        try:
            manager = registered(made)
        except Exception as error:
            return said(error)
        return None if manager.get_hookcallers(made) else "it has no hook of vmcloner"

    @pytest.fixture
    def tell(self, observer: object) -> Callable[[str, Mapping[str, Any]], object]:
        """Return a function that calls a hook of the observer as vmcloner does."""
        manager = registered(observer)

        def tell(hook: str, values: Mapping[str, Any]) -> object:
            call = getattr(manager.hook, f"{PROJECT}_{hook}")
            found = answers({hook: lambda: call(**values)}, OBSERVING)[hook]
            assert not isinstance(found, Late), f"vmcloner_{hook} hangs"
            if isinstance(found, VmclonerError):
                raise found
            return found

        return tell

    def test_it_is_for_this_api(self, observer: object) -> None:
        """The version of the driver API that it may state is this vmcloner's."""
        assert getattr(observer, OBSERVER_API, API_VERSION) == API_VERSION

    def test_it_is_told_of_a_run(self, tell: Callable[..., object]) -> None:
        """Nothing raises, whatever happens in the run: failures, unknown steps, odd texts."""
        for hook, values in events_of(plan_of("run-1")):
            tell(hook, values)

    def test_values_are_not_changed(self, tell: Callable[..., object]) -> None:
        """Others are told of the same values."""
        told = events_of(plan_of("run-1"))
        before = copy.deepcopy(told)
        for hook, values in told:
            tell(hook, values)
        assert [_plain(each) for each in told] == [_plain(each) for each in before]

    def test_it_may_be_told_of_a_part(self, tell: Callable[..., object]) -> None:
        """Events of a run whose begin it hasn't seen, and a run without an end, raise nothing."""
        told = events_of(plan_of("run-1"))
        for hook, values in told[1:]:
            tell(hook, values)
        for hook, values in told[:-1]:
            tell(hook, values)
        for hook, values in events_of(plan_of("run-2", "db", 1)):
            tell(hook, values)

    def test_runs_may_be_interleaved(self, tell: Callable[..., object]) -> None:
        """Events of two runs come in turn, each from another thread."""
        runs = (events_of(plan_of("run-1")), events_of(plan_of("run-2", "db")))
        failures: list[BaseException] = []

        def one(hook: str, values: Mapping[str, Any]) -> None:
            try:
                tell(hook, values)
            except BaseException as error:
                failures.append(error)

        for pair in zip(*runs, strict=True):
            for each in pair:
                thread = threading.Thread(target=one, args=each)
                thread.start()
                thread.join()
        assert failures == []

    def test_it_leaves_logging_alone(self, tell: Callable[..., object]) -> None:
        """The process's log handlers and levels are the program's."""
        root = logging.getLogger()
        before = (list(root.handlers), root.level)
        for hook, values in events_of(plan_of("run-1")):
            tell(hook, values)
        assert (list(root.handlers), root.level) == before

    def test_a_veto_is_one_of_vmcloners_errors(self, tell: Callable[..., object]) -> None:
        """A plan is let pass, or refused by a VmclonerError of one line, each time the same."""
        found = [_veto(tell) for _ in range(2)]
        assert found[0] == found[1]
        assert found[0] is None or len(found[0].splitlines()) == 1

    def test_addresses_of_a_mac_policy(self, tell: Callable[..., object]) -> None:
        """They are unicast addresses, the same for the same card, others for others."""

        def policy(index: int, attempt: int) -> object:
            values = {"labels": make_labels("web", index), "nic": 0, "attempt": attempt}
            return tell("clone_mac", values)

        if policy(1, 0) is None:
            pytest.skip("the observer is no policy for MAC addresses")
        found = [policy(index, attempt) for index in (1, 2) for attempt in (0, 1)]
        for address in found:
            try:
                check_mac(address)  # type: ignore[arg-type]
            except InvalidRequest as error:
                pytest.fail(error.message)
        assert found[0] == policy(1, 0)
        assert len(set(found)) == len(found), "an address that is in use is given again"


def registered(observer: object) -> pluggy.PluginManager:
    """Return a plugin manager with vmcloner's hooks and an observer.

    :raises pluggy.PluginValidationError: it has a hook that vmcloner hasn't, or other arguments.
    """
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(Hooks)
    manager.register(observer, name="observer")
    manager.check_pending()
    return manager


def _veto(tell: Callable[..., object]) -> str | None:
    """Return why a plan is refused, None if it isn't; any other exception is the test's failure."""
    try:
        tell("preflight", {"plan": plan_of("run-1")})
    except Unanswered:
        raise
    except VmclonerError as error:
        return str(error)
    return None


def _plain(told: Told) -> tuple[str, object]:
    """Return values that can be compared: copies of an error are not equal to it."""
    hook, values = told
    return hook, {
        key: attrs.asdict(value) if attrs.has(type(value)) else value
        for key, value in values.items()
    }.__repr__()
