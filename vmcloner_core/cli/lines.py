"""Progress where no terminal is, such as in the log of a CI job."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from vmcloner_core.cli.account import Account
from vmcloner_core.cli.usage import say
from vmcloner_core.hooks import hookimpl
from vmcloner_core.plan import Plan, ProgressEvent, RunResult, StepEvent, Waiting
from vmcloner_core.units import format_seconds, format_size

TICK = 0.5
"""Seconds between two looks at what a run is doing."""
HEARTBEAT = 30.0
"""Seconds after which a run that goes on says so."""
QUIET = 2.0
"""Seconds in which a run that is over soon says nothing."""


class Follower:
    """What observers that show progress have in common."""

    def __init__(self) -> None:
        self._account = Account()

    @hookimpl
    def vmcloner_waiting(self, waiting: Waiting) -> None:
        """Note what clones are doing."""
        self._account.waits(waiting)

    @hookimpl
    def vmcloner_run_stopping(self, calls: Mapping[str, int]) -> None:
        """Tell at once what a run that was asked to stop still does."""
        self._tell(self._account.stopping(calls))

    def _tell(self, text: str) -> None:
        say(text)


class Lines(Follower):
    """A line at each new phase that most clones are at, and a heartbeat. Short runs say nothing.

    A thread looks at the run now and then: thousands of clones must not be as many lines.
    """

    def __init__(self) -> None:
        super().__init__()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._phases: set[str] = set()
        self._told = 0.0

    @hookimpl
    def vmcloner_plan_ready(self, plan: Plan) -> None:
        """Begin."""
        self._account.begin(plan)
        self._phases, self._told = set(), 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="progress", daemon=True)
        self._thread.start()

    @hookimpl
    def vmcloner_step_changed(self, event: StepEvent) -> None:
        """Note a step."""
        self._account.step(event)

    @hookimpl
    def vmcloner_run_finished(self, result: RunResult) -> None:  # noqa: ARG002 - the hook's name
        """End; the summary follows."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(TICK):
            self.look()

    def look(self) -> None:
        """Print a line, if it is time for one."""
        elapsed, phase = self._account.elapsed, self._account.phase()
        if elapsed < QUIET or not phase:
            return
        # A phase that comes back is no news: with few clones at a time, they take turns.
        if phase not in self._phases or elapsed - self._told >= HEARTBEAT:
            self._phases.add(phase)
            self._told = elapsed
            self._tell(f"{phase}, {format_seconds(elapsed)}: {self._account.line()}")


class Building:
    """Tells that an image is being built, now and then; nothing if it is up to date.

    A context: the block builds the image.
    """

    def __init__(self, template: str) -> None:
        self._what = f"build {template}"
        self._template = template
        self._begun = 0.0
        self._bytes = ""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="building", daemon=True)

    @hookimpl
    def vmcloner_progress(self, event: ProgressEvent) -> None:
        """Begin with the first sign of a build, and note its bytes."""
        if event.what != self._what:
            return
        if event.total:
            self._bytes = f", {format_size(event.done)} of {format_size(event.total)}"
        if not self._begun:
            self._begun = time.monotonic()
            say(f"building the image of {self._template}: this may take minutes")
            self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        if self._begun:
            self._thread.join()
            if error is None:
                say(f"image of {self._template} done {self._since()}")

    def _watch(self) -> None:
        while not self._ended.wait(HEARTBEAT):
            say(f"building the image of {self._template}, {self._since()}{self._bytes}")

    def _since(self) -> str:
        return f"after {format_seconds(time.monotonic() - self._begun)}"
