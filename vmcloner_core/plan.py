"""Plans and results as values: what a run will do, what it is doing, what it did.

A plan is made by :mod:`vmcloner_core.planner`, printed by ``--dry-run`` and carried out by
:mod:`vmcloner_core.pipeline`. Nothing here does I/O or holds a callable: every value can be pickled
and sent to another process.
"""

from __future__ import annotations

import enum
import math
import re

import attrs

from vmcloner_core.errors import InvalidRequest, NotFound, VmclonerError
from vmcloner_core.model import (
    AS_IT_COMES,
    CloneMode,
    CloneSpec,
    Copying,
    Labels,
    State,
    Template,
    Volume,
)


class OnFailure(enum.Enum):
    """What becomes of the clones that a run made when some of its clones fail."""

    KEEP = "keep"
    ROLLBACK = "rollback"


def check_timeout(seconds: float) -> None:
    """Check that it is a time that somebody may wait.

    :raises InvalidRequest: it isn't.
    """
    if not 0 < seconds < math.inf:
        raise InvalidRequest(f"timeout must be positive, not {seconds:g}")


@attrs.frozen(kw_only=True)
class Readiness:
    """What to wait for.

    :param kind: one of :data:`READINESS`. :param argument: a port, or a console's REGEX, in which
        ``{{ name }}`` and its kin stand for the clone's own values.
    :param timeout: seconds, for each clone from the moment it is waited for.
    """

    kind: str = "running"
    argument: str = ""
    timeout: float = 300.0

    @classmethod
    def parse(cls, text: str, *, timeout: float = 300.0) -> Readiness:
        """Parse ``running``, ``ip``, ``port:N``, ``ssh``, ``agent`` or ``console:REGEX``.

        :raises InvalidRequest: it is none of them, N no port or REGEX no regular expression.
        """
        check_timeout(timeout)
        kind, colon, argument = text.partition(":")
        if kind not in READINESS or bool(argument) != READINESS[kind] or (colon and not argument):
            raise InvalidRequest(
                f"can't wait for {text!r}",
                hint="use running, ip, port:N, ssh, agent or console:REGEX",
            )
        if kind == "port" and not (
            re.fullmatch("[0-9]{1,5}", argument) and 0 < int(argument) < 2**16
        ):
            raise InvalidRequest(f"can't wait for {text!r}", hint="a port is 1 to 65535")
        if kind == "console":
            _check_pattern(text, argument)
        return cls(kind=kind, argument=argument, timeout=timeout)

    @property
    def placeholders(self) -> bool:
        """Whether it names values that are each clone's own, and have to be filled in."""
        return "{" in self.argument

    def __str__(self) -> str:
        return f"{self.kind}:{self.argument}" if self.argument else self.kind


READINESS = {
    "running": False,
    "ip": False,
    "port": True,
    "ssh": False,
    "agent": False,
    "console": True,
}
"""The kinds of readiness, and whether each takes an argument."""


def _check_pattern(text: str, pattern: str) -> None:
    try:
        re.compile(re.sub(r"\{\{.*?\}\}", "x", pattern))
    except re.error as error:
        raise InvalidRequest(
            f"can't wait for {text!r}: {error}", hint="check the regular expression"
        ) from error


@attrs.frozen(kw_only=True)
class Quota:
    """How many of a run's clones must become ready for the run to count as done."""

    share: float = 1.0
    count: int | None = None

    @classmethod
    def parse(cls, text: str) -> Quota:
        """Parse a share, ``95%``, or a number of clones, ``19``.

        :raises InvalidRequest: it is neither, or beyond all there can be.
        """
        match = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]{1,6})?)%|([0-9]{1,6})", text.strip())
        if match is None or (match[1] and float(match[1]) > 100):
            raise InvalidRequest(f"not a share of clones: {text!r}", hint="like 95%, or a number")
        if match[2]:
            return cls(count=int(match[2]))
        return cls(share=float(match[1]) / 100)

    def of(self, total: int) -> int:
        """Return how many of ``total`` clones that is: never fewer than the share."""
        if self.count is not None:
            return min(self.count, total)
        return math.ceil(round(self.share * total, 6))


ALL = Quota()


@attrs.frozen(kw_only=True)
class ClonePlan:
    """One clone's way through the pipeline: the steps it still needs, in order.

    :param steps: names of steps (:mod:`vmcloner_core.steps`).
    :param state: what it was when this was planned, None where nothing of it was there.
    :param disks: numbers of the disks that are made, or made anew.
    :param volumes: those that are there already.
    :param wait: what is waited for, filled in.
    :param spec: what it is. None where its template is gone and none of the steps needs to know.
    """

    labels: Labels
    steps: tuple[str, ...]
    state: State | None = None
    disks: tuple[int, ...] = ()
    volumes: tuple[Volume, ...] = ()
    wait: Readiness = Readiness()
    spec: CloneSpec | None = None

    @property
    def name(self) -> str:
        """The clone's name."""
        return self.labels.clone

    def known(self) -> CloneSpec:
        """Return what the clone is.

        :raises NotFound: nothing tells: its template is gone.
        """
        if self.spec is None:
            raise NotFound(
                f"{self.name}: its template {self.labels.template!r} is gone",
                hint=f"put its file back, or vmcloner delete {self.name}",
            )
        return self.spec


@attrs.frozen(kw_only=True)
class Plan:
    """All that a run will do, complete and checked: backends resolved, names and capacity tried.

    :param action: name of the action (:mod:`vmcloner_core.steps`).
    :param order: names of the action's steps, in the order in which clones go through them.
    :param host: name of the host that it is carried out on.
    :param template, hypervisor, storage: what a create makes clones of, and where; None elsewhere.
    :param import_image: whether the template's image has to be brought into the pool first.
    :param copying: how the image and full clones are copied.
    :param existing: names of clones that are already as asked.
    :param space: bytes that the volumes need at once. :param memory: bytes for guests to start.
    :param min_ready: how many of the clones must get ready, of a plan that waits.
    :param shutdown_timeout: seconds for a graceful shutdown, 0 to destroy at once.
    :param jobs: upper bound for calls at once, None for what each driver says it can.
    """

    action: str
    run: str
    host: str
    clones: tuple[ClonePlan, ...]
    order: tuple[str, ...]
    existing: tuple[str, ...] = ()
    template: Template | None = None
    hypervisor: str | None = None
    storage: str | None = None
    mode: CloneMode = CloneMode.LINKED
    import_image: bool = False
    copying: Copying = AS_IT_COMES
    on_failure: OnFailure = OnFailure.KEEP
    min_ready: Quota = ALL
    shutdown_timeout: float = 60.0
    jobs: int | None = None
    space: int = 0
    memory: int = 0
    warnings: tuple[str, ...] = ()

    @property
    def steps(self) -> tuple[str, ...]:
        """The steps that any of the clones needs, in the pipeline's order."""
        used = {step for clone in self.clones for step in clone.steps}
        return tuple(step for step in self.order if step in used)


class StepStatus(enum.Enum):
    """Where a clone's step stands."""

    STARTED = "started"
    DONE = "done"
    UNCHANGED = "unchanged"
    FAILED = "failed"


@attrs.frozen(kw_only=True)
class StepEvent:
    """One change of one clone's step, as observers and the run log get it.

    :param clone: the clone's name; the template's for the step ``import``.
    :param step: the step's name (:mod:`vmcloner_core.steps`), or ``import``.
    :param seconds: since the step started for this clone; 0 for STARTED. A batch's members
        share their call, so their seconds overlap.
    :param at: seconds since the run started.
    """

    run: str
    clone: str
    step: str
    status: StepStatus
    at: float
    seconds: float = 0.0
    error: VmclonerError | None = None


@attrs.frozen(kw_only=True)
class ProgressEvent:
    """Bytes done of a long step; ``total`` is 0 where not known.

    ``what`` is ``import TEMPLATE``, or ``copy`` for all of a run's full copies together.
    """

    run: str
    what: str
    done: int
    total: int


@attrs.frozen(kw_only=True)
class CloneResult:
    """What became of one clone in a run.

    :param seconds: per step that was run, by the step's name.
    :param created: whether this run made a part of it (so that a roll-back would remove it).
    """

    name: str
    error: VmclonerError | None = None
    failed_step: str | None = None
    seconds: dict[str, float] = attrs.field(factory=dict)
    created: bool = False


@attrs.frozen(kw_only=True)
class RunResult:
    """What a run did.

    :param left: names that a roll-back could not remove.
    :param interrupted: whether it was stopped before its end.
    :param error: what ended the whole run, where it was not its clones' failures.
    """

    plan: Plan
    results: tuple[CloneResult, ...]
    seconds: float
    rolled_back: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    interrupted: bool = False
    error: VmclonerError | None = None

    @property
    def failures(self) -> tuple[CloneResult, ...]:
        """The clones that failed."""
        return tuple(result for result in self.results if result.error is not None)

    @property
    def enough(self) -> bool:
        """Whether enough clones are as asked: all, or the quota of a plan that waits."""
        total = len(self.results)
        return total - len(self.failures) >= self.plan.min_ready.of(total)

    @property
    def ok(self) -> bool:
        """Whether the run did what it was asked."""
        return self.enough and not self.left and not self.interrupted and self.error is None
