"""Plugin ``rbd``: what it registers. The driver is imported when it is first used."""

from __future__ import annotations

from vmcloner_core.drivers import DriverContext, StorageDriver
from vmcloner_core.hooks import StorageBackend, hookimpl
from vmcloner_rbd.settings import RbdSettings


def _driver(context: DriverContext, settings: RbdSettings) -> StorageDriver:
    from vmcloner_rbd.driver import RbdDriver

    return RbdDriver(context, settings)


@hookimpl
def vmcloner_storage_backend() -> StorageBackend:
    """Describe the backend."""
    return StorageBackend(
        api=1,
        name="rbd",
        description="clones of images in a Ceph pool, which many hosts reach",
        factory=_driver,
        settings=RbdSettings,
    )
