"""Wait until clones are ready: all of them watched at once, by one cheap poll."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import attrs

from vmcloner_core.drivers import HypervisorDriver
from vmcloner_core.errors import DeadlineExceeded, Interrupted, VmclonerError, WrongState
from vmcloner_core.model import Outcome, State
from vmcloner_core.plan import Readiness
from vmcloner_core.units import format_seconds

POLL = 0.2
"""Seconds between two looks."""
STATE_POLL = 1.0
"""Seconds between two looks at the states of clones whose consoles are watched."""
CHUNK = 65536
MAX_LINE = 4096
"""Bytes of a console line that a pattern is tried on: what a guest prints is hostile input."""
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[@-Z\\-_]|\][^\x07\x1b]{0,200}(?:\x07|\x1b\\))")
_DEAD = (State.STOPPED, State.CRASHED)


@attrs.frozen(kw_only=True)
class Awaited:
    """A clone to be watched, and what it is waited for."""

    name: str
    driver: HypervisorDriver
    readiness: Readiness


@attrs.define
class _Watched:
    """A clone that is being watched: what its console said so far."""

    name: str
    driver: HypervisorDriver
    readiness: Readiness
    pattern: re.Pattern[str] | None
    deadline: float
    offset: int = 0
    tail: str = ""
    last_line: str = ""

    def matches(self) -> bool:
        """Take in what the console said since; tell whether a line of it matches."""
        assert self.pattern is not None  # noqa: S101 - asked for consoles only
        data, self.offset = self.driver.read_console(self.name, self.offset, CHUNK)
        if not data:
            return False
        text = self.tail + _ESCAPES.sub("", data.decode(errors="replace").replace("\r", "\n"))
        *lines, rest = text.split("\n")
        self.tail = rest[-MAX_LINE:]
        for line in (*lines, self.tail):  # a prompt has no end of line
            if line.strip():
                self.last_line = line.strip()[:MAX_LINE]
            if self.pattern.search(line[:MAX_LINE]):
                return True
        return False


def watch(
    clones: Sequence[Awaited],
    *,
    more: Callable[[], Sequence[Awaited]] = tuple,
    cancelled: Callable[[], bool] = lambda: False,
) -> Iterator[Outcome[None]]:
    """Yield one outcome per clone, as soon as it is ready, dead or out of time.

    :param more: asked at each look for clones to watch besides, from then on.
    """
    waiting: dict[str, _Watched] = {}
    arrived, next_states = clones, 0.0
    while True:
        now = time.monotonic()
        for clone in arrived:
            pattern = clone.readiness.pattern
            waiting[clone.name] = _Watched(
                name=clone.name,
                driver=clone.driver,
                readiness=clone.readiness,
                pattern=None if pattern is None else re.compile(pattern),
                deadline=now + clone.readiness.timeout,
            )
        states = None
        if now >= next_states:
            states = _states(waiting.values())
            consoles_only = all(watched.pattern for watched in waiting.values())
            next_states = now + (STATE_POLL if consoles_only else POLL)
        for watched in list(waiting.values()):
            outcome = _look(watched, states, now)
            if outcome is None and cancelled():
                outcome = Outcome(key=watched.name, error=Interrupted("stopped by the user"))
            if outcome is not None:
                del waiting[watched.name]
                yield outcome
        arrived = more()
        if not waiting and not arrived:
            return
        if not arrived:
            time.sleep(POLL)


def _states(waiting: Iterable[_Watched]) -> Mapping[str, State]:
    states: dict[str, State] = {}
    for driver in {id(watched.driver): watched.driver for watched in waiting}.values():
        states.update(driver.states())
    return states


def _look(
    watched: _Watched, states: Mapping[str, State] | None, now: float
) -> Outcome[None] | None:
    """Return the clone's outcome, None while there is none yet."""
    name, readiness = watched.name, watched.readiness
    state = None if states is None else states.get(name)
    try:
        ready = state is State.RUNNING if watched.pattern is None else watched.matches()
    except VmclonerError as error:
        return Outcome(key=name, error=error)
    if ready:
        return Outcome(key=name, changed=False)
    said = f"; its console's last line: {watched.last_line!r}" if watched.last_line else ""
    if states is not None and (state is None or state in _DEAD):
        what = state.value if state is not None else "gone"
        return Outcome(key=name, error=WrongState(f"{name} is {what}, not {readiness}{said}"))
    if now <= watched.deadline:
        return None
    limit = format_seconds(readiness.timeout)
    return Outcome(
        key=name,
        error=DeadlineExceeded(
            f"{name} wasn't ready ({readiness}) within {limit}{said}",
            hint=f"vmcloner console --log {name}",
        ),
    )
