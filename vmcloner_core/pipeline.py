"""Carry out a plan: clones stream through stages, one for each step of each driver.

A clone whose volume is ready is defined and started while others are still being cloned. Each
stage has its own queue and as many threads as its driver allows concurrent calls. Each call takes
as many waiting clones as the driver's batch allows. So a slow pool or host never delays another's
clones.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence

import attrs

from vmcloner_core.admission import Gate
from vmcloner_core.cancelling import cancellable
from vmcloner_core.drivers import Lane
from vmcloner_core.errors import Interrupted, VmclonerError, said
from vmcloner_core.model import Outcome, Volume
from vmcloner_core.outcomes import Backend, Untrusted, Watched, watching
from vmcloner_core.plan import ClonePlan, CloneResult, StepEvent, StepStatus
from vmcloner_core.units import format_seconds


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
    recalled: VmclonerError | None = None
    """Why it fails although its steps so far were done: a call that said so can't be believed."""
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

    :param gate: decides when a work that waits for it may begin.
    :param members: returns how many members of the driver's call a work counts as.
    :param patience: seconds without a sign of life after which a call is taken to hang.
    :param sign: returns when there was one other than an outcome, as :func:`time.monotonic`.
    :param backend: what hangs if none is known to be asked, for the message.
    """

    step: str
    call: Call
    lane: Lane
    gate: Gate = attrs.field(factory=Gate)
    members: Callable[[Work], int] = _one
    patience: float = math.inf
    sign: Callable[[], float] = lambda: 0.0
    backend: Backend = attrs.field(factory=lambda: Backend("the driver"))


ADMITTING = 0.1
"""Seconds between two looks at a gate that admits nothing."""


class _Calling:
    """A call in progress. Each of its works is taken out once: with its outcome, or given up."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.thread = threading.current_thread()
        self.told: list[Work] = []
        """The works whose outcomes have come."""
        self.watched = Watched()
        self._begun: dict[str, tuple[Work, float]] = {}
        self._lock = threading.Lock()
        self._sign = time.monotonic()

    def begin(self, works: Sequence[Work]) -> None:
        """Add works; also a sign of life."""
        now = time.monotonic()
        with self._lock:
            self._sign = now
            self._begun.update((work.name, (work, now)) for work in works)

    def take(self, name: str) -> tuple[Work, float] | None:
        """Take a work out; returns it with the seconds that it took, None if it isn't there."""
        with self._lock:
            self._sign = time.monotonic()
            found = self._begun.pop(name, None)
            return None if found is None else (found[0], self._sign - found[1])

    def size(self) -> int:
        """Return how many works are left in it."""
        with self._lock:
            return len(self._begun)

    def rest(self) -> list[tuple[Work, float]]:
        """Take out all that are left."""
        return [taken for name in list(self._begun) if (taken := self.take(name)) is not None]

    def hangs(self) -> bool:
        """Tell whether there was no sign of life for too long."""
        signs = (self._sign, self.watched.sign, self.stage.sign())
        return time.monotonic() - max(signs) > self.stage.patience

    def backend(self) -> Backend:
        """Return what is asked at present."""
        asked = self.watched.asked
        return asked if asked is not None else self.stage.backend


class _Line:
    """The works that wait for a stage."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self._works: deque[Work] = deque()
        self._changed = threading.Condition()
        self._closed = False

    def put(self, work: Work) -> bool:
        """Add a work; returns False if the line is closed."""
        with self._changed:
            if not self._closed:
                self._works.append(work)
                self._changed.notify()
            return not self._closed

    def close(self) -> None:
        """Accept no more works; threads that wait for one get none."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def take(self) -> list[Work]:
        """Wait for a work, then return as many as fit in one call; none once closed."""
        with self._changed:
            while not self._closed and not (self._works and self._admits(self._works[0])):
                self._changed.wait(ADMITTING if self._works else None)
            return self._batch()

    def emptied(self) -> list[Work]:
        """Close the line; returns the works that waited."""
        self.close()
        with self._changed:
            works = list(self._works)
            self._works.clear()
        return works

    def gathered(self) -> list[Work]:
        """Return as many works as fit in one call, without waiting."""
        with self._changed:
            return self._batch()

    def _admits(self, work: Work) -> bool:
        return self.stage.gate.admit(work.name)

    def _batch(self) -> list[Work]:
        batch: list[Work] = []
        room = self.stage.lane.batch
        while self._works and (not batch or self.stage.members(self._works[0]) <= room):
            if not self._admits(self._works[0]):
                break
            room -= self.stage.members(self._works[0])
            batch.append(self._works.popleft())
        return batch


class Pipeline:
    """Runs works through their routes. Used once.

    :param emit: called with each event, from the stages' threads.
    :param ready: called with the name of each clone that has completed all of its steps.
    :param stopping: called once ``cancelled`` was set, with the works in calls in progress, counted
        by step.
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
        stopping: Callable[[Mapping[str, int]], None] = lambda _calls: None,
    ) -> None:
        self._run = run
        self._emit = emit
        self._cancelled = cancelled
        self._started = started
        self._ready = ready
        self._stopping = stopping
        self._lines: dict[Stage, _Line] = {}
        self._calls: set[_Calling] = set()
        self._hung: dict[Stage, VmclonerError] = {}
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
            self._join(thread)

    def _join(self, thread: threading.Thread) -> None:
        """Wait for a thread whose works have all ended, unless its call hangs after the last."""
        while thread.is_alive() and not self._is_hung(thread):
            try:
                thread.join(0.2)
            except KeyboardInterrupt:
                if self._cancelled.is_set():
                    raise
                self._cancelled.set()

    def _is_hung(self, thread: threading.Thread) -> bool:
        return any(
            calling.stage in self._hung or calling.hangs()
            for calling in self._calls.copy()
            if calling.thread is thread
        )

    def _wait(self) -> None:
        """Wait for the last work. Ctrl-C stops the run cleanly; a second one is raised."""
        told = False
        while True:
            try:
                # In slices: an untimed wait keeps the interpreter from running signal handlers.
                while True:
                    if self._cancelled.is_set() and not told:
                        told = True
                        self._tell_stopping()
                    if self._done.wait(0.2):
                        return
                    self._give_up()
            except KeyboardInterrupt:
                if self._cancelled.is_set():
                    raise
                self._cancelled.set()

    def _tell_stopping(self) -> None:
        calls: Counter[str] = Counter()
        for calling in self._calls.copy():
            calls[calling.stage.step] += calling.size()
        self._stopping(dict(calls))

    def _give_up(self) -> None:
        """Fail the works of calls that hang, and those that wait for the same driver."""
        for calling in [each for each in self._calls.copy() if each.hangs()]:
            stage = calling.stage
            late = format_seconds(stage.patience)
            error = calling.backend().broken(f"gave no sign of life for {late} in {stage.step}")
            self._hung.setdefault(stage, error)
            waiting = [(work, 0.0) for work in self._lines[stage].emptied()]
            for work, seconds in [*calling.rest(), *waiting]:
                self._failed(stage, work, error, seconds)

    def _serve(self, line: _Line) -> None:
        while batch := line.take():
            stopped = Interrupted("stopped by the user") if self._cancelled.is_set() else None
            left = []
            for work in batch:
                error = stopped or work.recalled
                if error is not None:
                    self._failed(line.stage, work, error, 0.0)
                else:
                    left.append(work)
            if left:
                self._run_batch(line, left)

    def _run_batch(self, line: _Line, batch: Sequence[Work]) -> None:
        stage, calling = line.stage, _Calling(line.stage)
        self._calls.add(calling)

        def begin(works: Sequence[Work]) -> Sequence[Work]:
            calling.begin(works)
            for work in works:
                self._event(stage, work.name, StepStatus.STARTED)
            return works

        try:
            with cancellable(self._cancelled), watching(calling.watched):
                for outcome in stage.call(begin(batch), lambda: begin(line.gathered())):
                    taken = calling.take(outcome.key)
                    if taken is not None:
                        calling.told.append(taken[0])
                        self._settle(stage, taken[0], outcome, taken[1])
            error = VmclonerError(f"the driver yielded no outcome for {stage.step}")
        except VmclonerError as raised:
            error = raised
            if isinstance(raised, Untrusted):
                self._recall(stage, calling.told, raised)
        except BaseException as raised:  # a driver's bug, even sys.exit, must not hang the others
            error = VmclonerError(f"{stage.step}: {said(raised)}")
            error.__cause__ = raised
        for work, seconds in calling.rest():
            self._failed(stage, work, error, seconds)
        self._calls.discard(calling)

    def _settle(self, stage: Stage, work: Work, outcome: Outcome[object], seconds: float) -> None:
        if outcome.error is not None:
            self._failed(stage, work, outcome.error, seconds)
            return
        work.seconds[stage.step] = seconds
        if outcome.changed:
            work.made.append(stage.step)
        if work.recalled is not None:
            self._failed(stage, work, work.recalled, seconds)
            return
        status = StepStatus.DONE if outcome.changed else StepStatus.UNCHANGED
        self._event(stage, work.name, status, seconds)
        self._forward(work, work.route.index(stage) + 1)

    def _recall(self, stage: Stage, works: Sequence[Work], error: VmclonerError) -> None:
        """Fail works that have gone on, or have ended, since a call said that they were done."""
        for work in works:
            with self._lock:
                work.recalled = error
                ended = work.ended and work.error is None
            if ended:
                work.error, work.failed_step = error, stage.step
                self._event(stage, work.name, StepStatus.FAILED, 0.0, error)

    def _failed(self, stage: Stage, work: Work, error: VmclonerError, seconds: float) -> None:
        work.error, work.failed_step = error, stage.step
        work.seconds[stage.step] = seconds
        self._event(stage, work.name, StepStatus.FAILED, seconds, error)
        self._end(work)

    def _forward(self, work: Work, position: int) -> None:
        if position < len(work.route):
            stage = work.route[position]
            if not self._lines[stage].put(work):
                self._failed(stage, work, self._hung[stage], 0.0)
        else:
            self._ready(work.name)
            self._end(work)

    def _end(self, work: Work) -> None:
        for stage in work.route:
            stage.gate.left(work.name, failed=work.error is not None)
        with self._lock:
            if work.recalled is not None and work.error is None:
                work.error, work.failed_step = work.recalled, work.route[-1].step
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
