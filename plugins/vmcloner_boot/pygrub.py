"""Boot provider ``pygrub``: what the boot menu on the clone's own disk says, read on the host.

Under Xen it is Xen's own pygrub, which libxl runs at each start and at each reboot.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from vmcloner_core.drivers import BootProvider, BootRequest, DriverContext
from vmcloner_core.hooks import BootBackend, hookimpl
from vmcloner_core.model import BootConfig, Outcome, Template

PROGRAM = Path("pygrub")
"""A bare name: the hypervisor looks for it among the programs of the Xen that is installed."""


class PygrubBoot(BootProvider):
    """Boots clones from the menu on their disks. Needs nothing of the template."""

    def __init__(self, context: DriverContext) -> None:
        self.context = context

    def check(self, template: Template) -> None:
        """See :meth:`BootProvider.check`; any template will do."""

    def resolve(self, requests: Sequence[BootRequest]) -> Iterator[Outcome[BootConfig]]:
        """See :meth:`BootProvider.resolve`."""
        for request in requests:
            config = BootConfig(bootloader=PROGRAM, devices=())
            yield Outcome(key=request.labels.clone, value=config)


@hookimpl
def vmcloner_boot_provider() -> BootBackend:
    """Describe the backend."""
    return BootBackend(
        name="pygrub",
        description="The boot menu on the clone's own disk, read on the host",
        factory=PygrubBoot,
        hypervisors=frozenset({"xen"}),
    )
