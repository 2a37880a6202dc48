"""Wait until clones are ready: one thread watches all of them by cheap polls.

What ready means for each of them is a :class:`~vmcloner_core.readiness.Condition`.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import attrs

from vmcloner_core.errors import DeadlineExceeded, Interrupted, VmclonerError, WrongState
from vmcloner_core.model import Outcome, State
from vmcloner_core.plan import Waiting
from vmcloner_core.readiness import (
    CHUNK,
    CONDITIONS,
    MAX_SAID,
    POLL,
    Awaited,
    Condition,
    LastLine,
    Sight,
    plain_text,
)
from vmcloner_core.units import format_seconds

REPORT = 1.0
"""Seconds between two reports of what clones are doing."""
LOOKS = 32
"""Consoles that are looked at for their first lines in one poll."""
_DEAD = (State.STOPPED, State.SAVED, State.CRASHED)
PAUSED = 5.0
"""Seconds for which a guest may be paused: by a snapshot, for example, or while it is started."""
MAX_STARTS = 10
"""Times that a clone is restarted during one wait: an installer might reboot forever."""


@attrs.define
class _Watched:
    """A clone that is being watched."""

    clone: Awaited
    condition: Condition
    deadline: float
    begun: float
    starts: int = 0
    paused: float | None = None
    """Since when it has been seen paused, None if it wasn't when it was last looked at."""


class _Ended(WrongState):
    """A clone stopped while it was waited for, without a crash."""


Again = Callable[[Sequence[str]], Mapping[str, VmclonerError | None]]


def watch(
    clones: Sequence[Awaited],
    *,
    more: Callable[[], Sequence[Awaited]] = tuple,
    cancelled: Callable[[], bool] = lambda: False,
    again: Again = lambda _names: {},
    report: Callable[[Waiting], None] = lambda _waiting: None,
    seen: Callable[[str, str, str], None] = lambda _clone, _what, _text: None,
) -> Iterator[Outcome[None]]:
    """Yield one outcome per clone, as soon as it is ready, dead or out of time.

    :param more: called at each poll; returns further clones to watch.
    :param again: called with clones that have stopped; restarts those that stopped to reboot, and
        returns their names with the error of each that couldn't be started. The others stay
        stopped.
    :param report: called about once a second with what those that aren't ready are doing.
    :param seen: called with what is first seen of a clone: its name, and what; see :class:`Seen`.
    """
    waiting: dict[str, _Watched] = {}
    arrived, sight, reporter, first = clones, Sight(), _Reporter(report), FirstSeen(seen)
    try:
        while True:
            now = time.monotonic()
            for clone in arrived:
                condition = CONDITIONS[clone.readiness.kind](clone)
                deadline = now + clone.readiness.seconds
                waiting[clone.name] = _Watched(clone, condition, deadline, now)
            if arrived:
                sight.forget()
                first.arrive(arrived)
            first.look(waiting)
            sight.look(watched.clone for watched in waiting.values())
            for watched, outcome in _changed(tuple(waiting.values()), sight, cancelled, again):
                if outcome is None:
                    waiting[watched.clone.name] = watched
                    sight.forget()
                else:
                    del waiting[watched.clone.name]
                    first.ended(watched, outcome)
                    yield outcome
            reporter(tuple(waiting.values()), sight.now)
            arrived = more()
            if not waiting and not arrived:
                return
            if not arrived:
                time.sleep(POLL)
    finally:
        for watched in waiting.values():
            watched.condition.close()


class _Reporter:
    """Reports what clones are doing, now and then."""

    def __init__(self, report: Callable[[Waiting], None]) -> None:
        self._report = report
        self._next = 0.0
        self._lines: dict[str, LastLine] = {}

    def __call__(self, waiting: Sequence[_Watched], now: float) -> None:
        if not waiting or now < self._next:
            return
        self._next = now + REPORT
        slowest = min(waiting, key=lambda watched: watched.begun)
        clone = slowest.clone
        line = self._lines.setdefault(clone.name, LastLine(clone.driver, clone.name))
        self._report(
            Waiting(
                phases=dict(Counter(watched.condition.phase for watched in waiting)),
                slowest=clone.name,
                seconds=now - slowest.begun,
                said=line.read()[:MAX_SAID],
            )
        )


def _changed(
    waiting: Sequence[_Watched], sight: Sight, cancelled: Callable[[], bool], again: Again
) -> Iterator[tuple[_Watched, Outcome[None] | None]]:
    """Poll clones; yield those with an outcome, and without one those that were restarted."""
    ended: list[tuple[_Watched, Outcome[None]]] = []
    for watched in waiting:
        outcome = _look(watched, sight)
        if outcome is None and cancelled():
            error = Interrupted("stopped by the user")
            outcome = Outcome(key=watched.clone.name, error=error)
        if outcome is None:
            continue
        watched.condition.close()
        if isinstance(outcome.error, _Ended) and not cancelled():
            ended.append((watched, outcome))
        else:
            yield watched, outcome
    yield from _restarted(ended, again)


def _restarted(
    ended: Sequence[tuple[_Watched, Outcome[None]]], again: Again
) -> Iterator[tuple[_Watched, Outcome[None] | None]]:
    """Yield clones that have stopped; those that were started again without an outcome."""
    names = [watched.clone.name for watched, _ in ended if watched.starts < MAX_STARTS]
    started = again(names) if names else {}
    for watched, outcome in ended:
        clone = watched.clone
        if clone.name not in started:
            yield watched, outcome
        elif (error := started[clone.name]) is not None:
            yield watched, Outcome(key=clone.name, error=error)
        else:
            condition = CONDITIONS[clone.readiness.kind](clone)
            yield attrs.evolve(watched, condition=condition, starts=watched.starts + 1), None


def _look(watched: _Watched, sight: Sight) -> Outcome[None] | None:
    """Return the clone's outcome, None until it has one."""
    clone, condition = watched.clone, watched.condition
    try:
        state = sight.states(clone.driver).get(clone.name)
        if (
            state is State.RUNNING
            and condition.met(sight)
            and sight.states(clone.driver, POLL).get(clone.name) is State.RUNNING
        ):
            return Outcome(key=clone.name, changed=False)
        if state is State.PAUSED:
            return _paused(watched, sight)
    except VmclonerError as error:
        return Outcome(key=clone.name, error=error)
    watched.paused = None
    if state is None or state in _DEAD:
        what = state.value if state is not None else "gone"
        message = f"{clone.name} is {what}, not {clone.readiness}{_said(condition)}"
        kind = _Ended if state is State.STOPPED else WrongState
        off = state in (State.STOPPED, State.SAVED)
        hint = f"vmcloner start {clone.name} --wait" if off else None
        return Outcome(key=clone.name, error=kind(message, hint=hint))
    if sight.now <= watched.deadline:
        return None
    lacks = f": {condition.lacks}" if condition.lacks else ""
    limit = format_seconds(clone.readiness.seconds)
    return Outcome(
        key=clone.name,
        error=DeadlineExceeded(
            f"{clone.name} wasn't ready ({clone.readiness}) within {limit}{lacks}"
            f"{_said(condition)}",
            hint=f"vmcloner console --log {clone.name}",
        ),
    )


def _paused(watched: _Watched, sight: Sight) -> Outcome[None] | None:
    """Return the outcome of a clone that is paused: an error if it has been for long."""
    clone = watched.clone
    watched.paused = sight.now if watched.paused is None else watched.paused
    if sight.now - watched.paused < PAUSED and sight.now <= watched.deadline:
        return None
    reason = sight.reason(clone)
    message = f"{clone.name} is paused{reason and f' ({reason})'}, not {clone.readiness}"
    error = WrongState(message, hint=f"vmcloner start {clone.name} resumes it")
    return Outcome(key=clone.name, error=error)


def _said(condition: Condition) -> str:
    line = condition.last_line()
    return f"; last line of its console: {line!r}" if line else ""


class FirstSeen:
    """Tells what is seen of clones for the first time, while they are watched.

    :param tell: called with a clone's name and what was seen; see :class:`Seen`.
    """

    def __init__(self, tell: Callable[[str, str, str], None]) -> None:
        self._tell = tell
        self._silent: dict[str, Awaited] = {}
        """Those whose consoles have said nothing yet; the next one to look at first."""
        self._placed: set[str] = set()

    def arrive(self, clones: Iterable[Awaited]) -> None:
        """Begin with some clones."""
        self._silent.update((clone.name, clone) for clone in clones)

    def look(self, waiting: Mapping[str, _Watched]) -> None:
        """Look at what those that are watched have so far; at few consoles each time."""
        for name in tuple(itertools.islice(self._silent, LOOKS)):
            self._listen(name, again=name in waiting)
        for watched in waiting.values():
            self._place(watched)

    def ended(self, watched: _Watched, outcome: Outcome[None]) -> None:
        """Tell how a wait has ended."""
        clone = watched.clone
        if clone.name in self._silent:
            self._listen(clone.name, again=False)
        self._place(watched)
        if outcome.ok:
            self._tell(clone.name, clone.readiness.kind, "")
        elif not isinstance(outcome.error, Interrupted):
            self._tell(clone.name, "log", LastLine(clone.driver, clone.name).text())

    def _place(self, watched: _Watched) -> None:
        """Tell a clone's address, once it is known."""
        name, address = watched.clone.name, watched.condition.found
        if address and name not in self._placed:
            self._placed.add(name)
            self._tell(name, "ip", address)

    def _listen(self, name: str, *, again: bool) -> None:
        """Look at a silent clone's console once; with ``again`` also later, if it is silent."""
        clone = self._silent.pop(name)
        if clone.driver.consoles is None:
            return
        with contextlib.suppress(Exception):  # a wait that needs the console says so itself
            data, _ = clone.driver.consoles.read(name, 0, CHUNK)
            lines = (line.strip() for line in plain_text(data).split("\n"))
            line = next(filter(None, lines), "")
            if line:
                self._tell(name, "output", line[:MAX_SAID])
            elif again:
                self._silent[name] = clone
