"""Plans, events and results as values: what a run will do, is doing, and did.

A plan is made by :mod:`vmcloner_core.planner`, printed by ``--dry-run`` and carried out by
:mod:`vmcloner_core.pipeline`. Nothing here does I/O or holds a callable: every value can be pickled
and sent to another process.
"""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime

import attrs

from vmcloner_core.errors import InvalidRequest, NotFound, VmclonerError
from vmcloner_core.model import (
    AS_IT_COMES,
    CloneMode,
    CloneSpec,
    Copying,
    DiskSnapshot,
    Domain,
    Labels,
    Script,
    SnapshotAim,
    State,
    Template,
    Volume,
)
from vmcloner_core.qcow2 import SECTOR
from vmcloner_core.units import MAX_SIZE

MAX_VCPUS = 4096
MAX_JOBS = 256
"""Of anything that is done at once."""
AUTO = "auto"
"""As many guests boot at once as the host can carry."""


DEFAULT_TIMEOUT = 300.0
"""Seconds to wait for a clone where nothing else is asked for."""
EMULATED = 4
"""How many times as long a clone is waited for by default where guests are emulated."""


class OnFailure(enum.Enum):
    """What to do with the clones that a run made if some of its clones fail."""

    KEEP = "keep"
    ROLLBACK = "rollback"


def check_identical(*, identical: bool, warm: bool) -> None:
    """Check that only forks are asked to be copies of their parent.

    :raises InvalidRequest: others are.
    """
    if identical and not warm:
        raise InvalidRequest(
            "only forks are copies of their parent", hint="add warm, or leave out identical"
        )


def check_timeout(seconds: float) -> None:
    """Check that a timeout is positive and finite.

    :raises InvalidRequest: it isn't.
    """
    if not 0 < seconds < math.inf:
        raise InvalidRequest(f"timeout must be positive, not {seconds:g}")


def check_boot_jobs(value: int | str) -> None:
    """Check how many guests are to boot at once.

    :raises InvalidRequest: it is neither :data:`AUTO` nor a number in range.
    """
    if value != AUTO and not (isinstance(value, int) and 1 <= value <= MAX_JOBS):
        raise InvalidRequest(f"boot jobs must be {AUTO} or 1 to {MAX_JOBS}, not {value!r}")


@attrs.frozen(kw_only=True)
class Readiness:
    """What to wait for.

    :param kind: one of :data:`READINESS`. :param argument: a port, or a console's REGEX with
        placeholders like ``{{ name }}`` for the clone's own values.
    :param timeout: seconds for each clone, from the start of its wait; None for the default:
        :data:`DEFAULT_TIMEOUT`, where guests are emulated :data:`EMULATED` times that.
    """

    kind: str = "running"
    argument: str = ""
    timeout: float | None = None

    @classmethod
    def parse(cls, text: str, *, timeout: float | None = None) -> Readiness:
        """Parse ``running``, ``ip``, ``port:N``, ``ssh``, ``cloud-init``, ``agent`` or
        ``console:REGEX``.

        :raises InvalidRequest: it is none of them, or N or REGEX is invalid.
        """
        if timeout is not None:
            check_timeout(timeout)
        kind, colon, argument = text.partition(":")
        if kind not in READINESS or bool(argument) != READINESS[kind] or (colon and not argument):
            raise InvalidRequest(
                f"can't wait for {text!r}",
                hint="use running, ip, port:N, ssh, cloud-init, agent or console:REGEX",
            )
        if kind == "port" and not (
            re.fullmatch("[0-9]{1,5}", argument) and 0 < int(argument) < 2**16
        ):
            raise InvalidRequest(f"can't wait for {text!r}", hint="a port is 1 to 65535")
        if kind == "console":
            _check_pattern(text, argument)
        return cls(kind=kind, argument=argument, timeout=timeout)

    def limited(self, *, emulated: bool) -> Readiness:
        """Return it with a time limit: its own, or the default for guests on a host."""
        default = DEFAULT_TIMEOUT * (EMULATED if emulated else 1)
        return self if self.timeout is not None else attrs.evolve(self, timeout=default)

    @property
    def seconds(self) -> float:
        """The time limit; :data:`DEFAULT_TIMEOUT` if there is none yet."""
        return DEFAULT_TIMEOUT if self.timeout is None else self.timeout

    @property
    def placeholders(self) -> bool:
        """Whether it has placeholders for the clone's own values."""
        return "{" in self.argument

    def __str__(self) -> str:
        return f"{self.kind}:{self.argument}" if self.argument else self.kind


READINESS = {
    "running": False,
    "ip": False,
    "port": True,
    "ssh": False,
    "cloud-init": False,
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
    """How many of a run's clones must become ready for the run to succeed."""

    share: float = 1.0
    count: int | None = None

    @classmethod
    def parse(cls, text: str) -> Quota:
        """Parse a share, ``95%``, or a number of clones, ``19``.

        :raises InvalidRequest: it is neither, or above 100%.
        """
        match = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]{1,6})?)%|([0-9]{1,6})", text.strip())
        if match is None or (match[1] and float(match[1]) > 100):
            raise InvalidRequest(f"not a share of clones: {text!r}", hint="use 95% or a number")
        if match[2]:
            return cls(count=int(match[2]))
        return cls(share=float(match[1]) / 100)

    def of(self, total: int) -> int:
        """Return how many of ``total`` clones that is; a share is rounded up."""
        if self.count is not None:
            return min(self.count, total)
        return math.ceil(round(self.share * total, 6))


ALL = Quota()


def _whole_sectors(size: int) -> int:
    return size + -size % SECTOR


@attrs.frozen(kw_only=True)
class Sizes:
    """New sizes of clones, each None for no change: bytes of memory and of the first disk.

    A disk's is rounded up to whole sectors, as pools do: so the same request finds it done.
    """

    memory: int | None = None
    vcpus: int | None = None
    disk: int | None = attrs.field(
        default=None, converter=attrs.converters.optional(_whole_sectors)
    )

    def __attrs_post_init__(self) -> None:
        for what, size in (("memory", self.memory), ("disk size", self.disk)):
            if size is not None and not 0 < size <= MAX_SIZE:
                raise InvalidRequest(f"{what} out of range: {size}")
        if self.vcpus is not None and not 1 <= self.vcpus <= MAX_VCPUS:
            raise InvalidRequest(f"vcpus must be 1 to {MAX_VCPUS}, not {self.vcpus}")

    @property
    def values(self) -> dict[str, int]:
        """These as a clone's own values, by which its record keeps them."""
        named = {"memory": self.memory, "vcpus": self.vcpus, "disk_size": self.disk}
        return {key: value for key, value in named.items() if value is not None}


NO_SIZES = Sizes()


@attrs.frozen(kw_only=True)
class ClonePlan:
    """One clone's way through the pipeline: the steps it still needs, in order.

    :param steps: names of steps (:mod:`vmcloner_core.steps`).
    :param state: its state when this was planned, None if it didn't exist.
    :param renamed: its domain's name, if somebody renamed that.
    :param disks: numbers of the disks that are created or reset.
    :param volumes, domain: those that exist, in plans for existing clones.
    :param kept, unlabelled: see :class:`Clone`.
    :param wait: what to wait for, with placeholders filled in.
    :param spec: its specification. None if its template is gone and no step needs it.
    """

    labels: Labels
    steps: tuple[str, ...]
    state: State | None = None
    renamed: str | None = None
    disks: tuple[int, ...] = ()
    volumes: tuple[Volume, ...] = ()
    domain: Domain | None = None
    kept: tuple[DiskSnapshot, ...] = ()
    unlabelled: tuple[str, ...] = ()
    wait: Readiness = Readiness()
    spec: CloneSpec | None = None

    @property
    def name(self) -> str:
        """The clone's name."""
        return self.labels.clone

    def known(self) -> CloneSpec:
        """Return the clone's specification.

        :raises NotFound: it isn't known, since the template is gone.
        """
        if self.spec is None:
            raise NotFound(
                f"{self.name}: its template {self.labels.template!r} is gone",
                hint=f"restore its file, or vmcloner delete {self.name}",
            )
        return self.spec


@attrs.frozen(kw_only=True)
class Plan:
    """Everything that a run will do, checked: backends resolved, names and capacity verified.

    :param action: name of the action (:mod:`vmcloner_core.steps`).
    :param order: names of the action's steps, in the order in which clones go through them.
    :param host: name of the host that it is carried out on.
    :param template, hypervisor, storage: what a create makes clones from, and where; else None.
    :param import_image: whether the template's image must be imported into the pool first.
    :param copying: how the image and full clones are copied.
    :param existing: names of clones that need no change.
    :param missing: what the user named that isn't there, in a delete that was to find it.
    :param space: bytes that the volumes need at once. :param memory: bytes for guests to start.
    :param min_ready: how many of the clones must get ready, if the plan waits.
    :param shutdown_timeout: seconds for a graceful shutdown, 0 to destroy at once.
    :param sizes: what a ``set`` changes. :param snapshot: the snapshot that it is about.
    :param scripts: what a ``provision`` runs, in this order. :param changed_scripts: also those
        that ran before, if their files have changed since.
    :param jobs: upper bound for concurrent calls, None for what each driver allows.
    :param boot_jobs: how many guests may boot at once, None for what the host can carry.
    :param lacks: what has to be there before such a plan can be carried out; None if all is.
    """

    action: str
    run: str
    host: str
    clones: tuple[ClonePlan, ...]
    order: tuple[str, ...]
    existing: tuple[str, ...] = ()
    missing: VmclonerError | None = None
    template: Template | None = None
    hypervisor: str | None = None
    storage: str | None = None
    mode: CloneMode = CloneMode.LINKED
    import_image: bool = False
    copying: Copying = AS_IT_COMES
    on_failure: OnFailure = OnFailure.KEEP
    min_ready: Quota = ALL
    shutdown_timeout: float = 60.0
    sizes: Sizes = NO_SIZES
    scripts: tuple[Script, ...] = ()
    changed_scripts: bool = False
    snapshot: SnapshotAim | None = None
    jobs: int | None = None
    boot_jobs: int | None = None
    space: int = 0
    memory: int = 0
    warnings: tuple[str, ...] = ()
    lacks: VmclonerError | None = None

    @property
    def steps(self) -> tuple[str, ...]:
        """The steps that at least one clone needs, in the pipeline's order."""
        used = {step for clone in self.clones for step in clone.steps}
        return tuple(step for step in self.order if step in used)


class StepStatus(enum.Enum):
    """The status of a clone's step."""

    STARTED = "started"
    DONE = "done"
    UNCHANGED = "unchanged"
    FAILED = "failed"


EVENT_SCHEMA = 1
"""Version of the events' schema: higher if a key is removed or means another thing."""


@attrs.frozen(kw_only=True)
class Event:
    """What happened in a run: a :class:`PlanReady`, and so on; docs/events.md.

    :param run: the run's id.
    :param time: wall time in UTC at which observers are told of it, by this process' clock: what a
        host tells its controller has the time at which it came there.
    :param schema: version of the events' schema.
    """

    run: str
    time: datetime = attrs.field(factory=lambda: datetime.now(UTC), init=False, eq=False)
    schema: int = attrs.field(default=EVENT_SCHEMA, init=False)


@attrs.frozen(kw_only=True)
class StepEvent(Event):
    """One status change of one clone's step, for observers and the run log.

    :param clone: the clone's name; the template's for the step ``import``.
    :param step: the step's name (:mod:`vmcloner_core.steps`), or ``import``.
    :param seconds: since the step started for this clone; 0 for STARTED. A batch's members
        share their call, so their seconds overlap.
    :param at: seconds since the run started.
    """

    clone: str
    step: str
    status: StepStatus
    at: float
    seconds: float = 0.0
    error: VmclonerError | None = None


@attrs.frozen(kw_only=True)
class ProgressEvent:
    """Bytes done of a long step; ``total`` is 0 if not known.

    ``what`` is ``import TEMPLATE``, or ``copy`` for all of a run's full copies together.
    """

    run: str
    what: str
    done: int
    total: int


@attrs.frozen(kw_only=True)
class Waiting:
    """What the clones that a run waits for are doing.

    :param phases: how many of them are at which phase: ``booting``, ``waiting for ssh``.
    :param slowest: the one that has been waited for longest, for that many ``seconds``.
    :param said: the last line of its console, without escape sequences; may be empty.
    """

    phases: dict[str, int]
    slowest: str
    seconds: float
    said: str = ""


@attrs.frozen(kw_only=True)
class Seen(Event):
    """What a run that waits for a clone saw of its guest for the first time.

    :param what: ``output`` (the first line of its console), ``ip`` (its address was known), the
        kind of readiness that it reached (:data:`READINESS`); or ``log``: the last lines of the
        console of one that doesn't get ready.
    :param text: the line, the address or the lines, without escape sequences; else empty.
    :param at: seconds since the run began.
    """

    clone: str
    what: str
    at: float
    text: str = ""


@attrs.frozen(kw_only=True)
class Sample(Event):
    """How busy the host is during a run.

    :param at: seconds since the run began.
    :param cpu: percent of all processors since the last sample.
    :param memory_used, memory_total: bytes. :param pool_used, pool_total: bytes of the run's pool;
        None if it has several, or if that wasn't asked or didn't answer.
    :param clones: bytes of the host's memory that clones take, what they share by its share (PSS);
        only in the last sample of a run that waited until they were ready.
    """

    at: float
    cpu: float
    memory_used: int
    memory_total: int
    pool_used: int | None = None
    pool_total: int | None = None
    clones: Mapping[str, int] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class CloneResult:
    """The result of one clone in a run.

    :param seconds: of each step that was run, by the step's name.
    :param created: whether this run made a part of it (which a roll-back would remove).
    :param changed: the steps that changed something.
    """

    name: str
    error: VmclonerError | None = None
    failed_step: str | None = None
    seconds: dict[str, float] = attrs.field(factory=dict)
    created: bool = False
    changed: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class RunResult:
    """The result of a run.

    :param left: names of clones that a roll-back could not remove.
    :param interrupted: whether it was stopped early.
    :param error: what ended the whole run, other than failures of clones.
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
        """Whether enough clones succeeded: all, or the quota of a plan that waits."""
        total = len(self.results)
        return total - len(self.failures) >= self.plan.min_ready.of(total)

    @property
    def kept(self) -> tuple[str, ...]:
        """The clones that were there before, whole or in part: a roll-back keeps them."""
        before = [clone.name for clone in self.plan.clones if clone.state is not None]
        return (*self.plan.existing, *before)

    @property
    def ok(self) -> bool:
        """Whether the run succeeded."""
        return self.enough and not self.left and not self.interrupted and self.error is None


@attrs.frozen(kw_only=True)
class PlanReady(Event):
    """A run begins: this is what it will do."""

    plan: Plan


@attrs.frozen(kw_only=True)
class RunFinished(Event):
    """The last event of a run: what became of it."""

    result: RunResult
