"""The contract of hypervisor backends: what every one does, and what only some do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from vmcloner_core.drivers.context import DriverContext, Lane
from vmcloner_core.errors import BackendError, InvalidRequest
from vmcloner_core.model import (
    BootConfig,
    Check,
    Domain,
    DomainInventory,
    DomainSpec,
    HostResources,
    Network,
    NetworkChange,
    NetworkRequest,
    Outcome,
    State,
    Template,
)

NO_BOOTS: Mapping[str, BootConfig] = MappingProxyType({})


class HypervisorDriver(ABC):
    """Defines and runs domains on one host. Keys of outcomes are the domains' names.

    The methods that take names resolve them among *our* domains: a foreign domain of that name
    is a Conflict.
    """

    kind = ""
    """What templates and boot providers call it: ``kvm``, ``xen``."""
    mac_prefix = "52:54:00"
    one_shot = False
    """Whether :meth:`start` can boot a domain once from something else than its definition says."""
    define_lane = Lane()
    start_lane = Lane()
    stop_lane = Lane()
    undefine_lane = Lane()

    def __init__(self, context: DriverContext) -> None:
        self.context = context
        self.name = context.name

    @abstractmethod
    def probe(self) -> Iterator[Check]:
        """Yield what this backend needs of its host; see :meth:`StorageDriver.probe`."""

    def check(self, template: Template) -> None:
        """Check what the template says for this hypervisor, before anything is made.

        :raises InvalidRequest: names the key, and what the hypervisor takes there.
        """

    @abstractmethod
    def inspect(self) -> DomainInventory:
        """Return our domains, and the names and MAC addresses of all others."""

    @abstractmethod
    def states(self) -> Mapping[str, State]:
        """Return the state of every domain of ours by name: the cheap way to poll."""

    def addresses(self) -> Mapping[str, tuple[str, ...]]:
        """Return the addresses of our domains that are known by now, the one to be used first.

        Cheap enough to be polled. A domain without a known address may be left out.
        """
        return {}

    def networks(self) -> tuple[Network, ...] | None:
        """Return the networks that cards can be on by name; None where the backend can't tell."""
        return None

    def prepare_network(self, request: NetworkRequest) -> NetworkChange:
        """Have a network of vmcloner's own, running and with an address range that fits.

        Idempotent. A network that vmcloner didn't make is never changed.

        :raises Conflict: the name or the subnet is taken. :raises NotEnoughResources: too many.
        :raises WrongState: it would have to be changed while guests are on it.
        :raises BackendError: this backend makes no networks.
        """
        raise BackendError(
            f"{self.name} makes no networks, so none for {request.name!r}",
            hint="choose another hypervisor by --engine",
        )

    def remove_network(self, request: NetworkRequest) -> NetworkChange:
        """Take away what :meth:`prepare_network` made; ``count`` and ``subnet`` don't matter.

        Idempotent. A network that vmcloner didn't make is never changed.

        :raises Conflict: it isn't vmcloner's. :raises WrongState: guests are on it.
        :raises BackendError: this backend makes no networks.
        """
        raise BackendError(
            f"{self.name} makes no networks, so {request.name!r} is none of its",
            hint="choose another hypervisor by --engine",
        )

    def agents(self, names: Sequence[str]) -> frozenset[str]:
        """Return those of our domains whose guest agent has reported to the host.

        Cheap enough to be polled.

        :raises BackendError: this backend knows no guest agents.
        """
        raise BackendError(
            f"{self.name} knows nothing of guest agents",
            hint=f"wait for something else of {names[0]}",
        )

    @abstractmethod
    def resources(self) -> HostResources:
        """Return the host's memory and processors."""

    @abstractmethod
    def render(self, spec: DomainSpec) -> str:
        """Return the domain XML (or the backend's like) that ``define`` would use.

        :raises InvalidRequest: the template's own XML can't be rendered.
        """

    def native(self, spec: DomainSpec) -> str:
        """Return the domain in the format of the hypervisor's own toolstack (Xen's: ``xl.cfg``).

        :raises InvalidRequest: it has none.
        """
        raise InvalidRequest(
            f"{spec.name}: hypervisor {self.name!r} has no such format",
            hint=f"vmcloner show {spec.name} --xml",
        )

    @abstractmethod
    def define(self, specs: Sequence[DomainSpec]) -> Iterator[Outcome[Domain]]:
        """Make domains known to the host, validated, with their labels, not started.

        A domain of that name with labels of the same clone is left as it is
        (``changed=False``); any other is a Conflict.
        """

    @abstractmethod
    def start(
        self, names: Sequence[str], boots: Mapping[str, BootConfig] = NO_BOOTS
    ) -> Iterator[Outcome[None]]:
        """Start domains; a running one is a success, one that isn't defined NotFound.

        A paused domain is resumed.

        :param boots: by name, what a domain boots at this one start. Its definition stays as it
            is. Given only to drivers that are :attr:`one_shot`.
        """

    @abstractmethod
    def shutdown(self, names: Sequence[str], timeout: float) -> Iterator[Outcome[None]]:
        """Ask the guests to shut down; destroy those that still run after ``timeout`` seconds.

        A domain that isn't running, or is gone, is a success.
        """

    @abstractmethod
    def destroy(self, names: Sequence[str]) -> Iterator[Outcome[None]]:
        """Stop domains at once; one that isn't running, or is gone, is a success."""

    @abstractmethod
    def undefine(self, names: Sequence[str]) -> Iterator[Outcome[None]]:
        """Forget stopped domains, with their NVRAM and console logs; one that is gone is a success.

        A running one is WrongState.
        """

    def console_log(self, name: str) -> Path:
        """Return where the host keeps what a domain of ours writes to its console."""
        return self.context.host.consoles / f"{name}.log"

    @abstractmethod
    def read_console(self, name: str, offset: int, limit: int) -> tuple[bytes, int]:
        """Return what the guest wrote to its serial console, and the offset to go on from.

        At most ``limit`` bytes from ``offset``. Logs start afresh at each start of the domain and
        when they are rotated: an offset beyond the log's end starts again at 0. Empty at the log's
        end, and where there is no log (yet).
        """

    @abstractmethod
    def attach_console(self, name: str, stdin: int, stdout: int) -> None:
        """Connect two file descriptors with the console until the guest or ``^]`` ends it.

        :raises NotFound: no such domain of ours. :raises WrongState: it isn't running.
        """

    def close(self) -> None:
        """Release what the driver holds. It isn't used afterwards."""
