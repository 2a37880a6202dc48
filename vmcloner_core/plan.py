"""Plans and results as values: what a run will do, what it is doing, what it did.

A plan is made by :mod:`vmcloner_core.planner`, printed by ``--dry-run`` and carried out by
:mod:`vmcloner_core.executor`. Nothing here does I/O.
"""

from __future__ import annotations

import enum
import re
import uuid

import attrs

from vmcloner_core.errors import InvalidRequest, VmclonerError
from vmcloner_core.model import Clone, CloneMode, Labels, Nic, Template, Volume


class Action(enum.Enum):
    """What a run does to its clones."""

    CREATE = "create"
    START = "start"
    STOP = "stop"
    RESTART = "restart"
    DELETE = "delete"
    WAIT = "wait"


class Step(enum.Enum):
    """One stage of the pipeline that a clone goes through."""

    IMPORT = "import"
    CLONE = "clone"
    DEFINE = "define"
    START = "start"
    WAIT = "wait"
    SHUTDOWN = "shutdown"
    DESTROY = "destroy"
    UNDEFINE = "undefine"
    REMOVE = "remove"


PIPELINE: dict[Action, tuple[Step, ...]] = {
    Action.CREATE: (Step.CLONE, Step.DEFINE, Step.START, Step.WAIT),
    Action.START: (Step.START, Step.WAIT),
    Action.STOP: (Step.SHUTDOWN, Step.DESTROY),
    Action.RESTART: (Step.SHUTDOWN, Step.DESTROY, Step.START, Step.WAIT),
    Action.DELETE: (Step.DESTROY, Step.UNDEFINE, Step.REMOVE),
    Action.WAIT: (Step.WAIT,),
}
"""The order of each action's steps; a clone goes through those that it needs."""


class OnFailure(enum.Enum):
    """What becomes of the clones that a run made when some of its clones fail."""

    KEEP = "keep"
    ROLLBACK = "rollback"


@attrs.frozen(kw_only=True)
class Readiness:
    """What to wait for: ``running``, or a line of the console that matches ``pattern``.

    ``{{ name }}`` and its kin in ``pattern`` stand for the clone's own values.
    """

    pattern: str | None = None
    timeout: float = 300.0

    @classmethod
    def parse(cls, text: str, *, timeout: float = 300.0) -> Readiness:
        """Parse ``running`` or ``console:REGEX``.

        :raises InvalidRequest: it is neither, or REGEX is no regular expression.
        """
        if timeout <= 0:
            raise InvalidRequest(f"timeout must be positive, not {timeout:g}")
        if text == "running":
            return cls(timeout=timeout)
        kind, _, pattern = text.partition(":")
        if kind != "console" or not pattern:
            raise InvalidRequest(f"can't wait for {text!r}", hint="use running or console:REGEX")
        try:
            re.compile(re.sub(r"\{\{.*?\}\}", "x", pattern))
        except re.error as error:
            raise InvalidRequest(
                f"can't wait for {text!r}: {error}", hint="check the regular expression"
            ) from error
        return cls(pattern=pattern, timeout=timeout)

    def __str__(self) -> str:
        return "running" if self.pattern is None else f"console:{self.pattern}"


@attrs.frozen(kw_only=True)
class ClonePlan:
    """One clone's way through the pipeline: the steps it still needs, in order.

    :param volumes: those that are there already.
    :param wait: what WAIT waits for.
    """

    labels: Labels
    steps: tuple[Step, ...]
    uuid: uuid.UUID | None = None
    nics: tuple[Nic, ...] = ()
    volumes: tuple[Volume, ...] = ()
    wait: Readiness | None = None

    @property
    def name(self) -> str:
        """The clone's name."""
        return self.labels.clone


@attrs.frozen(kw_only=True)
class Plan:
    """All that a run will do, complete and checked: backends resolved, names and capacity tried.

    :param template: None but for CREATE.
    :param import_image: whether the template's image has first to be brought into the pool.
    :param existing: names of clones that are already as asked.
    :param space: bytes that the volumes need at once. :param memory: bytes for guests to start.
    :param shutdown_timeout: seconds for a graceful shutdown, 0 to destroy at once.
    :param jobs: upper bound for calls at once, None for what each driver says it can.
    """

    action: Action
    run: str
    host: str
    clones: tuple[ClonePlan, ...]
    existing: tuple[str, ...] = ()
    template: Template | None = None
    hypervisor: str | None = None
    storage: str | None = None
    mode: CloneMode = CloneMode.LINKED
    import_image: bool = False
    on_failure: OnFailure = OnFailure.KEEP
    shutdown_timeout: float = 60.0
    jobs: int | None = None
    space: int = 0
    memory: int = 0
    warnings: tuple[str, ...] = ()

    @property
    def steps(self) -> tuple[Step, ...]:
        """The steps that any of the clones needs, in the pipeline's order."""
        used = {step for clone in self.clones for step in clone.steps}
        return tuple(step for step in PIPELINE[self.action] if step in used)


class StepStatus(enum.Enum):
    """Where a clone's step stands."""

    STARTED = "started"
    DONE = "done"
    UNCHANGED = "unchanged"
    FAILED = "failed"


@attrs.frozen(kw_only=True)
class StepEvent:
    """One change of one clone's step, as observers and the run log get it.

    :param clone: the clone's name; the template's for IMPORT.
    :param seconds: since the step started for this clone; 0 for STARTED. A batch's members
        share their call, so their seconds overlap.
    :param at: seconds since the run started.
    """

    run: str
    clone: str
    step: Step
    status: StepStatus
    at: float
    seconds: float = 0.0
    error: VmclonerError | None = None


@attrs.frozen(kw_only=True)
class ProgressEvent:
    """Bytes done of a long step (an import, a full copy); ``total`` is 0 where not known."""

    run: str
    what: str
    done: int
    total: int


@attrs.frozen(kw_only=True)
class CloneResult:
    """What became of one clone in a run.

    :param seconds: per step that was run, by the step's value.
    :param created: whether this run made a part of it (so that a roll-back would remove it).
    """

    name: str
    error: VmclonerError | None = None
    failed_step: Step | None = None
    seconds: dict[str, float] = attrs.field(factory=dict)
    created: bool = False


@attrs.frozen(kw_only=True)
class RunResult:
    """What a run did.

    :param clones: the clones' state after the run, of CREATE; empty for other actions.
    :param left: names that a roll-back could not remove.
    :param interrupted: whether it was stopped before its end.
    """

    plan: Plan
    results: tuple[CloneResult, ...]
    seconds: float
    clones: tuple[Clone, ...] = ()
    rolled_back: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    interrupted: bool = False

    @property
    def failures(self) -> tuple[CloneResult, ...]:
        """The clones that failed."""
        return tuple(result for result in self.results if result.error is not None)

    @property
    def ok(self) -> bool:
        """Whether all of the plan was carried out."""
        return not self.failures and not self.left and not self.interrupted
