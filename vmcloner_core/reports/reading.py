"""Make reports of the events of runs (docs/events.md).

Logs are read as they are: of killed runs, of earlier versions, with lines that are missing. What
isn't in them is left out of the report.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import attrs

from vmcloner_core.benchmark_marks import PREFIX
from vmcloner_core.errors import NotFound, did_you_mean
from vmcloner_core.names import split_clone
from vmcloner_core.reports.model import (
    QUEUED,
    SHARED,
    STORAGE,
    WAIT,
    CloneTimes,
    HostSample,
    Report,
    Span,
)
from vmcloner_core.run_events import RunEvent

Events = Callable[..., Iterator[RunEvent]]
"""``Engine.events``."""
_PHASES = {"clone": STORAGE}
"""The phases of steps that have another name than their step."""
_BOOTS = ("start", "restore")
_MAKES = (STORAGE, "define")
_GROWS = ("create", "start", "wait", "delete")
"""Actions that a fleet comes to be by, and the one that ends it."""


def report_of(events: Events, of: str | None = None) -> Report:
    """Return the report on a run or a fleet.

    :param of: a run's id; or a fleet's name: how its clones came to be, from the run that made
        each until it was first ready; of a benchmark: all that it did; None for the last run.
    :raises NotFound: there is no log of it.
    """
    plans = list(events(plans=True))
    runs = list(dict.fromkeys(plan.run for plan in sorted(plans, key=lambda plan: plan.time)))
    if of is None and runs:
        return report_of_runs(events, runs[-1:])
    if of in runs:
        return report_of_runs(events, [of])
    concerned = {plan.run: None for plan in plans if of in _fleets(plan)}
    if of is None or not concerned:
        fleets = sorted({fleet for plan in plans for fleet in _fleets(plan)})
        hint = did_you_mean(of or "", [*fleets, *runs]) or "vmcloner events"
        what = f"a run or fleet {of!r}" if of is not None else "any run"
        raise NotFound(f"no log of {what}", hint=hint)
    wanted = {plan.run for plan in plans if plan.run in concerned and _grows(plan)}
    chosen = [run for run in runs if run in wanted]
    if _benchmarked(of, chosen, plans):
        return report_of_runs(events, chosen, of)
    reading = _Reading(of, fleet=of)
    for run in chosen:
        reading.add(events(run=run))
    report = reading.report()
    if not report.clones:
        raise NotFound(
            f"no log says how fleet {of!r} came to be",
            hint="vmcloner report RUN; the last 200 runs are kept",
        )
    return report


def _benchmarked(fleet: str, runs: Sequence[str], plans: Iterable[RunEvent]) -> bool:
    """Tell whether these are the runs of a benchmark, from its create to its delete."""
    if not fleet.startswith(PREFIX) or not runs:
        return False
    actions = {plan.run: plan.values.get("action") for plan in plans}
    return (actions[runs[0]], actions[runs[-1]]) == ("create", "delete")


def report_of_runs(events: Events, runs: Sequence[str], name: str | None = None) -> Report:
    """Return the report on runs, one after another, with all that they did.

    :param name: the report's; by default the last run's id.
    :raises NotFound: there is no log of one of them.
    """
    reading = _Reading(name or runs[-1])
    for run in runs:
        reading.add(events(run=run))
    return reading.report()


def _grows(plan: RunEvent) -> bool:
    return plan.values.get("action") in _GROWS


def _names(event: RunEvent, key: str = "clones") -> list[str]:
    found = event.values.get(key)
    return [name for name in found if isinstance(name, str)] if isinstance(found, list) else []


def _fleets(plan: RunEvent) -> set[str]:
    parts = (split_clone(name) for name in _names(plan))
    return {part[0] for part in parts if part is not None}


def _number(values: Mapping[str, Any], key: str, limit: float = 1e12) -> float | None:
    found = values.get(key)
    return float(found) if isinstance(found, int | float) and 0 <= found < limit else None


def _bytes(values: Mapping[str, Any], key: str) -> int | None:
    found = _number(values, key, 2**63)
    return None if found is None else int(found)


def _text(values: Mapping[str, Any], key: str) -> str | None:
    found = values.get(key)
    return found if isinstance(found, str) else None


def _failure(step: RunEvent) -> str | None:
    """Return why a step failed, None if it didn't."""
    if step.values.get("status") != "failed":
        return None
    return _text(step.values, "error") or "failed"


@attrs.define
class _Clone:
    """A clone while its events are read; all times are the report's."""

    name: str
    host: str
    begun: float
    """When the run began that it was first planned in."""
    since: float
    """Since when it waits for a step to begin."""
    booted: float | None = None
    spans: list[Span] = attrs.field(factory=list)
    phases: dict[str, float] = attrs.field(factory=dict)
    open: tuple[str, float] | None = None
    """The phase that it is in, and since when."""
    seen: dict[str, float] = attrs.field(factory=dict)
    """What was seen during its present wait."""
    done: set[str] = attrs.field(factory=set)
    """Its phases that were completed, but for waits."""
    there: bool = False
    """Whether it was made before the run that is read: a roll-back keeps it then."""
    ready: float | None = None
    waited: bool = False
    error: str | None = None
    failed: str | None = None
    log: str = ""
    memory: int | None = None

    def begin(self, phase: str, at: float) -> None:
        """Begin a phase."""
        self._span(QUEUED, self.since, at)
        self.open, self.seen = (phase, at), {}

    def end(self, phase: str, at: float, seconds: float, error: str | None) -> None:
        """End a phase that took so long."""
        if self.open is None or self.open[0] != phase:  # its begin isn't in the log
            self.begin(phase, max(self.since, at - seconds))
        begun = self.open[1] if self.open is not None else at
        self.open, self.since = None, at
        if phase == WAIT:
            self._end_wait(begun, at, ok=error is None)
        else:
            self._span(phase, begun, at)
        if phase in _BOOTS and error is None:
            self.booted = at
        if error is not None:
            self.error, self.failed = self.error or error, self.failed or phase
        elif phase != WAIT:
            self.done.add(phase)
        if self.error is None and not self.waited:
            self.ready, self.waited = at - self.begun, phase == WAIT

    def saw(self, what: str, at: float, text: str) -> None:
        """Note what was seen of its guest, the first time."""
        if what == "log":
            self.log = text
        elif what not in self.phases:
            begun = self.open[1] if self.open is not None else at
            self.phases[what] = at - (begun if self.booted is None else self.booted)
            self.seen[what] = at

    def fail(self, error: str) -> None:
        """Note that it failed with its whole run, unless it has an error of its own."""
        if self.error is None:
            self.error, self.failed = error, self.open[0] if self.open is not None else QUEUED

    def stop(self, at: float, begun: float, *, ended: bool) -> None:
        """End what a run left open that began at ``begun``, and ended or was killed."""
        if not ended and not self.waited and self.spans and self.spans[-1].end > begun:
            self.ready = None  # whether that was its last step isn't known
        if self.open is not None:
            phase, begun = self.open
            self.open = None
            self.spans.append(Span(phase, begun, max(begun, at)))
            self.ready = None
        self.since = at

    def _end_wait(self, begun: float, at: float, *, ok: bool) -> None:
        marks = sorted(self.seen.items(), key=lambda mark: mark[1])
        for number, (what, when) in enumerate(marks, 1):
            end = at if ok and number == len(marks) else min(max(begun, when), at)
            self.spans.append(Span(what, begun, end))
            begun = end
        if not (ok and marks):
            self._span(WAIT, begun, at)

    def _span(self, phase: str, begin: float, end: float) -> None:
        if end > begin or phase != QUEUED:
            self.spans.append(Span(phase, begin, end))
            self.phases[phase] = self.phases.get(phase, 0.0) + max(0.0, end - begin)

    def times(self) -> CloneTimes:
        """Return what the report has of it."""
        return CloneTimes(
            name=self.name,
            host=self.host,
            begun=self.begun,
            spans=tuple(self.spans),
            phases=self.phases,
            ready=self.ready if self.error is None else None,
            error=self.error,
            failed=self.failed,
            log=self.log,
            memory=self.memory,
        )


class _Reading:
    """Reads runs one after another.

    :param fleet: only this fleet's clones, each from the run that made it until it is ready.
    """

    def __init__(self, name: str, fleet: str | None = None) -> None:
        self._name = name
        self._fleet = fleet
        self._clones: dict[str, _Clone] = {}
        self._samples: list[HostSample] = []
        self._plans: list[RunEvent] = []
        self._offset = self._end = 0.0
        self._finished = True

    def _restart(self) -> None:
        """Forget what was read: all of it was about clones that are gone."""
        self._samples, self._plans = [], []
        self._offset = self._end = 0.0
        self._finished = True

    def add(self, events: Iterable[RunEvent]) -> None:
        """Read a run's events, of all hosts; it begins when the last one has ended."""
        logs: dict[str, list[RunEvent]] = {}
        for event in events:
            logs.setdefault(event.host, []).append(event)
        begins = {host: _wall(log[0]) for host, log in logs.items()}
        first = min(filter(None, begins.values()), default=0.0)
        self._offset = self._end
        for host, log in logs.items():
            self._log(log, self._offset + max(0.0, (begins[host] or first) - first))
            self._finished = self._finished and log[-1].kind == "result"
        if self._fleet is not None and not self._clones:
            self._restart()

    def _log(self, log: Sequence[RunEvent], begin: float) -> None:
        """Read the log of a run on one host, which began at this time of the report."""
        names: set[str] = set()
        last = begin
        for event in log:
            at = _number(event.values, "at")
            when = begin + at if at is not None else last
            last = max(last, when)
            if event.kind == "plan":
                names = self._planned(event, begin)
            elif event.kind == "sample":
                self._sample(event, when)
            elif event.kind in ("step", "seen") and _text(event.values, "clone") in names:
                self._event(event, when)
            elif event.kind == "step" and event.values.get("step") in SHARED:
                self._shared(event, names, when)
            elif event.kind == "result":
                last = max(last, begin + (_number(event.values, "seconds") or 0.0))
                self._result(event, names, begin)
        for name in names & self._clones.keys():
            self._clones[name].stop(last, begin, ended=log[-1].kind == "result")
        self._end = max(self._end, last)

    def _planned(self, plan: RunEvent, begin: float) -> set[str]:
        """Begin with the clones of a plan; returns the names of those that the report is about."""
        self._plans.append(plan)
        names = set()
        for name in _names(plan):
            parts = split_clone(name)
            if self._fleet is not None and (parts is None or parts[0] != self._fleet):
                continue
            if self._fleet is not None and plan.values.get("action") == "delete":
                self._clones.pop(name, None)
                continue
            known = self._clones.setdefault(name, _Clone(name, plan.host, begin, begin))
            if self._fleet is None or not known.waited:
                known.since = begin
                known.there = not known.done.isdisjoint(_MAKES)
                if plan.values.get("action") != "delete":
                    known.error = known.failed = None  # it is tried again
                names.add(name)
        return names

    def _event(self, event: RunEvent, when: float) -> None:
        values = event.values
        clone = self._clones[values["clone"]]
        if event.kind == "seen":
            what, text = _text(values, "what"), _text(values, "text")
            if what is not None:
                clone.saw(what, when, text or "")
            return
        step, status = _text(values, "step"), values.get("status")
        if step is None:
            return
        phase = _PHASES.get(step, step)
        if self._fleet is not None and phase in clone.done:
            clone.since = when  # how it came to be is known: it was stopped and started since
            return
        if status == "started":
            clone.begin(phase, when)
        else:
            clone.end(phase, when, _number(values, "seconds") or 0.0, _failure(event))

    def _shared(self, event: RunEvent, names: Collection[str], when: float) -> None:
        """Read a step of the template, for which these clones wait."""
        if event.values.get("status") == "started":
            return
        seconds = _number(event.values, "seconds") or 0.0
        for clone in (self._clones[name] for name in names):
            clone.end(event.values["step"], when, seconds, _failure(event))
            clone.ready = None

    def _result(self, result: RunEvent, names: set[str], begin: float) -> None:
        """Read what became of these clones in a run that began at this time of the report."""
        stopped = result.values.get("interrupted") is True
        error = _text(result.values, "error") or ("stopped by the user" if stopped else "failed")
        for clone in (self._clones[name] for name in _names(result, "failed") if name in names):
            again = clone.booted is not None and clone.booted <= begin
            if self._fleet is None or not again:
                clone.fail(error)
        gone = set(_names(result, "rolled_back"))
        if self._fleet is None or not gone:
            return
        gone |= set(_names(result, "failed")) - set(_names(result, "left"))  # nothing was made
        for name in gone & names:
            if not self._clones[name].there:
                names.remove(name)
                del self._clones[name]

    def _sample(self, event: RunEvent, when: float) -> None:
        values = event.values
        clones = values.get("clones")
        taken = clones if isinstance(clones, dict) else {}
        for name in taken.keys() & self._clones.keys():
            self._clones[name].memory = _bytes(taken, name)
        cpu = _number(values, "cpu")
        used, total = _bytes(values, "memory_used"), _bytes(values, "memory_total")
        if cpu is None or used is None or not total:
            return
        self._samples.append(
            HostSample(
                at=when,
                host=event.host,
                cpu=cpu,
                memory_used=used,
                memory_total=total,
                pool_used=_bytes(values, "pool_used"),
                pool_total=_bytes(values, "pool_total"),
            )
        )

    def report(self) -> Report:
        """Return the report on what was read."""
        plans = self._plans
        ordered = sorted(self._clones, key=lambda name: split_clone(name) or (name, 0))
        templates = (_text(plan.values, "template") for plan in plans)
        actions = (_text(plan.values, "action") or "?" for plan in plans)
        return Report(
            name=self._name,
            runs=tuple(dict.fromkeys(plan.run for plan in plans)),
            actions=tuple(dict.fromkeys(actions)),
            template=next(filter(None, templates), None),
            begun=min((plan.time for plan in plans if plan.time), default=""),
            seconds=round(self._end, 4),
            finished=self._finished,
            clones=tuple(self._clones[name].times() for name in ordered),
            samples=tuple(sorted(self._samples, key=lambda sample: sample.at)),
        )


def _wall(event: RunEvent) -> float | None:
    """Return when an event was, in seconds since the epoch; None if that isn't known."""
    try:
        return datetime.fromisoformat(event.time).timestamp()
    except ValueError:
        return None
