"""Finish a transaction that a crash or a power cut interrupted.

The metadata then contains messages for the pool. dm-thin commits by itself every second, so the
kernel may have carried out some of them while it still has the old transaction id; LVM then refuses
every new volume ("File exists", "manual intervention may be required"). The volumes of the
transaction are not in use yet. So those that exist are removed and made again from their origins.
Volumes without an origin, whose first bytes are not known any more, are taken out of the metadata.
"""

from __future__ import annotations

from collections.abc import Sequence

from vmcloner_core.errors import VmclonerError, WrongState
from vmcloner_lvm import tags
from vmcloner_lvm.activation import deactivate
from vmcloner_lvm.session import Session, find_pool
from vmcloner_lvm.transaction import BATCH, settle, take_back
from vmcloner_lvm.volumegroup import ThinPool, VolumeGroup


def pending(group: VolumeGroup, pool: str) -> bool:
    """Tell whether a crash left something in the group's metadata for a pool."""
    found = group.pool(pool)
    return (found is not None and bool(found.messages)) or bool(_drafts(group, pool))


def recover(session: Session) -> None:
    """Finish what is pending in the pool's metadata. Can itself be interrupted and repeated.

    Pending messages of LVM's own commands are left to LVM.

    :raises WrongState: the transaction ids of kernel and metadata do not match.
    """
    stray = session.stray_id()
    if stray is not None:
        raise _apart(session, stray)
    if session.pool.messages and are_ours(session.group, session.pool):
        _finish(session, session.pool)
    drafts = _drafts(session.group, session.pool_name)
    if drafts:
        _remove(session, drafts)


def _apart(session: Session, kernel: int) -> WrongState:
    return WrongState(
        f"thin pool {session}: transaction id {kernel} in the kernel, "
        f"{session.pool.transaction_id} in LVM's metadata",
        hint=f"see lvmthin(7): lvconvert --repair {session}",
    )


def _remove(session: Session, drafts: Sequence[str]) -> None:
    """Remove drafts, except for those in use."""
    busy = deactivate(session.lvm, session.mapper, drafts, held=True)
    idle = [name for name in drafts if busy[name] is None]
    for name in idle:
        session.release(session.group.thin[name].device_id)
    if idle:
        session.lvm.run("lvremove", "-y", *(f"{session.lvm.group}/{n}" for n in idle), held=True)
        session.reread()


def _drafts(group: VolumeGroup, pool: str) -> list[str]:
    """Return the names of the drafts in a pool that have no dependents."""
    return [
        volume.name
        for volume in group.thin.values()
        if volume.pool == pool and volume.name not in group.dependents
        if tags.DRAFT in volume.tags and tags.decode(volume.tags) is not None
    ]


def _finish(session: Session, pool: ThinPool) -> None:
    kernel = session.status().transaction_id
    if kernel == pool.transaction_id:  # the kernel has finished; only the metadata has not
        session.restore(settle(session.group, pool.name))
        return
    if kernel != pool.transaction_id - 1:
        raise _apart(session, kernel)
    thin = session.group.thin
    blank = [name for name in pool.messages.creates if thin[name].origin is None]
    if blank:
        # Written before the kernel closes the transaction: otherwise a crash in between would leave
        # volumes in the metadata that the kernel does not have.
        _forget(session, blank)
        left = take_back(session.group, pool.name, blank)
        if not find_pool(left, pool.name).messages:
            session.restore(settle(left, pool.name, kernel))
            return
        session.restore(left)
    try:
        session.tell(again=True)
    except VmclonerError:
        abandon(session, begun_before=True)
        return
    session.restore(settle(session.group, pool.name))


def abandon(session: Session, *, begun_before: bool = False) -> None:
    """Undo a transaction that the kernel has not closed: removes its new volumes.

    Volumes that it deleted stay deleted.

    :param begun_before: an earlier process may have made devices too, not only this session.
    :raises VmclonerError: not all devices can be removed; the transaction stays pending.
    """
    pool = session.reread().pool(session.pool_name)
    if pool is None or not pool.messages:
        return
    made = [name for name in pool.messages.creates if begun_before or name in session.made]
    _forget(session, made, pool.messages.deletes)
    group = take_back(session.group, pool.name, pool.messages.creates)
    session.restore(settle(group, pool.name, session.status().transaction_id))


def _forget(session: Session, names: Sequence[str], devices: Sequence[int] = ()) -> None:
    """Remove the devices of volumes, and other devices.

    :raises WrongState: a volume is in use; names its user. No device is removed then.
    :raises VmclonerError: the kernel refused some; the others are removed.
    """
    busy = deactivate(session.lvm, session.mapper, names, held=True)
    failures = [error for error in busy.values() if error is not None]
    if failures:
        raise failures[0]
    for device in (*(session.group.thin[name].device_id for name in names), *devices):
        try:
            session.forget(device)
        except VmclonerError as error:
            failures.append(error)
    if failures:
        raise failures[0]


def are_ours(group: VolumeGroup, pool: ThinPool) -> bool:
    """Tell whether the pending messages are ours: the pool is tagged, the volumes labelled."""
    thin = group.thin
    return f"{BATCH}{pool.transaction_id}" in pool.tags and all(
        name in thin and tags.decode(thin[name].tags) is not None for name in pool.messages.creates
    )
