"""The events of runs as JSON objects, for logs, other processes and services.

Schema and promises: docs/events.md.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import attrs

from vmcloner_core.hooks import hookimpl
from vmcloner_core.plan import Plan, RunResult, Sample, Seen, StepEvent

SCHEMA = 1
"""Version of the events' schema: higher if a key is removed or means another thing."""


class EventStream:
    """An observer that tells each event of runs as a JSON object.

    :param tell: called with each event, one call at a time, from any thread; must not block.
    :param run: only this run's events; those of all runs by default.
    """

    def __init__(self, tell: Callable[[dict[str, object]], None], *, run: str | None = None):
        self.run = run
        self._tell = tell

    @hookimpl
    def vmcloner_plan_ready(self, plan: Plan) -> None:
        """Tell what a run will do."""
        self._event(
            "plan",
            plan.run,
            action=plan.action,
            host=plan.host,
            template=plan.template.name if plan.template is not None else None,
            hypervisor=plan.hypervisor,
            storage=plan.storage,
            mode=plan.mode.value,
            clones=[clone.name for clone in plan.clones],
            existing=list(plan.existing),
        )

    @hookimpl
    def vmcloner_step_changed(self, event: StepEvent) -> None:
        """Tell that a clone's step began or ended."""
        self._event(
            "step",
            event.run,
            clone=event.clone,
            step=event.step,
            status=event.status.value,
            at=round(event.at, 4),
            seconds=round(event.seconds, 4),
            error=str(event.error) if event.error is not None else None,
        )

    @hookimpl
    def vmcloner_clone_seen(self, seen: Seen) -> None:
        """Tell what was first seen of a clone."""
        at = round(seen.at, 4)
        self._event("seen", seen.run, clone=seen.clone, what=seen.what, at=at, text=seen.text)

    @hookimpl
    def vmcloner_host_sampled(self, sample: Sample) -> None:
        """Tell how busy the host is."""
        values = attrs.asdict(sample, filter=lambda field, _: field.name != "run")
        self._event("sample", sample.run, **values | {"at": round(sample.at, 4)})

    @hookimpl
    def vmcloner_run_finished(self, result: RunResult) -> None:
        """Tell what became of a run."""
        self._event(
            "result",
            result.plan.run,
            seconds=round(result.seconds, 4),
            clones=len(result.results),
            failed=[clone.name for clone in result.failures],
            rolled_back=list(result.rolled_back),
            left=list(result.left),
            interrupted=result.interrupted,
            error=str(result.error) if result.error is not None else None,
        )

    def _event(self, kind: str, run: str, **values: object) -> None:
        if self.run in (None, run):
            now = datetime.now(UTC).isoformat(timespec="milliseconds")
            self._tell({"schema": SCHEMA, "event": kind, "run": run, "time": now, **values})
