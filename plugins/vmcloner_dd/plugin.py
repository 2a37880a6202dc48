"""Plugin ``dd``: what is registered. The driver is loaded on first use."""

from __future__ import annotations

from vmcloner_core.drivers import DriverContext, StorageDriver
from vmcloner_core.hooks import StorageBackend, hookimpl
from vmcloner_dd.settings import DdSettings


def _driver(context: DriverContext, settings: DdSettings) -> StorageDriver:
    if settings.vg is not None:
        from vmcloner_dd.group import GroupDriver

        return GroupDriver(context, settings)
    from vmcloner_dd.folder import FolderDriver

    return FolderDriver(context, settings)


@hookimpl
def vmcloner_storage_backend() -> StorageBackend:
    """Describe the backend."""
    return StorageBackend(
        name="dd",
        description="full copies in a volume group or a folder, the template read once for many",
        factory=_driver,
        settings=DdSettings,
    )
