"""The contract of hypervisor backends: the driver, and the optional interfaces that it may have."""

from __future__ import annotations

import uuid
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from vmcloner_core.drivers.context import DriverContext, Lane
from vmcloner_core.drivers.snapshots import MachineInterface
from vmcloner_core.drivers.warm import WarmInterface
from vmcloner_core.errors import WrongState
from vmcloner_core.model import (
    BootConfig,
    Check,
    DiskFile,
    Domain,
    DomainInventory,
    DomainSpec,
    DomainUse,
    HostResources,
    Needs,
    Network,
    NetworkChange,
    NetworkRequest,
    Outcome,
    State,
    Statistics,
    Template,
    Volume,
)

NO_BOOTS: Mapping[str, BootConfig] = MappingProxyType({})


class NetworkInterface(ABC):
    """Networks for clones: those that the host has, and those that vmcloner makes itself."""

    @abstractmethod
    def inspect(self) -> tuple[Network, ...] | None:
        """Return the networks that cards can be on by name, None if they aren't known."""

    @abstractmethod
    def prepare(self, request: NetworkRequest) -> NetworkChange:
        """Make a network of vmcloner's own, or change it: running, with room for the guests.

        Idempotent. A network that vmcloner didn't make is never changed.

        :raises Conflict: the name or the subnet is taken. :raises NotEnoughResources: too many.
        :raises WrongState: it would have to be changed while guests are on it.
        """

    @abstractmethod
    def remove(self, request: NetworkRequest) -> NetworkChange:
        """Remove what :meth:`prepare` made; ``count`` and ``subnet`` are ignored.

        Idempotent. A network that vmcloner didn't make is never changed.

        :raises Conflict: it isn't vmcloner's. :raises WrongState: guests are on it.
        """


class ConsoleInterface(ABC):
    """The serial consoles of our domains. Names are resolved as the driver does."""

    @abstractmethod
    def log(self, name: str) -> Path:
        """Return the file on the host that holds what a domain wrote to its console."""

    @abstractmethod
    def read(self, name: str, offset: int, limit: int) -> tuple[bytes, int]:
        """Return what the guest wrote to its console, and the offset to continue from.

        At most ``limit`` bytes from ``offset``, from all parts of a log that is rotated. A log is
        emptied at each start of the domain: an offset beyond its end, or of a part that is gone,
        is taken as its begin. Empty at the log's end, and where there is no log (yet).
        """

    @abstractmethod
    def attach(self, name: str, stdin: int, stdout: int) -> None:
        """Connect two file descriptors to the console until the guest or ``^]`` ends it.

        :raises NotFound: no such domain of ours. :raises WrongState: it isn't running.
        """


class DisplayInterface(ABC):
    """The screens of our running domains. Optional."""

    @abstractmethod
    def address(self, name: str) -> str:
        """Return where a screen can be seen, as a URL: ``vnc://127.0.0.1:5900``.

        :raises NotFound: no such domain. :raises WrongState: it isn't running, or has no screen.
        """

    @abstractmethod
    def picture(self, name: str) -> bytes:
        """Return a picture of a screen: PPM (P6, 8 bits) or PNG, of bounded size.

        :raises NotFound: no such domain. :raises WrongState: it isn't running, or has no screen.
        """


class AgentInterface(ABC):
    """Guest agents: programs in the guests that report to the host."""

    @abstractmethod
    def reported(self, names: Sequence[str]) -> frozenset[str]:
        """Return those of our domains whose guest agent has reported to the host.

        Cheap enough to be polled.
        """

    def set_clocks(self, names: Sequence[str]) -> None:
        """Set the clocks of guests whose agents have reported to the host's time.

        For guests that were paused or saved. As far as that is possible: a guest's failure is
        ignored, and this does nothing by default.
        """

    def run(self, name: str, script: bytes, *, timeout: float) -> None:  # noqa: ARG002 - optional
        """Run a POSIX shell script as root in a running guest, and wait for its end.

        It may be begun twice if the host's daemon is restarted meanwhile: it has to be idempotent.
        It can hold secrets: no process list shows it. What it prints is only for errors.

        :param timeout: seconds, also for the agent's first answer.
        :raises WrongState: no agent in the guest runs scripts, as by default; or the script failed,
            with the last line that it printed.
        """
        raise WrongState(f"{name}: no agent in the guest runs scripts")

    def freeze(self, name: str) -> None:
        """Have a running guest write everything to its disks, and freeze its file systems.

        One that is frozen stays so. The guest's programs wait when they write, until
        :meth:`thaw`.

        :raises WrongState: no agent in the guest does it, as by default; nothing is frozen then.
        """
        raise WrongState(f"{name}: no agent in the guest freezes its disks")

    def thaw(self, name: str) -> None:
        """Thaw a guest's file systems; one that isn't frozen, or is off, is a success."""


class MemoryInterface(ABC):
    """The memory of running domains: paused, or saved to a file. :meth:`HypervisorDriver.start`
    continues both.
    """

    @abstractmethod
    def pause(self, names: Sequence[str]) -> Iterator[Outcome[None]]:
        """Pause running domains; a paused one is a success, any other WrongState."""

    @abstractmethod
    def save(self, names: Sequence[str]) -> Iterator[Outcome[None]]:
        """Save the memory of running and paused domains, and stop them.

        Their state is SAVED then. A saved one is a success, any other WrongState.
        """

    @abstractmethod
    def discard(self, names: Sequence[str]) -> Iterator[Outcome[None]]:
        """Remove the saved memory of domains, so that their next start boots them.

        A domain without one, or that is gone, is a success.
        """


class ResizeInterface(ABC):
    """The size of domains: memory, processors, and disks of running ones."""

    @abstractmethod
    def resize(
        self, names: Sequence[str], memory: int | None, vcpus: int | None
    ) -> Iterator[Outcome[bool]]:
        """Change what domains are started with; running ones at once where that is possible.

        Values: False if a running or saved domain gets it only at its next start.

        :param memory: bytes, None for no change.
        """

    @abstractmethod
    def grow_disk(self, name: str, volume: Volume, size: int) -> None:
        """Make a running domain see a larger disk: a file is made larger by this.

        A disk of at least that size is a success.

        :param size: bytes. :raises NotFound: the volume isn't one of its disks.
        """


class StatisticsInterface(ABC):
    """What running domains use of their host. Optional."""

    @abstractmethod
    def read(self, names: Collection[str]) -> Mapping[str, Statistics]:
        """Return the statistics of those of our domains that run, by name; others are left out.

        Cheap enough to be polled, and never held up by a guest that hangs. Counters never
        decrease while a domain runs.
        """

    def shares(self, names: Collection[str]) -> Mapping[str, int]:  # noqa: ARG002
        """Return the bytes of the host's memory that those of our domains take that run, by name.

        What several share counts for each by its share (PSS). Asked once in a run: it may take
        some milliseconds for each. What isn't known is left out.
        """
        return {}


class NativeInterface(ABC):
    """Domains in the format of the hypervisor's own toolstack (Xen: ``xl.cfg``)."""

    @abstractmethod
    def render(self, spec: DomainSpec) -> str:
        """Return the domain in that format; errors as :meth:`HypervisorDriver.render`."""


class HypervisorDriver(ABC):
    """Defines and runs domains on one host. Keys of outcomes are the domains' names.

    The methods that take names resolve them among *our* domains: a foreign domain of that name
    is a Conflict.

    Optional parts are interfaces of their own: attributes that a driver sets in its ``__init__``.
    Where one is None, the engine refuses requests that need it.
    """

    kind = ""
    """What templates and boot providers call it: ``kvm``, ``xen``."""
    mac_prefix = "52:54:00"
    one_shot = False
    """Whether :meth:`start` can boot a domain once from something other than its definition."""
    networks: NetworkInterface | None = None
    consoles: ConsoleInterface | None = None
    displays: DisplayInterface | None = None
    agents: AgentInterface | None = None
    memory: MemoryInterface | None = None
    snapshots: MachineInterface | None = None
    sizes: ResizeInterface | None = None
    native: NativeInterface | None = None
    statistics: StatisticsInterface | None = None
    warm: WarmInterface | None = None
    not_warm = ""
    """Why :attr:`warm` is None, in a few words; empty if there is nothing to say."""
    define_lane = Lane()
    start_lane = Lane()
    stop_lane = Lane()
    undefine_lane = Lane()

    def __init__(self, context: DriverContext) -> None:
        self.context = context
        self.name = context.name

    @abstractmethod
    def probe(self) -> Iterator[Check]:
        """Yield what this backend needs on its host; see :meth:`StorageDriver.probe`."""

    def check(self, template: Template) -> None:
        """Check a template's settings for this hypervisor, before anything is made.

        :raises InvalidRequest: names the key and the values that the hypervisor supports.
        """

    def unused(self, template: Template) -> tuple[str, ...]:  # noqa: ARG002 - for overriding it
        """Return the keys that a template sets and this hypervisor ignores (``domain.type``)."""
        return ()

    def check_domain(self, spec: DomainSpec) -> Needs:  # noqa: ARG002 - for those that override it
        """Check that this host has what a domain needs, before clones like it are made.

        Called once for the clones of a template, and by ``template check``. Its volumes and its
        seed don't exist yet, and may be missing; its kernel may not be built yet. Changes nothing.

        :raises VmclonerError: the host lacks something; one line with the way out.
        """
        return Needs()

    def check_defined(self, name: str) -> Needs:  # noqa: ARG002 - likewise
        """Check the same of one of our domains that is to be started; as :meth:`check_domain`."""
        return Needs()

    @abstractmethod
    def inspect(self) -> DomainInventory:
        """Return our domains, and the names and MAC addresses of all others."""

    def logs(self, name: str) -> tuple[Path, ...]:  # noqa: ARG002 - most keep none
        """Return the existing files outside of the state folder that a domain of ours left.

        They are removed with the domain; a run that is killed may leave them.
        """
        return ()

    @abstractmethod
    def states(self) -> Mapping[str, State]:
        """Return the states of our domains by name. Cheap enough to be polled."""

    def addresses(self) -> Mapping[str, tuple[str, ...]]:
        """Return the known addresses of our domains, the preferred one first.

        Cheap enough to be polled. A domain without a known address may be left out.
        """
        return {}

    def started(self, name: str) -> float | None:  # noqa: ARG002 - few hypervisors know
        """Return when a running domain was started, in seconds since the epoch.

        None if that isn't known: the default.
        """
        return None

    @abstractmethod
    def resources(self) -> HostResources:
        """Return the host's memory and processors."""

    @abstractmethod
    def render(self, spec: DomainSpec) -> str:
        """Return the domain XML (or the backend's equivalent) that ``define`` would use.

        :raises InvalidRequest: the template's own XML can't be rendered.
        """

    @abstractmethod
    def define(self, specs: Sequence[DomainSpec]) -> Iterator[Outcome[Domain]]:
        """Define domains on the host, validated and labelled, without starting them.

        A domain of that name with labels of the same clone is left unchanged
        (``changed=False``); any other is a Conflict.
        """

    @abstractmethod
    def start(
        self, names: Sequence[str], boots: Mapping[str, BootConfig] = NO_BOOTS
    ) -> Iterator[Outcome[None]]:
        """Start domains; a running one is a success, one that isn't defined NotFound.

        A paused domain is resumed, a saved one continues from its memory. WrongState if it
        pauses again at once: its disk has no room, for example.

        :param boots: by name, what a domain boots at this one start; its definition isn't changed.
            Given only to drivers that are :attr:`one_shot`.
        """

    @abstractmethod
    def shutdown(self, names: Sequence[str], timeout: float) -> Iterator[Outcome[None]]:
        """Ask the guests to shut down; destroy those that still run after ``timeout`` seconds.

        A domain that isn't running, or is gone, is a success.
        """

    @abstractmethod
    def destroy(self, names: Sequence[str]) -> Iterator[Outcome[None]]:
        """Stop domains at once; one that isn't running, or is gone, is a success."""

    def forget(self, domains: Mapping[str, uuid.UUID | None]) -> Iterator[Outcome[None]]:
        """Remove what the hypervisor keeps of domains of ours that are gone; keys are their names.

        Somebody else undefined them, and kept NVRAM, TPM state or saved memory, which the next
        domain of that name would get. What is of another domain that has the name or the UUID now
        is left. By default there is nothing.

        :param domains: the UUIDs that they had, None for one that isn't known.
        """
        for name in domains:
            yield Outcome(key=name, changed=False)

    @abstractmethod
    def undefine(self, names: Sequence[str]) -> Iterator[Outcome[None]]:
        """Undefine domains that don't run, and remove what the hypervisor keeps of them.

        That is saved memory, snapshots' descriptions, NVRAM, TPM state and console logs.
        A domain that is gone is a success, a running one is WrongState.
        """

    def uses(self, names: Collection[str]) -> tuple[DomainUse, ...]:  # noqa: ARG002 - optional
        """Return what the host's domains use of its files and devices, foreign domains too.

        :param names: our domains for which snapshots and block jobs are wanted.
        """
        return tuple(
            DomainUse(name=d.name, uuid=d.uuid, disks=files, files=files)
            for d in self.inspect().domains
            for files in [tuple(DiskFile(path=path) for path in d.disks)]
        )

    def is_own_process(self, domain: DomainUse, arguments: Sequence[str]) -> bool:  # noqa: ARG002
        """Tell whether a process that uses a running domain's disk is that domain's own.

        :param arguments: its command line.
        """
        return True

    def renew(self, disks: Mapping[str, Mapping[Path, Volume]]) -> Iterator[Outcome[None]]:
        """Make domains that don't run as they were defined, before their disks are replaced.

        Whatever belongs to the old disks is removed: saved memory (a reset disk under an old
        memory would be damaged), snapshots' descriptions, NVRAM and TPM state. A domain that is
        gone is a success, a running one is WrongState. By default nothing is kept, and there is
        nothing to do.

        :param disks: by the domains' names, the volumes that are to be their disks again, by the
            files that these disks use instead.
        """
        for name in disks:
            yield Outcome(key=name, changed=False)

    def close(self) -> None:
        """Release what the driver holds. It isn't used afterwards."""
