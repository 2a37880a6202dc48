"""A lab on one host."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal, Protocol

from vmcloner_core.errors import BackendError
from vmcloner_core.labs.forecast import Forecast
from vmcloner_core.labs.model import Lab, LabImage
from vmcloner_core.labs.site import NetworkOn, Site
from vmcloner_core.local_host import LocalHost
from vmcloner_core.model import Clone, NetworkChange, NetworkRequest, Template
from vmcloner_core.plan import RunResult
from vmcloner_core.planning import Planning
from vmcloner_core.records import Record
from vmcloner_core.request import Request
from vmcloner_core.settings import Settings
from vmcloner_core.survey import Survey

if TYPE_CHECKING:
    from vmcloner_core.labs.compare import Comparison


class Runs(Protocol):
    """What a lab needs of an engine."""

    settings: Settings

    def run(self, request: Request) -> RunResult:
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


class OneHost(Site):
    """The host that the process runs on."""

    def __init__(self, engine: Runs, host: LocalHost, planning: Planning) -> None:
        self._engine = engine
        self._host = host
        self._planning = planning
        self.catalog = host.catalog
        self.images = host.images

    def survey(self) -> Survey:
        """See :meth:`Site.survey`."""
        return self._host.survey()

    def check_seen(self, lab: Lab, found: Survey) -> None:
        """See :meth:`Site.check_seen`."""
        labels = [clone.labels for clone in found.clones]
        if found.unseen:  # then records may tell of clones that weren't seen
            records = self._host.records
            labels += [record.labels for record in records.of(records.names()).values()]
        concerned = [each for each in labels if each.lab == lab.name or each.fleet in lab.fleets]
        found.check_seen(f"lab {lab.name}", concerned)

    def records(self, clones: Iterable[Clone]) -> dict[str, Record]:
        """See :meth:`Site.records`."""
        return self._host.records.of([clone.name for clone in clones])

    def template(self, name: str, host: str = "") -> Template:  # noqa: ARG002 - there is one
        """See :meth:`Site.template`."""
        return self.catalog.template(name)

    def default(self, kind: Literal["storage", "hypervisor"]) -> str | None:
        """See :meth:`Site.default`."""
        defaults = self._engine.settings.defaults
        return defaults.storage if kind == "storage" else defaults.hypervisor

    def networks(self, lab: Lab) -> tuple[NetworkOn, ...]:
        """See :meth:`Site.networks`."""
        named = [network.hypervisor for network in lab.networks.values()]
        return tuple(networks_of(self._host, lab.name, self._wanted(named)))

    def _wanted(self, named: Iterable[str | None]) -> set[str]:
        return {name or self._engine.settings.defaults.hypervisor for name in named}

    def prepare(
        self, request: NetworkRequest, hypervisor: str | None
    ) -> Mapping[str, NetworkChange]:
        """See :meth:`Site.prepare`."""
        change = self._engine.prepare_network(request, hypervisor=hypervisor)
        return {self._host.host.name: change}

    def remove(self, network: NetworkOn) -> None:
        """See :meth:`Site.remove`."""
        request = NetworkRequest(name=network.network.name, bridge=network.network.kind == "bridge")
        self._engine.remove_network(request, hypervisor=network.hypervisor)

    def build(self, name: str, image: LabImage) -> None:
        """See :meth:`Site.build`."""
        self._engine.build_image(name, image.options, builder=image.builder, parent=image.extends)

    def pull(self, name: str) -> None:
        """See :meth:`Site.pull`."""
        self._engine.pull_template(name)

    def hold(self, lab: Lab, cancelled: Callable[[], bool]) -> AbstractContextManager[None]:
        """See :meth:`Site.hold`."""
        return self._host.hold([f"lab/{lab.name}"], cancelled)

    def run(self, request: Request) -> RunResult:
        """See :meth:`Site.run`."""
        return self._engine.run(request)

    def forecast(
        self,
        lab: Lab,
        compared: Comparison,
        found: Survey,
        gone: Collection[str],
        requests: Mapping[str, Sequence[Request]],
    ) -> tuple[Clone, ...]:
        """See :meth:`Site.forecast`."""
        return Forecast(lab, self._host, self._planning, compared).check(found, gone, requests)


def networks_of(host: LocalHost, lab: str, wanted: Collection[str]) -> Iterator[NetworkOn]:
    """Yield the networks of a host that carry a lab's name.

    :param wanted: hypervisors that must be readable.
    :raises BackendError: one of these isn't.
    """
    seen: set[str] = set()
    for name in host.drivers.names("hypervisor"):
        interface = host.drivers.hypervisor(name).networks
        try:
            found = (interface.inspect() or ()) if interface is not None else ()
        except BackendError:
            if name in wanted:
                raise
            continue  # it is set up, but not used here
        for network in found:
            if network.ours and network.lab == lab and network.key not in seen:
                seen.add(network.key)  # two connections to one libvirt see the same
                yield NetworkOn(host=host.host.name, hypervisor=name, network=network)
