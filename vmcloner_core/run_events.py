"""The events of runs, read from their logs: those of all processes that use a state folder.

Schema and promises: docs/events.md.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import attrs

from vmcloner_core.cancelling import pause
from vmcloner_core.errors import NotFound, did_you_mean
from vmcloner_core.plan import EVENT_SCHEMA

POLL = 0.25
MAX_LINE = 16 * 1024**2
"""Bytes; a line that is longer isn't an event."""
_CHUNK = 1024**2
_RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,100}")


@attrs.frozen(kw_only=True)
class RunEvent:
    """One line of a run's log.

    :param time: wall time, ISO 8601 in UTC; empty if the log's beginning is lost.
    :param kind: ``plan``, ``step``, ``result``, or one that a later version adds.
    :param values: the event's other keys. :param host: of many hosts, whose log it is of.
    :param schema: the version of the events' schema that it was written with.
    """

    run: str
    time: str
    kind: str
    values: Mapping[str, Any]
    host: str = ""
    schema: int = EVENT_SCHEMA

    def json(self) -> dict[str, Any]:
        """Return the event as ``vmcloner events`` prints it."""
        head = {"schema": self.schema, "run": self.run, "time": self.time, "event": self.kind}
        head |= {"host": self.host} if self.host else {}
        return {**head, **{k: v for k, v in self.values.items() if k not in head}}


@attrs.define
class _Log:
    """One run's log, read as it grows."""

    path: Path
    inode: int | None = None
    offset: int = 0
    rest: bytes = b""
    begun: datetime | None = None
    ended: bool = False

    @property
    def run(self) -> str:
        return self.path.stem

    def read(self) -> Iterator[RunEvent]:
        """Yield the events that are new. A line is one once it has its end."""
        with contextlib.suppress(FileNotFoundError), self.path.open("rb") as stream:  # pruned
            status = os.fstat(stream.fileno())
            if self.inode not in (None, status.st_ino) or status.st_size < self.offset:
                self.offset, self.rest = 0, b""  # another file, or it was cut off
            self.inode = status.st_ino
            stream.seek(self.offset)
            while data := stream.read(_CHUNK):
                self.offset += len(data)
                *lines, self.rest = (self.rest + data).split(b"\n")
                self.rest = self.rest[: MAX_LINE + 1]
                for line in lines:
                    event = self._event(line)
                    if event is not None:
                        yield event

    @property
    def written(self) -> bool:
        """Whether a process still writes it; where that can't be known, True."""
        with contextlib.suppress(FileNotFoundError), self.path.open("rb") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return True
        return False

    def _event(self, line: bytes) -> RunEvent | None:
        """Return what a line says; None if it was damaged, by a full disk for example."""
        try:
            values: dict[str, Any] = json.loads(line[: MAX_LINE + 1])
            kind = values.pop("event")
            if not isinstance(kind, str):
                return None
        except (ValueError, AttributeError, TypeError, KeyError, RecursionError):
            return None
        when = self._time(values)
        self.ended = self.ended or kind == "result"
        told = values.get("schema")
        schema = told if isinstance(told, int) and told > 0 else EVENT_SCHEMA  # 1 had none at first
        return RunEvent(run=self.run, time=when, kind=kind, values=values, schema=schema)

    def _time(self, values: Mapping[str, Any]) -> str:
        """Return an event's wall time; that of earlier versions' steps follows from the plan's."""
        with contextlib.suppress(KeyError, TypeError, ValueError):
            told = datetime.fromisoformat(values["time"])
            self.begun = self.begun or told
            return str(values["time"])
        if self.begun is None:
            return ""
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            after = timedelta(seconds=float(values.get("at", values.get("seconds", 0))))
            return (self.begun + after).isoformat(timespec="milliseconds")
        return ""


def read(
    folder: Path,
    *,
    run: str | None = None,
    follow: bool = False,
    plans: bool = False,
    wait: Callable[[float], object] = pause,
) -> Iterator[RunEvent]:
    """Yield the events of the runs whose logs are in a folder, the oldest run first.

    :param run: only this run.
    :param follow: of one run: until it has ended or was killed. Of all: what comes from now on, in
        runs that begin or go on, of whatever process; for ever.
    :param plans: only the first event of each run, its plan; without ``follow``.
    :raises NotFound: there is no log of that run.
    """
    if plans:
        yield from _plans(_paths(folder) if run is None else [_existing(folder, run)])
        return
    if run is not None:
        yield from _of_one(_Log(_existing(folder, run)), follow=follow, wait=wait)
        return
    logs = {path: _Log(path) for path in _paths(folder)}
    if follow:
        for log in logs.values():
            for _ in log.read():
                pass
    while True:
        logs = {path: logs.get(path) or _Log(path) for path in _paths(folder)}
        for log in logs.values():
            if not log.ended:
                yield from log.read()
        if not follow:
            return
        wait(POLL)


def _plans(paths: Iterable[Path]) -> Iterator[RunEvent]:
    for first in (next(_Log(path).read(), None) for path in paths):
        if first is not None and first.kind == "plan":
            yield first


def _of_one(log: _Log, *, follow: bool, wait: Callable[[float], object]) -> Iterator[RunEvent]:
    while True:
        written = follow and log.written  # before the look: what its run wrote last is shown
        yield from log.read()
        if log.ended or not written:
            return
        wait(POLL)


def _paths(folder: Path) -> list[Path]:
    """Return the logs, the oldest first: their names begin with the time."""
    try:
        names = os.listdir(folder)  # noqa: PTH208
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [folder / name for name in sorted(names) if name.endswith(".jsonl")]


def _existing(folder: Path, run: str) -> Path:
    path = folder / f"{run}.jsonl"
    if _RUN.fullmatch(run) is None or not path.is_file():
        known = [each.stem for each in _paths(folder)]
        hint = did_you_mean(run, known) or "vmcloner events"
        raise NotFound(f"no log of a run {run!r}", hint=hint)
    return path
