"""Logs of runs, written as runs write them."""

import functools
import json
from pathlib import Path

import attrs

from vmcloner_core import run_events

RUN = "20261129T145322-a{number:05d}"


class Log:
    """The log of one run, while it is made up; times are the run's."""

    def __init__(self, number=1, action="create", clones=(), time="2026-11-29T14:53:22.000+00:00"):
        self.run, self.time, self.lines, self.end = RUN.format(number=number), time, [], 0.0
        self.add(
            "plan",
            action=action,
            host="local",
            template="tiny",
            hypervisor="kvm",
            storage="pool",
            mode="linked",
            clones=list(clones),
            existing=[],
        )

    def add(self, kind, **values):
        head = {"schema": 1, "event": kind, "run": self.run, "time": self.time}
        self.lines.append(head | values)
        at = values.get("at")
        self.end = max(self.end, at if isinstance(at, float | int) and at < 1e9 else 0.0)

    def step(self, clone, step, begin, end, error=None, *, seen=(), log=None):
        """A step, with what was seen of the guest meanwhile."""
        values = {"clone": clone, "step": step}
        self.add("step", **values, status="started", at=begin, seconds=0, error=None)
        for what, at in seen:
            self.add("seen", clone=clone, what=what, at=at, text="")
        if log is not None:
            self.add("seen", clone=clone, what="log", at=end, text=log)
        status = "done" if error is None else "failed"
        self.add("step", **values, status=status, at=end, seconds=end - begin, error=error)

    def made(self, clone, begin=0.0):
        """A clone that is ready 10 s after the begin."""
        self.step(clone, "clone", begin + 1, begin + 2)
        self.step(clone, "define", begin + 2, begin + 2.5)
        self.step(clone, "start", begin + 3, begin + 4)
        seen = [("output", begin + 5), ("ip", begin + 7), ("ssh", begin + 10)]
        self.step(clone, "wait", begin + 4, begin + 10, seen=seen)

    def sample(self, at, cpu=50.0, pool=None, memory=2**32):
        total = None if pool is None else max(pool, 100 * 2**30)
        self.add(
            "sample",
            at=at,
            cpu=cpu,
            memory_used=2**30,
            memory_total=memory,
            pool_used=pool,
            pool_total=total,
        )

    def result(self, failed=(), error=None, **values):
        values = {"failed": list(failed), "error": error} | values
        self.add("result", seconds=self.end, clones=1, **values)

    def write(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps(line) + "\n" for line in self.lines)
        (folder / f"{self.run}.jsonl").write_text(text)
        return self.run


def events_of_hosts(**folders):
    """The events of hosts, whose logs are in these folders."""

    def events(**asked):
        for host, folder in folders.items():
            for event in run_events.read(folder, **asked):
                yield attrs.evolve(event, host=host)

    return events


def events_of(folder):
    return functools.partial(run_events.read, folder)
