"""The engine: what the shell, a test suite and a service all call. It prints nothing.

Example::

    from vmcloner_core import Engine

    with Engine.open() as engine:
        engine.create("ci", "tiny", count=3, ready=True)
        for clone in engine.list("ci"):
            print(clone.name, clone.state.value, clone.mac)
        engine.delete("ci")
"""

from __future__ import annotations

import contextlib
import functools
import logging
import secrets
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import attrs

from vmcloner_core import audit, images, remote
from vmcloner_core.booting import Preview, Starter
from vmcloner_core.catalog import TemplateInfo
from vmcloner_core.driver_registry import DriverRegistry
from vmcloner_core.drivers import (
    ConsoleInterface,
    HypervisorDriver,
    ImageFile,
    NetworkInterface,
)
from vmcloner_core.errors import (
    BackendError,
    Interrupted,
    InvalidRequest,
    NotFound,
    PartialFailure,
    RollbackIncomplete,
    VmclonerError,
    WrongState,
    did_you_mean,
)
from vmcloner_core.identities import Identities, Record, authorized_keys
from vmcloner_core.library import Library, check_image, now, origin_of, owner
from vmcloner_core.locks import hold
from vmcloner_core.model import (
    AS_IT_COMES,
    Access,
    Capacity,
    Check,
    Clone,
    CloneMode,
    Copying,
    DomainSpec,
    NetworkChange,
    NetworkRequest,
    Origin,
    Outcome,
    State,
    Status,
    Template,
    network_key,
)
from vmcloner_core.names import check_template, parse_targets
from vmcloner_core.pipeline import Pipeline, Work, undo
from vmcloner_core.plan import (
    Action,
    OnFailure,
    Plan,
    ProgressEvent,
    RunResult,
    Step,
    check_timeout,
)
from vmcloner_core.planner import Birth, Facts, plan_create, plan_targets
from vmcloner_core.plugins import PluginHost
from vmcloner_core.preflight import check_memory, check_space
from vmcloner_core.process import LocalRunner
from vmcloner_core.remote import Answer
from vmcloner_core.request import CreateRequest, Request, TargetRequest, check_jobs
from vmcloner_core.runlog import RunLog
from vmcloner_core.settings import Settings
from vmcloner_core.stages import Stages
from vmcloner_core.survey import merge, select
from vmcloner_core.units import counted, format_size

log = logging.getLogger(__name__)


@attrs.frozen(kw_only=True)
class _Survey:
    """What is on a host: clones, what is kept of their identities, all domains that aren't ours."""

    clones: tuple[Clone, ...]
    records: Mapping[str, Record]
    foreign_names: frozenset[str]
    foreign_macs: frozenset[str]


class Engine:
    """Makes, runs and removes clones on one host.

    Reads may be called from any thread; one run at a time per engine (a second one waits).
    Errors are :class:`~vmcloner_core.errors.VmclonerError`.
    """

    def __init__(self, settings: Settings, plugins: PluginHost, backends: DriverRegistry) -> None:
        self.settings = settings
        self.plugins = plugins
        self.host = backends.host
        self._backends = backends
        self._library = Library(settings, plugins, backends)
        self._identities = Identities(backends.host.identities)
        self._starter = Starter(
            boots=backends.boot, folder=backends.host.boots, identities=self._identities
        )
        self._run_lock = threading.Lock()
        self._cancel = threading.Event()

    @classmethod
    def open(
        cls,
        *,
        config: Path | None = None,
        host: str | None = None,
        plugins: Sequence[object] = (),
    ) -> Self:
        """Return an engine for a host.

        :param config: the settings file; None for the first that exists.
        :param host: its name in the settings; None for their default.
        :param plugins: objects with hook implementations (:mod:`vmcloner_core.hooks`): observers,
            policies, and backends that needn't be installed as entry points.
        :raises NotFound: no such file or host. :raises InvalidRequest: the settings are wrong.
        """
        settings = Settings.load(config)
        loaded = PluginHost(plugins)
        backends = DriverRegistry(settings, loaded, settings.host(host), LocalRunner())
        return cls(settings, loaded, backends)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close connections. The engine can be used again: they are opened when needed."""
        self._backends.close()

    # --- runs -----------------------------------------------------------------------------------

    def create(self, fleet: str, template: str, **options: Any) -> RunResult:
        """Make a fleet; ``options`` are the fields of :class:`CreateRequest`.

        :raises PartialFailure: some clones failed; it carries which, and why.
        """
        return check_result(self.run(CreateRequest(fleet=fleet, template=template, **options)))

    def start(self, *targets: str, **options: Any) -> RunResult:
        """Start clones; ``options`` are the fields of :class:`TargetRequest`, as below."""
        return self._target(Action.START, targets, options)

    def stop(self, *targets: str, **options: Any) -> RunResult:
        """Shut clones down, or with ``kill=True`` stop them at once."""
        return self._target(Action.STOP, targets, options)

    def restart(self, *targets: str, **options: Any) -> RunResult:
        """Stop clones and start them again."""
        return self._target(Action.RESTART, targets, options)

    def reset(self, *targets: str, **options: Any) -> RunResult:
        """Put clones' disks back to what they were made of; those that ran are started again."""
        return self._target(Action.RESET, targets, options)

    def delete(self, *targets: str, **options: Any) -> RunResult:
        """Stop and remove clones with all that belongs to them; what is gone is as asked."""
        return self._target(Action.DELETE, targets, options)

    def wait(self, *targets: str, **options: Any) -> RunResult:
        """Wait until clones are ready: ``wait=Readiness.parse("console:login:")``."""
        return self._target(Action.WAIT, targets, options)

    def _target(self, action: Action, targets: Sequence[str], options: dict[str, Any]) -> RunResult:
        return check_result(
            self.run(TargetRequest(action=action, targets=tuple(targets), **options))
        )

    def plan(self, request: Request) -> Plan:
        """Return what a request would do, checked against the host. Changes nothing."""
        return self._planned(request, None)

    def _planned(self, request: Request, fleets: Collection[str] | None) -> Plan:
        """Return the plan of a request; one at everything means no fleets but these (None: all)."""
        run = datetime.now(UTC).strftime("%Y%m%dT%H%M%S-") + secrets.token_hex(3)
        if isinstance(request, CreateRequest):
            plan = self._plan_create(request, run)
        else:
            found = self._survey()
            held = fleets if request.everything else None
            clones = [c for c in found.clones if held is None or c.fleet in held]
            plan = plan_targets(
                request,
                clones,
                run=run,
                host=self.host.name,
                template=functools.cache(self._library.catalog.template),
                records=found.records,
            )
            self._check_memory(plan, clones)
        self.plugins.load_observers()
        self.plugins.preflight(plan)
        return plan

    def run(
        self, request: Request, *, on_plan: Callable[[Plan], None] = lambda _plan: None
    ) -> RunResult:
        """Plan a request and carry the plan out, alone on the fleets that it is about.

        A clone's failure is in the result (see :func:`check_result`), not raised.

        :param on_plan: called with the plan before anything is changed; may raise to stop.
        :raises VmclonerError: the request can't be carried out at all; nothing was changed.
        """
        fleets = self._fleets(request)
        with self._run_lock, self._held([f"fleet/{fleet}" for fleet in fleets]):
            self._identities.sweep(fleets)
            # A fleet that has come since these were counted is another run's: it isn't locked.
            plan = self._planned(request, fleets)
            on_plan(plan)
            return self._apply(plan)

    def apply(self, plan: Plan) -> RunResult:
        """Carry a plan out that was made before; what has since been done by others is left."""
        fleets = {clone.labels.fleet for clone in plan.clones}
        with self._run_lock, self._held([f"fleet/{fleet}" for fleet in fleets]):
            return self._apply(plan)

    def cancel(self) -> None:
        """Stop the current run cleanly: calls under way end, nothing new begins.

        Safe to call from a signal handler and from any thread.
        """
        self._cancel.set()

    def _fleets(self, request: Request) -> set[str]:
        """Return the fleets that a request is about."""
        if isinstance(request, CreateRequest):
            return {request.fleet}
        if request.everything:
            return set(self.fleets()) | self._identities.unfinished()
        return {target.fleet for target in parse_targets(request.targets)}

    @contextlib.contextmanager
    def _held(self, names: Sequence[str]) -> Iterator[None]:
        self._cancel.clear()
        with hold(
            self.host.state,
            names,
            cancelled=self._cancel.is_set,
            waiting=lambda name: log.warning("waiting for another run on %s", name),
        ):
            yield

    # --- planning -------------------------------------------------------------------------------

    def _plan_create(self, request: CreateRequest, run: str) -> Plan:
        template = self._library.catalog.template(request.template)
        storage_name = request.storage or self.settings.defaults.storage
        hypervisor_name = request.hypervisor or self.settings.defaults.hypervisor
        storage = self._backends.storage(storage_name)
        hypervisor = self._backends.hypervisor(hypervisor_name)
        self._library.check_pairing(template, hypervisor)
        default = CloneMode.LINKED if CloneMode.LINKED in storage.modes else CloneMode.FULL
        mode = request.mode or default
        if mode not in storage.modes:
            raise InvalidRequest(f"pool {storage_name!r} can't make {mode.value} clones")
        origin = origin_of(storage, template.name)
        identity, identifier = self._backends.identity(template.identity.provider)
        seeds = identifier.seeds
        found = self._survey()
        facts = Facts(
            host=self.host.name,
            hypervisor=hypervisor_name,
            storage=storage_name,
            mode=mode,
            clones=found.clones,
            records=found.records,
            foreign_names=found.foreign_names,
            foreign_macs=found.foreign_macs,
            origin=origin,
            capacity=storage.capacity(),
            resources=hypervisor.resources(),
            memory_overcommit=self.settings.limits.memory_overcommit,
            need=storage.need,
            seeds=seeds,
            authorized_keys=authorized_keys(template) if seeds else (),
            lets_in=seeds and not identity.cmdline,
            networks=hypervisor.networks.inspect()
            if hypervisor.networks and _on_networks(template)
            else None,
            mac=self.plugins.clone_mac,
            mac_prefix=hypervisor.mac_prefix,
            boot=self._library.boot_at_start(template, hypervisor),
        )
        birth = Birth(run=run, owner=owner(), created=now())
        plan = plan_create(request, template, facts, birth)
        if plan.import_image:
            check_image(template)
        first = next((clone for clone in plan.clones if clone.identity is not None), None)
        if first is not None:
            self._library.check_seed(first, template)
        return plan

    def _check_memory(self, plan: Plan, clones: Sequence[Clone]) -> None:
        """Check that the clones that a plan starts fit beside those that run."""
        starting = {c.name for c in plan.clones if c.steps and c.steps[0] is Step.START}
        sizes: dict[str, Any] = {}
        for clone in clones:
            if clone.name in starting and clone.domain is not None:
                sizes.setdefault(clone.labels.hypervisor, []).append(clone.domain.memory)
        for name, group in sizes.items():
            resources = self._backends.hypervisor(name).resources()
            check_memory(group, resources, self.settings.limits.memory_overcommit)

    # --- carrying out ---------------------------------------------------------------------------

    def _apply(self, plan: Plan) -> RunResult:
        started = time.monotonic()
        stop_log = self.plugins.watch(RunLog(self.host.state / "runs"))
        try:
            self.plugins.plan_ready(plan)
            stages = self._stages(plan, started)
            works = [Work(plan=clone, volumes=clone.volumes) for clone in plan.clones]
            self._pipe(plan.run, stages, plan.steps, works, started)
            result = RunResult(
                plan=plan,
                results=tuple(work.result() for work in works),
                seconds=time.monotonic() - started,
                interrupted=any(isinstance(work.error, Interrupted) for work in works),
            )
            if plan.on_failure is OnFailure.ROLLBACK and not result.enough:
                left, undone = self._rolled_back(plan, stages, works, started)
                seconds = time.monotonic() - started
                result = attrs.evolve(result, left=left, rolled_back=undone, seconds=seconds)
            self.plugins.run_finished(result)
            return result
        finally:
            stop_log()

    def _stages(self, plan: Plan, started: float) -> Stages:
        origin: Origin | None = None
        identity = None
        if plan.template is not None and plan.storage is not None:
            storage = self._backends.storage(plan.storage)
            if plan.import_image:
                made = self._library.import_image(
                    plan.template, storage, plan.run, started, plan.copying
                ).unwrap()
                check_space(plan, made, storage.need, storage.capacity())
                origin = made
            else:
                origin = origin_of(storage, plan.template.name)
            identity = self._backends.identity(plan.template.identity.provider)[1]
        return Stages(
            plan=plan,
            storages=self._backends.storage,
            hypervisors=self._backends.hypervisor,
            boots=self._backends.boot,
            starter=self._starter,
            origin=origin,
            origins=functools.cache(origin_of),
            access=self._library.access,
            identity=identity,
            identities=self._identities,
            cancelled=self._cancel.is_set,
            copied=lambda done, total: self.plugins.progress(
                ProgressEvent(run=plan.run, what="copy", done=done, total=total)
            ),
        )

    def _pipe(
        self, run: str, stages: Stages, steps: Sequence[Step], works: Sequence[Work], started: float
    ) -> None:
        Pipeline(
            run,
            stages.stages(steps, works),
            self.plugins.step_changed,
            self._cancel,
            started,
            ready=lambda name: self.plugins.clone_ready(run, name),
        )(works)

    def _rolled_back(
        self, plan: Plan, stages: Stages, works: Sequence[Work], started: float
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Undo what a failed create made; returns (left, undone) names."""
        routes = [way for way in map(undo, works) if way.plan.steps]
        steps = (Step.DESTROY, Step.UNDEFINE, Step.REMOVE)
        self._cancel.clear()
        self._pipe(plan.run, stages, steps, routes, started)
        left = tuple(way.name for way in routes if way.error is not None)
        return left, tuple(way.name for way in routes if way.error is None)

    # --- reads ----------------------------------------------------------------------------------

    def list(self, *targets: str) -> tuple[Clone, ...]:
        """Return clones, sorted by fleet and index; all of them where no target is named.

        :raises NotFound: a target names no clone.
        """
        return self._located(select(self._clones(), parse_targets(targets)))

    def show(self, name: str) -> Clone:
        """Return one clone.

        :raises NotFound: there is none of that name.
        """
        clones = {clone.name: clone for clone in self._clones()}
        if name not in clones:
            is_fleet = any(clone.fleet == name for clone in clones.values())
            hint = f"vmcloner list {name}" if is_fleet else did_you_mean(name, list(clones))
            raise NotFound(f"no clone {name!r}", hint=hint)
        return self._located([clones[name]])[0]

    def _located(self, clones: Sequence[Clone]) -> tuple[Clone, ...]:
        """Return clones with the addresses at which they were found, or are by plan."""
        running = {c.labels.hypervisor for c in clones if c.state is State.RUNNING}
        found = {name: self._backends.hypervisor(name).addresses() for name in running}

        def located(clone: Clone) -> Clone:
            if clone.state is not State.RUNNING:
                return clone
            addresses = found[clone.labels.hypervisor].get(clone.name)
            planned = self._identities.planned_address
            return attrs.evolve(clone, ip=addresses[0] if addresses else planned(clone.name))

        return tuple(located(clone) for clone in clones)

    def fleets(self) -> tuple[str, ...]:
        """Return the names of the fleets that have clones."""
        return tuple(sorted({clone.fleet for clone in self._clones()}))

    def _clones(self) -> tuple[Clone, ...]:
        return self._survey().clones

    def _survey(self) -> _Survey:
        """Return all that is on the host."""
        inventories = [
            self._backends.hypervisor(name).inspect() for name in self._backends.names("hypervisor")
        ]
        volumes = [
            volume
            for name in self._backends.names("storage")
            for volume in self._backends.storage(name).volumes()
        ]
        domains = [domain for inventory in inventories for domain in inventory.domains]
        records = {record.labels.clone: record for record in self._identities.records()}
        return _Survey(
            clones=merge(
                self.host.name, volumes, domains, (record.labels for record in records.values())
            ),
            records=records,
            foreign_names=frozenset().union(*(each.foreign_names for each in inventories)),
            foreign_macs=frozenset().union(*(each.foreign_macs for each in inventories)),
        )

    # --- templates ------------------------------------------------------------------------------

    def templates(self) -> tuple[TemplateInfo, ...]:
        """Return all templates that are found, the broken ones with their errors."""
        return self._library.catalog.infos()

    def template(self, name: str) -> Template:
        """Return a template.

        :raises NotFound: there is none. :raises InvalidRequest: names its file, key and reason.
        """
        return self._library.catalog.template(name)

    def origins(self, template: str | None = None) -> tuple[Origin, ...]:
        """Return the images that the host's pools hold, of all templates or of one."""
        return self._library.origins(template)

    def import_template(
        self,
        name: str,
        *,
        storage: str | None = None,
        image: str | None = None,
        sha256: str | None = None,
        copying: Copying = AS_IT_COMES,
    ) -> Outcome[Origin]:
        """Bring a template's image into a pool; unchanged where it is there already.

        :param image: a path or an http(s) URL, in the place of the template's own source.
        :param sha256: of that image; required with a URL.
        :param copying: how fast, and whether to read back what was written.
        :raises WrongState: clones are linked to the image that would be replaced.
        """
        template = self._library.catalog.template(name)
        if image is not None:
            source = images.source_of(image, sha256)
            template = attrs.evolve(template, image=source)
        driver = self._backends.storage(storage or self.settings.defaults.storage)
        with self._run_lock, self._held([f"template/{name}"]):
            return self._library.import_image(template, driver, "", time.monotonic(), copying)

    def build_image(
        self,
        name: str,
        options: Mapping[str, Any] | None = None,
        *,
        builder: str = "debian",
        parent: str = "debian-12-built",
    ) -> tuple[Template, ImageFile]:
        """Make a template's image; done already where it wouldn't differ.

        :param options: the builder's. With any, the template is written first, to the user's own,
            with all else as ``parent`` has it.
        :raises NotFound: there is no such template, and no options.
        :raises Conflict: there is such a template, written by hand.
        """
        with self._run_lock, self._held([f"template/{check_template(name)}"]):
            if options:
                self._library.declare_built(name, parent, builder, options)
            image = self._library.build_image(name)
            return self._library.catalog.template(name), image

    def delete_template(self, name: str, *, storage: str | None = None) -> Outcome[None]:
        """Remove a template's image from a pool. Its TOML file stays.

        :raises WrongState: clones are linked to it.
        """
        driver = self._backends.storage(storage or self.settings.defaults.storage)
        with self._run_lock, self._held([f"template/{check_template(name)}"]):
            return driver.delete_origin(name)

    def check_template(self, name: str) -> tuple[Check, ...]:
        """Check a template as far as that goes without making a clone of it.

        :raises NotFound: there is none. :raises InvalidRequest: its file is wrong.
        """
        return self._library.check(name)

    # --- domains and consoles -------------------------------------------------------------------

    def domain_xml(self, name: str) -> str:
        """Return the domain XML of a clone, as it would be defined now."""
        driver, spec = self._spec(name)
        return driver.render(spec)

    def domain_native(self, name: str) -> str:
        """Return a clone's domain as its hypervisor's own toolstack writes it (``xl.cfg``).

        :raises InvalidRequest: that hypervisor has no such format.
        """
        driver, spec = self._spec(name)
        if driver.native is None:
            raise InvalidRequest(
                f"{name}: hypervisor {driver.name!r} has no format but its domain XML",
                hint=f"vmcloner show {name} --xml",
            )
        return driver.native.render(spec)

    def _spec(self, name: str) -> tuple[HypervisorDriver, DomainSpec]:
        clone = self.show(name)
        driver = self._backends.hypervisor(clone.labels.hypervisor)
        macs = clone.domain.macs if clone.domain is not None else ()
        template = self._library.catalog.template(clone.template)
        return driver, self._library.spec(clone.labels, template, clone.volumes, driver, macs)

    def console_log(self, clone: Clone) -> Path | None:
        """Return the file that holds a clone's console output, None where consoles aren't kept."""
        consoles = self._backends.hypervisor(clone.labels.hypervisor).consoles
        return None if consoles is None else consoles.log(clone.name)

    def boots(self, *targets: str) -> tuple[Preview, ...]:
        """Return what clones would boot if they were started now: a dry run. All, if none is named.

        Of those that run, what they were started from, or their definition where that isn't known.
        Of the others disks are read, and servers asked without a lease kept.

        :raises NotFound: a target names no clone.
        """
        fleets = {target.fleet for target in parse_targets(targets)} or set(self.fleets())
        found: dict[str, Preview] = {}
        with self._run_lock, self._held([f"fleet/{fleet}" for fleet in fleets]):
            clones = [clone for clone in self.list(*targets) if clone.fleet in fleets]
            for name in {clone.labels.hypervisor for clone in clones}:
                group = [clone for clone in clones if clone.labels.hypervisor == name]
                for preview in self._library.previews(group, self._starter):
                    found[preview.name] = preview
        return tuple(found[clone.name] for clone in clones if clone.name in found)

    def read_console(self, name: str, offset: int = 0, limit: int = 65536) -> tuple[bytes, int]:
        """Return what a clone's console said from ``offset`` on, and the offset to go on from."""
        return self._consoles(name).read(name, offset, limit)

    def attach_console(self, name: str, stdin: int, stdout: int) -> None:
        """Connect two file descriptors with a clone's console until ``^]``."""
        self._consoles(name).attach(name, stdin, stdout)

    def _consoles(self, name: str) -> ConsoleInterface:
        for backend in self._backends.names("hypervisor"):
            driver = self._backends.hypervisor(backend)
            if name in driver.states():
                if driver.consoles is None:
                    raise BackendError(
                        f"{name}: hypervisor {backend!r} has no consoles",
                        hint=f"vmcloner ssh {name}",
                    )
                return driver.consoles
        self.show(name)
        raise WrongState(f"{name} has no domain", hint="run its create again")

    # --- reaching clones ------------------------------------------------------------------------

    def access(self, *targets: str) -> tuple[Outcome[Access], ...]:
        """Return how each clone is reached by ssh, or why it can't be; keys are their names.

        :raises NotFound: a target names no clone.
        """
        return tuple(map(self._library.reach, self.list(*targets)))

    def execute(
        self, *targets: str, command: str, timeout: float = 60.0, jobs: int = remote.FANOUT
    ) -> tuple[Answer, ...]:
        """Run a command on clones by ssh, on many at once; returns each one's answer.

        :param command: read by the guests' shells. :param timeout: seconds for each clone.
        :param jobs: clones at once.
        :raises InvalidRequest: the command is too long, or a number makes no sense.
        """
        check_jobs(jobs)
        check_timeout(timeout)
        outcomes = self.access(*targets)
        accesses = [outcome.unwrap() for outcome in outcomes if outcome.ok]
        ran = {a.name: a for a in remote.run(accesses, command, timeout=timeout, jobs=jobs)}
        return tuple(ran.get(o.key) or Answer(name=o.key, error=o.error) for o in outcomes)

    def audit(
        self, *targets: str, timeout: float = 60.0, jobs: int = remote.FANOUT
    ) -> audit.Report:
        """Ask running clones who they are; returns what proves them different, and what doesn't."""
        return audit.judge(self.execute(*targets, command=audit.SCRIPT, timeout=timeout, jobs=jobs))

    # --- host -----------------------------------------------------------------------------------

    def prepare_network(
        self, request: NetworkRequest, *, hypervisor: str | None = None
    ) -> NetworkChange:
        """Make a network of vmcloner's own for so many guests; see
        :meth:`NetworkInterface.prepare`.
        """
        driver = self._backends.hypervisor(hypervisor or self.settings.defaults.hypervisor)
        networks = _networks(driver, request)
        with self._run_lock, self._held([f"network/{request.name}"]):
            return networks.prepare(request)

    def remove_network(
        self, request: NetworkRequest, *, hypervisor: str | None = None
    ) -> NetworkChange:
        """Remove a network of vmcloner's own; see :meth:`NetworkInterface.remove`.

        :raises WrongState: clones are defined on it, which couldn't start any more.
        """
        driver = self._backends.hypervisor(hypervisor or self.settings.defaults.hypervisor)
        networks = _networks(driver, request)
        with self._run_lock, self._held([f"network/{request.name}"]):
            try:
                domains = driver.inspect().domains
            except BackendError:
                if not request.bridge:
                    raise
                domains = ()  # bridges need no hypervisor that runs
            key = network_key("bridge" if request.bridge else "network", request.name)
            if users := [d.name for d in domains if key in d.networks]:
                raise WrongState(
                    f"network {key!r}: {len(users)} clones are on it ({users[0]}, …)",
                    hint="delete them first",
                )
            return networks.remove(request)

    def check_host(self, *backends: str) -> Iterator[Check]:
        """Yield what each backend needs of the host; all that are set up where none is named.

        :raises NotFound: a backend isn't known.
        """
        known = {kind: self._backends.names(kind) for kind in ("storage", "hypervisor")}
        for name in backends:
            if not any(name in names for names in known.values()):
                every = [n for names in known.values() for n in names]
                raise NotFound(f"no backend {name!r} is set up", hint=did_you_mean(name, every))
        for kind, names in known.items():
            for name in names:
                if not backends or name in backends:
                    yield from self._probe(kind, name)

    def _probe(self, kind: str, name: str) -> Iterator[Check]:
        try:
            driver = getattr(self._backends, kind)(name)
            checks = tuple(driver.probe())
            yield from checks
            if kind == "storage" and not any(c.status is Status.FAILED for c in checks):
                yield from capacity_checks(name, driver.capacity())
        except VmclonerError as error:
            yield Check(
                backend=name,
                name="plugin",
                status=Status.FAILED,
                detail=error.message,
                fix=error.hint or "",
            )


def capacity_checks(pool: str, capacity: Capacity) -> Iterator[Check]:
    """Yield what a pool has room for, and what it warns of."""
    room = f"{format_size(capacity.free)} of {format_size(capacity.total)} free"
    if capacity.volumes_free is not None:
        room += f", for {capacity.volumes_free} more volumes at most"
    yield Check(backend=pool, name="space", status=Status.OK, detail=room)
    for warning in capacity.warnings:
        yield Check(backend=pool, name="space", status=Status.WARNING, detail=warning)


def _networks(driver: HypervisorDriver, request: NetworkRequest) -> NetworkInterface:
    if driver.networks is None:
        raise BackendError(
            f"network {request.name!r}: hypervisor {driver.name!r} makes no networks",
            hint="choose another hypervisor by --engine",
        )
    return driver.networks


def _on_networks(template: Template) -> bool:
    return any(spec.network for spec in template.nics)


def check_result(result: RunResult) -> RunResult:
    """Return the result of a run that did all it was asked.

    :raises Interrupted: it was stopped. :raises RollbackIncomplete: something was left.
    :raises PartialFailure: some of it failed; carries each clone's error.
    """
    action = result.plan.action.value
    failures = [(r.name, r.error) for r in result.failures if r.error is not None]
    total = len(result.results)
    if result.left:
        raise RollbackIncomplete(
            f"{action}: rolled back, but {counted(len(result.left), 'clone')} could not be removed",
            failures=failures,
            hint="vmcloner delete " + " ".join(result.left[:3]),
        )
    if result.interrupted:
        done = total - len(failures)
        raise Interrupted(
            f"{action}: stopped with {done} of {counted(total, 'clone')} done",
            hint="the same command again goes on",
        )
    if not result.enough:
        raise PartialFailure(
            f"{action}: {len(failures)} of {counted(total, 'clone')} failed", failures=failures
        )
    return result
