"""Carry a plan out: a pipeline of stages, one per step, that clones stream through.

A clone whose volume is ready is defined and started while others are still being cloned. Each
stage has as many threads as its driver allows calls at once, and hands each call as many clones
as have gathered, up to the driver's batch.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import attrs

from vmcloner_core.drivers import Lane
from vmcloner_core.errors import Conflict, Interrupted, VmclonerError
from vmcloner_core.model import Outcome, State, Volume
from vmcloner_core.plan import ClonePlan, CloneResult, Step, StepEvent, StepStatus


@attrs.define
class Work:
    """One clone on its way: its plan, and what the stages made of it."""

    plan: ClonePlan
    volumes: tuple[Volume, ...] = ()
    """Those that are there by now, in the disks' order."""
    own: tuple[Volume, ...] = ()
    """Those of them that this run made."""
    forget: bool = True
    """Whether its identity goes with what is removed of it."""
    made: list[Step] = attrs.field(factory=list)
    """Steps that changed the host: what a roll-back undoes."""
    error: VmclonerError | None = None
    failed_step: Step | None = None
    seconds: dict[str, float] = attrs.field(factory=dict)

    @property
    def name(self) -> str:
        """The clone's name, the key of all outcomes."""
        return self.plan.name

    def add(self, volume: Volume, *, made: bool) -> None:
        """Note a volume that is there now, and whether this run made it."""
        others = (known for known in self.volumes if known.name != volume.name)
        self.volumes = tuple(sorted((*others, volume), key=lambda each: each.disk))
        if made:
            self.own = (*self.own, volume)

    def result(self) -> CloneResult:
        """Return what became of it."""
        return CloneResult(
            name=self.name,
            error=self.error,
            failed_step=self.failed_step,
            seconds=dict(self.seconds),
            created=bool(self.own) or Step.DEFINE in self.made,
        )


def undo(work: Work) -> Work:
    """Return the work that undoes what a run made of a clone, and leaves what was there before."""
    touched = set(work.made)
    if work.failed_step is not None and not isinstance(work.error, Conflict | Interrupted):
        touched.add(work.failed_step)
    undefined = work.plan.state in (None, State.ALLOCATED)
    steps = (
        *((Step.DESTROY,) if {Step.DEFINE, Step.START} & touched else ()),
        *((Step.UNDEFINE,) if Step.DEFINE in touched and undefined else ()),
        *((Step.REMOVE,) if work.own else ()),
    )
    return Work(
        plan=attrs.evolve(work.plan, steps=steps),
        volumes=work.own,
        forget=work.plan.state is None,
    )


More = Callable[[], Sequence[Work]]
Call = Callable[[Sequence[Work], More], Iterator[Outcome[object]]]
"""What a stage does: a driver's batch method, told of works; outcomes are keyed by clone.

A call that takes long over each work (a wait) asks the second argument, time and again, for those
that have arrived since: they join its batch.
"""


@attrs.frozen(kw_only=True)
class Stage:
    """One step of the pipeline: what it calls, and how many works and calls at once."""

    step: Step
    call: Call
    lane: Lane


class Pipeline:
    """Runs works through stages. Used once.

    :param emit: gets each event; called from the stages' threads.
    :param ready: gets the name of each clone that has gone through all of its steps.
    :param started: :func:`time.monotonic` at the run's start, from which events count.
    :param cancelled: once set, works that wait for a stage fail with
        :class:`~vmcloner_core.errors.Interrupted`; calls that are under way are finished.
    """

    def __init__(
        self,
        run: str,
        stages: Sequence[Stage],
        emit: Callable[[StepEvent], None],
        cancelled: threading.Event,
        started: float,
        ready: Callable[[str], None] = lambda _name: None,
    ) -> None:
        self._run = run
        self._stages = tuple(stages)
        self._emit = emit
        self._cancelled = cancelled
        self._started = started
        self._ready = ready
        self._queues: dict[Step, queue.SimpleQueue[Work | None]] = {
            stage.step: queue.SimpleQueue() for stage in stages
        }
        self._lock = threading.Lock()
        self._left = 0
        self._done = threading.Event()

    def __call__(self, works: Sequence[Work]) -> None:
        """Run all works to their ends; each then has its result. Never raises for one of them."""
        self._left = len(works)
        if not works:
            return
        threads = [
            threading.Thread(target=self._serve, args=(stage,), name=f"{stage.step.value}-{n}")
            for stage in self._stages
            for n in range(stage.lane.concurrency)
        ]
        for thread in threads:
            thread.daemon = True
            thread.start()
        for work in works:
            self._forward(work, work.plan.steps)
        self._wait()
        for stage in self._stages:
            for _ in range(stage.lane.concurrency):
                self._queues[stage.step].put(None)
        for thread in threads:
            thread.join()

    def _wait(self) -> None:
        """Wait for the last work. Ctrl-C stops the run cleanly; a second one is the caller's."""
        while True:
            try:
                # In slices: an untimed wait keeps the interpreter from running signal handlers.
                while not self._done.wait(0.2):
                    pass
                return
            except KeyboardInterrupt:
                if self._cancelled.is_set():
                    raise
                self._cancelled.set()

    def _serve(self, stage: Stage) -> None:
        while (batch := self._take(stage)) is not None:
            if self._cancelled.is_set():
                for work in batch:
                    self._failed(stage.step, work, Interrupted("stopped by the user"), 0.0)
            else:
                self._run_batch(stage, batch)

    def _take(self, stage: Stage) -> list[Work] | None:
        """Wait for a work, then take as many more as are there; None once there are no more."""
        first = self._queues[stage.step].get()
        return None if first is None else [first, *self._gathered(stage, stage.lane.batch - 1)]

    def _gathered(self, stage: Stage, limit: int) -> list[Work]:
        """Return up to ``limit`` works that wait for the stage, without waiting for any."""
        waiting = self._queues[stage.step]
        works: list[Work] = []
        while len(works) < limit:
            try:
                work = waiting.get_nowait()
            except queue.Empty:
                break
            if work is None:
                waiting.put(None)  # another thread's sign to end
                break
            works.append(work)
        return works

    def _run_batch(self, stage: Stage, batch: Sequence[Work]) -> None:
        begun: dict[str, float] = {}
        under_way: dict[str, Work] = {}

        def begin(works: Sequence[Work]) -> Sequence[Work]:
            for work in works:
                begun[work.name] = time.monotonic()
                under_way[work.name] = work
                self._event(stage.step, work.name, StepStatus.STARTED)
            return works

        def since(work: Work) -> float:
            return time.monotonic() - begun[work.name]

        try:
            more = lambda: begin(self._gathered(stage, stage.lane.batch))  # noqa: E731
            for outcome in stage.call(begin(batch), more):
                work = under_way.pop(outcome.key, None)
                if work is not None:
                    self._settle(stage.step, work, outcome, since(work))
            error = VmclonerError(f"the driver gave no outcome of {stage.step.value}")
        except VmclonerError as raised:
            error = raised
        except Exception as raised:  # a driver's bug must not hang the other clones
            error = VmclonerError(f"{stage.step.value}: {type(raised).__name__}: {raised}")
            error.__cause__ = raised
        for work in under_way.values():
            self._failed(stage.step, work, error, since(work))

    def _settle(self, step: Step, work: Work, outcome: Outcome[object], seconds: float) -> None:
        if outcome.error is not None:
            self._failed(step, work, outcome.error, seconds)
            return
        work.seconds[step.value] = seconds
        if outcome.changed:
            work.made.append(step)
        status = StepStatus.DONE if outcome.changed else StepStatus.UNCHANGED
        self._event(step, work.name, status, seconds)
        self._forward(work, work.plan.steps[work.plan.steps.index(step) + 1 :])

    def _failed(self, step: Step, work: Work, error: VmclonerError, seconds: float) -> None:
        work.error, work.failed_step = error, step
        work.seconds[step.value] = seconds
        self._event(step, work.name, StepStatus.FAILED, seconds, error)
        self._end()

    def _forward(self, work: Work, steps: Sequence[Step]) -> None:
        if steps:
            self._queues[steps[0]].put(work)
        else:
            self._ready(work.name)
            self._end()

    def _end(self) -> None:
        with self._lock:
            self._left -= 1
            if self._left == 0:
                self._done.set()

    def _event(
        self,
        step: Step,
        clone: str,
        status: StepStatus,
        seconds: float = 0.0,
        error: VmclonerError | None = None,
    ) -> None:
        self._emit(
            StepEvent(
                run=self._run,
                clone=clone,
                step=step,
                status=status,
                at=time.monotonic() - self._started,
                seconds=seconds,
                error=error,
            )
        )
