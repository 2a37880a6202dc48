"""Plugin ``dd``: what it registers. A driver is imported when it is first used."""

from __future__ import annotations

from vmcloner_core.drivers import DriverContext, StorageDriver
from vmcloner_core.hooks import StorageBackend, hookimpl
from vmcloner_core.model import Copying
from vmcloner_dd.settings import DdSettings


def _driver(context: DriverContext, settings: DdSettings) -> StorageDriver:
    copying = Copying(bandwidth=settings.bandwidth, verify=settings.verify)
    if settings.vg is not None:
        from vmcloner_lvm.thick_driver import ThickDriver

        return ThickDriver(context, settings.vg, copying)
    from vmcloner_files.driver import FilesDriver
    from vmcloner_files.settings import FilesSettings

    folder = settings.path or context.host.state / "dd"
    files = FilesSettings(path=folder, clone="copy", qemu_user=settings.qemu_user)
    # No snapshots: those would be whole copies of whole copies. Pools of files or lvm-thin share.
    return FilesDriver(context, files, copying, False)


@hookimpl
def vmcloner_storage_backend() -> StorageBackend:
    """Describe the backend."""
    return StorageBackend(
        api=1,
        name="dd",
        description="full copies in a volume group or a folder; reads the template once for many",
        factory=_driver,
        settings=DdSettings,
    )
