"""Carry out a plan: clones stream through stages, one for each step of each driver.

A clone whose volume is ready is defined and started while others are still being cloned. Each
stage has its own queue and as many threads as its driver allows concurrent calls. Each call takes
as many waiting clones as the driver's batch allows. So a slow pool or host never delays another's
clones.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence

import attrs

from vmcloner_core.drivers import Lane
from vmcloner_core.errors import Interrupted, VmclonerError
from vmcloner_core.model import Outcome, Volume
from vmcloner_core.plan import ClonePlan, CloneResult, StepEvent, StepStatus


@attrs.define(eq=False)
class Work:
    """One clone in a run: its plan, the stages it goes through, and what they have done."""

    plan: ClonePlan
    route: tuple[Stage, ...] = ()
    """The stages of its plan's steps, in order."""
    volumes: tuple[Volume, ...] = ()
    """The existing ones, in the disks' order."""
    own: tuple[Volume, ...] = ()
    """Those of them that this run made."""
    forget: bool = True
    """Whether removing it removes its record."""
    made: list[str] = attrs.field(factory=list)
    """Steps that changed the host: what a roll-back undoes."""
    error: VmclonerError | None = None
    failed_step: str | None = None
    seconds: dict[str, float] = attrs.field(factory=dict)
    ended: bool = False

    @property
    def name(self) -> str:
        """The clone's name, the key of all outcomes."""
        return self.plan.name

    def add(self, volume: Volume, *, made: bool) -> None:
        """Add a volume that exists now; ``made``: by this run."""
        others = (known for known in self.volumes if known.name != volume.name)
        self.volumes = tuple(sorted((*others, volume), key=lambda each: each.disk))
        if made:
            self.own = (*self.own, volume)

    def result(self, unfinished: VmclonerError | None = None) -> CloneResult:
        """Return its result.

        :param unfinished: its error if it has not finished.
        """
        return CloneResult(
            name=self.name,
            error=self.error or (None if self.ended else unfinished),
            failed_step=self.failed_step,
            seconds=dict(self.seconds),
            created=bool(self.own) or "define" in self.made,
            changed=tuple(self.made),
        )


More = Callable[[], Sequence[Work]]
Call = Callable[[Sequence[Work], More], Iterator[Outcome[object]]]
"""What a stage does: a driver's batch method, called with works; outcomes are keyed by clone.

A call that takes long (a wait) polls the second argument for works that have arrived since: they
join its batch.
"""


def _one(_work: Work) -> int:
    return 1


@attrs.frozen(kw_only=True, eq=False)
class Stage:
    """A step of one driver: what it calls, with how many members, and how many calls at once.

    :param members: returns how many members of the driver's call a work counts as.
    """

    step: str
    call: Call
    lane: Lane
    members: Callable[[Work], int] = _one


class _Line:
    """The works that wait for a stage."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self._works: deque[Work] = deque()
        self._changed = threading.Condition()
        self._closed = False

    def put(self, work: Work) -> None:
        with self._changed:
            self._works.append(work)
            self._changed.notify()

    def close(self) -> None:
        """Accept no more works; threads that wait for one get none."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def take(self) -> list[Work]:
        """Wait for a work, then return as many as fit in one call; none once closed."""
        with self._changed:
            while not self._works and not self._closed:
                self._changed.wait()
            return self._batch()

    def gathered(self) -> list[Work]:
        """Return as many works as fit in one call, without waiting."""
        with self._changed:
            return self._batch()

    def _batch(self) -> list[Work]:
        batch: list[Work] = []
        room = self.stage.lane.batch
        while self._works and (not batch or self.stage.members(self._works[0]) <= room):
            room -= self.stage.members(self._works[0])
            batch.append(self._works.popleft())
        return batch


class Pipeline:
    """Runs works through their routes. Used once.

    :param emit: called with each event, from the stages' threads.
    :param ready: called with the name of each clone that has completed all of its steps.
    :param started: :func:`time.monotonic` at the run's start, from which events count.
    :param cancelled: once set, works that wait for a stage fail with
        :class:`~vmcloner_core.errors.Interrupted`; calls in progress are finished.
    """

    def __init__(
        self,
        run: str,
        emit: Callable[[StepEvent], None],
        cancelled: threading.Event,
        started: float,
        ready: Callable[[str], None] = lambda _name: None,
    ) -> None:
        self._run = run
        self._emit = emit
        self._cancelled = cancelled
        self._started = started
        self._ready = ready
        self._lines: dict[Stage, _Line] = {}
        self._lock = threading.Lock()
        self._left = 0
        self._done = threading.Event()

    def __call__(self, works: Sequence[Work]) -> None:
        """Run all works to their ends; each then has its result. Never raises a work's error."""
        self._left = len(works)
        if not works:
            return
        crowds = Counter(stage for work in works for stage in work.route)
        self._lines = {stage: _Line(stage) for stage in crowds}
        threads = [
            threading.Thread(target=self._serve, args=(line,), name=f"{stage.step}-{n}")
            for stage, line in self._lines.items()
            for n in range(min(stage.lane.concurrency, crowds[stage]))
        ]
        for thread in threads:
            thread.daemon = True
            thread.start()
        for work in works:
            self._forward(work, 0)
        self._wait()
        for line in self._lines.values():
            line.close()
        for thread in threads:
            thread.join()

    def _wait(self) -> None:
        """Wait for the last work. Ctrl-C stops the run cleanly; a second one is raised."""
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

    def _serve(self, line: _Line) -> None:
        while batch := line.take():
            if self._cancelled.is_set():
                for work in batch:
                    self._failed(line.stage, work, Interrupted("stopped by the user"), 0.0)
            else:
                self._run_batch(line, batch)

    def _run_batch(self, line: _Line, batch: Sequence[Work]) -> None:
        stage = line.stage
        begun: dict[str, float] = {}
        under_way: dict[str, Work] = {}

        def begin(works: Sequence[Work]) -> Sequence[Work]:
            for work in works:
                begun[work.name] = time.monotonic()
                under_way[work.name] = work
                self._event(stage, work.name, StepStatus.STARTED)
            return works

        def since(work: Work) -> float:
            return time.monotonic() - begun[work.name]

        try:
            for outcome in stage.call(begin(batch), lambda: begin(line.gathered())):
                work = under_way.pop(outcome.key, None)
                if work is not None:
                    self._settle(stage, work, outcome, since(work))
            error = VmclonerError(f"the driver yielded no outcome for {stage.step}")
        except VmclonerError as raised:
            error = raised
        except BaseException as raised:  # a driver's bug, even sys.exit, must not hang the others
            error = VmclonerError(f"{stage.step}: {type(raised).__name__}: {raised}")
            error.__cause__ = raised
        for work in under_way.values():
            self._failed(stage, work, error, since(work))

    def _settle(self, stage: Stage, work: Work, outcome: Outcome[object], seconds: float) -> None:
        if outcome.error is not None:
            self._failed(stage, work, outcome.error, seconds)
            return
        work.seconds[stage.step] = seconds
        if outcome.changed:
            work.made.append(stage.step)
        status = StepStatus.DONE if outcome.changed else StepStatus.UNCHANGED
        self._event(stage, work.name, status, seconds)
        self._forward(work, work.route.index(stage) + 1)

    def _failed(self, stage: Stage, work: Work, error: VmclonerError, seconds: float) -> None:
        work.error, work.failed_step = error, stage.step
        work.seconds[stage.step] = seconds
        self._event(stage, work.name, StepStatus.FAILED, seconds, error)
        self._end(work)

    def _forward(self, work: Work, position: int) -> None:
        if position < len(work.route):
            self._lines[work.route[position]].put(work)
        else:
            self._ready(work.name)
            self._end(work)

    def _end(self, work: Work) -> None:
        with self._lock:
            work.ended = True
            self._left -= 1
            if self._left == 0:
                self._done.set()

    def _event(
        self,
        stage: Stage,
        clone: str,
        status: StepStatus,
        seconds: float = 0.0,
        error: VmclonerError | None = None,
    ) -> None:
        self._emit(
            StepEvent(
                run=self._run,
                clone=clone,
                step=stage.step,
                status=status,
                at=time.monotonic() - self._started,
                seconds=seconds,
                error=error,
            )
        )
