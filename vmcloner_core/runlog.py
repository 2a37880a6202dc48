"""The log of a run: JSON lines, one file per run. It is never read as state."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
from pathlib import Path
from typing import IO

from vmcloner_core.event_stream import EventStream
from vmcloner_core.hooks import hookimpl
from vmcloner_core.plan import Plan, RunResult
from vmcloner_core.trusted_files import make_folder

log = logging.getLogger(__name__)
KEPT = 200
"""Number of logs in the folder; older ones are removed."""


class RunLog(EventStream):
    """An observer that writes a run's events to ``<folder>/<run>.jsonl``.

    Only its owner can read the file. If it can't be written, that is reported once, and the run
    continues.
    """

    def __init__(self, folder: Path, run: str) -> None:
        super().__init__(self._write, run=run)
        self._folder = folder
        self._file: IO[str] | None = None

    @hookimpl
    def vmcloner_plan_ready(self, plan: Plan) -> None:
        """Begin the log."""
        if plan.run != self.run:
            return
        try:
            make_folder(self._folder)
            self._prune()
            path = self._folder / f"{plan.run}.jsonl"
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            self._file = os.fdopen(descriptor, "a", encoding="utf-8")
            with contextlib.suppress(OSError):  # it tells who follows it that its run goes on
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            log.warning("no run log in %s: %s", self._folder, error.strerror)
            return
        super().vmcloner_plan_ready(plan)

    @hookimpl
    def vmcloner_run_finished(self, result: RunResult) -> None:
        """End the log."""
        if result.plan.run == self.run:
            super().vmcloner_run_finished(result)
            self.close()

    def close(self) -> None:
        """Close the file. The log of a killed run has no result line."""
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):  # what could not be written was reported
                file.close()

    def _write(self, event: dict[str, object]) -> None:
        """Write a line; once one can't be written, the log ends."""
        if self._file is None:
            return
        try:
            self._file.write(json.dumps(event) + "\n")
            self._file.flush()
        except OSError as error:
            log.warning("the run log in %s is incomplete: %s", self._folder, error.strerror)
            self.close()

    def _prune(self) -> None:
        # Names begin with the time, so they sort by age.
        logs = sorted(name for name in os.listdir(self._folder) if name.endswith(".jsonl"))  # noqa: PTH208
        for old in logs[: max(0, len(logs) - KEPT + 1)]:
            (self._folder / old).unlink(missing_ok=True)
