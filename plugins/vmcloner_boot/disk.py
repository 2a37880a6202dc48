"""Boot provider ``disk``: the guest's firmware boots what is on the clone's first disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vmcloner_core.drivers import BootProvider, BootRequest, DriverContext
from vmcloner_core.hooks import BootBackend, hookimpl
from vmcloner_core.model import BootConfig, Outcome, Template


class DiskBoot(BootProvider):
    """Boots clones from their disks. Needs nothing of the template."""

    def __init__(self, context: DriverContext) -> None:
        self.context = context

    def check(self, template: Template) -> None:
        """See :meth:`BootProvider.check`; any template will do."""

    def unused(self, template: Template) -> tuple[str, ...]:
        """See :meth:`BootProvider.unused`."""
        return template.kernel.given if template.kernel is not None else ()

    def resolve(self, requests: Sequence[BootRequest]) -> Iterator[Outcome[BootConfig]]:
        """See :meth:`BootProvider.resolve`."""
        for request in requests:
            yield Outcome(
                key=request.labels.clone, value=BootConfig(devices=("hd",), source="its first disk")
            )


@hookimpl
def vmcloner_boot_provider() -> BootBackend:
    """Describe the backend."""
    return BootBackend(
        api=1, name="disk", description="The guest's own firmware and boot loader", factory=DiskBoot
    )
