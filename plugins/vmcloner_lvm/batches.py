"""Make and remove many volumes: in one transaction if that is known to be safe, else by LVM."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from typing import Literal

from vmcloner_core.errors import HostCommandError, NotEnoughResources, VmclonerError
from vmcloner_lvm import tags
from vmcloner_lvm.devmapper import PoolStatus, device_name
from vmcloner_lvm.recovery import abandon
from vmcloner_lvm.session import Session
from vmcloner_lvm.transaction import NewVolume, queue, settle
from vmcloner_lvm.volumegroup import ThinPool, VolumeGroup, strings

Strategy = Literal["auto", "transaction", "lvcreate"]
_TRIED = ((2, 3, 2), (2, 4, 0))
"""Versions of LVM whose metadata is edited: from the first, up to but without the last."""


def doubt(group: VolumeGroup, pool: ThinPool, status: PoolStatus) -> str | None:
    """Return why it is not safe to edit the metadata, None if it is."""
    return next(_doubts(group, pool, status), None)


def _doubts(group: VolumeGroup, pool: ThinPool, status: PoolStatus) -> Iterator[str]:
    version = group.version
    if version is None or not _TRIED[0] <= version < _TRIED[1]:
        yield f"metadata written by LVM {'.'.join(map(str, version or ())) or 'of no version'}"
    if group.values.get("format") != "lvm2":
        yield "metadata of another format"
    if group.values.get("lock_type", "none") != "none":
        yield f"locked by {group.values['lock_type']}"
    flags = (*strings(group.values, "status"), *strings(group.values, "flags"))
    odd = {"CLUSTERED", "SHARED", "PARTIAL", "EXPORTED"}.intersection(flags)
    if odd or group.missing:
        yield f"{', '.join(sorted(odd) or group.missing)} in the metadata"
    if pool.messages:
        yield "pending messages of LVM"
    if status.transaction_id != pool.transaction_id:
        yield (
            f"transaction id {status.transaction_id} in the kernel, "
            f"{pool.transaction_id} in the metadata"
        )


def create(session: Session, new: Sequence[NewVolume], strategy: Strategy) -> None:
    """Make volumes: all or none in a transaction, or one after the other by LVM.

    :raises VmclonerError: some were not made; the metadata tells which.
    """
    session.check_room([len(each.head) for each in new])
    if _at_once(session, strategy, create=new):
        return
    for each in new:
        _lvcreate(session, each)
    session.reread()


def remove(session: Session, names: Sequence[str], strategy: Strategy) -> None:
    """Remove inactive volumes, in the same ways as :func:`create`."""
    if _at_once(session, strategy, delete=names):
        return
    left = [name for name in names if name in session.reread().thin]
    if left:
        full = [f"{session.lvm.group}/{name}" for name in left]
        session.lvm.run("lvremove", "-y", *full, held=True)
    session.reread()


def replace(
    session: Session, old: Sequence[str], new: Sequence[NewVolume], strategy: Strategy
) -> None:
    """Remove inactive volumes and make others, in the same ways. Names may be used again."""
    session.check_room([len(each.head) for each in new])
    if not _at_once(session, strategy, create=new, delete=old):
        remove(session, old, strategy)
        create(session, new, strategy)


def _at_once(
    session: Session,
    strategy: Strategy,
    *,
    create: Sequence[NewVolume] = (),
    delete: Sequence[str] = (),
) -> bool:
    """Try one transaction; returns False if LVM's commands have to do the work."""
    if strategy == "lvcreate":
        return False
    why = doubt(session.group, session.pool, session.status()) or _active_origin(session, create)
    if why is not None:
        if strategy == "auto":
            return False
        raise HostCommandError(
            f"thin pool {session}: a transaction is not safe: {why}",
            hint="strategy = 'auto' uses lvcreate",
        )
    try:
        _transact(session, create=create, delete=delete)
    except NotEnoughResources:
        raise
    except VmclonerError:
        if strategy == "transaction" or session.pool.messages:
            raise
        return False
    return True


def _active_origin(session: Session, new: Sequence[NewVolume]) -> str | None:
    group = session.lvm.group
    origins = {device_name(group, each.origin): each.origin for each in new if each.origin}
    active = sorted(origins[each] for each in session.mapper.present(origins.keys()))
    return f"{active[0]} is active" if active else None  # its device would have to be suspended


def _transact(
    session: Session, *, create: Sequence[NewVolume] = (), delete: Sequence[str] = ()
) -> None:
    """Make and remove volumes in one transaction.

    1. Write the metadata with the changes, and with a message to the kernel for each volume.
    2. Send the messages to the kernel.
    3. Write the metadata without the messages.
    4. Read the metadata back and compare.

    After a crash before 1 nothing has changed; after a later crash ``recover`` finishes the work.
    """
    before = session.group
    made_by = (os.uname().nodename, int(time.time()))
    queued = queue(before, session.pool_name, create=create, delete=delete, created=made_by)
    session.check_area(queued, len(create))
    try:
        session.restore(queued)
        session.tell({each.name: each.head for each in create if each.head})
    except VmclonerError:
        abandon(session)
        raise
    session.restore(settle(session.group, session.pool_name))
    _verify(session, queued, [each.name for each in create], delete)


def _verify(session: Session, meant: VolumeGroup, made: Sequence[str], gone: Sequence[str]) -> None:
    found = session.reread()
    gone = [name for name in gone if name not in meant.thin]
    same = all(found.thin.get(name) == meant.thin[name] for name in made)
    pool, kernel = session.pool, session.status().transaction_id
    if pool.messages or pool.transaction_id != kernel or not same or found.thin.keys() & {*gone}:
        raise HostCommandError(
            f"volume group {found.name}: LVM's metadata is not what was written", hint="vgck"
        )


def _lvcreate(session: Session, new: NewVolume) -> None:
    """Make a volume by LVM's command."""
    full, thin = f"{session.lvm.group}/{new.name}", session.group.thin
    unfinished = bool(new.head) or (new.origin is not None and thin[new.origin].size != new.size)
    tagged = [f"--addtag={tag}" for tag in (*new.tags, *([tags.DRAFT] if unfinished else []))]
    made = ["-n", new.name, "-an", "-ky", *tagged]
    if new.origin is None:
        session.lvm.run("lvcreate", "-V", f"{new.size}b", "-T", *made, str(session), held=True)
    else:
        session.lvm.run("lvcreate", "-s", *made, f"{session.lvm.group}/{new.origin}", held=True)
    if not unfinished:
        return
    if new.origin is not None:
        session.lvm.run("lvextend", "-y", "-L", f"{new.size}b", full, held=True)
    if new.head:
        session.write_head(session.reread().thin[new.name], new.head)
    session.lvm.run("lvchange", f"--deltag={tags.DRAFT}", full, held=True)
