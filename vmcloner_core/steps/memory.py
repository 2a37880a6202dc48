"""Pause, resume, save and restore: what is done to the memory of running guests."""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Iterator, Sequence

import attrs

from vmcloner_core.driver_registry import DriverRegistry
from vmcloner_core.drivers import HypervisorDriver, MemoryInterface
from vmcloner_core.errors import BackendError, WrongState
from vmcloner_core.model import Clone, Outcome, State
from vmcloner_core.outcomes import settled
from vmcloner_core.pipeline import More, Work
from vmcloner_core.request import TargetRequest
from vmcloner_core.steps.action import TargetAction, waits
from vmcloner_core.steps.power import StartDomain, note_ready
from vmcloner_core.steps.step import HypervisorStep, Run, switched


class Pause(TargetAction):
    """Pause running clones; they keep their memory."""

    name = "pause"
    past = "paused"
    order = ("check", "pause")
    leaves = (State.STOPPED, State.SAVED)
    lowest_first = False

    def steps(self, request: TargetRequest, clone: Clone) -> tuple[str, ...]:  # noqa: ARG002
        """See :meth:`TargetAction.steps`."""
        return () if clone.state is State.PAUSED else ("pause",)


class Resume(TargetAction):
    """Continue paused clones."""

    name = "resume"
    past = "resumed"
    order = ("check", "resume", "wait")
    leaves = (State.STOPPED, State.SAVED)

    def steps(self, request: TargetRequest, clone: Clone) -> tuple[str, ...]:
        """See :meth:`TargetAction.steps`."""
        return (*(() if clone.state is State.RUNNING else ("resume",)), *waits(request))


class Save(TargetAction):
    """Save the memory of running and paused clones to files, and stop them."""

    name = "save"
    past = "saved"
    order = ("check", "save")
    leaves = (State.STOPPED,)
    lowest_first = False

    def steps(self, request: TargetRequest, clone: Clone) -> tuple[str, ...]:  # noqa: ARG002
        """See :meth:`TargetAction.steps`."""
        return () if clone.state is State.SAVED else ("save",)


class Restore(TargetAction):
    """Continue saved clones."""

    name = "restore"
    past = "restored"
    order = ("check", "restore", "wait")
    leaves = (State.STOPPED, State.PAUSED)

    def steps(self, request: TargetRequest, clone: Clone) -> tuple[str, ...]:
        """See :meth:`TargetAction.steps`."""
        return (*(() if clone.state is State.RUNNING else ("restore",)), *waits(request))


# --- steps --------------------------------------------------------------------------------------


class _MemoryStep(HypervisorStep):
    """A step done by a driver's :class:`MemoryInterface`."""

    lane = "stop_lane"

    def call(
        self, run: Run, driver: HypervisorDriver, works: Sequence[Work], _more: More
    ) -> Iterator[Outcome[object]]:
        """See :meth:`Step.call`.

        :raises BackendError: the driver has no such interface.
        """
        if driver.memory is None:
            raise BackendError(
                f"{works[0].name}: hypervisor {driver.name!r} can't pause or save guests",
                hint=f"vmcloner stop {works[0].name}",
            )
        by_name = {work.name: work for work in works}
        done = functools.partial(self.done, driver.memory, list(by_name))
        backend = run.host.drivers.backend("hypervisor", driver.name, f"memory.{self.name}")
        for outcome in settled(done, by_name, backend):
            yield self.after(run, by_name[outcome.key], outcome)

    @abstractmethod
    def done(self, memory: MemoryInterface, names: Sequence[str]) -> Iterator[Outcome[None]]:
        """Do it to domains."""

    def after(
        self,
        run: Run,  # noqa: ARG002
        work: Work,  # noqa: ARG002
        outcome: Outcome[None],
    ) -> Outcome[object]:
        """Return a clone's outcome, once the driver has done its part."""
        return Outcome(key=outcome.key, error=outcome.error, changed=outcome.changed)


class PauseDomain(_MemoryStep):
    """Pause clones' domains."""

    name = "pause"
    past = "paused"

    def done(self, memory: MemoryInterface, names: Sequence[str]) -> Iterator[Outcome[None]]:
        """Pause domains."""
        return memory.pause(names)


class SaveMemory(_MemoryStep):
    """Save clones' memory. What they were started from stays: it is needed to continue."""

    name = "save"
    past = "saved"

    def done(self, memory: MemoryInterface, names: Sequence[str]) -> Iterator[Outcome[None]]:
        """Save domains' memory."""
        return memory.save(names)

    def after(self, run: Run, work: Work, outcome: Outcome[None]) -> Outcome[object]:
        """Deactivate the volumes of a clone that is off now."""
        error = outcome.error
        if error is None:
            ((_, error),) = switched(run, [work], DriverRegistry.deactivate)
        return Outcome(key=work.name, error=error, changed=outcome.changed)


class DiscardMemory(_MemoryStep):
    """Remove clones' saved memory, so that they boot at their next start."""

    name = "discard"
    past = "stopped"

    def done(self, memory: MemoryInterface, names: Sequence[str]) -> Iterator[Outcome[None]]:
        """Remove domains' saved memory."""
        return memory.discard(names)

    def after(self, run: Run, work: Work, outcome: Outcome[None]) -> Outcome[object]:
        """Forget that a clone was ready, and remove what it was started from."""
        if outcome.error is None:
            forks = run.host.warm.end(work.name)
            outcome = attrs.evolve(outcome, changed=outcome.changed or forks)
            wanted = "start" in work.plan.steps
            run.host.records.note_restart(work.name, wanted=wanted, stopped=True)
        return run.host.starter.forget(super().after(run, work, outcome))


class _Continue(StartDomain):
    """Start domains that are in one state, and no others."""

    state: State

    def call(
        self, run: Run, driver: HypervisorDriver, works: Sequence[Work], more: More
    ) -> Iterator[Outcome[object]]:
        """See :meth:`Step.call`."""
        for work in works:
            if work.plan.state is not self.state:
                is_now = work.plan.state.value if work.plan.state is not None else "gone"
                error = WrongState(
                    f"{work.name} is {is_now}, not {self.state.value}",
                    hint=f"vmcloner start {work.name}",
                )
                yield Outcome(key=work.name, error=error)
        right = [work for work in works if work.plan.state is self.state]
        if right:
            yield from super().call(run, driver, right, more)


class ResumeDomain(_Continue):
    """Continue clones that are paused."""

    name = "resume"
    past = "resumed"
    state = State.PAUSED


class RestoreMemory(_Continue):
    """Continue clones that were saved. One that was ready still is, though its log is emptied."""

    name = "restore"
    past = "restored"
    state = State.SAVED

    def call(
        self, run: Run, driver: HypervisorDriver, works: Sequence[Work], more: More
    ) -> Iterator[Outcome[object]]:
        """See :meth:`Step.call`."""
        ready = {work.name: work for work in works if self._was_ready(run, driver, work)}
        for outcome in super().call(run, driver, works, more):
            if outcome.error is None and outcome.key in ready:
                note_ready(run, driver, outcome.key, ready[outcome.key].plan.wait)
            yield outcome

    @staticmethod
    def _was_ready(run: Run, driver: HypervisorDriver, work: Work) -> bool:
        if work.plan.state is not State.SAVED or work.plan.wait.kind != "console":
            return False
        from vmcloner_core.readiness import has_said

        record = run.host.records.find(work.name)
        noted = record is not None and record.ready.endswith(f" {work.plan.wait}")
        return noted or has_said(driver, work.name, work.plan.wait)
