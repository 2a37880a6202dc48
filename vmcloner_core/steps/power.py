"""Start, stop, restart and wait for clones."""

from __future__ import annotations

import functools
import logging
import os
import sys
from abc import abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import attrs

from vmcloner_core.admission import Admission, Gate
from vmcloner_core.clone_spec import filled
from vmcloner_core.driver_registry import DriverRegistry
from vmcloner_core.drivers import HypervisorDriver, Lane
from vmcloner_core.errors import VmclonerError
from vmcloner_core.model import Clone, Outcome, State
from vmcloner_core.outcomes import settled
from vmcloner_core.pipeline import More, Stage, Work
from vmcloner_core.plan import Readiness
from vmcloner_core.records import Record
from vmcloner_core.request import TargetRequest
from vmcloner_core.steps.action import TargetAction, active, waits
from vmcloner_core.steps.step import HypervisorStep, Run, switched
from vmcloner_core.warm_origins import AT, READY, WarmOrigin

if TYPE_CHECKING:
    from vmcloner_core.readiness import Awaited

log = logging.getLogger(__name__)
FORKS = 64
"""Forks whose guests are waited for at once."""


class Start(TargetAction):
    """Start clones that aren't running."""

    name = "start"
    past = "started"
    order = ("check", "restore", "start", "wait")
    tells = ("restore", "start", "wait")
    own_word = False

    def steps(self, request: TargetRequest, clone: Clone) -> tuple[str, ...]:
        """See :meth:`TargetAction.steps`."""
        if clone.state is State.SAVED:
            return ("restore", *waits(request))
        return (*(("start",) if clone.state is not State.RUNNING else ()), *waits(request))


class Stop(TargetAction):
    """Shut clones down, or stop them at once."""

    name = "stop"
    past = "stopped"
    order = ("check", "discard", "shutdown", "destroy")
    lowest_first = False

    def steps(self, request: TargetRequest, clone: Clone) -> tuple[str, ...]:
        """See :meth:`TargetAction.steps`."""
        if clone.state is State.SAVED and request.kill:
            return ("discard",)
        return (_stop(request),) if active(clone) else ()


class Restart(TargetAction):
    """Stop clones and start them again; saved ones continue first, to be shut down."""

    name = "restart"
    past = "restarted"
    order = ("check", "restore", "discard", "shutdown", "destroy", "start", "wait")

    def steps(self, request: TargetRequest, clone: Clone) -> tuple[str, ...]:
        """See :meth:`TargetAction.steps`."""
        stop: tuple[str, ...] = (_stop(request),) if active(clone) else ()
        if clone.state is State.SAVED:
            stop = ("discard",) if request.kill else ("restore", "shutdown")
        return (*stop, "start", *waits(request))


class Wait(TargetAction):
    """Wait until clones are ready."""

    name = "wait"
    past = "ready"
    order = ("check", "wait")
    own_word = False

    def steps(self, request: TargetRequest, clone: Clone) -> tuple[str, ...]:  # noqa: ARG002
        """See :meth:`TargetAction.steps`."""
        return waits(request)


def _stop(request: TargetRequest) -> str:
    return "destroy" if request.kill else "shutdown"


# --- steps --------------------------------------------------------------------------------------


class StartDomain(HypervisorStep):
    """Start clones' domains, from what their boot providers say if these are asked at starts."""

    name = "start"
    past = "started"
    lane = "start_lane"
    undo = ("destroy",)

    def gate(self, run: Run, driver: HypervisorDriver) -> Gate:
        """See :meth:`Step.gate`. As many guests boot at once as the host can carry."""
        plan = run.plan
        clones = [c for c in plan.clones if c.labels.hypervisor == driver.name]
        starting = [clone.name for clone in clones if self.name in clone.steps]
        if len(starting) <= (plan.boot_jobs or os.cpu_count() or 1) or self._forks(run, driver):
            return Gate()
        return Admission(
            plan.boot_jobs,
            frozenset(clone.name for clone in clones if "wait" in clone.steps),
            emulated=run.host.emulates(driver.name),
            open_=run.cancelled,
        )

    def call(
        self, run: Run, driver: HypervisorDriver, works: Sequence[Work], _more: More
    ) -> Iterator[Outcome[object]]:
        """See :meth:`Step.call`."""
        with run.start_gate(driver):
            ready, started = [], []
            for work, error in switched(run, works, DriverRegistry.activate):
                if error is None:
                    ready.append(work)
                else:
                    yield Outcome(key=work.name, error=error)
            due = run.host.forks.due(driver, [work.name for work in ready])
            forks = {name: each.unwrap() for name, each in due.items() if each.ok}
            loaded: dict[str, WarmOrigin] = {}
            cold = [work for work in ready if work.name not in due]
            yield from (Outcome(key=o.key, error=o.error) for o in due.values() if not o.ok)
            for outcome in run.host.starter.start(driver, cold) if cold else ():
                if outcome.error is None:
                    self._noted(run, outcome.key)
                    started.append(outcome.key)
                yield outcome
            for fork in run.host.forks.load(driver, forks):
                if fork.error is None:
                    loaded[fork.key] = forks[fork.key]
                else:
                    yield Outcome(key=fork.key, error=fork.error)
            # A guest's clock stood still while it was paused or saved.
            was = (State.PAUSED, State.SAVED)
            late = [w.name for w in ready if w.plan.state in was and w.name in started]
            if late and driver.agents is not None:
                driver.agents.set_clocks(late)
        # What forks wait for needs no processor of the host's: others are loaded meanwhile.
        by_name = {work.name: work for work in ready}
        for fork in run.host.forks.finish(driver, loaded):
            if fork.error is None:
                self._noted(run, fork.key)
                self._note_said(run, driver, by_name[fork.key], forks[fork.key])
            yield Outcome(key=fork.key, error=fork.error)

    @staticmethod
    def _note_said(run: Run, driver: HypervisorDriver, work: Work, origin: WarmOrigin) -> None:
        """Note that a fork is ready if its parent has said so: its own console doesn't have that.

        What has placeholders it has to say itself, with its own values, unless it stays its parent.
        """
        record = run.host.records.find(work.name)
        template = record.template() if record is not None else None
        if template is None or origin.depends[AT] != READY:
            return
        ready = Readiness.parse(template.readiness)
        if origin.identical and work.plan.spec is not None:
            ready = filled(ready, work.plan.spec)
        if not ready.placeholders:
            note_ready(run, driver, work.name, ready)

    def stage(self, run: Run, driver: HypervisorDriver) -> Stage:
        """See :meth:`Step.stage`. Many forks wait at once."""
        stage = super().stage(run, driver)
        if not self._forks(run, driver):
            return stage
        return attrs.evolve(stage, lane=Lane(batch=1, concurrency=FORKS))

    def _forks(self, run: Run, driver: HypervisorDriver) -> bool:
        """Tell whether all clones of a driver that are started are forked."""
        clones = [c for c in run.plan.clones if c.labels.hypervisor == driver.name]
        starting = [clone for clone in clones if self.name in clone.steps]
        waiting = run.host.warm.waiting() if starting else {}
        return bool(starting) and all(
            clone.name in waiting or (clone.labels.warm is not None and 0 in clone.disks)
            for clone in starting
        )

    @staticmethod
    def _noted(run: Run, name: str) -> None:
        """Note that a clone runs again. Where that can't be, it runs all the same."""
        try:
            run.host.records.note_restart(name, wanted=False)
        except VmclonerError as error:
            log.warning("%s", error)


class WaitUntilReady(HypervisorStep):
    """Watch clones until they are ready."""

    name = "wait"
    past = "ready"

    def lane_of(self, driver: HypervisorDriver) -> Lane:  # noqa: ARG002 - nothing long is called
        """Return one watcher for all."""
        return Lane(batch=sys.maxsize)

    def call(
        self, run: Run, driver: HypervisorDriver, works: Sequence[Work], more: More
    ) -> Iterator[Outcome[object]]:
        """See :meth:`Step.call`."""
        from vmcloner_core.watching import watch

        by_name: dict[str, Work] = {}

        def awaited(works: Sequence[Work]) -> list[Awaited]:
            by_name.update((work.name, work) for work in works)
            ready = self._known_ready(run, driver, works)
            return [self._awaited(run, driver, work, known=work.name in ready) for work in works]

        for outcome in watch(
            awaited(works),
            more=lambda: awaited(more()),
            cancelled=run.cancelled,
            report=run.waiting,
            seen=run.seen,
            again=lambda names: self._again(run, driver, [by_name[name] for name in names]),
        ):
            if outcome.ok:
                note_ready(run, driver, outcome.key, by_name[outcome.key].plan.wait)
            yield outcome

    @staticmethod
    def _known_ready(run: Run, driver: HypervisorDriver, works: Sequence[Work]) -> Collection[str]:
        """Return the clones whose consoles were ready before in their present runs.

        A log keeps only its end. Anything else that is waited for can be seen again.
        """
        consoles = {work.name: work for work in works if work.plan.wait.kind == "console"}
        noted = {name: r.ready for name, r in run.host.records.of(consoles).items() if r.ready}
        return {
            name
            for name, ready in noted.items()
            if ready == f"{driver.started(name)} {consoles[name].plan.wait}"
        }

    @staticmethod
    def _awaited(run: Run, driver: HypervisorDriver, work: Work, *, known: bool) -> Awaited:
        from vmcloner_core.readiness import Awaited

        wait = work.plan.wait
        return Awaited(
            name=work.name,
            driver=driver,
            readiness=attrs.evolve(wait, kind="running", argument="") if known else wait,
            access=functools.partial(run.host.access, work.plan.labels),
            planned=run.host.records.planned_address(work.name),
        )

    @staticmethod
    def _again(
        run: Run, driver: HypervisorDriver, works: Sequence[Work]
    ) -> Mapping[str, VmclonerError | None]:
        """Restart clones that stopped so that their boot providers are asked again."""
        ended = [
            work
            for work in works
            if work.plan.spec is not None and run.host.starter.ended_to_boot_anew(work.name)
        ]
        start = StartDomain()
        calls = run.limited(driver.start_lane).concurrency
        outcomes: list[Outcome[object]] = []
        with ThreadPoolExecutor(calls, thread_name_prefix="again") as pool:
            for batch in pool.map(lambda w: list(start.call(run, driver, [w], tuple)), ended):
                outcomes.extend(batch)
        return {outcome.key: outcome.error for outcome in outcomes}


def note_ready(run: Run, driver: HypervisorDriver, name: str, wait: Readiness) -> None:
    """Note that a clone's console has said what was waited for, in its present run.

    Where that can't be noted, it is ready all the same.
    """
    if wait.kind != "console":
        return
    try:
        started = driver.started(name)
        if started is not None:
            run.host.records.update(name, lasting=False, ready=f"{started} {wait}")
    except VmclonerError as error:
        log.warning("%s", error)


class _StopStep(HypervisorStep):
    """Stops clones' domains, deactivates their disks and removes what they were started from."""

    past = "stopped"
    lane = "stop_lane"

    def call(
        self, run: Run, driver: HypervisorDriver, works: Sequence[Work], _more: More
    ) -> Iterator[Outcome[object]]:
        """See :meth:`Step.call`."""
        by_name: dict[str, Work] = {}
        for work in works:
            try:
                self._note(run, work)
            except VmclonerError as lost:
                yield Outcome(key=work.name, error=lost)
            else:
                by_name[work.name] = work
        stopped: dict[str, Outcome[None]] = {}
        stopping = functools.partial(self.stop, run, driver, list(by_name))
        backend = run.host.drivers.backend("hypervisor", driver.name, self.name)
        for outcome in settled(stopping, by_name, backend):
            if outcome.error is not None:
                yield Outcome(key=outcome.key, error=outcome.error)
            else:
                stopped[outcome.key] = outcome
        ended = [by_name[name] for name in stopped]
        for work, error in switched(run, ended, DriverRegistry.deactivate):
            yield run.host.starter.forget(attrs.evolve(stopped[work.name], error=error))

    @staticmethod
    def _note(run: Run, work: Work) -> None:
        """Note in its record whether a clone is to be started again."""
        plan, domain = work.plan, work.plan.domain
        missing = None
        if domain is not None:  # clones of older versions have no record
            missing = Record(labels=plan.labels, uuid=domain.uuid, macs=domain.macs)
        wanted = "start" in plan.steps
        run.host.records.note_restart(work.name, wanted=wanted, stopped=True, missing=missing)

    @abstractmethod
    def stop(
        self, run: Run, driver: HypervisorDriver, names: Sequence[str]
    ) -> Iterator[Outcome[None]]:
        """Stop domains."""


class Shutdown(_StopStep):
    """Ask guests to shut down; stop those that don't in time."""

    name = "shutdown"

    def stop(
        self, run: Run, driver: HypervisorDriver, names: Sequence[str]
    ) -> Iterator[Outcome[None]]:
        """Shut domains down."""
        return driver.shutdown(names, run.plan.shutdown_timeout)


class Destroy(_StopStep):
    """Stop domains at once."""

    name = "destroy"

    def undoes(self, work: Work) -> bool:
        """Keep a guest that ran, or was paused or saved, before the run."""
        return work.plan.state not in (State.RUNNING, State.PAUSED, State.SAVED)

    def stop(
        self,
        run: Run,  # noqa: ARG002
        driver: HypervisorDriver,
        names: Sequence[str],
    ) -> Iterator[Outcome[None]]:
        """Destroy domains."""
        return driver.destroy(names)
