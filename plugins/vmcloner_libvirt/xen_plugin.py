"""Plugin ``xen``: its registration. The driver and libvirt are loaded on first use."""

from __future__ import annotations

from vmcloner_core.drivers import DriverContext, HypervisorDriver
from vmcloner_core.hooks import HypervisorBackend, hookimpl
from vmcloner_libvirt.settings import XenSettings


def _driver(context: DriverContext, settings: XenSettings) -> HypervisorDriver:
    from vmcloner_libvirt.xen import XenDriver

    return XenDriver(context, settings)


@hookimpl
def vmcloner_hypervisor_backend() -> HypervisorBackend:
    """Describe the backend."""
    return HypervisorBackend(
        api=1,
        name="xen",
        description="Xen through libvirt (libxl): PV, PVH and HVM guests",
        factory=_driver,
        settings=XenSettings,
    )
