"""Check that a host can carry out a plan about snapshots, before anything is changed."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from vmcloner_core.deadlines import instance
from vmcloner_core.drivers import StorageDriver
from vmcloner_core.errors import NotEnoughResources
from vmcloner_core.local_host import LocalHost
from vmcloner_core.model import Capacity, Volume
from vmcloner_core.names import snapshot_volume
from vmcloner_core.plan import Plan
from vmcloner_core.steps.snapshots import aim_of, disk_snapshots, machines
from vmcloner_core.units import counted, format_size


def check_snapshots(host: LocalHost, plan: Plan) -> None:
    """Check that the backends of a plan's clones have snapshots, and room for new ones.

    :raises BackendError: one has none. :raises NotEnoughResources: there is too little room.
    :raises InvalidRequest: a pool can't have snapshots of that name.
    """
    volumes: dict[str, list[Volume]] = {}
    for clone in plan.clones:
        disk_snapshots(host.drivers.storage(clone.labels.storage), clone.name)
        for volume in clone.volumes:
            disk_snapshots(host.drivers.storage(volume.pool), clone.name)
            volumes.setdefault(volume.pool, []).append(volume)
    if plan.action != "snapshot-create":
        return
    aim = aim_of(plan.snapshot)
    for pool, own in volumes.items():
        interface = disk_snapshots(host.drivers.storage(pool), own[0].name)
        for volume in own:
            interface.check_name(snapshot_volume(volume.name, aim.name))
        need = host.drivers.ask(
            "storage", pool, "snapshots.need", functools.partial(_need, own), int
        )
        free = host.drivers.ask("storage", pool, "capacity", lambda d: d.capacity(), Capacity)
        _check_room(f"storage {pool!r}", need, free.free, len(own))
        fit = free.volumes_free
        if fit is not None and fit < len(own):
            raise NotEnoughResources(
                f"storage {pool!r}: {fit} more volumes fit, snapshots of "
                f"{counted(len(own), 'disk')} are asked for",
                hint="vmcloner snapshot delete, or delete clones",
            )
    if aim.memory:
        for clone in plan.clones:
            machines(host.drivers.hypervisor(clone.labels.hypervisor), clone.name)
        wanted = sum(clone.domain.memory for clone in plan.clones if clone.domain is not None)
        folder = _existing(host.snapshots.folder)
        free_here = shutil.disk_usage(folder).free
        _check_room(f"{folder}, for memory", wanted, free_here, len(plan.clones))


def _need(volumes: Sequence[Volume], driver: StorageDriver) -> int:
    return instance(disk_snapshots(driver, volumes[0].name).need(volumes), int)


def _check_room(where: str, need: int, free: int, count: int) -> None:
    if need > free:
        raise NotEnoughResources(
            f"{where}: {format_size(free)} free, {count} snapshots need {format_size(need)}",
            hint="vmcloner snapshot delete, or delete clones",
        )


def _existing(folder: Path) -> Path:
    """Return a folder, or the first above it that exists."""
    return next(place for place in (folder, *folder.parents) if os.path.isdir(place))  # noqa: PTH112
