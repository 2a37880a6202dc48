"""The events of runs as values, and as JSON objects for logs, other processes and services.

Schema and promises: docs/events.md.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import attrs

from vmcloner_core.errors import VmclonerError
from vmcloner_core.hooks import hookimpl
from vmcloner_core.plan import (
    Event,
    Plan,
    PlanReady,
    RunFinished,
    RunResult,
    Sample,
    Seen,
    StepEvent,
)


class Watcher:
    """An observer that tells each event of runs.

    :param tell: called with each event, one call at a time, from any thread; must not block.
    :param run: only this run's events; those of all runs by default.
    """

    def __init__(self, tell: Callable[[Event], None], *, run: str | None = None) -> None:
        self.run = run
        self._tell = tell

    @hookimpl
    def vmcloner_plan_ready(self, plan: Plan) -> None:
        """Tell what a run will do."""
        self._event(PlanReady(run=plan.run, plan=plan))

    @hookimpl
    def vmcloner_step_changed(self, event: StepEvent) -> None:
        """Tell that a clone's step began or ended."""
        self._event(event)

    @hookimpl
    def vmcloner_clone_seen(self, seen: Seen) -> None:
        """Tell what was first seen of a clone."""
        self._event(seen)

    @hookimpl
    def vmcloner_host_sampled(self, sample: Sample) -> None:
        """Tell how busy the host is."""
        self._event(sample)

    @hookimpl
    def vmcloner_run_finished(self, result: RunResult) -> None:
        """Tell what became of a run."""
        self._event(RunFinished(run=result.plan.run, result=result))

    def _event(self, event: Event) -> None:
        if self.run in (None, event.run):
            self._tell(event)


class EventStream(Watcher):
    """A :class:`Watcher` that tells each event as a JSON object."""

    def __init__(self, tell: Callable[[dict[str, Any]], None], *, run: str | None = None) -> None:
        super().__init__(lambda event: tell(as_json(event)), run=run)


def as_json(event: Event) -> dict[str, Any]:
    """Return an event as a JSON object, with the keys of docs/events.md."""
    kind, values = _values(event)
    head = {"schema": event.schema, "event": kind, "run": event.run}
    return {**head, "time": event.time.isoformat(timespec="milliseconds"), **values}


@functools.singledispatch
def _values(event: Event) -> tuple[str, dict[str, Any]]:
    """Return the name of an event's kind, and the keys that are its own."""
    raise TypeError(f"an event of no known kind: {event}")


@_values.register
def _(event: PlanReady) -> tuple[str, dict[str, Any]]:
    plan = event.plan
    return "plan", {
        "action": plan.action,
        "host": plan.host,
        "template": plan.template.name if plan.template is not None else None,
        "hypervisor": plan.hypervisor,
        "storage": plan.storage,
        "mode": plan.mode.value,
        "clones": [clone.name for clone in plan.clones],
        "existing": list(plan.existing),
    }


@_values.register
def _(event: StepEvent) -> tuple[str, dict[str, Any]]:
    return "step", {
        "clone": event.clone,
        "step": event.step,
        "status": event.status.value,
        "at": round(event.at, 4),
        "seconds": round(event.seconds, 4),
        "error": _text(event.error),
    }


@_values.register
def _(event: Seen) -> tuple[str, dict[str, Any]]:
    at = round(event.at, 4)
    return "seen", {"clone": event.clone, "what": event.what, "at": at, "text": event.text}


@_values.register
def _(event: Sample) -> tuple[str, dict[str, Any]]:
    values = attrs.asdict(event, filter=lambda field, _: field.name in _SAMPLED)
    if not event.clones:
        del values["clones"]
    return "sample", values | {"at": round(event.at, 4)}


@_values.register
def _(event: RunFinished) -> tuple[str, dict[str, Any]]:
    result = event.result
    return "result", {
        "seconds": round(result.seconds, 4),
        "clones": len(result.results),
        "failed": [clone.name for clone in result.failures],
        "rolled_back": list(result.rolled_back),
        "left": list(result.left),
        "interrupted": result.interrupted,
        "error": _text(result.error),
    }


_SAMPLED = attrs.fields_dict(Sample).keys() - attrs.fields_dict(Event).keys()


def _text(error: VmclonerError | None) -> str | None:
    return str(error) if error is not None else None
