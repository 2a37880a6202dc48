"""Steps as calls of drivers: what each stage of the pipeline does with the works it is given."""

from __future__ import annotations

import functools
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import TypeVar

import attrs

from vmcloner_core.booting import Starter, boot_request, told
from vmcloner_core.disks import disk_requests
from vmcloner_core.drivers import (
    BootProvider,
    HypervisorDriver,
    IdentityProvider,
    IdentityRequest,
    Lane,
    StorageDriver,
)
from vmcloner_core.errors import NotFound, VmclonerError
from vmcloner_core.hooks import BootBackend
from vmcloner_core.identities import Home, Identities
from vmcloner_core.model import (
    Access,
    BootConfig,
    CloneMode,
    CloneRequest,
    DomainSpec,
    Labels,
    Origin,
    Outcome,
    Progress,
    Seed,
    Template,
    Volume,
)
from vmcloner_core.pipeline import Call, More, Stage, Work
from vmcloner_core.plan import ClonePlan, Plan, Step
from vmcloner_core.readiness import Awaited, watch

T = TypeVar("T")
_STORAGE = (Step.CLONE, Step.RESET, Step.REMOVE)
"""The steps that pools do."""


def domain_spec(
    plan: ClonePlan,
    template: Template,
    boot: BootConfig,
    volumes: tuple[Volume, ...],
    seed: Seed = Seed(),  # noqa: B008 - a frozen value
) -> DomainSpec:
    """Return what defines a clone's domain.

    :raises InvalidRequest: the seed has words for a kernel, and there is none, or no room.
    """
    assert plan.uuid is not None  # noqa: S101 - a plan that defines gives it
    return DomainSpec(
        labels=plan.labels,
        uuid=plan.uuid,
        memory=plan.memory or template.memory,
        vcpus=plan.vcpus or template.vcpus,
        # A provider that is asked at each start gets the words then.
        boot=boot if plan.labels.boot is not None else told(plan.name, boot, seed.cmdline),
        volumes=volumes,
        nics=plan.nics,
        options=template.domain,
        seed=seed.image,
        values=plan.values,
    )


def identity_request(plan: ClonePlan, template: Template, home: Home) -> IdentityRequest:
    """Return what an identity provider is asked about a clone."""
    assert plan.identity is not None  # noqa: S101 - a plan that seeds gives it
    return IdentityRequest(
        labels=plan.labels,
        template=template,
        identity=plan.identity,
        nics=plan.nics,
        values=plan.values,
        folder=home.folder,
        host_key=home.host_key,
        host_key_public=home.host_key_public,
    )


class Tally:
    """Adds up the bytes of a run's volumes, each of which counts its own. Thread-safe.

    How many bytes all of them have is reckoned from those that have begun.
    """

    def __init__(self, plan: Plan, copied: Progress) -> None:
        self._members = sum(len(clone.disks) for clone in plan.clones)
        self._copied = copied
        self._lock = threading.Lock()
        self._begun: dict[object, int] = {}
        self._done = self._known = 0

    def part(self) -> Progress:
        """Return what one volume's copy tells its bytes to."""
        volume = object()

        def progress(done: int, total: int) -> None:
            with self._lock:
                if volume not in self._begun:
                    self._known += total
                self._done += done - self._begun.get(volume, 0)
                self._begun[volume] = done
                reckoned = self._known * self._members // len(self._begun)
                self._copied(self._done, max(self._done, reckoned))

        return progress


@attrs.frozen(kw_only=True)
class Stages:
    """Makes a plan's stages. A plan's clones may lie in several pools and hypervisors.

    :param storages, hypervisors: return the driver that labels name.
    :param boots: return the boot provider of that name, with its description.
    :param starter: starts clones.
    :param origin: the template's image, of a plan that clones.
    :param origins: returns a pool's image of a template.
    :param access: returns how a clone with these labels and that address is reached.
    :param identity: the template's identity provider, of a plan that defines.
    :param identities: where the identities of the host's clones are kept.
    """

    plan: Plan
    storages: Callable[[str], StorageDriver]
    hypervisors: Callable[[str], HypervisorDriver]
    boots: Callable[[str], tuple[BootBackend, BootProvider]]
    starter: Starter
    identities: Identities
    origin: Origin | None = None
    origins: Callable[[StorageDriver, str], Origin | None]
    identity: IdentityProvider | None = None
    access: Callable[[Labels, str], Access]
    cancelled: Callable[[], bool] = lambda: False
    copied: Progress = lambda _done, _total: None
    _tally: Tally = attrs.field(
        default=attrs.Factory(lambda self: Tally(self.plan, self.copied), takes_self=True),
        init=False,
    )

    def stages(self, steps: Iterable[Step], works: Sequence[Work]) -> tuple[Stage, ...]:
        """Return one stage for each of ``steps``."""
        return tuple(self._stage(step, works) for step in steps)

    def _stage(self, step: Step, works: Sequence[Work]) -> Stage:
        calls: Mapping[Step, Call] = {
            Step.CLONE: self._clone,
            Step.DEFINE: self._define,
            Step.START: self._start,
            Step.WAIT: self._wait,
            Step.SHUTDOWN: self._shutdown,
            Step.DESTROY: self._destroy,
            Step.RESET: self._reset,
            Step.UNDEFINE: self._undefine,
            Step.REMOVE: self._remove,
        }
        lane = self._lane(step, works)
        if self.plan.jobs is not None:
            lane = attrs.evolve(lane, concurrency=min(lane.concurrency, self.plan.jobs))
        return Stage(step=step, call=calls[step], lane=lane)

    def _lane(self, step: Step, works: Sequence[Work]) -> Lane:
        if step is Step.WAIT:
            return Lane(batch=max(1, len(works)))  # one watcher for all
        attribute = {
            Step.CLONE: "clone_lane",
            Step.REMOVE: "delete_lane",
            Step.RESET: "reset_lane",
            Step.DEFINE: "define_lane",
            Step.START: "start_lane",
            Step.UNDEFINE: "undefine_lane",
        }.get(step, "stop_lane")
        drivers: list[StorageDriver | HypervisorDriver]
        if step in _STORAGE:
            drivers = [self.storages(n) for n in {w.plan.labels.storage for w in works}]
        else:
            drivers = [self.hypervisors(n) for n in {w.plan.labels.hypervisor for w in works}]
        lanes: list[Lane] = [getattr(driver, attribute) for driver in drivers]
        # Storage counts volumes, the pipeline clones.
        each = max((_members(step, work) for work in works), default=1)
        return Lane(
            batch=max(1, max((lane.batch for lane in lanes), default=1) // each),
            concurrency=max((lane.concurrency for lane in lanes), default=1),
        )

    # --- calls ---

    def _clone(self, works: Sequence[Work], _more: More) -> Iterator[Outcome[object]]:
        template, pool = self.plan.template, self.plan.storage
        assert template is not None and pool is not None  # noqa: S101, PT018
        requests: list[CloneRequest] = []
        owners: dict[str, Work] = {}
        for work in works:
            plan = work.plan
            own = disk_requests(template, plan.labels, self.origin, self.plan.mode, plan.disks)
            for request in own:
                copying = attrs.evolve(self.plan.copying, progress=self._tally.part())
                requests.append(attrs.evolve(request, copying=copying))
            owners.update((request.volume_name, work) for request in own)
        driver = self.storages(pool)

        batches = _cut(requests, driver.clone_lane.batch)
        yield from _together(owners, chain.from_iterable(map(driver.clone, batches)))

    def _define(self, works: Sequence[Work], _more: More) -> Iterator[Outcome[object]]:
        template = self.plan.template
        assert template is not None  # noqa: S101 - a plan that defines has one
        by_name = {work.name: work for work in works}
        requests = [
            boot_request(
                work.plan,
                template,
                self.hypervisors(work.plan.labels.hypervisor),
                work.volumes,
            )
            for work in works
        ]
        boots: dict[str, BootConfig] = {}
        for booted in self.boots(template.boot)[1].resolve(requests):
            if booted.error is not None:
                yield Outcome(key=booted.key, error=booted.error)
            else:
                boots[booted.key] = booted.unwrap()
        specs: dict[str, list[DomainSpec]] = {}
        for seeded in self._seeded([by_name[name] for name in boots]):
            work = by_name[seeded.key]
            try:
                seed, boot = seeded.unwrap(), boots[seeded.key]
                spec = domain_spec(work.plan, template, boot, work.volumes, seed)
            except VmclonerError as error:
                yield Outcome(key=seeded.key, error=error)
                continue
            specs.setdefault(spec.labels.hypervisor, []).append(spec)
        for name, group in specs.items():
            yield from self.hypervisors(name).define(group)

    def _seeded(self, works: Sequence[Work]) -> Iterator[Outcome[Seed]]:
        """Give clones their identities, kept before anything is made of them."""
        assert self.plan.template is not None  # noqa: S101 - as _define
        requests = []
        for work in works:
            plan = work.plan
            if self.identity is None or plan.identity is None:
                yield Outcome(key=work.name, value=Seed())
                continue
            try:
                home = self.identities.make(plan.labels, plan.identity, plan.values)
            except VmclonerError as error:
                yield Outcome(key=work.name, error=error)
                continue
            requests.append(identity_request(plan, self.plan.template, home))
        if self.identity is None or not requests:
            return
        labels = {request.labels.clone: request.labels for request in requests}
        for outcome in self.identity.seed(requests):
            if outcome.value is not None:
                self.identities.seal(labels[outcome.key], outcome.value)
            yield outcome

    def _start(self, works: Sequence[Work], _more: More) -> Iterator[Outcome[object]]:
        ready = []
        for work, error in self._switched(works, lambda pool, volumes: pool.activate(volumes)):
            if error is None:
                ready.append(work)
            else:
                yield Outcome(key=work.name, error=error)
        for driver, group in self._by_hypervisor(ready):
            yield from self.starter.start(driver, group)

    def _wait(self, works: Sequence[Work], more: More) -> Iterator[Outcome[object]]:
        by_name: dict[str, Work] = {}

        def awaited(works: Sequence[Work]) -> list[Awaited]:
            by_name.update((work.name, work) for work in works)
            return self._awaited(works)

        yield from watch(
            awaited(works),
            more=lambda: awaited(more()),
            cancelled=self.cancelled,
            again=lambda names: self._again([by_name[name] for name in names]),
        )

    def _again(self, works: Sequence[Work]) -> Mapping[str, VmclonerError | None]:
        """Start those clones again that ended so that their boot providers be asked again."""
        ended = [
            work
            for work in works
            if work.plan.template is not None and self.starter.ended_to_boot_anew(work.name)
        ]
        lane = self._lane(Step.START, ended)
        outcomes: list[Outcome[object]] = []
        with ThreadPoolExecutor(lane.concurrency, thread_name_prefix="again") as pool:
            for batch in pool.map(lambda work: list(self._start([work], tuple)), ended):
                outcomes.extend(batch)
        return {outcome.key: outcome.error for outcome in outcomes}

    def _awaited(self, works: Sequence[Work]) -> list[Awaited]:
        return [
            Awaited(
                name=work.name,
                driver=self.hypervisors(work.plan.labels.hypervisor),
                readiness=wait,
                access=functools.partial(self.access, work.plan.labels),
                planned=self.identities.planned_address(work.name),
            )
            for work in works
            if (wait := work.plan.wait) is not None
        ]

    def _shutdown(self, works: Sequence[Work], _more: More) -> Iterator[Outcome[object]]:
        timeout = self.plan.shutdown_timeout
        yield from self._stopped(works, lambda driver, names: driver.shutdown(names, timeout))

    def _destroy(self, works: Sequence[Work], _more: More) -> Iterator[Outcome[object]]:
        yield from self._stopped(works, lambda driver, names: driver.destroy(names))

    def _stopped(
        self,
        works: Sequence[Work],
        stop: Callable[[HypervisorDriver, Sequence[str]], Iterator[Outcome[None]]],
    ) -> Iterator[Outcome[object]]:
        for driver, group in self._by_hypervisor(works):
            by_name = {work.name: work for work in group}
            stopped: dict[str, Outcome[None]] = {}
            for outcome in stop(driver, list(by_name)):
                if outcome.error is not None:
                    yield Outcome(key=outcome.key, error=outcome.error)
                else:
                    stopped[outcome.key] = outcome
            for work, error in self._switched(
                [by_name[name] for name in stopped],
                lambda pool, volumes: pool.deactivate(volumes),
            ):
                yield self.starter.forget(attrs.evolve(stopped[work.name], error=error))

    def _reset(self, works: Sequence[Work], _more: More) -> Iterator[Outcome[object]]:
        requests: dict[str, list[CloneRequest]] = {}
        owners: dict[str, Work] = {}
        for work in works:
            pool = work.plan.labels.storage
            try:
                own = self._anew(work, self.storages(pool))
            except VmclonerError as error:
                yield Outcome(key=work.name, error=error)
                continue
            requests.setdefault(pool, []).extend(own)
            owners.update((request.volume_name, work) for request in own)
        outcomes = (
            outcome
            for pool, group in requests.items()
            for batch in _cut(group, self.storages(pool).reset_lane.batch)
            for outcome in self.storages(pool).reset(batch)
        )
        yield from _together(owners, outcomes)

    def _anew(self, work: Work, driver: StorageDriver) -> Sequence[CloneRequest]:
        """Return what makes a clone's disks anew: as large as they are, of the image as it is now.

        :raises NotFound: the pool has no image of its template (any more).
        """
        template = work.plan.template
        assert template is not None  # noqa: S101 - a plan that resets gives it
        origin = self.origins(driver, template.name)
        if origin is None:
            raise NotFound(
                f"{work.name}: pool {driver.name!r} has no image of template {template.name!r}",
                hint=f"vmcloner template import {template.name}",
            )
        mode = CloneMode.LINKED if CloneMode.LINKED in driver.modes else CloneMode.FULL
        sizes = {volume.disk: volume.size for volume in work.volumes}
        return [
            attrs.evolve(request, size=_larger(sizes[request.disk], request.origin))
            if request.disk in sizes
            else request
            for request in disk_requests(template, work.plan.labels, origin, mode, work.plan.disks)
        ]

    def _undefine(self, works: Sequence[Work], _more: More) -> Iterator[Outcome[object]]:
        for driver, group in self._by_hypervisor(works):
            for outcome in driver.undefine([work.name for work in group]):
                yield outcome if outcome.error is not None else self.starter.forget(outcome)

    def _remove(self, works: Sequence[Work], _more: More) -> Iterator[Outcome[object]]:
        outcomes = (
            outcome
            for name, volumes in self._by_pool(works).items()
            for batch in _cut(volumes, self.storages(name).delete_lane.batch)
            for outcome in self.storages(name).delete(batch)
        )
        by_name = {work.name: work for work in works}
        empty = (Outcome[object](key=work.name) for work in works if not work.volumes)
        for removed in chain(empty, _together(_owners(works), outcomes)):
            yield self._forgotten(by_name[removed.key], removed)

    def _forgotten(self, work: Work, removed: Outcome[object]) -> Outcome[object]:
        """Remove the identity of a clone of which nothing else is left.

        Last of all: as long as a part of a clone is there, the same create again makes the same
        machine of it, which its own disk and others' ``known_hosts`` know. So a roll-back keeps
        that of a clone of which a part was there before.
        """
        if removed.error is not None or not work.forget:
            return removed
        try:
            self.identities.remove(work.plan.labels)
        except VmclonerError as error:
            return Outcome(key=work.name, error=error)
        return removed

    # --- grouping ---

    def _by_hypervisor(
        self, works: Sequence[Work]
    ) -> Iterator[tuple[HypervisorDriver, Sequence[Work]]]:
        groups: dict[str, list[Work]] = {}
        for work in works:
            groups.setdefault(work.plan.labels.hypervisor, []).append(work)
        for name, group in groups.items():
            yield self.hypervisors(name), group

    @staticmethod
    def _by_pool(works: Sequence[Work]) -> Mapping[str, list[Volume]]:
        groups: dict[str, list[Volume]] = {}
        for work in works:
            for volume in work.volumes:
                groups.setdefault(volume.pool, []).append(volume)
        return groups

    def _switched(
        self,
        works: Sequence[Work],
        switch: Callable[[StorageDriver, Sequence[Volume]], Iterator[Outcome[None]]],
    ) -> Iterator[tuple[Work, VmclonerError | None]]:
        """Activate or deactivate works' volumes; yields each work with its error, if any."""
        outcomes = (
            outcome
            for name, volumes in self._by_pool(works).items()
            for outcome in switch(self.storages(name), volumes)
        )
        errors = {o.key: o.error for o in _together(_owners(works), outcomes)}
        for work in works:
            yield work, errors.get(work.name)


def _larger(size: int, origin: Origin | None) -> int:
    return size if origin is None else max(size, origin.size)


def _members(step: Step, work: Work) -> int:
    """Return how many members of a driver's call a clone is."""
    if step in (Step.CLONE, Step.RESET):
        return max(1, len(work.plan.disks))
    return max(1, len(work.volumes)) if step is Step.REMOVE else 1


def _owners(works: Sequence[Work]) -> dict[str, Work]:
    return {volume.name: work for work in works for volume in work.volumes}


def _cut(members: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (members[start : start + size] for start in range(0, len(members), size))


def _together(
    owners: Mapping[str, Work], outcomes: Iterable[Outcome[Volume]] | Iterable[Outcome[None]]
) -> Iterator[Outcome[object]]:
    """Yield each clone's outcome once those of all its volumes are known; one's failure is its own.

    :param owners: the works by the names of their volumes, which are the keys of ``outcomes``.
    """
    waiting = dict(owners)
    left = Counter(work.name for work in owners.values())
    errors: dict[str, VmclonerError] = {}
    changed: set[str] = set()
    for outcome in outcomes:
        work = waiting.pop(outcome.key, None)
        if work is None:
            continue
        if outcome.value is not None:
            work.add(outcome.value, made=outcome.changed)
        if outcome.error is not None:
            errors.setdefault(work.name, outcome.error)
        if outcome.changed:
            changed.add(work.name)
        left[work.name] -= 1
        if not left[work.name]:
            yield Outcome(key=work.name, error=errors.get(work.name), changed=work.name in changed)
