"""Steps: what is done to clones, by calls to one driver at a time."""

from __future__ import annotations

import functools
import logging
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import ClassVar, Generic, TypeVar

import attrs

from vmcloner_core.admission import Gate
from vmcloner_core.deadlines import answers
from vmcloner_core.disk_users import DiskUsers
from vmcloner_core.driver_registry import DriverRegistry
from vmcloner_core.drivers import HypervisorDriver, Lane, StorageDriver
from vmcloner_core.errors import NotFound, VmclonerError
from vmcloner_core.local_host import LocalHost
from vmcloner_core.model import (
    CloneRequest,
    DomainUse,
    Labels,
    Origin,
    Outcome,
    Progress,
    Volume,
    VolumeProgress,
)
from vmcloner_core.outcomes import Backend, checked
from vmcloner_core.pipeline import More, Stage, Work
from vmcloner_core.plan import Plan, Waiting

log = logging.getLogger(__name__)
D = TypeVar("D", StorageDriver, HypervisorDriver)
T = TypeVar("T")


class Tally:
    """Adds up the bytes of a run's volumes, each of which counts its own. Thread-safe.

    The total is estimated from the volumes that have begun.
    """

    def __init__(self, plan: Plan, copied: Progress) -> None:
        self._members = sum(len(clone.disks) for clone in plan.clones)
        self._copied = copied
        self._lock = threading.Lock()
        self._begun: dict[str, int] = {}
        self._done = self._known = 0
        self.told = 0.0
        """When bytes were last told of, as :func:`time.monotonic`."""

    def __call__(self, volume: str, done: int, total: int) -> None:
        """Note how many bytes of one volume are done."""
        with self._lock:
            self.told = time.monotonic()
            if volume not in self._begun:
                self._known += total
            self._done += done - self._begun.get(volume, 0)
            self._begun[volume] = done
            reckoned = self._known * self._members // len(self._begun)
            self._copied(self._done, max(self._done, reckoned))


class Run:
    """What the steps of one run share. Thread-safe.

    :param cancelled: tells whether the run must stop. :param copied: called with the run's bytes.
    :param waiting: called with what clones that aren't ready are doing.
    :param seen: called with a clone's name and what was first seen of it; see :class:`Seen`.
    """

    def __init__(
        self,
        plan: Plan,
        host: LocalHost,
        cancelled: Callable[[], bool] = lambda: False,
        copied: Progress = lambda _done, _total: None,
        waiting: Callable[[Waiting], None] = lambda _waiting: None,
        seen: Callable[[str, str, str], None] = lambda _clone, _what, _text: None,
    ) -> None:
        self.plan = plan
        self.host = host
        self.cancelled = cancelled
        self.waiting = waiting
        self.seen = seen
        self.tally = Tally(plan, copied)
        self._lock = threading.Lock()
        self._origins: dict[tuple[str, str], Origin | None] = {}
        self._gates: dict[HypervisorDriver, threading.BoundedSemaphore] = {}
        self._users: DiskUsers | None = None

    def origin(self, pool: StorageDriver, template: str) -> Origin | None:
        """Return a template's image in a pool, None if it isn't there; looked up once."""
        with self._lock:
            key = (pool.name, template)
            if key not in self._origins:
                self._origins[key] = self.host.images.origin(pool, template)
            return self._origins[key]

    def image(self, pool: StorageDriver, work: Work) -> Origin:
        """Return the image that a clone's first disk is made from.

        :raises NotFound: the pool doesn't have it (any more).
        """
        labels = work.plan.labels
        origin = self.origin(pool, labels.image)
        if origin is not None:
            return origin
        if labels.warm is None:
            what, hint = f"template {labels.template!r}", f"template import {labels.template}"
        else:
            what, hint = "its warm origin", f"delete {work.name}, and create it again"
        raise NotFound(
            f"{work.name}: pool {pool.name!r} has no image of {what}", hint=f"vmcloner {hint}"
        )

    def users(self) -> DiskUsers:
        """Return who uses the disks of the run's clones; looked up once.

        A hypervisor without clones of the run that can't be read is left out.
        """
        with self._lock:
            if self._users is None:
                self._users = self._found_users()
            return self._users

    def _found_users(self) -> DiskUsers:
        drivers, clones = self.host.drivers, self.plan.clones
        names: dict[str, list[str]] = {name: [] for name in drivers.names("hypervisor")}
        for clone in clones:
            names.setdefault(clone.labels.hypervisor, []).append(clone.name)

        def ask(name: str) -> tuple[DomainUse, ...]:
            return drivers.hypervisor(name).uses(names[name])

        found = answers({name: functools.partial(ask, name) for name in names})
        uses: list[DomainUse] = []
        for name, said in found.items():
            if isinstance(said, VmclonerError):
                if names[name]:
                    raise said
                log.debug("%s: %s", name, said)
            else:
                uses.extend(said)
        return DiskUsers(
            uses,
            (disk for clone in clones for disks in (clone.volumes, clone.kept) for disk in disks),
        )

    def limited(self, lane: Lane) -> Lane:
        """Return a lane with its concurrency limited by the run's jobs."""
        jobs = self.plan.jobs or lane.concurrency
        return attrs.evolve(lane, concurrency=min(lane.concurrency, jobs))

    def start_gate(self, driver: HypervisorDriver) -> threading.BoundedSemaphore:
        """Return what limits calls to a driver's ``start``: waits restart clones too."""
        with self._lock:
            if driver not in self._gates:
                calls = self.limited(driver.start_lane).concurrency
                self._gates[driver] = threading.BoundedSemaphore(calls)
            return self._gates[driver]


class Step(ABC, Generic[D]):
    """One thing that is done to clones. Steps have no state: there is one object of each."""

    name: ClassVar[str]
    past: ClassVar[str]
    """The word for its result in summaries: ``started``."""
    lane: ClassVar[str]
    """The driver's attribute with its lane."""
    kind: ClassVar[str]
    """The kind of the driver, as in the settings."""
    patience: ClassVar[float]
    """Seconds without a sign of life after which a call of the driver is taken to hang."""
    undo: ClassVar[tuple[str, ...]] = ()
    """The names of the steps that undo it, in their order."""

    @abstractmethod
    def driver(self, host: LocalHost, labels: Labels) -> D:
        """Return the driver that does it for a clone."""

    def lane_of(self, driver: D) -> Lane:
        """Return how the driver may be called."""
        lane: Lane = getattr(driver, self.lane)
        return lane

    def members(self, work: Work) -> int:  # noqa: ARG002 - most steps count clones
        """Return how many members of a driver's call a clone counts as."""
        return 1

    def undoes(self, work: Work) -> bool:  # noqa: ARG002 - most steps undo whatever was made
        """Tell whether a roll-back of a clone needs this step."""
        return True

    @abstractmethod
    def call(
        self, run: Run, driver: D, works: Sequence[Work], more: More
    ) -> Iterator[Outcome[object]]:
        """Do it to clones of one driver; outcomes are keyed by clone. See :data:`pipeline.Call`."""

    def gate(self, run: Run, driver: D) -> Gate:  # noqa: ARG002 - most steps need none
        """Return what decides when it may be done to a clone."""
        return Gate()

    def stage(self, run: Run, driver: D) -> Stage:
        """Return the stage of this step and a driver."""
        return Stage(
            step=self.name,
            call=lambda works, more: self.call(run, driver, works, more),
            lane=run.limited(self.lane_of(driver)),
            gate=self.gate(run, driver),
            members=self.members,
            patience=self.patience + run.plan.shutdown_timeout,
            sign=lambda: run.tally.told,
            backend=run.host.drivers.backend(self.kind, driver.name),
        )


class StorageStep(Step[StorageDriver]):
    """A step done by the pool of a clone's disks; members are disks."""

    kind = "storage"
    patience = 3600.0  # a copy that tells of no bytes may take long

    def members(self, work: Work) -> int:
        """See :meth:`Step.members`."""
        return max(1, len(work.plan.disks))

    def driver(self, host: LocalHost, labels: Labels) -> StorageDriver:
        """See :meth:`Step.driver`."""
        return host.drivers.storage(labels.storage)


class HypervisorStep(Step[HypervisorDriver]):
    """A step done by the hypervisor of a clone's domain."""

    kind = "hypervisor"
    patience = 600.0

    def driver(self, host: LocalHost, labels: Labels) -> HypervisorDriver:
        """See :meth:`Step.driver`."""
        return host.drivers.hypervisor(labels.hypervisor)


# --- what steps share ---------------------------------------------------------------------------


def cut(members: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Yield members in batches of ``size`` at most."""
    return (members[start : start + size] for start in range(0, len(members), size))


def by_pool(works: Sequence[Work]) -> Mapping[str, list[Volume]]:
    """Return the works' volumes by the names of their pools."""
    groups: dict[str, list[Volume]] = {}
    for work in works:
        for volume in work.volumes:
            groups.setdefault(volume.pool, []).append(volume)
    return groups


def owners(works: Sequence[Work]) -> dict[str, Work]:
    """Return the works by the names of their volumes."""
    return {volume.name: work for work in works for volume in work.volumes}


def together(
    members: Mapping[str, Work],
    outcomes: Iterable[Outcome[Volume]] | Iterable[Outcome[None]],
) -> Iterator[Outcome[object]]:
    """Yield each clone's outcome once those of all its volumes are known.

    :param members: the works by the names of their volumes, which are the keys of ``outcomes``.
    """
    left = Counter(work.name for work in members.values())
    errors: dict[str, VmclonerError] = {}
    changed: set[str] = set()
    for outcome in outcomes:
        work = members[outcome.key]
        if outcome.value is not None:
            work.add(outcome.value, made=outcome.changed)
        if outcome.error is not None:
            errors.setdefault(work.name, outcome.error)
        if outcome.changed:
            changed.add(work.name)
        left[work.name] -= 1
        if not left[work.name]:
            yield Outcome(key=work.name, error=errors.get(work.name), changed=work.name in changed)


def made(
    make: Callable[[Sequence[CloneRequest], VolumeProgress], Iterator[Outcome[Volume]]],
    lane: Lane,
    wanted: Sequence[tuple[Work, Sequence[CloneRequest]]],
    progress: VolumeProgress,
    backend: Backend,
) -> Iterator[Outcome[object]]:
    """Make volumes in batches; yield each clone's outcome once those of all its volumes are known.

    :param make: the driver's method. :param wanted: the requests for each work's volumes.
    """
    members = {request.volume_name: work for work, own in wanted for request in own}
    requests = [request for _, own in wanted for request in own]

    def each(batch: Sequence[CloneRequest]) -> Iterator[Outcome[Volume]]:
        names = [request.volume_name for request in batch]
        return checked(lambda: make(batch, progress), names, backend, Volume)

    yield from together(members, chain.from_iterable(map(each, cut(requests, lane.batch))))


Switch = Callable[[DriverRegistry, str, Sequence[Volume]], Sequence[Outcome[None]]]


def switched(
    run: Run, works: Sequence[Work], switch: Switch
) -> Iterator[tuple[Work, VmclonerError | None]]:
    """Activate or deactivate works' volumes; yields each work with its error, if any.

    A pool that fails as a whole fails only its own clones.

    :param switch: :meth:`DriverRegistry.activate` or ``deactivate``.
    """
    errors: dict[str, VmclonerError] = {}
    for name, volumes in by_pool(works).items():
        for outcome in switch(run.host.drivers, name, volumes):
            if outcome.error is not None:
                errors[outcome.key] = outcome.error
    for work in works:
        yield work, next((errors[v.name] for v in work.volumes if v.name in errors), None)
