"""Plan requests against a host: survey it, gather what a plan needs to know, check what can be."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import attrs

from vmcloner_core import quotas
from vmcloner_core.birth import Birth
from vmcloner_core.deadlines import instance
from vmcloner_core.drivers import HypervisorDriver, StorageDriver
from vmcloner_core.errors import InvalidRequest, VmclonerError, WrongState
from vmcloner_core.local_host import LocalHost
from vmcloner_core.model import (
    Capacity,
    Clone,
    CloneRequest,
    HostResources,
    Lease,
    Needs,
    Network,
    Template,
)
from vmcloner_core.names import split_clone
from vmcloner_core.outcomes import asked, guarded
from vmcloner_core.plan import ClonePlan, Plan
from vmcloner_core.plugins import PluginHost
from vmcloner_core.preflight import check_memory
from vmcloner_core.request import CreateRequest, Request, TargetRequest
from vmcloner_core.settings import Settings
from vmcloner_core.survey import Survey

if TYPE_CHECKING:
    from vmcloner_core.planner import Facts
    from vmcloner_core.template_checks import TemplateChecks
    from vmcloner_core.warm_origins import WarmOrigin


@attrs.frozen(kw_only=True)
class Ahead:
    """What else will be made and removed before a request is carried out: a lab is planned whole.

    :param templates: templates that aren't written yet, by name.
    :param pulled: the templates whose images will be pulled.
    :param networks: networks that aren't as they will be, by their keys.
    :param memory: bytes that guests of each hypervisor will have taken, less what will be free.
    :param space: bytes that will be taken in each pool. :param volumes: volumes, likewise.
    """

    templates: Mapping[str, Template] = attrs.field(factory=dict)
    pulled: frozenset[str] = frozenset()
    networks: Mapping[str, Network] = attrs.field(factory=dict)
    memory: Mapping[str, int] = attrs.field(factory=dict)
    space: Mapping[str, int] = attrs.field(factory=dict)
    volumes: Mapping[str, int] = attrs.field(factory=dict)

    def capacity(self, pool: str, now: Capacity) -> Capacity:
        """Return what a pool will have left."""
        room = now.volumes_free
        if room is not None:
            room = max(0, room - self.volumes.get(pool, 0))
        free = max(0, now.free - self.space.get(pool, 0))
        return attrs.evolve(now, free=free, volumes_free=room)

    def resources(self, hypervisor: str, now: HostResources) -> HostResources:
        """Return what a hypervisor will have left."""
        free = max(0, now.memory_free - self.memory.get(hypervisor, 0))
        return attrs.evolve(now, memory_free=free)

    def with_networks(self, now: tuple[Network, ...] | None) -> tuple[Network, ...] | None:
        """Return the networks that there will be."""
        if now is None:
            return None
        known = {network.key: network for network in now}
        later = {
            key: attrs.evolve(network, leases=known[key].leases if key in known else frozenset())
            for key, network in self.networks.items()
        }
        return tuple({**known, **later}.values())


NOTHING = Ahead()


class Planning:
    """Makes plans for one host. Thread-safe; imports what a request needs when it is planned."""

    def __init__(self, settings: Settings, plugins: PluginHost, host: LocalHost) -> None:
        self._settings = settings
        self._plugins = plugins
        self._host = host

    @functools.cached_property
    def checks(self) -> TemplateChecks:
        """The checks of templates against the host."""
        from vmcloner_core.template_checks import TemplateChecks

        defaults = self._settings.defaults
        return TemplateChecks(self._host, defaults.hypervisor, defaults.storage)

    @property
    def memory_overcommit(self) -> float:
        """The settings' factor of the free memory that guests may use."""
        return self._settings.limits.memory_overcommit

    def plan(
        self,
        request: Request,
        found: Survey,
        fleets: Collection[str] | None,
        ahead: Ahead = NOTHING,
    ) -> Plan:
        """Return the plan of a request; with ``everything``, only for ``fleets`` (None: all).

        :param found: what is on the host. :param ahead: what else will be there by then.
        """
        from vmcloner_core.steps import check_backends

        self._plugins.load_observers()
        if isinstance(request, CreateRequest):
            plan = self._plan_create(request, found, ahead, makes=fleets is not None)
        else:
            plan = self._plan_targets(request, found, fleets)
        boots = request.boot_jobs or self._settings.limits.boot_jobs
        plan = self._with_limits(plan)
        plan = attrs.evolve(plan, boot_jobs=boots if isinstance(boots, int) else None)
        check_backends(self._host, plan)
        self.check_limits(plan, fleets or (), None if ahead is NOTHING else found.clones)
        self._plugins.preflight(plan)
        return plan

    def check_limits(
        self, plan: Plan, fleets: Collection[str], clones: Sequence[Clone] | None = None
    ) -> None:
        """Check that no owner gets more by a plan than the settings allow.

        :param fleets: those whose locks the caller holds.
        :param clones: those that will be on the host by then; None to survey it again, since
            another run may have ended after the plan's fleets were locked.
        :raises NotEnoughResources: one does; see :func:`quotas.check`.
        """
        if self._settings.limits.per_owner and quotas.wanted(plan):
            others = quotas.Admissions(self._host.host).others(fleets)
            there = self._host.survey().clones if clones is None else clones
            quotas.check(plan, there, others, self._settings.limits)

    @contextlib.contextmanager
    def admission(self, cancelled: Callable[[], bool]) -> Iterator[None]:
        """Admit one run at a time, if the settings have limits for each owner."""
        if not self._settings.limits.per_owner:
            yield
            return
        with self._host.hold([quotas.LOCK], cancelled):
            yield

    def admitted(self, plan: Plan) -> contextlib.AbstractContextManager[None]:
        """Count what a plan makes, until the block ends, in the admission of other runs."""
        if not self._settings.limits.per_owner:
            return contextlib.nullcontext()
        return quotas.Admissions(self._host.host).noted(plan)

    def lease(self, ttl: int | str | None) -> Lease | None:
        """Return a lease from now, None for no end; ``ttl`` as in :class:`CreateRequest`."""
        seconds = self._settings.defaults.ttl if ttl is None else ttl
        if seconds is None or isinstance(seconds, str):
            return None
        return self._host.lease(seconds)

    def _with_limits(self, plan: Plan) -> Plan:
        """Return a plan with the time limits of its waits, which depend on the host."""
        unlimited = [c for c in plan.clones if "wait" in c.steps and c.wait.timeout is None]
        emulated = {
            name: self._host.drivers.resources(name).emulated
            for name in {clone.labels.hypervisor for clone in unlimited}
        }

        def limited(clone: ClonePlan) -> ClonePlan:
            wait = clone.wait.limited(emulated=emulated.get(clone.labels.hypervisor, False))
            return attrs.evolve(clone, wait=wait)

        return attrs.evolve(plan, clones=tuple(map(limited, plan.clones)))

    def _plan_create(
        self, request: CreateRequest, found: Survey, ahead: Ahead, *, makes: bool
    ) -> Plan:
        from vmcloner_core import own_key
        from vmcloner_core.planner import plan_create

        host, checks = self._host, self.checks
        if request.where.hosts and request.birth is None:
            raise InvalidRequest(
                "the settings have no other hosts to place clones on",
                hint="add tables [hosts.NAME], or leave out --hosts",
            )
        later = ahead.templates.get(request.template)
        template = request.shaped(later or host.catalog.template(request.template))
        storage_name = request.storage or self._settings.defaults.storage
        hypervisor_name = request.hypervisor or self._settings.defaults.hypervisor
        storage = host.drivers.storage(storage_name)
        hypervisor = host.drivers.hypervisor(hypervisor_name)
        warm = None
        if request.warm or request.parent:
            from vmcloner_core.warming import forked

            warm = self._warm_origin(request, template, storage, hypervisor, makes=makes)
            template = forked(template, identical=request.identical)
        checks.pairing(template, hypervisor)
        self._check_seen(request, found, storage_name, hypervisor_name)
        facts = self._facts(request, template, found, storage, hypervisor, warm, ahead)
        if facts.seeds and template.identity.authorized_keys != ():
            own = own_key.made_key() if makes else own_key.public_key()
            keys = (*facts.authorized_keys, *((own,) if own is not None else ()))
            facts = attrs.evolve(facts, authorized_keys=tuple(dict.fromkeys(keys)))
        birth = attrs.evolve(request.birth or Birth.now(), lease=self.lease(request.ttl))
        birth = attrs.evolve(birth, owner=request.owner or birth.owner)
        plan = plan_create(request, template, facts, birth)
        if request.warm and warm is None and any(c.state is None for c in plan.clones):
            plan = _without_origin(plan, request, template, makes=makes)
        if plan.import_image and template.name not in ahead.pulled:
            host.images.check(template)
        unused = checks.unused(template, hypervisor)
        if unused and plan.clones:
            plan = attrs.evolve(plan, warnings=(*plan.warnings, *unused))
        first = next((c.spec for c in plan.clones if c.spec and c.spec.identity), None)
        if first is not None:
            checks.seed(first)
        return plan

    def _check_seen(
        self, request: CreateRequest, found: Survey, storage: str, hypervisor: str
    ) -> None:
        """Check that no clone of the fleet may be on a backend that could not be read."""
        if not found.unseen:
            return
        what = f"create {request.fleet}"
        names = self._host.records.names()
        fleet = [n for n in names if (split_clone(n) or ("",))[0] == request.fleet]
        kept = [record.labels for record in self._host.records.of(fleet).values()]
        there = [clone.labels for clone in found.clones if clone.fleet == request.fleet]
        found.check_seen(what, [*there, *kept])
        found.check_backends(what, storage, hypervisor)

    def _facts(
        self,
        request: CreateRequest,
        template: Template,
        found: Survey,
        storage: StorageDriver,
        hypervisor: HypervisorDriver,
        warm: WarmOrigin | None,
        ahead: Ahead,
    ) -> Facts:
        """Return what a create needs to know of the host.

        :raises InvalidRequest: the pool doesn't support the requested clone mode.
        """
        from vmcloner_core.identity_rules import authorized_keys
        from vmcloner_core.planner import Facts

        records = self._host.records
        mode = request.mode or storage.default_mode
        if mode not in storage.modes:
            raise InvalidRequest(f"pool {storage.name!r} can't make {mode.value} clones")
        _, identifier = self._host.drivers.identity(template.identity.provider)
        seeds = identifier.seeds
        wanted = hypervisor.networks if any(n.network for n in template.nics) else None
        ask = self._host.drivers.ask
        backend = self._host.drivers.backend("hypervisor", hypervisor.name)
        networks = None
        if wanted is not None:
            networks = asked(backend.of("networks.inspect"), wanted.inspect)
        fleet = [c.name for c in found.clones if c.fleet == request.fleet and c.recorded]
        image = warm.image if warm is not None else template.name
        return Facts(
            host=self._host.host.name,
            seed=self._host.seed,
            state=self._host.state_id,
            hypervisor=hypervisor.name,
            storage=storage.name,
            mode=mode,
            clones=found.clones,
            records=records.of(fleet),
            foreign_names=found.foreign_names,
            foreign_macs=found.foreign_macs,
            static_macs=records.static_macs() if networks else frozenset(),
            origin=self._host.images.origin(storage, image),
            warm=warm.key if warm is not None else None,
            copies=frozenset(each.key for each in self._host.warm.all() if each.identical),
            capacity=ahead.capacity(
                storage.name,
                ask("storage", storage.name, "capacity", lambda d: d.capacity(), Capacity),
            ),
            resources=ahead.resources(
                hypervisor.name, self._host.drivers.resources(hypervisor.name)
            ),
            memory_overcommit=self.memory_overcommit,
            need=functools.partial(self._need, storage),
            seeds=seeds,
            authorized_keys=(*authorized_keys(template), *request.authorized_keys) if seeds else (),
            networks=ahead.with_networks(networks),
            mac=self._plugins.clone_mac,
            mac_prefix=hypervisor.mac_prefix,
            boot=self.checks.boot_at_start(template, hypervisor),
            needs=lambda clone: (
                Needs()  # the network that it needs is still to be made
                if any(nic.spec.network in ahead.networks for nic in clone.nics)
                else asked(backend, lambda: self.checks.needs(clone, hypervisor))
            ),
        )

    def _warm_origin(
        self,
        request: CreateRequest,
        template: Template,
        storage: StorageDriver,
        hypervisor: HypervisorDriver,
        *,
        makes: bool,
    ) -> WarmOrigin | None:
        """Return the origin of a create's forks, if there is one.

        :param makes: whether the plan will be carried out: then its caller names the origin.
        :raises BackendError, InvalidRequest: there can't be one.
        """
        from vmcloner_core.warming import current, wanted

        if request.origin is not None:
            found = self._host.warm.find(request.origin)
            purpose = (template.name, storage.name, hypervisor.name, request.identical)
            return found if found is not None and found.purpose == purpose else None
        if makes or not request.warm:
            return None
        known = wanted(
            self._host, self.checks, template, storage, hypervisor, identical=request.identical
        )
        return current(self._host, known)

    def _need(self, pool: StorageDriver, request: CloneRequest, count: int) -> int:
        with guarded(self._host.drivers.backend("storage", pool.name, "need")):
            return instance(pool.need(request, count), int)

    def _plan_targets(
        self, request: TargetRequest, found: Survey, fleets: Collection[str] | None
    ) -> Plan:
        from vmcloner_core.target_planner import plan_targets

        if request.everything and fleets is not None:
            held = tuple(clone for clone in found.clones if clone.fleet in fleets)
            found = attrs.evolve(found, clones=held)
        plan = plan_targets(
            request,
            found,
            run=request.run or Birth.now().run,
            host=self._host.host.name,
            seed=self._host.seed,
            template=functools.cache(self._host.catalog.template),
            record=functools.cache(self._host.records.find),
        )
        if request.action == "delete":
            for clone in plan.clones:
                self._host.records.check(clone.labels)
        if plan.snapshot is not None:
            from vmcloner_core.snapshot_checks import check_snapshots

            check_snapshots(self._host, plan)
        return self._checked_starts(plan, found.clones)

    def _checked_starts(self, plan: Plan, clones: Sequence[Clone]) -> Plan:
        """Check that the host can run the clones that a plan starts, and has memory for them.

        One of each fleet and template is looked at. What is wrong with some of them only is a
        warning: the others can start.
        """
        from vmcloner_core.steps.action import active

        starting = {c.name for c in plan.clones if {"start", "restore"} & set(c.steps)}
        groups: dict[tuple[str, str, str], list[Clone]] = {}
        for clone in clones:
            if clone.name in starting and clone.domain is not None and not active(clone):
                labels = clone.labels
                key = (labels.hypervisor, labels.fleet, labels.template)
                groups.setdefault(key, []).append(clone)
        ask = self._host.drivers.ask
        warnings: list[str] = []
        errors: list[VmclonerError] = []
        sizes: dict[tuple[str, int | None], list[int]] = {}
        for (name, _fleet, _template), group in groups.items():
            page = None
            try:
                check = functools.partial(_needs, group[0].name)
                needs = ask("hypervisor", name, "check_defined", check, Needs)
                warnings += needs.warnings
                page = needs.page
            except VmclonerError as error:
                errors.append(error)
            memory = [clone.domain.memory for clone in group if clone.domain is not None]
            sizes.setdefault((name, page), []).extend(memory)
        if errors and len(errors) == len(groups):
            raise errors[0]
        for (name, page), each in sizes.items():
            resources = self._host.drivers.resources(name)
            check_memory(each, resources, self.memory_overcommit, page)
        lines = (*plan.warnings, *warnings, *map(str, errors))
        return attrs.evolve(plan, warnings=tuple(dict.fromkeys(lines)))


def _needs(clone: str, driver: HypervisorDriver) -> Needs:
    return driver.check_defined(clone)


def _without_origin(plan: Plan, request: CreateRequest, template: Template, *, makes: bool) -> Plan:
    """Return a plan for forks with a warning that their warm origin is still to be made.

    :param makes: whether the plan will be carried out: then it would have to be there.
    :raises WrongState: it would. :raises InvalidRequest: nobody would know when to save it.
    """
    from vmcloner_core.warming import check_told

    copies = " --identical" if request.identical else ""
    lacks = WrongState(
        f"template {template.name} has no warm origin in pool {plan.storage!r}",
        hint=f"vmcloner template warm {template.name} --storage {plan.storage}{copies}",
    )
    if makes:
        raise lacks
    if request.identical:
        check_told(template)
    needed = f"template {template.name} is booted once before: it has no warm origin"
    return attrs.evolve(plan, warnings=(*plan.warnings, needed), lacks=lacks)
