"""The engine: the API that the shell, test suites and services call. It prints nothing.

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
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self

import attrs

from vmcloner_core import ssh_access
from vmcloner_core.benchmark_calls import BenchmarkCalls
from vmcloner_core.cancelling import Cancellation, given
from vmcloner_core.deadlines import answers, instance
from vmcloner_core.errors import (
    MAX_SHOWN,
    BackendError,
    InvalidRequest,
    NotFound,
    VmclonerError,
    WrongState,
    did_you_mean,
)
from vmcloner_core.guest_calls import GuestCalls
from vmcloner_core.lab_calls import LabCalls
from vmcloner_core.lease_calls import LeaseCalls
from vmcloner_core.local_host import LocalHost
from vmcloner_core.model import (
    Access,
    Capacity,
    Check,
    Clone,
    DomainInventory,
    DomainSpec,
    Host,
    HostResources,
    Leftover,
    Moved,
    Network,
    NetworkChange,
    NetworkRequest,
    Outcome,
    State,
    Status,
    network_key,
)
from vmcloner_core.names import fold, parse_targets
from vmcloner_core.outcomes import guarded
from vmcloner_core.plan import Plan, RunResult
from vmcloner_core.planning import Planning
from vmcloner_core.plugins import PluginHost
from vmcloner_core.pool_calls import PoolCalls
from vmcloner_core.remote import FANOUT
from vmcloner_core.request import CreateRequest, Request
from vmcloner_core.run_calls import RunCalls
from vmcloner_core.settings import Settings
from vmcloner_core.survey import Survey, Unseen
from vmcloner_core.trusted_files import check_file
from vmcloner_core.units import counted, format_size
from vmcloner_core.warm_calls import WarmCalls

if TYPE_CHECKING:
    from vmcloner_core.audit import Report
    from vmcloner_core.booting import Preview
    from vmcloner_core.drivers import (
        ConsoleInterface,
        DisplayInterface,
        HypervisorDriver,
        NetworkInterface,
        StorageDriver,
    )
    from vmcloner_core.labs import Lab
    from vmcloner_core.labs.site import NetworkOn, Site
    from vmcloner_core.model import CloneSpec
    from vmcloner_core.records import Record
    from vmcloner_core.remote import Answer

log = logging.getLogger(__name__)


@attrs.frozen(kw_only=True)
class Held:
    """Fleets that are held against other runs, as they were found.

    :param found: everything on the host. :param plan: returns what a request about these fleets
        would do; as :meth:`Engine.run`, it raises what stands against it. :param carry_out: carries
        out such a plan. :param again: plans a request anew, by what is there now, and carries it
        out; also after :meth:`Engine.cancel`.
    """

    found: Survey
    plan: Callable[[Request], Plan]
    carry_out: Callable[[Plan], RunResult]
    again: Callable[[Request], RunResult]


class Engine(RunCalls, LabCalls, WarmCalls, LeaseCalls, PoolCalls, GuestCalls, BenchmarkCalls):
    """Makes, runs and removes clones on one host.

    All calls may be made from any thread. Runs of different fleets are carried out at the same
    time; one of a fleet that another run works on waits for that. Errors are
    :class:`~vmcloner_core.errors.VmclonerError`.
    """

    def __init__(self, settings: Settings, plugins: PluginHost, host: LocalHost) -> None:
        super().__init__()
        self.settings = settings
        self.plugins = plugins
        self._pid = os.getpid()
        self._local = host
        self._planning = Planning(settings, plugins, host)
        self._calls: list[Cancellation] = []

    @property
    def _host(self) -> LocalHost:
        """The host; in a process that was forked off, an error.

        The connections there are the parent's, its threads are missing, and locks may be held.
        """
        if os.getpid() != self._pid:
            raise WrongState(
                "the engine was opened before this process was forked off",
                hint="open an engine in each process: Engine.open()",
            )
        return self._local

    @property
    def host(self) -> Host:
        """The host that the engine works on."""
        return self._host.host

    @classmethod
    def open(
        cls,
        *,
        config: Path | None = None,
        settings: Settings | None = None,
        host: str | None = None,
        plugins: Sequence[object] = (),
    ) -> Self:
        """Return an engine for a host.

        :param config: the settings file; None for the first that exists.
        :param settings: the settings, if they have been read already.
        :param host: its name in the settings; None for the default host.
        :param plugins: objects with hook implementations (:mod:`vmcloner_core.hooks`): observers,
            policies, and backends without entry points.
        :raises NotFound: no such file or host. :raises InvalidRequest: the settings are wrong.
        """
        settings = settings or Settings.load(config)
        loaded = PluginHost(plugins)
        return cls(settings, loaded, LocalHost(settings.host(host), loaded))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close connections, and end the threads that keep pools filled; both begin when needed.

        Does nothing in a process that was forked off: they are its parent's.
        """
        if os.getpid() == self._pid:
            self._let_all_go()
            self._host.close()

    # --- runs -----------------------------------------------------------------------------------

    def plan(self, request: Request) -> Plan:
        """Return what a request would do, checked against the host. Changes nothing."""
        return self._planning.plan(request, self._host.survey(), None)

    def run(
        self, request: Request, *, on_plan: Callable[[Plan], None] = lambda _plan: None
    ) -> RunResult:
        """Plan a request and carry the plan out, with its fleets locked.

        A clone's failure is in the result (see :func:`check_result`), not raised.

        :param on_plan: called with the plan before anything is changed; may raise to stop.
        :raises VmclonerError: the request can't be carried out at all; nothing was changed.
        """
        request = self._make_warm(request)
        with self.hold(*self._fleets(request)) as held:
            plan = held.plan(request)
            on_plan(plan)
            return held.carry_out(plan)

    @contextlib.contextmanager
    def hold(self, *fleets: str) -> Iterator[Held]:
        """Hold fleets against other runs, with what killed ones left removed; see :class:`Held`.

        Waits for other holders of these fleets. :raises Interrupted: :meth:`cancel` was called.
        """
        locks = [f"fleet/{fleet}" for fleet in fleets]
        with self._held(locks) as ending, contextlib.ExitStack() as noted:
            self._host.keep_state_id()
            found = self._host.settled(fleets)
            self._host.sweep(fleets, found)

            def plan(request: Request) -> Plan:
                # A fleet that was made since these were listed is another run's, and isn't locked.
                with self._planning.admission(ending.event.is_set):
                    planned = self._planning.plan(request, found, fleets)
                    noted.enter_context(self._planning.admitted(planned))
                return planned

            def again(request: Request) -> RunResult:
                ending.event.clear()
                return carry_out(self._planning.plan(request, self._host.survey(), fleets))

            carry_out = functools.partial(self._carried_out, ending=ending)
            yield Held(found=found, plan=plan, carry_out=carry_out, again=again)

    def apply(self, plan: Plan) -> RunResult:
        """Carry out a plan that was made earlier; what others have done since is left.

        :raises WrongState: it was made before the host's state folder had its id, or there was no
            warm origin for its forks.
        """
        if plan.lacks is not None:
            raise plan.lacks
        fleets = {clone.labels.fleet for clone in plan.clones}
        locks = [f"fleet/{fleet}" for fleet in fleets]
        with self._held(locks) as ending, contextlib.ExitStack() as noted:
            kept = self._host.keep_state_id()
            if any(clone.labels.state not in (None, kept) for clone in plan.clones):
                raise WrongState("the plan is for another state folder", hint="plan again")
            with self._planning.admission(ending.event.is_set):
                found = self._host.settled(fleets)
                self._host.sweep(fleets, found)
                self._planning.check_limits(plan, fleets)
                noted.enter_context(self._planning.admitted(plan))
            return self._carried_out(plan, ending)

    def move(
        self,
        *targets: str,
        host: str,
        template: str | None = None,  # noqa: ARG002 - as of a controller of several hosts
        dry_run: bool = False,  # noqa: ARG002
        on_found: Callable[[Sequence[Moved]], None] = lambda _found: None,
    ) -> tuple[Moved, ...]:
        """Move stopped clones to another host; see :meth:`Controller.move`. Here is only one.

        :raises InvalidRequest: to any other host.
        """
        if host != self.host.name:
            raise InvalidRequest(
                f"the settings name no other hosts: {host!r}", hint="vmcloner host add"
            )
        there = tuple(
            Moved(clone=c.name, source="", target=host, action="stays", labels=c.labels)
            for c in self.list(*targets)
        )
        on_found(there)
        return there

    def gc(
        self,
        *,
        expired: bool = False,
        orphans: bool = False,
        dry_run: bool = False,
        on_found: Callable[[Sequence[Leftover]], None] = lambda _left: None,
        on_unseen: Callable[[Unseen], None] = lambda unseen: log.warning("%s", unseen),
    ) -> tuple[Leftover, ...]:
        """Remove what killed runs left; returns it. What couldn't be removed has its error.

        Observers are warned of leases that end soon.

        Clones of benchmarks that were killed are deleted, too.

        Nothing of a fleet, template or image that another run works on is touched, nothing of
        another state folder, and nothing without labels of vmcloner's.

        :param expired: also delete clones of this state folder whose leases have ended, running
            ones too.
        :param orphans: also delete clones of this state folder that lack a part: those without a
            domain (ALLOCATED), and stopped ones without disks (ORPHAN).
        :param dry_run: change nothing; returns what would be removed.
        :param on_found: called with what will be removed, if there is something, before anything
            is changed; may raise to stop.
        :param on_unseen: called with each backend that could not be read: what is on it is left.
        :raises Conflict: a clone's record is damaged.
        :raises WrongState: ``expired``, and the host's clock is plainly wrong.
        """
        from vmcloner_core.collecting import Collector

        with self._cancellable() as ending:
            collect = Collector(
                self._host,
                self._planning,
                functools.partial(self._carried_out, ending=ending),
                self.plugins,
                self.settings.defaults.lease_warning,
            )
            left = collect(
                expired=expired,
                orphans=orphans,
                dry_run=dry_run,
                on_found=on_found,
                on_unseen=on_unseen,
            )
            if not dry_run:
                self._host.forget_empty_pools()
                self._forget_benchmarks()
            return left

    def _forget_benchmarks(self) -> None:
        """Remove the marks of killed benchmarks of which nothing is left."""
        abandoned = self._host.benchmarks.abandoned()
        if not abandoned:
            return
        found = self._host.survey()
        if not found.unseen:
            self._host.benchmarks.forget(abandoned - {clone.fleet for clone in found.clones})

    def _lab_site(self, lab: Lab) -> Site:  # noqa: ARG002 - any lab is on this host
        from vmcloner_core.labs.one_host import OneHost

        return OneHost(self, self._host, self._planning)

    def records(self, *targets: str) -> tuple[Record, ...]:
        """Return what this host keeps of clones beside their labels, for those of which it does."""
        return tuple(self._host.records.of([clone.name for clone in self.list(*targets)]).values())

    def lab_networks(self, lab: str, hypervisors: Sequence[str] = ()) -> tuple[NetworkOn, ...]:
        """Return the networks that carry a lab's name.

        :param hypervisors: those that must be readable.
        :raises BackendError: one of these isn't.
        """
        from vmcloner_core.labs.one_host import networks_of

        return tuple(networks_of(self._host, lab, hypervisors))

    def _carried_out(self, plan: Plan, ending: Cancellation) -> RunResult:
        from vmcloner_core.running import PlannedRun
        from vmcloner_core.steps import ACTIONS

        try:
            return PlannedRun(plan, self._host, self.plugins, ending.event)()
        finally:
            if plan.snapshot is not None:  # what failed is as if it had not begun
                self._host.undo_snapshots({clone.labels.fleet for clone in plan.clones})
            if ACTIONS[plan.action].reverts:
                self._host.end_reverts([clone.name for clone in plan.clones])

    def cancel(self) -> None:
        """Stop all current runs cleanly: calls in progress are finished, no new ones begin.

        Safe to call from a signal handler and from any thread. To stop only some: make the calls
        in :func:`vmcloner_core.cancelling.ending_with`.
        """
        for call in self._calls.copy():
            call.cancel()

    def _fleets(self, request: Request) -> Collection[str]:
        """Return the fleets that a request is about."""
        if isinstance(request, CreateRequest):
            return {request.fleet}
        if request.everything:
            return self.all_fleets()
        return {target.fleet for target in parse_targets(request.targets)}

    @contextlib.contextmanager
    def _held(self, names: Sequence[str]) -> Iterator[Cancellation]:
        host = self._host
        with self._cancellable() as ending, host.hold(names, ending.event.is_set):
            yield ending

    @contextlib.contextmanager
    def _cancellable(self) -> Iterator[Cancellation]:
        """Yield what ends the calls in the block: :meth:`cancel`, or their caller."""
        ending = given() or Cancellation()
        self._calls.append(ending)
        try:
            yield ending
        finally:
            self._calls.remove(ending)

    # --- reads ----------------------------------------------------------------------------------

    def survey(self, *targets: str) -> Survey:
        """Return clones, sorted by fleet and index, and what could not be read.

        :param targets: fleets, clones and node sets; all clones if none is given.
        :raises NotFound: a target names no clone.
        :raises BackendError: a target names no clone, but a backend could not be read.
        """
        found = self._host.survey()
        clones = self._host.located(found.select(parse_targets(targets)))
        return attrs.evolve(found, clones=clones)

    def list(self, *targets: str) -> tuple[Clone, ...]:
        """Return the clones of :meth:`survey`; log a warning for what could not be read."""
        found = self.survey(*targets)
        for unseen in found.unseen:
            log.warning("%s", unseen)
        return found.clones

    def show(self, name: str) -> Clone:
        """Return one clone.

        :raises NotFound: there is none of that name.
        :raises BackendError: it may be on a backend that could not be read.
        """
        found = self._host.survey()
        clones = {clone.name: clone for clone in found.clones}
        if name not in clones:
            found.check_complete(f"no clone {name!r}")
            members = [clone.name for clone in clones.values() if clone.fleet == name]
            if members:
                raise NotFound(
                    f"{name!r} is a fleet, not a clone", hint=f"its clones: {_few(fold(members))}"
                )
            raise NotFound(f"no clone {name!r}", hint=_like(name, clones))
        return self._host.located([clones[name]])[0]

    def spec(self, clone: Clone) -> CloneSpec:
        """Return what an existing clone is made from: its template and its own values.

        :raises NotFound: its record doesn't have its template, and that is gone.
        """
        return self._known(clone)

    def started(self, clone: Clone) -> float | None:
        """Return when a running clone was started, in seconds since the epoch; None if unknown."""
        if clone.state is not State.RUNNING:
            return None
        return self._host.drivers.hypervisor(clone.labels.hypervisor).started(clone.name)

    def reach(self, clone: Clone) -> Outcome[Access]:
        """Return how to reach a clone by ssh as it is now, or why it can't be reached."""
        return self._host.reach(clone)

    def fleets(self) -> tuple[str, ...]:
        """Return the names of the fleets that have clones."""
        return tuple(sorted({clone.fleet for clone in self._host.survey().clones}))

    def all_fleets(self) -> frozenset[str]:
        """Return :meth:`fleets`, and those of which killed runs have left only a part.

        Those of which warm origins are being made now are left out.
        """
        there = frozenset(self.fleets()) | self._host.records.unfinished()
        return there - self._host.parents()

    # --- domains and consoles -------------------------------------------------------------------

    def domain_xml(self, name: str) -> str:
        """Return the domain XML of a clone, as it would be defined now."""
        driver, spec = self._spec(name)
        with guarded(self._host.drivers.backend("hypervisor", driver.name, "render")):
            return driver.render(spec)

    def domain_native(self, name: str) -> str:
        """Return a clone's domain in its hypervisor's native format (``xl.cfg``).

        :raises InvalidRequest: the hypervisor has none.
        """
        driver, spec = self._spec(name)
        if driver.native is None:
            raise InvalidRequest(
                f"{name}: hypervisor {driver.name!r} has no native format",
                hint=f"vmcloner show {name} --xml",
            )
        return driver.native.render(spec)

    def _spec(self, name: str) -> tuple[HypervisorDriver, DomainSpec]:
        clone = self.show(name)
        driver, spec = self._host.drivers.hypervisor(clone.labels.hypervisor), self._known(clone)
        if spec.template.domain.xml is not None:
            check_file(spec.template.domain.xml)
        return driver, self._planning.checks.domain(spec, driver, clone.volumes)

    def _known(self, clone: Clone) -> CloneSpec:
        """Return the specification of a clone that exists.

        :raises NotFound: its record doesn't have its template, and that is gone.
        """
        from vmcloner_core.target_planner import found_spec

        template = self._host.made_of(clone.labels)
        driver = self._host.drivers.hypervisor(clone.labels.hypervisor)
        macs = self._planning.checks.macs(clone.labels, template, driver)
        record = self._host.records.find(clone.name)
        return found_spec(clone, template, record, self._host.seed, macs)

    def console_log(self, clone: Clone) -> Path | None:
        """Return the file with a clone's console output, None if consoles aren't logged."""
        consoles = self._host.drivers.hypervisor(clone.labels.hypervisor).consoles
        return None if consoles is None else consoles.log(clone.name)

    def boots(self, *targets: str) -> tuple[Preview, ...]:
        """Return what clones would boot if they were started now: a dry run. All, if none is named.

        For running clones: what they were started from, or their definition if that isn't known.
        For the others, disks are read, and servers are asked without keeping a lease.

        :raises NotFound: a target names no clone.
        """
        fleets = {target.fleet for target in parse_targets(targets)} or set(self.fleets())
        found: dict[str, Preview] = {}
        with self._held([f"fleet/{fleet}" for fleet in fleets]):
            clones = [clone for clone in self.list(*targets) if clone.fleet in fleets]
            for preview in self._host.previews(clones, self._known):
                found[preview.name] = preview
        return tuple(found[clone.name] for clone in clones if clone.name in found)

    def read_console(self, name: str, offset: int = 0, limit: int = 65536) -> tuple[bytes, int]:
        """Return a clone's console output from ``offset``, and the offset to continue from."""
        return self._consoles(name).read(name, offset, limit)

    def attach_console(self, name: str, stdin: int, stdout: int) -> None:
        """Connect two file descriptors to a clone's console until ``^]``."""
        self._consoles(name).attach(name, stdin, stdout)

    def display(self, name: str) -> str:
        """Return where a clone's screen can be seen, as a URL.

        :raises WrongState: it isn't running, or its template asks for no screen.
        """
        return self._displays(name).address(name)

    def screenshot(self, name: str) -> bytes:
        """Return a picture of a clone's screen, as PNG; see :meth:`display`."""
        from vmcloner_core.pictures import png

        return png(self._displays(name).picture(name))

    def _displays(self, name: str) -> DisplayInterface:
        backend = self.show(name).labels.hypervisor
        displays = self._host.drivers.hypervisor(backend).displays
        if displays is None:
            raise BackendError(
                f"{name}: hypervisor {backend!r} shows no screens", hint=f"vmcloner console {name}"
            )
        return displays

    def _consoles(self, name: str) -> ConsoleInterface:
        drivers = self._host.drivers

        def states_of(backend: str) -> Mapping[str, State]:
            found = drivers.hypervisor(backend).states()
            return instance(found, Mapping)  # type: ignore[type-abstract]

        found = answers(
            {name: functools.partial(states_of, name) for name in drivers.names("hypervisor")}
        )
        for backend, states in found.items():
            if isinstance(states, VmclonerError) or name not in states:
                continue
            consoles = drivers.hypervisor(backend).consoles
            if consoles is None:
                raise BackendError(
                    f"{name}: hypervisor {backend!r} has no consoles",
                    hint=f"vmcloner ssh {name}",
                )
            return consoles
        for states in found.values():
            if isinstance(states, VmclonerError):
                raise states
        self.show(name)
        raise WrongState(f"{name} has no domain", hint="run the same create again")

    # --- reaching clones ------------------------------------------------------------------------

    def access(self, *targets: str) -> tuple[Outcome[Access], ...]:
        """Return how to reach each clone by ssh, or why it can't be; keys are their names.

        All, if none is named, but those of which warm origins are being made: they have no cards.

        :raises NotFound: a target names no clone.
        """
        clones = self.list(*targets)
        return tuple(self.reach(clone) for clone in clones if targets or not clone.making)

    def execute(
        self, *targets: str, command: str, timeout: float = 60.0, jobs: int = FANOUT
    ) -> tuple[Answer, ...]:
        """Run a command on many clones at once by ssh; returns each one's answer.

        :param command: for the guests' shells. :param timeout: seconds for each clone.
        :param jobs: clones at once.
        :raises InvalidRequest: the command is too long, or a number is out of range.
        """
        return ssh_access.execute(self.access(*targets), command, timeout=timeout, jobs=jobs)

    def audit(self, *targets: str, timeout: float = 60.0, jobs: int = FANOUT) -> Report:
        """Read running clones' identities from inside; returns which are unique and which not."""
        from vmcloner_core import audit

        return audit.judge(self.execute(*targets, command=audit.SCRIPT, timeout=timeout, jobs=jobs))

    # --- host -----------------------------------------------------------------------------------

    def networks(self, hypervisor: str | None = None) -> tuple[Network, ...]:
        """Return the networks of a hypervisor (by default the default one), none if it has none."""
        driver = self._host.drivers.hypervisor(hypervisor or self.settings.defaults.hypervisor)
        return () if driver.networks is None else driver.networks.inspect() or ()

    def prepare_network(
        self, request: NetworkRequest, *, hypervisor: str | None = None
    ) -> NetworkChange:
        """Make a network of vmcloner's own; see :meth:`NetworkInterface.prepare`."""
        driver = self._host.drivers.hypervisor(hypervisor or self.settings.defaults.hypervisor)
        networks = _networks(driver, request)
        with self._network_held(request):
            return networks.prepare(request)

    def remove_network(
        self, request: NetworkRequest, *, hypervisor: str | None = None
    ) -> NetworkChange:
        """Remove a network of vmcloner's own; see :meth:`NetworkInterface.remove`.

        :raises WrongState: clones are defined on it, and couldn't start without it.
        """
        driver = self._host.drivers.hypervisor(hypervisor or self.settings.defaults.hypervisor)
        networks = _networks(driver, request)
        with self._network_held(request):
            try:
                inventory = self._host.drivers.ask(
                    "hypervisor", driver.name, "inspect", lambda d: d.inspect(), DomainInventory
                )
                domains = inventory.domains
            except BackendError:
                if not request.bridge:
                    raise
                domains = ()  # bridges don't need a running hypervisor
            key = network_key("bridge" if request.bridge else "network", request.name)
            if users := sorted(d.name for d in domains if key in d.networks):
                raise WrongState(
                    f"network {key!r}: {_used(users)}",
                    hint="delete them first",
                )
            return networks.remove(request)

    def _network_held(self, request: NetworkRequest) -> contextlib.AbstractContextManager[object]:
        """Hold a network against other runs; a dry run makes no state folder for a lock."""
        held = self._held([f"network/{request.name}"])
        return contextlib.nullcontext() if request.dry_run else held

    def check_host(self, *backends: str) -> Iterator[Check]:
        """Yield what each backend needs on the host; of all configured ones if none is named.

        :raises NotFound: a backend isn't configured.
        :raises InvalidRequest: the settings of one are wrong.
        """
        known = {kind: self._host.drivers.names(kind) for kind in ("storage", "hypervisor")}
        for name in backends:
            if not any(name in names for names in known.values()):
                every = [n for names in known.values() for n in names]
                raise NotFound(f"no backend {name!r} is set up", hint=did_you_mean(name, every))
        self._host.drivers.check_settings()
        try:
            self._host.check_state()
        except InvalidRequest as error:
            yield _failed("host", "state folder", error)
        for kind, names in known.items():
            for name in names:
                if not backends or name in backends:
                    yield from self._probe(kind, name)

    def resources(self, hypervisor: str | None = None) -> HostResources:
        """Return what the host has for guests, as a hypervisor sees it; None for the default."""
        return self._host.drivers.resources(hypervisor or self.settings.defaults.hypervisor)

    def _probe(self, kind: str, name: str) -> Iterator[Check]:
        try:
            ask = self._host.drivers.ask
            found = ask(kind, name, "probe", _probed, tuple)
            yield from found
            if kind == "storage" and not any(c.status is Status.FAILED for c in found):
                free = ask(kind, name, "capacity", lambda d: d.capacity(), Capacity)
                yield from capacity_checks(name, free)
        except VmclonerError as error:
            yield _failed(name, "plugin", error)


def _probed(driver: StorageDriver | HypervisorDriver) -> tuple[Check, ...]:
    return tuple(instance(each, Check) for each in driver.probe())


def _failed(backend: str, name: str, error: VmclonerError) -> Check:
    status, fix = Status.FAILED, error.hint or ""
    return Check(backend=backend, name=name, status=status, detail=error.message, fix=fix)


def _used(names: Sequence[str]) -> str:
    """Return which clones use something, in a few words."""
    if len(names) == 1:
        return f"{names[0]} is on it"
    return f"{counted(len(names), 'clone')} are on it ({names[0]}, …)"


def _few(names: str) -> str:
    return names if len(names) <= MAX_SHOWN // 2 else f"{names[: MAX_SHOWN // 2]}…"


def _like(name: str, clones: Collection[str]) -> str:
    """Return a hint for the name of a clone that isn't there."""
    from difflib import get_close_matches

    close = get_close_matches(name, clones, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else "vmcloner list"


def capacity_checks(pool: str, capacity: Capacity) -> Iterator[Check]:
    """Yield a pool's free space and its warnings."""
    room = f"{format_size(capacity.free)} of {format_size(capacity.total)} free"
    if capacity.volumes_free is not None:
        room += f", for at most {counted(capacity.volumes_free, 'more volume')}"
    yield Check(backend=pool, name="space", status=Status.OK, detail=room)
    for warning in capacity.warnings:
        yield Check(backend=pool, name="space", status=Status.WARNING, detail=warning)


def _networks(driver: HypervisorDriver, request: NetworkRequest) -> NetworkInterface:
    if driver.networks is None:
        raise BackendError(
            f"network {request.name!r}: hypervisor {driver.name!r} makes no networks",
            hint="choose another with --hypervisor",
        )
    return driver.networks
