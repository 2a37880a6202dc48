"""Snapshots in a thin pool: thin snapshots of clones' volumes, a batch in one transaction."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from vmcloner_core.drivers import DiskSnapshotInterface, Lane
from vmcloner_core.errors import Conflict, NotFound, VmclonerError
from vmcloner_core.model import (
    DiskSnapshot,
    Outcome,
    SnapshotLabels,
    SnapshotRequest,
    Volume,
)
from vmcloner_lvm import batches, tags
from vmcloner_lvm.activation import deactivate
from vmcloner_lvm.naming import checked
from vmcloner_lvm.pool import Pool
from vmcloner_lvm.records import as_volume, disk, foreign, labels_of
from vmcloner_lvm.session import Session
from vmcloner_lvm.transaction import NewVolume
from vmcloner_lvm.volumegroup import ThinVolume, VolumeGroup

T = TypeVar("T")
Errors = dict[str, VmclonerError]


class ThinSnapshots(DiskSnapshotInterface):
    """The snapshots in a thin pool. Thread-safe.

    :param name: the pool's name in the settings.
    """

    # As large as the batches of clones, and for the same reason.
    lane = Lane(batch=512)

    def __init__(self, pool: Pool, name: str, strategy: batches.Strategy) -> None:
        self._pool = pool
        self._name = name
        self._strategy = strategy

    @property
    def _group(self) -> str:
        return self._pool.lvm.group

    # --- taking ---------------------------------------------------------------------------------

    def check_name(self, key: str) -> None:
        """See :meth:`DiskSnapshotInterface.check_name`."""
        checked(key, f"snapshot {key}", self._group)

    def create(self, requests: Sequence[SnapshotRequest]) -> Iterator[Outcome[DiskSnapshot]]:
        """See :meth:`DiskSnapshotInterface.create`."""
        by_key = {request.key: request for request in requests}
        with self._pool.locked() as session:
            plan = functools.partial(self._new, session)
            new, errors = _sorted(by_key, lambda key: plan(by_key[key]))
            missing = {key: each for key, each in new.items() if each is not None}
            make = functools.partial(
                batches.create, session, list(missing.values()), self._strategy
            )
            errors |= self._done(session, missing, make)
            group = session.group
        for key, request in by_key.items():
            error = errors.get(key)
            found = group.thin[key] if error is None else None
            made = self._as_known(found, request.labels) if found is not None else None
            yield Outcome(key=key, value=made, error=error, changed=key in missing)

    def _new(self, session: Session, request: SnapshotRequest) -> NewVolume | None:
        """Return the new volume for a request, None if it is there."""
        if self._found(session.group, request.labels) is not None:
            return None
        volume = request.volume
        found = disk(session.group, self._pool.name, volume.name, volume.labels)
        if found is None:
            raise NotFound(f"volume {volume.path} is gone", hint="run its create again")
        return NewVolume(
            name=checked(request.key, f"snapshot {request.labels.name}", self._group),
            size=found.size,
            tags=tags.encode(request.labels.to_mapping()),
            origin=volume.name,
        )

    def _found(
        self, group: VolumeGroup, labels: SnapshotLabels, *, exactly: bool = True
    ) -> ThinVolume | None:
        """Return a snapshot's volume, None if there is none of that name.

        :param exactly: it has to be of the same run too.
        :raises Conflict: it is not ours, or another one.
        """
        name = labels.key
        if name not in group.logical:
            return None
        volume = group.thin.get(name)
        found = _labels(volume) if volume is not None and volume.pool == self._pool.name else None
        if volume is None or found is None:
            raise foreign(group, self._pool.name, name)
        same = found.same(labels) if exactly else found.labels.same_clone(labels.labels)
        if not same:
            raise Conflict(
                f"snapshot {self._group}/{name} exists already, of another run or template",
                hint="vmcloner snapshot delete, or choose another name",
            )
        return volume

    # --- reverting and removing -----------------------------------------------------------------

    def revert(self, snapshots: Sequence[DiskSnapshot]) -> Iterator[Outcome[Volume]]:
        """See :meth:`DiskSnapshotInterface.revert`. All are replaced in one transaction."""
        by_key = {snapshot.labels.volume: snapshot.labels for snapshot in snapshots}
        with self._pool.locked() as session:
            plan = functools.partial(self._replacement, session)
            new, errors = _sorted(by_key, lambda key: plan(by_key[key]))
            there = [key for key in new if key in session.group.thin]
            errors |= self._idle(there)
            fit = {key: each for key, each in new.items() if key not in errors}
            old = [key for key in there if key in fit]
            replace = functools.partial(
                batches.replace, session, old, list(fit.values()), self._strategy
            )
            try:
                if fit:
                    replace()
            except VmclonerError as error:
                session.reread()
                errors |= dict.fromkeys(fit, error)
            group = session.group
        for key in by_key:
            yield Outcome(key=key, value=self._volume(group, key, errors), error=errors.get(key))

    def _volume(self, group: VolumeGroup, key: str, errors: Errors) -> Volume | None:
        found = group.thin.get(key)
        labels = labels_of(found) if found is not None and key not in errors else None
        if found is None or labels is None:
            return None
        return as_volume(self._group, found, labels, self._name)

    def _replacement(self, session: Session, labels: SnapshotLabels) -> NewVolume:
        """Return the volume that a snapshot's becomes."""
        kept = self._found(session.group, labels)
        if kept is None:
            raise NotFound(
                f"snapshot {self._group}/{labels.key} is gone", hint="vmcloner snapshot list"
            )
        found = disk(session.group, self._pool.name, labels.volume, labels.labels)
        own = labels_of(found) if found is not None else None
        if found is not None:
            session.check_removable(labels.volume)
        return NewVolume(
            name=labels.volume,
            size=kept.size,
            tags=tags.encode((own or labels.labels).to_mapping()),
            origin=kept.name,
        )

    def delete(self, snapshots: Sequence[DiskSnapshot]) -> Iterator[Outcome[None]]:
        """See :meth:`DiskSnapshotInterface.delete`."""
        by_key = {snapshot.key: snapshot.labels for snapshot in snapshots}
        with self._pool.locked() as session:
            plan = functools.partial(self._removable, session)
            found, errors = _sorted(by_key, lambda key: plan(by_key[key]))
            there = [key for key, name in found.items() if name is not None]
            errors |= self._idle(there)
            idle = [key for key in there if key not in errors]
            try:
                if idle:
                    batches.remove(session, idle, self._strategy)
            except VmclonerError as error:
                left = session.reread().thin
                stray = session.stray_id() is not None  # the kernel still has them
                errors |= {key: error for key in idle if stray or key in left}
        for key in by_key:
            yield Outcome(key=key, error=errors.get(key), changed=key in there)

    def _removable(self, session: Session, labels: SnapshotLabels) -> str | None:
        """Return the name of a snapshot's volume that can be removed, None if it is gone."""
        found = self._found(session.group, labels, exactly=False)
        if found is None:
            return None
        session.check_removable(found.name)
        return found.name

    def _idle(self, names: Sequence[str]) -> Errors:
        """Deactivate volumes; returns the errors of those that are in use."""
        errors = deactivate(self._pool.lvm, self._pool.mapper, names, held=True)
        return {name: error for name, error in errors.items() if error is not None}

    def _done(
        self, session: Session, new: dict[str, NewVolume], make: Callable[[], None]
    ) -> Errors:
        """Make new volumes; returns the errors of those that are not there then."""
        try:
            if new:
                make()
        except VmclonerError as error:
            session.reread()
            left = session.pool.messages.creates
            whole = session.stray_id() is None
            there = {k for k in new if whole and k not in left and k in session.group.thin}
            return {key: error for key in new if key not in there}
        return {}

    # --- reading --------------------------------------------------------------------------------

    def found(self) -> tuple[DiskSnapshot, ...]:
        """See :meth:`DiskSnapshotInterface.found`."""
        volumes = self._pool.read().thin.values()
        return tuple(
            self._as_known(each, labels)
            for each in volumes
            if each.pool == self._pool.name and (labels := _labels(each)) is not None
        )

    def need(self, volumes: Sequence[Volume]) -> int:  # noqa: ARG002 - it shares all data
        """See :meth:`DiskSnapshotInterface.need`."""
        return 0

    def _as_known(self, volume: ThinVolume, labels: SnapshotLabels) -> DiskSnapshot:
        path = Path(f"/dev/{self._group}/{volume.name}")
        return DiskSnapshot(labels=labels, pool=self._name, path=path, size=volume.size)


def _labels(volume: ThinVolume) -> SnapshotLabels | None:
    """Return the labels of a snapshot's volume, None if the volume is not one."""
    if "." not in volume.name or tags.DRAFT in volume.tags:
        return None
    values = tags.decode(volume.tags)
    labels = SnapshotLabels.from_mapping(values) if values is not None else None
    return labels if labels is not None and labels.key == volume.name else None


def _sorted(keys: Iterable[str], plan: Callable[[str], T]) -> tuple[dict[str, T], Errors]:
    """Return what ``plan`` returns for each key, and the errors of the others."""
    planned: dict[str, T] = {}
    errors: Errors = {}
    for key in keys:
        try:
            planned[key] = plan(key)
        except VmclonerError as error:
            errors[key] = error
    return planned, errors
