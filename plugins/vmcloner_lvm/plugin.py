"""Plugin ``lvm-thin``: what it registers. The driver is imported when it is first used."""

from __future__ import annotations

from vmcloner_core.drivers import DriverContext, StorageDriver
from vmcloner_core.hooks import StorageBackend, hookimpl
from vmcloner_lvm.settings import LvmThinSettings


def _driver(context: DriverContext, settings: LvmThinSettings) -> StorageDriver:
    from vmcloner_lvm.driver import LvmThinDriver

    return LvmThinDriver(context, settings)


@hookimpl
def vmcloner_storage_backend() -> StorageBackend:
    """Describe the backend."""
    return StorageBackend(
        api=1,
        name="lvm-thin",
        description="LVM thin snapshots, a batch in one transaction",
        factory=_driver,
        settings=LvmThinSettings,
    )
