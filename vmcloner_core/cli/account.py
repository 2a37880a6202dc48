"""What a run is doing, in words: for the terminal, and for the log of a CI job."""

from __future__ import annotations

import functools
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping

from vmcloner_core.cli.usage import printable
from vmcloner_core.errors import Interrupted
from vmcloner_core.plan import Plan, StepEvent, StepStatus, Waiting
from vmcloner_core.units import counted, format_seconds

DOING = {
    "check": "checking",
    "clone": "cloning",
    "define": "defining",
    "start": "starting",
    "restore": "restoring",
    "wait": "booting",
    "shutdown": "shutting down",
    "destroy": "stopping",
    "reset": "resetting",
    "remove": "removing",
    "provision": "running scripts",
}
"""Steps as what is being done. Others are shown by their names."""
QUEUED = "queued"
UNDER_WAY = {"clone": "copy", "start": "start", "define": "definition", "shutdown": "shutdown",
             "provision": "script"}  # fmt: skip
"""Steps as what can be counted."""
SLOW = 3.0
"""Seconds from which on a clone is worth naming."""
MAX_SAID = 60
"""Characters of a console's line that are shown."""


class Account:
    """Follows the events of one run at a time. Thread-safe.

    :param clock: seconds, from any start.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._plan: Plan | None = None

    def begin(self, plan: Plan) -> None:
        """Begin with a run's plan."""
        with self._lock:
            self._plan = plan
            self._started = self._clock()
            self._at: dict[str, str] = {clone.name: QUEUED for clone in plan.clones}
            self._last = {clone.name: clone.steps[-1] for clone in plan.clones if clone.steps}
            self._ready: list[float] = []
            self._done = self._failed = 0
            self._boots: float | None = None
            self._import = ""
            self._waiting: Waiting | None = None

    def step(self, event: StepEvent) -> None:
        """Note a step's event."""
        with self._lock:
            if self._plan is None:
                return
            if event.step == "import":
                self._imports(self._plan, event)
            elif event.status is StepStatus.STARTED:
                self._at[event.clone] = event.step
                if event.step in ("start", "wait") and self._boots is None:
                    self._boots = event.at
            elif event.status is StepStatus.FAILED:
                there = self._at.pop(event.clone, None) is not None
                self._failed += there and not isinstance(event.error, Interrupted)
            elif event.step == self._last.get(event.clone):
                self._done += self._at.pop(event.clone, None) is not None
                if event.step == "wait":
                    self._ready.append(event.at)
            else:
                self._at[event.clone] = QUEUED

    def _imports(self, plan: Plan, event: StepEvent) -> None:
        if event.status is not StepStatus.STARTED:
            self._import = ""
            return
        image = plan.template.image if plan.template is not None else None
        doing = "importing"
        if image is not None and image.builder is not None:
            doing = "building"
        elif image is not None and image.url is not None:
            doing = "fetching"
        self._import = f"{doing} image"

    def waits(self, waiting: Waiting) -> None:
        """Note what clones that aren't ready are doing."""
        with self._lock:
            self._waiting = waiting

    @property
    def elapsed(self) -> float:
        """Seconds since the run began."""
        with self._lock:
            return self._clock() - self._started if self._plan is not None else 0.0

    def phase(self) -> str:
        """Return what most of the clones that aren't done are doing; empty if there are none."""
        with self._lock:
            if self._import:
                return self._import
            doing = self._doing()
            busy = {what: number for what, number in doing.items() if what != QUEUED} or doing
            return max(busy, key=lambda what: busy[what], default="")

    def _doing(self) -> Mapping[str, int]:
        """Return how many clones do what."""
        steps = Counter(self._at.values())
        doing: Counter[str] = Counter()
        for step, number in steps.items():
            known = self._waiting.phases if step == "wait" and self._waiting is not None else {}
            if sum(known.values()) == number:
                doing.update(known)
            else:
                doing[DOING.get(step, step)] += number
        return doing

    def line(self) -> str:
        """Return all that is known, as one line."""
        with self._lock:
            if self._plan is None:
                return ""
            if self._import:
                name = self._plan.template.name if self._plan.template is not None else ""
                return f"{self._import} of {name}".rstrip()
            parts = [", ".join(self._counts())]
            if self._at.values() and self._waiting is not None and "wait" in self._at.values():
                parts.append(self._slowest(self._waiting))
            if (left := self._left()) is not None:
                parts.append(f"about {_short(left)} left")
            return "; ".join(part for part in parts if part)

    def _counts(self) -> list[str]:
        if self._plan is None:
            return []
        what = "ready" if "wait" in self._plan.steps else "done"
        counts = [f"{self._done} of {counted(len(self._plan.clones), 'clone')} {what}"]
        if self._ready:
            counts[0] += f" (p50 {_short(sorted(self._ready)[len(self._ready) // 2])})"
        if self._failed:
            counts.append(f"{self._failed} failed")
        return [*counts, *(f"{number} {what}" for what, number in self._doing().items())]

    @staticmethod
    def _slowest(waiting: Waiting) -> str:
        if waiting.seconds < SLOW:
            return ""
        said = printable(waiting.said.strip())[:MAX_SAID]
        quoted = f': "{said}"' if said else ""
        return f"slowest {waiting.slowest}, {_short(waiting.seconds)}{quoted}"

    def _left(self) -> float | None:
        """Return an estimate of the seconds left, by how many got ready since the first start."""
        if not self._ready or not self._at:
            return None
        booting = self._clock() - self._started - (self._boots or 0.0)
        return booting * len(self._at) / len(self._ready)

    def stopping(self, calls: Mapping[str, int]) -> str:
        """Return what a run that was asked to stop still does."""
        under_way = [
            counted(number, UNDER_WAY.get(step, f"{step} step"))
            for step, number in calls.items()
            if number and step != "wait"
        ]
        if not under_way:
            return "stopping"
        number = sum(each for step, each in calls.items() if step != "wait")
        it = "it" if number == 1 else "them"
        return f"stopping: {', '.join(under_way)} under way (Ctrl-C again gives {it} up)"


_short = functools.partial(format_seconds, digits=0)
