"""Plugin ``faulty``: a hypervisor backend that fails on demand."""

from __future__ import annotations

from vmcloner_core.hooks import HypervisorBackend, hookimpl
from vmcloner_core.testing.faulty import FaultySettings, hypervisor


@hookimpl
def vmcloner_hypervisor_backend() -> HypervisorBackend:
    """Describe the backend."""
    return HypervisorBackend(
        api=1,
        name="faulty",
        description="another backend, of which calls fail on demand; for tests",
        factory=hypervisor,
        settings=FaultySettings,
    )
