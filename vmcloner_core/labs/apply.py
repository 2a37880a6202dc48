"""Bring a host to what a lab's file says: order what differs, and make requests of it.

Each request is an ordinary run: it locks its fleet, and can be repeated. Whatever kills an apply,
the same apply compares again and does the rest.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import attrs

from vmcloner_core import scripts
from vmcloner_core.errors import (
    Conflict,
    Interrupted,
    NotEnoughResources,
    PartialFailure,
    VmclonerError,
)
from vmcloner_core.labs.compare import Comparer, Comparison, missing
from vmcloner_core.labs.model import Change, Lab, LabResult
from vmcloner_core.local_host import LocalHost
from vmcloner_core.model import (
    Clone,
    Domain,
    HostResources,
    Network,
    NetworkChange,
    NetworkRequest,
    State,
)
from vmcloner_core.names import fold
from vmcloner_core.plan import Plan, Readiness, RunResult, Sizes
from vmcloner_core.planning import Ahead, Planning
from vmcloner_core.request import Request, TargetRequest
from vmcloner_core.results import check_result
from vmcloner_core.settings import Settings
from vmcloner_core.steps.provision import needed
from vmcloner_core.survey import Survey
from vmcloner_core.units import counted

OVER_SSH = ("ssh", "cloud-init")
"""The kinds of readiness after which scripts can be run."""
_NEW = ("create", "replace")
_ENDS = ("remove", "replace")


class Runs(Protocol):
    """What a lab needs of an engine."""

    settings: Settings

    def run(self, request: Request, *, on_plan: Callable[[Plan], None] = ...) -> RunResult:
        """Carry a request out."""
        ...

    def prepare_network(
        self, request: NetworkRequest, *, hypervisor: str | None = None
    ) -> NetworkChange:
        """Make a network."""
        ...

    def remove_network(
        self, request: NetworkRequest, *, hypervisor: str | None = None
    ) -> NetworkChange:
        """Remove a network."""
        ...

    def build_image(
        self,
        name: str,
        options: Mapping[str, Any] | None = None,
        *,
        builder: str = ...,
        parent: str = ...,
    ) -> object:
        """Build an image."""
        ...

    def pull_template(self, name: str, *, mirror: str | None = None) -> object:
        """Download an image."""
        ...


class Applier:
    """Applies one lab to one host. Used once.

    :param cancelled: tells whether the user wants it to end. :param on_run: called with each run's
        result.
    """

    def __init__(
        self,
        lab: Lab,
        engine: Runs,
        host: LocalHost,
        planning: Planning,
        *,
        cancelled: Callable[[], bool] = lambda: False,
        on_run: Callable[[RunResult], None] = lambda _result: None,
    ) -> None:
        self._lab = lab
        self._engine = engine
        self._host = host
        self._planning = planning
        self._cancelled = cancelled
        self._on_run = on_run
        self._compare = Comparer(lab, host, engine.settings.defaults)
        self._results: list[RunResult] = []
        self._failures: list[tuple[str, VmclonerError]] = []
        self._stay: frozenset[str] = frozenset()

    def diff(self) -> tuple[Change, ...]:
        """Return what differs."""
        return self._compare(self._host.survey()).changes

    def __call__(
        self,
        options: Collection[str],
        *,
        dry_run: bool,
        on_changes: Callable[[Sequence[Change], Sequence[Change]], None],
    ) -> LabResult:
        """Apply it; see :meth:`Engine.apply_lab`."""
        with contextlib.nullcontext() if dry_run else self._locked():
            found = self._host.survey()
            compared = self._compare(found)
            todo = tuple(c for c in compared.changes if c.option in ("", *options))
            left = tuple(c for c in compared.changes if c not in todo)
            scripts.check_tools([s for fleet in self._lab.fleets.values() for s in fleet.scripts])
            gone = _gone(todo)
            stay = [clone for clone in found.clones if clone.name not in gone]
            requests = {name: tuple(self._requests(name, stay, todo)) for name in self._lab.order()}
            forecast = Forecast(self._lab, self._host, self._planning, compared)
            later = forecast.check(found, gone, requests)
            if any(change.kind == "network" and change.action == "remove" for change in todo):
                self._check_free(self._compare.unwanted(), later)
            on_changes(todo, left)
            if not dry_run:
                # What lacks an option stays as it is: it isn't started, nor waited for.
                self._stay = frozenset(c.name for c in left if c.action in _ENDS)
                self._carry_out(todo, requests, options)
            return LabResult(changes=todo, left=left, results=tuple(self._results))

    def _requests(
        self, name: str, stay: Sequence[Clone], todo: Sequence[Change]
    ) -> Iterator[Request]:
        """Yield the requests that change a fleet, in their order.

        :param stay: all clones on the host but those that are deleted first.
        """
        own = [c for c in todo if c.fleet == name]
        resized: dict[Sizes, list[str]] = {}
        for change in own:
            if change.action == "resize":
                resized.setdefault(self._compare.sizes(name, change.name), []).append(change.name)
        for sizes, clones in resized.items():  # all with the same new ones at once
            yield self._request("set", clones, sizes=sizes)
        there = {clone.index for clone in stay if clone.fleet == name}
        new = [*missing(there, len(there) + sum(c.action in _NEW for c in own))]
        index = {clone.name: clone.index for clone in stay}
        partial = [index[c.name] for c in own if c.action == "complete"]
        still = [index[c.name] for c in own if c.action == "start"]
        if new or partial or still:
            yield self._lab.request(name, (*new, *partial), tuple(still))

    def _request(self, action: str, clones: Sequence[str], **more: Any) -> TargetRequest:
        """Return a request about clones, which is refused if they aren't the lab's by then."""
        return TargetRequest(action=action, targets=tuple(clones), lab=self._lab.name, **more)

    def _locked(self) -> contextlib.AbstractContextManager[None]:
        return self._host.hold([f"lab/{self._lab.name}"], self._cancelled)

    def _carry_out(
        self,
        todo: Sequence[Change],
        requests: Mapping[str, Sequence[Request]],
        options: Collection[str],
    ) -> None:
        self._prepare([c for c in todo if c.action not in ("remove", "replace")])
        gone = _gone(todo)
        if gone:
            self._run(self._request("delete", gone))

        def made(name: str) -> None:
            for request in requests[name]:
                self._run(request)

        settled = functools.partial(self._settle, changed="--provision" in options)
        failed: set[str] = set()
        for level in self._lab.levels():
            failed |= {name for name in level if failed & set(self._lab.fleets[name].after)}
            for step in (made, settled):  # the guests of a level boot beside each other
                for name in [name for name in level if name not in failed]:
                    if not self._succeeds(name, step):
                        failed.add(name)
        self._raise_failures(failed)
        if any(change.kind == "network" and change.action == "remove" for change in todo):
            self._remove([*self._compare.unwanted()])

    def _succeeds(self, name: str, step: Callable[[str], None]) -> bool:
        """Do something to a fleet; a failure is kept: other fleets don't depend on it.

        :raises Interrupted: the user stopped it.
        """
        try:
            step(name)
        except Interrupted:
            raise
        except VmclonerError as error:
            self._failures.append((name, error))
            return False
        return True

    def _prepare(self, todo: Iterable[Change]) -> None:
        """Make images and networks: fleets need them."""
        for change in todo:
            if change.kind == "image":
                image = self._lab.images[change.name]
                if change.action == "pull":
                    self._engine.pull_template(change.name)
                else:
                    self._engine.build_image(
                        change.name, image.options, builder=image.builder, parent=image.extends
                    )
            elif change.kind == "network":
                network = self._lab.networks[change.name]
                request = network.request(change.name, self._lab.name)
                self._engine.prepare_network(request, hypervisor=network.hypervisor)

    def _settle(self, name: str, *, changed: bool) -> None:
        """Wait until a fleet is ready, then run its scripts where they have not run.

        :param changed: run those again that have changed.
        """
        fleet = self._lab.fleets[name]
        found = self._host.survey().clones
        clones = [c.name for c in found if c.fleet == name and c.name not in self._stay]
        if not fleet.start or not clones:
            return
        ready = fleet.readiness
        wait = self._request("wait", clones, wait=ready, ready=ready is None, timeout=fleet.timeout)
        scripts = functools.partial(
            attrs.evolve, action="provision", scripts=fleet.scripts, changed_scripts=changed
        )
        records = self._host.records.of(clones)
        pending = [n for n, r in records.items() if needed(fleet.scripts, r.ran, changed=changed)]
        if ready is None:
            ready = Readiness.parse(self._compare.template(fleet).readiness)
        if not pending:
            self._run(wait)
        elif ready.kind in OVER_SSH:
            self._run(scripts(wait))  # none waits for another to get its scripts
        else:
            self._run(wait)
            ssh = Readiness.parse(OVER_SSH[0], timeout=fleet.timeout)
            self._run(scripts(wait, targets=tuple(pending), wait=ssh, ready=False))

    def _run(self, request: Request) -> None:
        if self._cancelled():
            raise Interrupted("stopped", hint="run the same command again")
        result = self._engine.run(request)
        self._results.append(result)
        self._on_run(result)
        check_result(result)

    def _raise_failures(self, failed: Collection[str]) -> None:
        """Raise what went wrong: the error itself, if it is one of a whole fleet."""
        if not self._failures:
            return
        name, error = self._failures[0]
        if len(failed) == 1 and not isinstance(error, PartialFailure):
            raise self._lab.located(error, f"fleets.{name}") from error
        raise PartialFailure(
            f"apply: {len(failed)} of {counted(len(self._lab.fleets), 'fleet')} not as the file "
            f"says ({', '.join(sorted(failed))}); {name}: {error.message}",
            failures=[pair for name, each in self._failures for pair in _members(name, each)],
            hint="run the same command again",
        ) from error

    def _check_free(self, networks: Iterable[tuple[str, Network]], clones: Iterable[Clone]) -> None:
        """Check that no clones, not even stopped ones, are on networks that are to be removed.

        :raises Conflict: some are.
        """
        used = [(key, c.name) for c in clones if c.domain for key in c.domain.networks]
        for _, network in networks:
            names = [name for key, name in used if key == network.key]
            if names:
                error = Conflict(
                    f"network {network.name} can't be removed: {fold(names)} would lose it",
                    hint="delete these clones, or write its table into the file",
                )
                raise self._lab.located(error, "")

    def _remove(self, networks: Iterable[tuple[str, Network]]) -> None:
        for backend, network in networks:
            request = NetworkRequest(name=network.name, bridge=network.kind == "bridge")
            self._engine.remove_network(request, hypervisor=backend)

    # --- delete ---------------------------------------------------------------------------------

    def parts(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the names of the clones and of the networks that carry the lab's name.

        :raises Conflict: other clones are on one of these networks.
        """
        found = self._host.survey()
        networks = [*self._compare.networks()]
        own = dict.fromkeys(clone.name for clone in self._compare.members(found))
        self._check_free(networks, [clone for clone in found.clones if clone.name not in own])
        return tuple(own), tuple(network.name for _, network in networks)

    def delete(self) -> RunResult | None:
        """Delete the lab; see :meth:`Engine.delete_lab`."""
        with self._locked():
            clones, _ = self.parts()
            if clones:
                self._run(self._request("delete", clones))
            self._remove([*self._compare.networks()])
        return self._results[0] if self._results else None


def _gone(todo: Iterable[Change]) -> tuple[str, ...]:
    """Return the clones that are deleted."""
    return tuple(c.name for c in todo if c.kind == "clone" and c.action in _ENDS)


def _members(fleet: str, error: VmclonerError) -> Sequence[tuple[str, VmclonerError]]:
    return error.failures if isinstance(error, PartialFailure) else [(fleet, error)]


class Forecast:
    """Checks that all fleets of a lab together fit on the host, before anything is made."""

    def __init__(self, lab: Lab, host: LocalHost, planning: Planning, compared: Comparison) -> None:
        self._lab = lab
        self._host = host
        self._planning = planning
        pulled = frozenset(name for name, image in lab.images.items() if image.pull)
        networks = compared.networks
        self._ahead = Ahead(templates=compared.templates, pulled=pulled, networks=networks)

    def check(
        self, found: Survey, gone: Collection[str], requests: Mapping[str, Sequence[Request]]
    ) -> tuple[Clone, ...]:
        """Plan the requests one after the other, each in what those before it leave.

        :param gone: the clones that are deleted first: what their guests have is free then.
        :param requests: by fleet.
        :returns: the clones that will be there.
        :raises NotEnoughResources: one doesn't fit; names file, line and key, and how many would.
        :raises VmclonerError: one isn't possible; likewise.
        """
        for clone in found.clones:
            if clone.name in gone and clone.domain is not None and clone.state is State.RUNNING:
                self._take(clone.labels.hypervisor, -clone.domain.memory, -1)
        left = tuple(clone for clone in found.clones if clone.name not in gone)
        found = attrs.evolve(found, clones=left)
        for name, request in ((name, one) for name, those in requests.items() for one in those):
            resizes = isinstance(request, TargetRequest)
            try:
                plan = self._planning.plan(request, found, None, self._ahead)
            except VmclonerError as error:
                key = ".memory" if resizes else ".count"
                key = key if isinstance(error, NotEnoughResources) else ""
                raise self._lab.located(error, f"fleets.{name}{key}") from error
            if resizes:
                clones = self._resized(plan, found.clones, starts=self._lab.fleets[name].start)
            else:
                self._note(plan)
                clones = (*found.clones, *_imagined(plan))
            found = attrs.evolve(found, clones=clones)
        return found.clones

    def _note(self, plan: Plan) -> None:
        """Note what a plan takes."""
        assert plan.hypervisor is not None and plan.storage is not None  # noqa: S101, PT018
        starts = sum("start" in clone.steps for clone in plan.clones)
        self._take(plan.hypervisor, plan.memory, starts)
        ahead, pool = self._ahead, plan.storage
        disks = sum(len(clone.disks) for clone in plan.clones)
        space = {**ahead.space, pool: ahead.space.get(pool, 0) + plan.space}
        volumes = {**ahead.volumes, pool: ahead.volumes.get(pool, 0) + disks}
        self._ahead = attrs.evolve(ahead, space=space, volumes=volumes)

    def _resized(self, plan: Plan, clones: Sequence[Clone], *, starts: bool) -> tuple[Clone, ...]:
        """Return clones as they will be after a ``set``, and note what they take if they start."""
        names, memory = {clone.name for clone in plan.clones}, plan.sizes.memory

        def resized(clone: Clone) -> Clone:
            if memory is None or clone.domain is None or clone.name not in names:
                return clone
            if starts and clone.state is not State.RUNNING:
                self._take(clone.labels.hypervisor, memory - clone.domain.memory, 0)
            return attrs.evolve(clone, domain=attrs.evolve(clone.domain, memory=memory))

        return tuple(map(resized, clones))

    def _take(self, hypervisor: str, memory: int, guests: int) -> None:
        """Note that guests take memory: of the host's own, if it is overcommitted, less."""
        resources = self._host.drivers.ask(
            "hypervisor", hypervisor, "resources", lambda d: d.resources(), HostResources
        )
        factor = 1.0 if resources.memory_hint else self._planning.memory_overcommit
        taken = int((memory + guests * resources.memory_overhead) / factor)
        before = self._ahead.memory.get(hypervisor, 0)
        memory_of = {**self._ahead.memory, hypervisor: before + taken}
        self._ahead = attrs.evolve(self._ahead, memory=memory_of)


def _imagined(plan: Plan) -> Iterator[Clone]:
    """Yield the clones that a plan defines: their names and addresses are taken for later plans."""
    for clone in plan.clones:
        if "define" not in clone.steps:
            continue
        spec = clone.known()
        static = spec.identity.static_macs if spec.identity is not None else frozenset()
        domain = Domain(
            name=spec.name,
            uuid=spec.uuid,
            labels=clone.labels,
            state=State.STOPPED,
            memory=spec.memory,
            macs=spec.macs,
            networks=tuple("" if n.mac in static else n.spec.network for n in spec.nics),
        )
        yield Clone(labels=clone.labels, state=State.STOPPED, host=plan.host, domain=domain)
