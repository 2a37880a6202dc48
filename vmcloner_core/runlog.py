"""The log of a run: JSON lines, one file per run. It is never read as state."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from vmcloner_core.hooks import hookimpl
from vmcloner_core.plan import Plan, RunResult, StepEvent
from vmcloner_core.trusted_files import make_folder

log = logging.getLogger(__name__)
SCHEMA = 1
"""Version of the events' schema (docs/events.md): higher if a key is removed or means another
thing."""
KEPT = 200
"""Number of logs in the folder; older ones are removed."""


class RunLog:
    """An observer that writes ``<folder>/<run>.jsonl``, readable only by its owner.

    The first line is the plan, the last the result; between them is each step of each clone:
    ``{"event": "step", "clone": …, "step": …, "status": …, "at": s, "seconds": s, "error": …}``.
    Each line also has ``schema``, ``run`` and ``time``.
    If a log cannot be written, that is reported once, and the run continues.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: IO[str] | None = None
        self._run = ""

    @hookimpl
    def vmcloner_plan_ready(self, plan: Plan) -> None:
        """Begin the log."""
        try:
            self._run = plan.run
            make_folder(self._folder)
            self._prune()
            path = self._folder / f"{plan.run}.jsonl"
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            self._file = os.fdopen(descriptor, "a", encoding="utf-8")
        except OSError as error:
            log.warning("no run log in %s: %s", self._folder, error.strerror)
            return
        self._write(
            "plan",
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
        """Log a step."""
        self._write(
            "step",
            clone=event.clone,
            step=event.step,
            status=event.status.value,
            at=round(event.at, 4),
            seconds=round(event.seconds, 4),
            error=str(event.error) if event.error is not None else None,
        )

    @hookimpl
    def vmcloner_run_finished(self, result: RunResult) -> None:
        """End the log."""
        self._write(
            "result",
            seconds=round(result.seconds, 4),
            clones=len(result.results),
            failed=[clone.name for clone in result.failures],
            rolled_back=list(result.rolled_back),
            left=list(result.left),
            interrupted=result.interrupted,
            error=str(result.error) if result.error is not None else None,
        )
        self.close()

    def close(self) -> None:
        """Close the file. The log of a killed run has no result line."""
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):  # what could not be written was reported
                file.close()

    def _write(self, event: str, **values: object) -> None:
        """Write a line; once one can't be written, the log ends."""
        if self._file is None:
            return
        try:
            now = datetime.now(UTC).isoformat(timespec="milliseconds")
            head = {"schema": SCHEMA, "event": event, "run": self._run, "time": now}
            self._file.write(json.dumps({**head, **values}) + "\n")
            self._file.flush()
        except OSError as error:
            log.warning("the run log in %s is incomplete: %s", self._folder, error.strerror)
            self.close()

    def _prune(self) -> None:
        # Names begin with the time, so they sort by age.
        logs = sorted(name for name in os.listdir(self._folder) if name.endswith(".jsonl"))  # noqa: PTH208
        for old in logs[: max(0, len(logs) - KEPT + 1)]:
            (self._folder / old).unlink(missing_ok=True)
