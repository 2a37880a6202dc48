"""Check what a thin pool needs of its host, and how much space is left in the pool."""

from __future__ import annotations

import os
from collections.abc import Iterator

from vmcloner_core.errors import VmclonerError
from vmcloner_core.model import Capacity, Check, Status
from vmcloner_core.units import format_size
from vmcloner_lvm.metadata import stored_size
from vmcloner_lvm.pool import Pool
from vmcloner_lvm.session import check_usable, room
from vmcloner_lvm.volumegroup import VolumeGroup

VOLUME_TEXT = 640
"""Bytes that a clone takes in a volume group's metadata, measured with labels of usual length."""
WARNING = 80
"""Per cent in use of a pool's data or metadata above which there is a warning."""
_TOOLS = {
    "vgcfgbackup": "apt-get install lvm2",
    "setpriv": "apt-get install util-linux",
    "thin_check": "apt-get install thin-provisioning-tools",
    "qemu-img": "apt-get install qemu-utils",
}


def examine_pool(backend: str, pool: Pool, strategy: str) -> Iterator[Check]:
    """Yield the checks of a pool. Changes nothing: a transaction that is pending stays pending."""

    def check(name: str, status: Status, detail: str = "", fix: str = "") -> Check:
        return Check(backend=backend, name=name, status=status, detail=detail, fix=fix)

    if os.geteuid() != 0:
        yield check("root", Status.FAILED, "LVM requires root", "sudo vmcloner …")
        return
    missing = {tool: fix for tool, fix in _TOOLS.items() if pool.lvm.runner.which(tool) is None}
    for tool, fix in missing.items():
        yield check(tool, Status.FAILED, "not installed", fix)
    if missing:
        return
    try:
        group, doubt = pool.look()
        found = pool.status()
        check_usable(str(pool), found)
    except VmclonerError as error:
        yield check("pool", Status.FAILED, error.message, error.hint or "")
        return
    if found.mode == "out_of_data_space":
        yield check("pool", Status.FAILED, f"{pool} is full", f"lvextend -L +SIZE {pool}")
        return
    promised = _promised(pool, group) / (found.data_total * pool.chunk_size(group))
    size = format_size(_promised(pool, group))
    yield check("pool", Status.OK, f"{pool}, {size} provisioned ({promised:.1f} times its size)")
    if not pool.zeroes(group):
        yield check(
            "zeroing",
            Status.WARNING,
            "clones may contain bytes of deleted clones",
            f"lvchange --zero y {pool}",
        )
    if strategy == "lvcreate":
        yield check("cloning", Status.OK, "by lvcreate, one by one (as set)")
    elif doubt is None:
        yield check("cloning", Status.OK, "a batch in one transaction")
    else:
        status = Status.FAILED if strategy == "transaction" else Status.WARNING
        yield check("cloning", status, f"by lvcreate, one by one: {doubt}", "vgck, lvmthin(7)")


def capacity(pool: Pool) -> Capacity:
    """Return what a pool holds, and the limits of its data, its metadata and the group's metadata.

    :raises WrongState: the pool is not active, or not writable.
    """
    group = pool.read()
    status, chunk = pool.status(), pool.chunk_size(group)
    check_usable(str(pool), status)
    in_text = max(0, pool.area() - stored_size(group.tree)) // VOLUME_TEXT
    promised = _promised(pool, group)
    total = status.data_total * chunk
    warnings = []
    for what, used, whole in (
        ("data", status.data_used, status.data_total),
        ("metadata", status.metadata_used, status.metadata_total),
    ):
        percent = 100 * used // max(1, whole)
        if percent >= WARNING:
            warnings.append(f"{what} {percent} % full")
    area = 100 * stored_size(group.tree) // max(1, pool.area())
    if area >= WARNING:
        warnings.append(f"metadata area of {group.name} {area} % full")
    if promised > total and 100 * status.data_used >= WARNING * status.data_total:
        warnings.append(f"{format_size(promised)} are provisioned in {format_size(total)}")
    return Capacity(
        total=total,
        free=(status.data_total - status.data_used) * chunk,
        volumes_free=min(in_text, room(status)),
        warnings=tuple(warnings),
    )


def _promised(pool: Pool, group: VolumeGroup) -> int:
    return sum(each.size for each in group.thin.values() if each.pool == pool.name)
