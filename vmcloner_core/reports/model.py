"""What a report has: each clone's way through its runs, and figures of all of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import attrs

READY = "ready"
QUEUED = "queued"
STORAGE = "storage"
SHARED = ("pull", "send", "import")
"""Steps of a template, for which all clones of a run wait."""
WAIT = "wait"
ORDER = (
    QUEUED,
    *SHARED,
    STORAGE,
    "define",
    "start",
    "output",
    "ip",
    "port",
    "ssh",
    "cloud-init",
    "agent",
    "console",
    "running",
    WAIT,
    READY,
)
"""The phases that all readers know, in the order of a table; others come last, before READY."""

_ROUNDING = 1e-6
"""Seconds."""


@attrs.frozen
class Span:
    """What a clone did from ``begin`` to ``end``, in seconds of the report's time."""

    phase: str
    begin: float
    end: float

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.end - self.begin


@attrs.frozen(kw_only=True)
class CloneTimes:
    """One clone's times.

    :param host: empty on one host. :param begun: when the run began that it was first planned in,
        from which ``ready`` counts. :param spans: one after another.
    :param phases: seconds by phase. Those of steps are how long they took; ``queued`` is the time
        in which it waited for a step to begin; ``output``, ``ip`` and kinds of readiness are how
        long after its start it reached them.
    :param ready: seconds until it was ready, or, if nothing waited for it, until its last step was
        done; None if it isn't.
    :param error: why it failed, and in which phase: ``failed``. :param log: its console's last
        lines then. Both texts have parts from guests.
    :param memory: bytes of its host's memory that it took when the run ended that waited for it,
        what it shares with others by its share (PSS); None if that isn't known.
    """

    name: str
    host: str = ""
    begun: float = 0.0
    spans: tuple[Span, ...] = ()
    phases: dict[str, float] = attrs.field(factory=dict)
    ready: float | None = None
    error: str | None = None
    failed: str | None = None
    log: str = ""
    memory: int | None = None

    @property
    def status(self) -> str:
        """``ready``, ``failed``, or ``unfinished``: its run was killed, or goes on."""
        if self.error is not None:
            return "failed"
        return READY if self.ready is not None else "unfinished"

    @property
    def held(self) -> Span | None:
        """The span in which it was longest until it was ready: what held it."""
        ready = math.inf if self.ready is None else self.begun + self.ready + _ROUNDING
        before = (span for span in self.spans if span.end <= ready)
        return max(before, key=lambda span: span.seconds, default=None)


@attrs.frozen(kw_only=True)
class HostSample:
    """How busy a host was at ``at`` seconds of the report's time; see :class:`Sample`."""

    at: float
    host: str
    cpu: float
    memory_used: int
    memory_total: int
    pool_used: int | None
    pool_total: int | None


@attrs.frozen(kw_only=True)
class Report:
    """A report on one run, or on those that brought a fleet to what it is.

    :param name: of the run or the fleet. :param begun: wall time, ISO 8601 in UTC.
    :param seconds: how long the runs took together; the time between them is left out.
    :param finished: whether all of them have ended.
    """

    name: str
    runs: tuple[str, ...]
    actions: tuple[str, ...]
    template: str | None
    begun: str
    seconds: float
    finished: bool
    clones: tuple[CloneTimes, ...]
    samples: tuple[HostSample, ...] = ()

    @property
    def failures(self) -> tuple[CloneTimes, ...]:
        """The clones that failed."""
        return tuple(clone for clone in self.clones if clone.error is not None)

    @property
    def unfinished(self) -> tuple[CloneTimes, ...]:
        """The clones that neither failed nor got ready."""
        return tuple(clone for clone in self.clones if clone.status == "unfinished")

    def slowest(self, count: int) -> tuple[CloneTimes, ...]:
        """Return the clones that took longest to get ready, the slowest first."""
        ready = [clone for clone in self.clones if clone.ready is not None]
        return tuple(sorted(ready, key=lambda clone: -(clone.ready or 0.0))[:count])


@attrs.frozen(kw_only=True)
class Phase:
    """Figures of one phase, in seconds, of the clones that completed it.

    :param failed: how many clones failed in it; in ``ready`` all that failed.
    :param slowest: the clone that took longest. Without clones, the figures are None.
    """

    phase: str
    clones: int
    failed: int
    min: float | None
    p50: float | None
    p95: float | None
    max: float | None
    slowest: str | None


def quantile(values: Sequence[float], share: float) -> float:
    """Return the least of sorted values that so large a share of them doesn't exceed."""
    return values[max(0, math.ceil(share * len(values)) - 1)]


def phases(report: Report) -> tuple[Phase, ...]:
    """Return the figures of all phases that any clone was in, ``ready`` last."""
    names = dict.fromkeys(name for clone in report.clones for name in clone.phases)
    names |= dict.fromkeys(clone.failed for clone in report.clones if clone.failed is not None)
    known = {name: place for place, name in enumerate(ORDER[:-1])}
    ordered = sorted(names, key=lambda name: known.get(name, len(known)))
    rows = [_phase(name, report.clones) for name in ordered]
    ready = [(clone.ready, clone.name) for clone in report.clones if clone.ready is not None]
    return (*rows, _figures(READY, ready, len(report.failures)))


def _phase(name: str, clones: Iterable[CloneTimes]) -> Phase:
    clones = tuple(clones)
    done = [
        (clone.phases[name], clone.name)
        for clone in clones
        if name in clone.phases and clone.failed != name
    ]
    return _figures(name, done, sum(clone.failed == name for clone in clones))


def _figures(name: str, done: Sequence[tuple[float, str]], failed: int) -> Phase:
    ordered = sorted(done, key=lambda pair: pair[0])
    values = [round(seconds, 3) for seconds, _ in ordered]
    return Phase(
        phase=name,
        clones=len(values),
        failed=failed,
        min=values[0] if values else None,
        p50=quantile(values, 0.5) if values else None,
        p95=quantile(values, 0.95) if values else None,
        max=values[-1] if values else None,
        slowest=ordered[-1][1] if ordered else None,
    )
