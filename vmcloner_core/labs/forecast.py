"""Check that all fleets of a lab together fit on the host, before anything is made."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

import attrs

from vmcloner_core.errors import NotEnoughResources, VmclonerError
from vmcloner_core.labs.compare import Comparison
from vmcloner_core.labs.model import Lab
from vmcloner_core.local_host import LocalHost
from vmcloner_core.model import Clone, Domain, State
from vmcloner_core.plan import Plan
from vmcloner_core.planning import Ahead, Planning
from vmcloner_core.request import Request, TargetRequest
from vmcloner_core.survey import Survey


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
        resources = self._host.drivers.resources(hypervisor)
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
