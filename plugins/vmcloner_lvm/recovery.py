"""Bring a transaction to its end that a crash or a power cut left in the middle.

The metadata then has messages for the pool. dm-thin commits by itself every second, so the kernel
may have carried out some of them while its transaction id is still the old one; LVM then refuses
every new volume ("File exists", "manual intervention may be required"). Nobody can have counted
on those volumes yet. So what exists of them is removed and made anew from their origins; what has
no origin, and whose first bytes are therefore unknown, is taken back.
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
    """Tell whether a group's metadata has something that a crash left, of one of its pools."""
    found = group.pool(pool)
    return (found is not None and bool(found.messages)) or bool(_drafts(group, pool))


def recover(session: Session) -> None:
    """Repair and finish what the pool's metadata has pending. Idempotent: may be killed too.

    What LVM's own commands left pending is left to them.

    :raises WrongState: the ids of kernel and metadata have come apart.
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
    """Remove drafts; those that somebody uses stay until nobody does."""
    busy = deactivate(session.lvm, session.mapper, drafts, held=True)
    idle = [name for name in drafts if busy[name] is None]
    for name in idle:
        session.release(session.group.thin[name].device_id)
    if idle:
        session.lvm.run("lvremove", "-y", *(f"{session.lvm.group}/{n}" for n in idle), held=True)
        session.reread()


def _drafts(group: VolumeGroup, pool: str) -> list[str]:
    """Return the names of the drafts in a pool, but those with which others' volumes would go."""
    return [
        volume.name
        for volume in group.thin.values()
        if volume.pool == pool and volume.name not in group.dependents
        if tags.DRAFT in volume.tags and tags.decode(volume.tags) is not None
    ]


def _finish(session: Session, pool: ThinPool) -> None:
    kernel = session.status().transaction_id
    if kernel == pool.transaction_id:  # all was carried out, but not noted
        session.restore(settle(session.group, pool.name))
        return
    if kernel != pool.transaction_id - 1:
        raise _apart(session, kernel)
    thin = session.group.thin
    blank = [name for name in pool.messages.creates if thin[name].origin is None]
    if blank:
        # Noted before the kernel closes the transaction: or a crash between would leave volumes
        # that nobody made.
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
    """Take back a transaction that the kernel hasn't closed: its new volumes are gone after it.

    What it had deleted stays deleted.

    :param begun_before: devices may be there of a process that died, not only the session's own.
    :raises VmclonerError: not all can be removed; then it stays pending.
    """
    pool = session.reread().pool(session.pool_name)
    if pool is None or not pool.messages:
        return
    made = [name for name in pool.messages.creates if begun_before or name in session.made]
    _forget(session, made, pool.messages.deletes)
    group = take_back(session.group, pool.name, pool.messages.creates)
    session.restore(settle(group, pool.name, session.status().transaction_id))


def _forget(session: Session, names: Sequence[str], devices: Sequence[int] = ()) -> None:
    """Remove the devices of volumes that nobody can have counted on yet, and others.

    :raises WrongState: a volume is in use: says by whom, and none is removed.
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
    """Tell whether what is pending in a pool is a batch of ours: marked, its volumes labelled."""
    thin = group.thin
    return f"{BATCH}{pool.transaction_id}" in pool.tags and all(
        name in thin and tags.decode(thin[name].tags) is not None for name in pool.messages.creates
    )
