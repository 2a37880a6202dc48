"""Plugin ``files``: what it registers. The driver is imported when it is first used."""

from __future__ import annotations

from vmcloner_core.drivers import DriverContext, StorageDriver
from vmcloner_core.hooks import StorageBackend, hookimpl
from vmcloner_files.settings import FilesSettings


def _driver(context: DriverContext, settings: FilesSettings) -> StorageDriver:
    from vmcloner_files.driver import FilesDriver

    return FilesDriver(context, settings)


@hookimpl
def vmcloner_storage_backend() -> StorageBackend:
    """Describe the backend."""
    return StorageBackend(
        api=1,
        name="files",
        description="files in a folder: reflinks, qcow2 overlays or copies",
        factory=_driver,
        settings=FilesSettings,
    )
