"""Boot provider ``network``: the guest's own PXE ROM, for guests of any kind."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vmcloner_core.drivers import BootProvider, BootRequest, DriverContext
from vmcloner_core.hooks import BootBackend, hookimpl
from vmcloner_core.model import BootConfig, Outcome, Template
from vmcloner_pxe.networks import check_cards


class NetworkBoot(BootProvider):
    """Boots clones from their first network card, and from their disk where that fails."""

    def __init__(self, context: DriverContext) -> None:
        self.context = context

    def check(self, template: Template) -> None:
        """See :meth:`BootProvider.check`: it needs a network card on a bridge or in a network."""
        check_cards(template, "network")

    def unused(self, template: Template) -> tuple[str, ...]:
        """See :meth:`BootProvider.unused`."""
        return template.kernel.given if template.kernel is not None else ()

    def resolve(self, requests: Sequence[BootRequest]) -> Iterator[Outcome[BootConfig]]:
        """See :meth:`BootProvider.resolve`."""
        for request in requests:
            config = BootConfig(devices=("network", "hd"), source="the network, by its own ROM")
            yield Outcome(key=request.labels.clone, value=config)


@hookimpl
def vmcloner_boot_provider() -> BootBackend:
    """Describe the backend."""
    return BootBackend(
        api=1,
        name="network",
        description="The guest's own network boot ROM, then its disk",
        factory=NetworkBoot,
        hypervisors=frozenset({"kvm"}),
    )
