"""Plugin ``kvm``: its registration. The driver and libvirt are loaded on first use."""

from __future__ import annotations

from vmcloner_core.drivers import DriverContext, HypervisorDriver
from vmcloner_core.hooks import HypervisorBackend, hookimpl
from vmcloner_libvirt.settings import KvmSettings


def _driver(context: DriverContext, settings: KvmSettings) -> HypervisorDriver:
    from vmcloner_libvirt.kvm import KvmDriver

    return KvmDriver(context, settings)


@hookimpl
def vmcloner_hypervisor_backend() -> HypervisorBackend:
    """Describe the backend."""
    return HypervisorBackend(
        api=1,
        name="kvm",
        description="QEMU/KVM through libvirt; emulation where KVM doesn't work",
        factory=_driver,
        settings=KvmSettings,
    )
