"""Base of the hypervisors behind libvirt: batches over labelled domains."""

from __future__ import annotations

import functools
import itertools
import logging
import os
import re
import time
import uuid
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from vmcloner_core.cancelling import carried, pause
from vmcloner_core.drivers import NO_BOOTS, DriverContext, HypervisorDriver, Lane
from vmcloner_core.errors import Interrupted, InvalidRequest, VmclonerError
from vmcloner_core.model import (
    BootConfig,
    Domain,
    DomainInventory,
    DomainSpec,
    DomainUse,
    HostResources,
    Needs,
    Outcome,
    State,
    Volume,
)
from vmcloner_libvirt import (
    conditions,
    firmware,
    forwarding,
    operations,
    renewing,
    usage,
    whereabouts,
)
from vmcloner_libvirt.binding import libvirt
from vmcloner_libvirt.connection import Connections, Unreachable, is_local
from vmcloner_libvirt.console import Consoles
from vmcloner_libvirt.displays import Displays
from vmcloner_libvirt.machines import Machines
from vmcloner_libvirt.memory import Memory
from vmcloner_libvirt.metadata import disks, labels_of, parse, sources
from vmcloner_libvirt.networks import Networks
from vmcloner_libvirt.operations import tolerate
from vmcloner_libvirt.retries import persistently
from vmcloner_libvirt.sizes import Sizes
from vmcloner_libvirt.statistics import DomainStatistics
from vmcloner_libvirt.validated import Validated
from vmcloner_libvirt.whereabouts import GuestAgents

if TYPE_CHECKING:
    from vmcloner_libvirt.needs import Requirements
    from vmcloner_libvirt.rendering import Rendered

T = TypeVar("T")
POLL = 0.5
"""Seconds between polls of guests that were asked to shut down."""
ASK_AGAIN = 5.0
"""Seconds until such a guest is asked again: while it boots it ignores the request."""
log = logging.getLogger(__name__)
STOPPERS = 8
"""Domains that one call stops in parallel: libvirt polls for a process's end only every 200 ms."""


class LibvirtDriver(HypervisorDriver):
    """Base of the hypervisors behind libvirt. Thread-safe."""

    networks: Networks
    consoles: Consoles
    agents: GuestAgents
    memory: Memory
    sizes: Sizes
    # Measured on two processors: 1.8 ms a domain one by one, 1.3 ms like this, no less with more.
    # Of small batches even a small fleet has several: 20 clones take 95 ms, in one batch 125 ms.
    define_lane = Lane(batch=5, concurrency=4)
    # Likewise: 220 ms one by one, 120 ms with two calls per processor, no less with more.
    start_lane = Lane(batch=1, concurrency=min(8, 2 * (os.cpu_count() or 1)))
    # One call asks all guests, waits for them together, and stops several in parallel by itself.
    stop_lane = Lane(batch=1000, concurrency=1)
    undefine_lane = Lane(batch=20, concurrency=4)

    def __init__(self, context: DriverContext, uri: str, connections: int) -> None:
        super().__init__(context)
        self._forwarded: set[forwarding.Forward] = set()
        if not is_local(uri):
            # Volumes, console logs and bridges are on this host, so domains must be too.
            raise InvalidRequest(
                f"hosts.{context.host.name}.hypervisor.{self.name}.uri: {uri!r} is not a libvirt "
                "daemon on this host; remote hosts aren't supported",
                hint="remove it, or use DRIVER:///PATH or DRIVER+unix:///PATH?socket=FILE",
            )
        self.uri = uri
        self.connections = Connections(uri, connections, context.runner)
        self.networks = Networks(context, self.connections)
        self.displays = Displays(self.connections)
        self.consoles = Consoles(self.connections, context.host.consoles)
        self.agents = GuestAgents(self.connections)
        self.memory = Memory(self._each)
        if firmware.save_image("", uri) is not None:  # libvirt's test driver keeps no memory
            self.snapshots = Machines(self._each, self.is_own_nvram)
        self.sizes = Sizes(self.connections, self._member)
        self.statistics = DomainStatistics(self.connections, self.states)
        self._validated = Validated(context.host.state / "validated.json")
        self._owned: dict[tuple[str, str], bool] = {}

    # --- what hypervisors implement or override -----------------------------------------------

    @abstractmethod
    def prepare(self, spec: DomainSpec) -> Rendered:
        """Return the domain XML that ``define`` uses."""

    @abstractmethod
    def undefine_flags(self, domain: Any) -> int:
        """Return libvirt's flags for what undefine removes together with a domain of ours."""

    def is_own_nvram(self, name: str, file: Path) -> bool:
        """Tell whether a file with firmware variables is a clone's own: by its folder and name.

        Links are followed first: they may lead anywhere.
        """
        if re.fullmatch(rf"{re.escape(name)}[._].*", file.name) is None:
            return False
        if os.path.islink(file):  # noqa: PTH114 - raises nothing
            return False
        folder = Path(os.path.realpath(file.parent))
        libvirts = folder.parts[-2:] == ("qemu", "nvram")  # of the system, of a user's session
        return libvirts or folder.is_relative_to(os.path.realpath(self.context.host.state))

    def make(self, connection: Any, spec: DomainSpec) -> Domain:
        """Define a new domain, which libvirt validates if it is the first of its shape.

        Clones of one shape differ only in values that are already checked.

        A clone has the same UUID whenever it is created. So a TPM or saved memory that outlived its
        domain (virsh undefine --keep-tpm, a libvirtd that was killed) would be the new clone's.
        """
        for path in list(firmware.left(spec.name, spec.uuid, self.uri, disks=True)):
            if not operations.is_taken(connection, spec.uuid):
                renewing.removed(spec.name, path)
        rendered = self.prepare(spec)
        with self._validated.first(rendered.shape, connection.getLibVersion) as first:
            return operations.make(connection, spec, rendered.xml, validate=first)

    def begin(self, connection: Any, name: str, boot: BootConfig | None = None) -> bool:
        """Start a domain; tell whether that was needed. See :func:`operations.start`."""
        return operations.start(connection, name, boot)

    def ask(self, connection: Any, name: str) -> bool:
        """Ask a guest to shut down; tell whether it runs. See :func:`operations.ask`."""
        return operations.ask(connection, name)

    def end(self, connection: Any, name: str) -> bool:
        """Stop a domain at once; tell whether it ran."""
        return operations.destroy(connection, name)

    def clean(self, name: str) -> None:
        """Remove the files of a domain that is gone."""
        self.consoles.remove(name)

    # --- reading ------------------------------------------------------------------------------

    def render(self, spec: DomainSpec) -> str:
        """See :meth:`HypervisorDriver.render`."""
        return self.prepare(spec).xml

    def inspect(self) -> DomainInventory:
        """See :meth:`HypervisorDriver.inspect`."""
        return self.connections.ask(
            lambda connection: operations.inventory(
                self.records(connection), conditions.saved(connection)
            )
        )

    def states(self) -> Mapping[str, State]:
        """See :meth:`HypervisorDriver.states`."""
        return self.connections.ask(self._states)

    def uses(self, names: Collection[str]) -> tuple[DomainUse, ...]:
        """See :meth:`HypervisorDriver.uses`."""
        return self.connections.ask(lambda connection: tuple(usage.uses(connection, names)))

    def resources(self) -> HostResources:
        """See :meth:`HypervisorDriver.resources`."""
        return self.connections.ask(operations.resources)

    def addresses(self) -> Mapping[str, tuple[str, ...]]:
        """See :meth:`HypervisorDriver.addresses`: leases, then neighbours, else guest agents.

        A card in user mode with a forwarded port has an address of the loopback network.
        """
        seen = self.connections.ask(whereabouts.running)
        self._forwarded &= {forward for domain in seen for forward in domain.forwards}
        forwarded = {d.name: (f.address,) for d in seen for f in d.forwards if self._forward(d, f)}
        domains = [domain for domain in seen if domain.macs and domain.name not in forwarded]
        if not domains:
            return forwarded
        sources = self.networks.sources()
        found = {domain.name: whereabouts.known(domain, sources) for domain in domains}
        asked = [domain for domain in domains if domain.agent and not found[domain.name]]
        with ThreadPoolExecutor(whereabouts.ASKERS, thread_name_prefix="agents") as pool:
            for domain, told in zip(asked, pool.map(self._ask_agent, asked), strict=True):
                found[domain.name] = told
        return forwarded | {name: addresses for name, addresses in found.items() if addresses}

    def _forward(self, domain: whereabouts.Located, forward: forwarding.Forward) -> bool:
        """Have a guest's port forwarded, once for each of its starts; tell whether it is."""
        if forward not in self._forwarded:
            ensure = functools.partial(forwarding.ensure, name=domain.name, forward=forward)
            try:
                self.connections.call(ensure, about=domain.name)
            except Unreachable:
                raise
            except VmclonerError as error:
                log.warning("%s", error)
                return False
            self._forwarded.add(forward)
        return True

    def _ask_agent(self, domain: whereabouts.Located) -> tuple[str, ...]:
        return self.connections.call(
            functools.partial(whereabouts.told, domain=domain), about=domain.name
        )

    def records(self, connection: Any) -> operations.Records:
        """Yield all domains with their states, by one call.

        Only libvirt's state statistics: the other groups query every guest's monitor.
        """
        module = libvirt()
        for domain, stats in connection.getAllDomainStats(module.VIR_DOMAIN_STATS_STATE):
            yield domain, stats["state.state"], stats["state.reason"]

    # --- checks before anything is made ---------------------------------------------------------

    def no_kvm(self) -> tuple[str, str] | None:
        """Return why KVM doesn't work, and how to mend that; None where it isn't needed."""
        return None

    def check_domain(self, spec: DomainSpec) -> Needs:
        """See :meth:`HypervisorDriver.check_domain`."""
        volumes = [path for v in spec.volumes for path in (v.path, v.backing)]
        given = [*volumes, spec.seed, spec.boot.kernel, spec.boot.initrd]
        own = spec.options.xml is not None or spec.options.devices is not None
        where = f"template {spec.labels.template}"
        return self._requirements.check(self.prepare(spec).xml, where, given=given, own=own)

    def check_defined(self, name: str) -> Needs:
        """See :meth:`HypervisorDriver.check_defined`."""

        def look(connection: Any) -> str | None:
            domain = operations.find(connection, name)
            return None if domain is None else operations.definition(domain)

        xml = self.connections.call(look, about=name)
        if xml is None:
            return Needs()  # gone meanwhile: its start says so
        # What is the clone's alone is seen to where it is activated or resolved: its disks, its
        # seed, its kernel. The others of its template have their own.
        root = parse(xml)
        given = [Path(e.text) for e in root.iterfind("os/*") if e.tag in ("kernel", "initrd")]
        given += [path for path in sources(root) if path.is_relative_to(self.context.host.state)]
        return self._requirements.check(xml, name, given=(*disks(root), *given))

    @functools.cached_property
    def capabilities(self) -> Any:
        """What libvirt says of the host, as XML."""
        return parse(self.connections.ask(lambda connection: connection.getCapabilities()))

    @functools.cached_property
    def _requirements(self) -> Requirements:
        from vmcloner_libvirt.needs import Requirements

        return Requirements(
            self.context.runner, self.connections, self.no_kvm, lambda: self.capabilities
        )

    # --- batches ------------------------------------------------------------------------------

    def define(self, specs: Sequence[DomainSpec]) -> Iterator[Outcome[Domain]]:
        """See :meth:`HypervisorDriver.define`."""
        self.consoles.prepare()
        for spec in specs:
            yield self._define(spec)

    def start(
        self, names: Sequence[str], boots: Mapping[str, BootConfig] = NO_BOOTS
    ) -> Iterator[Outcome[None]]:
        """See :meth:`HypervisorDriver.start`. What fails by a passing fault is tried again."""
        for name in names:
            begin = functools.partial(self.begin, boot=boots.get(name))
            yield persistently(functools.partial(self._change, name, begin))

    def shutdown(self, names: Sequence[str], timeout: float) -> Iterator[Outcome[None]]:
        """See :meth:`HypervisorDriver.shutdown`."""
        deadline = time.monotonic() + timeout
        asked: dict[str, float] = {}
        for outcome in self._each(names, self.ask):
            if outcome.ok and outcome.changed:
                asked[outcome.key] = time.monotonic()
            else:
                yield outcome
        try:
            while asked and (left := deadline - time.monotonic()) > 0:
                pause(min(POLL, left))
                yield from self._gone(asked)
        except Interrupted as stop:  # they were asked, and nobody stops them now
            yield from (Outcome(key=name, error=stop) for name in asked)
            return
        for outcome in self.destroy(tuple(asked)):
            # A guest that ended just before destroy ended because it was asked to: changed.
            yield outcome if outcome.error is not None else Outcome(key=outcome.key)

    def destroy(self, names: Sequence[str]) -> Iterator[Outcome[None]]:
        """See :meth:`HypervisorDriver.destroy`."""
        yield from self._each(names, self.end)

    def undefine(self, names: Sequence[str]) -> Iterator[Outcome[None]]:
        """See :meth:`HypervisorDriver.undefine`."""
        for name in names:
            yield self._change(name, self._undefine)

    def renew(self, disks: Mapping[str, Mapping[Path, Volume]]) -> Iterator[Outcome[None]]:
        """See :meth:`HypervisorDriver.renew`."""

        def renew(connection: Any, name: str) -> bool:
            is_own = functools.partial(self.is_own_nvram, name)
            return renewing.renew(connection, name, disks[name], is_own)

        for name in disks:
            yield self._change(name, renew)

    def forget(self, domains: Mapping[str, uuid.UUID | None]) -> Iterator[Outcome[None]]:
        """See :meth:`HypervisorDriver.forget`."""
        for name, known in domains.items():
            yield self._change(name, functools.partial(self._remove_left, known=known))

    def close(self) -> None:
        """See :meth:`HypervisorDriver.close`."""
        self.connections.close()

    # --- helpers ------------------------------------------------------------------------------

    def _member(self, name: str, operation: Callable[[Any], Outcome[T]]) -> Outcome[T]:
        try:
            return self.connections.call(operation, about=name)
        except Unreachable:
            raise  # the whole call fails: no other member can succeed
        except VmclonerError as error:
            return Outcome(key=name, error=error)

    def _change(self, name: str, operation: Callable[[Any, str], bool]) -> Outcome[None]:
        return self._member(
            name, lambda connection: Outcome(key=name, changed=operation(connection, name))
        )

    def _define(self, spec: DomainSpec) -> Outcome[Domain]:
        attempts = itertools.count()

        def define(connection: Any) -> Outcome[Domain]:
            again = next(attempts) > 0
            found = operations.existing(connection, spec)
            if found is not None:
                # The connection may have broken after libvirt defined it: then this call made it.
                return Outcome(
                    key=spec.name, value=found, changed=again and found.labels == spec.labels
                )
            return Outcome(key=spec.name, value=self.make(connection, spec))

        return self._member(spec.name, define)

    def _undefine(self, connection: Any, name: str) -> bool:
        was_there = operations.undefine(connection, name, self.undefine_flags)
        self.clean(name)
        return was_there

    def _remove_left(self, connection: Any, name: str, known: uuid.UUID | None) -> bool:
        if known is not None and operations.is_taken(connection, known):
            known = None
        named = operations.lookup(connection, name) is None
        left = list(firmware.left(name if named else None, known, self.uri))
        for path in left:
            renewing.removed(name, path)
        if named:
            self.clean(name)
        return bool(left)

    def _gone(self, asked: dict[str, float]) -> Iterator[Outcome[None]]:
        """Yield the guests that have ended, take them out of ``asked``, ask the others again."""
        states = self.states()
        again: list[str] = []
        for name, when in list(asked.items()):
            state = states.get(name, State.STOPPED)
            if state in (State.RUNNING, State.PAUSED):
                if time.monotonic() - when > ASK_AGAIN:
                    again.append(name)
                continue
            del asked[name]
            if state is State.CRASHED:  # on_crash may have preserved it
                yield from self.destroy([name])
            else:
                yield Outcome(key=name)
        for outcome in self._each(again, self.ask):
            asked[outcome.key] = time.monotonic()

    def _each(
        self, names: Sequence[str], operation: Callable[[Any, str], bool]
    ) -> Iterator[Outcome[None]]:
        """Run an operation on several domains in parallel; yield outcomes as they complete."""
        with ThreadPoolExecutor(STOPPERS, thread_name_prefix="domains") as pool:
            futures = [pool.submit(carried(self._change), name, operation) for name in names]
            try:
                yield from (future.result() for future in as_completed(futures))
            finally:
                for future in futures:
                    future.cancel()

    def _states(self, connection: Any) -> dict[str, State]:
        # A domain's labels don't change while it exists: they are read once, not at each poll.
        owned: dict[tuple[str, str], bool] = {}
        states: dict[str, State] = {}
        saved = conditions.saved(connection)
        for domain, state, reason in self.records(connection):
            name = domain.name()
            key = (domain.UUIDString(), name)
            with tolerate("VIR_ERR_NO_DOMAIN"):
                known = self._owned.get(key)
                owned[key] = labels_of(domain) is not None if known is None else known
                if owned[key]:
                    states[name] = conditions.state_of(state, reason, saved=key[0] in saved)
        self._owned = owned
        return states
