"""What is on a host: volumes, domains and records, merged by their labels into clones."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Self

import attrs

from vmcloner_core.deadlines import DEADLINE, answers, instance
from vmcloner_core.driver_registry import DriverRegistry
from vmcloner_core.drivers import StorageDriver
from vmcloner_core.errors import BackendError, NotFound, VmclonerError, did_you_mean
from vmcloner_core.model import (
    Clone,
    DiskSnapshot,
    Domain,
    DomainInventory,
    Labels,
    SnapshotLabels,
    State,
    Volume,
)
from vmcloner_core.names import Target, fold, volume_name
from vmcloner_core.records import Records
from vmcloner_core.units import counted

MAX_IDS = 3
"""Ids of other state folders in a message."""


@attrs.frozen(kw_only=True)
class Unseen:
    """A backend that could not be read.

    :param kind: ``storage`` or ``hypervisor``; ``host`` for a whole host of many. :param name: the
        backend's, as in labels; the host's.
    :param whose: which distribution its plugin is of, as the end of a message.
    """

    host: str
    kind: str
    name: str
    error: VmclonerError
    whose: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.name!r} could not be read: {self.error.message}{self.whose}"

    @property
    def hint(self) -> str:
        """The next thing to do about it."""
        return self.error.hint or "vmcloner host check"

    def holds(self, labels: Labels) -> bool:
        """Tell whether a part of a clone with these labels is on it."""
        if self.kind == "host":
            return True
        return self.name == (labels.storage if self.kind == "storage" else labels.hypervisor)


@attrs.frozen(kw_only=True)
class Survey:
    """What was found: clones, names and MAC addresses that others use, and unread backends."""

    clones: tuple[Clone, ...] = ()
    foreign_names: frozenset[str] = frozenset()
    foreign_macs: frozenset[str] = frozenset()
    unseen: tuple[Unseen, ...] = ()

    def only(self, fleets: Collection[str]) -> Self:
        """Return it without the clones of other fleets; their names and addresses are foreign."""
        others = [clone for clone in self.clones if clone.fleet not in fleets]
        macs = [mac for each in others if each.domain is not None for mac in each.domain.macs]
        return attrs.evolve(
            self,
            clones=tuple(clone for clone in self.clones if clone.fleet in fleets),
            foreign_names=self.foreign_names.union(clone.name for clone in others),
            foreign_macs=self.foreign_macs.union(macs),
        )

    def check_seen(self, what: str, labels: Iterable[Labels]) -> None:
        """Check that all backends of clones with these labels could be read.

        :param what: the request, for the message.
        :raises BackendError: one couldn't; names it, and why.
        """
        for each in labels:
            for unseen in self.unseen:
                if unseen.holds(each):
                    raise BackendError(f"{what}: {unseen}", hint=unseen.hint)

    def check_backends(self, what: str, storage: str, hypervisor: str) -> None:
        """Check that a pool and a hypervisor could be read.

        :raises BackendError: one couldn't; names it, and why.
        """
        for unseen in self.unseen:
            if unseen.name == (storage if unseen.kind == "storage" else hypervisor):
                raise BackendError(f"{what}: {unseen}", hint=unseen.hint)

    def check_complete(self, what: str) -> None:
        """Check that everything could be read.

        :raises BackendError: something couldn't; names the first.
        """
        for unseen in self.unseen:
            raise BackendError(f"{what}: {unseen}", hint=unseen.hint)

    @property
    def others(self) -> str | None:
        """How many clones belong to another state folder, and what to do; None if none does."""
        others = [clone for clone in self.clones if not clone.ours]
        if not others:
            return None
        found = {owner for clone in others for owner in owners(clone) if owner is not None}
        more = " and others" if len(found) > MAX_IDS else ""
        ids = " and ".join(sorted(found)[:MAX_IDS]) + more
        return (
            f"{counted(len(others), 'clone')} left alone: of another state folder (id {ids}); use "
            "the settings that they were made with, or if that folder is lost, a new one with that "
            "id in its file id"
        )

    def select(self, targets: Sequence[Target]) -> tuple[Clone, ...]:
        """Return the clones that targets name; see :func:`select`.

        :raises BackendError: a target may be on a backend that could not be read.
        """
        try:
            return select(self.clones, targets)
        except NotFound as error:
            self.check_complete(error.message)
            raise


def look(drivers: DriverRegistry, records: Records, state: str) -> Survey:
    """Return everything on a host. A backend that can't be read is reported, not raised.

    :param state: the id of the host's state folder.
    :raises InvalidRequest: the settings of a backend are wrong.
    """
    host = drivers.host.name
    names = [(kind, name) for kind in ("hypervisor", "storage") for name in drivers.names(kind)]

    def read(kind: str, name: str) -> DomainInventory | _Held:
        if kind == "hypervisor":
            return _inventory(instance(drivers.hypervisor(name).inspect(), DomainInventory))
        return _held(drivers.storage(name))

    drivers.check_settings()  # what else is wrong with a backend, its answer says
    found = answers({key: functools.partial(read, *key) for key in names}, DEADLINE)
    unseen = tuple(
        Unseen(host=host, kind=kind, name=name, error=answer, whose=drivers.whose(kind, name))
        for (kind, name), answer in found.items()
        if isinstance(answer, VmclonerError)
    )
    inventories = [each for each in found.values() if isinstance(each, DomainInventory)]
    pools = [each for each in found.values() if isinstance(each, _Held)]
    clones = merge(
        host,
        [volume for pool in pools for volume in pool.volumes],
        [domain for inventory in inventories for domain in inventory.domains],
        records,
        [stray for inventory in inventories for stray in inventory.strays],
        [snapshot for pool in pools for snapshot in pool.snapshots],
    )
    clones = tuple(
        clone if owners(clone) <= {None, state} else attrs.evolve(clone, ours=False)
        for clone in clones
    )
    absent = _absent(drivers, clones)
    lost, failed = _unlabelled(drivers, clones, (*unseen, *absent))
    unseen = (*unseen, *absent, *failed)
    return Survey(
        clones=tuple(_as_seen(clone, unseen, lost) for clone in clones),
        foreign_names=frozenset().union(*(each.foreign_names for each in inventories)),
        foreign_macs=frozenset().union(*(each.foreign_macs for each in inventories)),
        unseen=unseen,
    )


def _absent(drivers: DriverRegistry, clones: Iterable[Clone]) -> tuple[Unseen, ...]:
    """Return the backends of our clones that the settings do not have."""
    wanted = {
        (kind, getattr(clone.labels, kind))
        for clone in clones
        if clone.ours
        for kind in ("hypervisor", "storage")
    }
    host = drivers.host.name
    return tuple(
        Unseen(
            host=host,
            kind=kind,
            name=name,
            error=BackendError(
                "the settings do not have it",
                hint=f"add its table [hosts.{host}.{kind}.{name}] again",
            ),
        )
        for kind, name in sorted(wanted)
        if name not in drivers.names(kind)
    )


def _unlabelled(
    drivers: DriverRegistry, clones: Iterable[Clone], unseen: Collection[Unseen]
) -> tuple[Mapping[str, Collection[str]], tuple[Unseen, ...]]:
    """Return the names of our clones' missing volumes that are taken, by pool; and what failed."""
    wanted: dict[str, list[str]] = {}
    hidden = {each.name for each in unseen if each.kind == "storage"}
    for clone in clones:
        pool = clone.labels.storage
        missing = _missing(clone)
        if clone.ours and missing and pool not in hidden:
            wanted.setdefault(pool, []).extend(missing)

    def ask(pool: str, names: Sequence[str]) -> frozenset[str]:
        return frozenset(instance(n, str) for n in drivers.storage(pool).unlabelled(names))

    found = answers({pool: functools.partial(ask, pool, names) for pool, names in wanted.items()})
    failed = tuple(
        Unseen(host=drivers.host.name, kind="storage", name=pool, error=answer)
        for pool, answer in found.items()
        if isinstance(answer, VmclonerError)
    )
    return {k: v for k, v in found.items() if not isinstance(v, VmclonerError)}, failed


def _missing(clone: Clone) -> list[str]:
    """Return the names of the volumes that a clone has lost, or does not have yet."""
    there = {volume.name for volume in clone.volumes}
    named = [path.name for path in clone.domain.disks] if clone.domain is not None else []
    wanted = [volume_name(clone.name, 0), *filter(clone.labels.has_volume, named)]
    return [name for name in dict.fromkeys(wanted) if name not in there]


def _as_seen(
    clone: Clone, unseen: Collection[Unseen], lost: Mapping[str, Collection[str]]
) -> Clone:
    """Return a clone with its state if a backend was not seen, and with its unlabelled volumes."""
    taken = lost.get(clone.labels.storage, ())
    unlabelled = tuple(n for n in _missing(clone) if n in taken) if taken and clone.ours else ()
    hidden = {each.kind for each in unseen if each.holds(clone.labels)}
    state = clone.state
    if clone.domain is None and "hypervisor" in hidden:
        state = State.UNKNOWN
    elif clone.domain is not None and state is State.ORPHAN:
        # The disks of another state folder's clone may be in a pool that these settings lack.
        state = clone.domain.state if "storage" in hidden or not clone.ours else state
    return attrs.evolve(clone, state=state, unlabelled=unlabelled)


def owners(clone: Clone) -> set[str | None]:
    """Return the ids of the state folders that parts of a clone belong to."""
    parts = [clone.labels, *(volume.labels for volume in clone.volumes)]
    parts += [snapshot.labels.labels for snapshot in clone.kept]
    return {labels.state for labels in parts}


def _inventory(found: DomainInventory) -> DomainInventory:
    """Return what a hypervisor gave, if all of it is of the right types."""
    for domain in (*found.domains, *found.strays):
        instance(instance(domain, Domain).labels, Labels)
        instance(domain.state, State)
    for names in (found.foreign_names, found.foreign_macs):
        instance(names, frozenset)
    return found


@attrs.frozen
class _Held:
    """What a pool has of clones."""

    volumes: tuple[Volume, ...]
    snapshots: tuple[DiskSnapshot, ...]


def _held(driver: StorageDriver) -> _Held:
    """Return what a pool has, if all of it is of the right types."""
    found: object = driver.volumes()
    volumes = tuple(_volume(each) for each in instance(found, tuple))
    kept: object = driver.snapshots.found() if driver.snapshots is not None else ()
    snapshots = tuple(instance(each, DiskSnapshot) for each in instance(kept, tuple))
    for snapshot in snapshots:
        instance(instance(snapshot.labels, SnapshotLabels).labels, Labels)
    return _Held(volumes, snapshots)


def _volume(found: object) -> Volume:
    volume = instance(found, Volume)
    instance(volume.labels, Labels)
    instance(volume.name, str)
    return volume


def merge(
    host: str,
    volumes: Iterable[Volume],
    domains: Iterable[Domain],
    records: Records,
    strays: Collection[Domain] = (),
    snapshots: Iterable[DiskSnapshot] = (),
) -> tuple[Clone, ...]:
    """Return one clone for each (fleet, index) that has a part, sorted by these.

    A record without other parts is a clone too, so that it can be deleted or completed. Only such
    records are read.

    :param strays: domains with clones' labels under other names.
    """
    disks: dict[tuple[str, int], list[Volume]] = {}
    for volume in volumes:
        disks.setdefault((volume.labels.fleet, volume.labels.index), []).append(volume)
    saved: dict[tuple[str, int], list[DiskSnapshot]] = {}
    for snapshot in snapshots:
        of = snapshot.labels.labels
        saved.setdefault((of.fleet, of.index), []).append(snapshot)
    machines = {(d.labels.fleet, d.labels.index): d for d in domains}
    for stray in strays:
        key = (stray.labels.fleet, stray.labels.index)
        if key not in machines and _is_renamed(stray, disks.get(key, ()), records):
            machines[key] = stray
    recorded = records.names()
    parts = disks.keys() | machines.keys() | saved.keys()
    alone = records.of(recorded - {f"{fleet}-{index}" for fleet, index in parts})
    kept = {(r.labels.fleet, r.labels.index): r.labels for r in alone.values()}
    return tuple(
        _clone(
            host,
            tuple(sorted(disks.get(key, ()), key=lambda volume: volume.disk)),
            machines.get(key),
            kept.get(key),
            recorded,
            tuple(saved.get(key, ())),
        )
        for key in sorted(parts | kept.keys())
    )


def _is_renamed(stray: Domain, disks: Iterable[Volume], records: Records) -> bool:
    """Tell whether a domain under another name is a clone's own, not a copy that a user made."""
    record = records.find(stray.labels.clone)
    if record is not None and record.labels.same_clone(stray.labels):
        return record.uuid == stray.uuid
    return any(volume.path in stray.disks for volume in disks)


def _clone(
    host: str,
    volumes: tuple[Volume, ...],
    domain: Domain | None,
    kept: Labels | None,
    recorded: Collection[str],
    saved: tuple[DiskSnapshot, ...],
) -> Clone:
    own = [*(v.labels for v in volumes), *(each.labels.labels for each in saved)]
    owners = [domain.labels if domain else None, *own, kept]
    labels = next(labels for labels in owners if labels is not None)
    state = State.ALLOCATED
    if domain is not None:
        state = domain.state if volumes else State.ORPHAN
    return Clone(
        labels=labels,
        state=state,
        host=host,
        volumes=volumes,
        domain=domain,
        kept=saved,
        recorded=labels.clone in recorded,
    )


def select(clones: Sequence[Clone], targets: Sequence[Target]) -> tuple[Clone, ...]:
    """Return the clones that targets name, in the clones' order; all of them for no targets.

    :raises NotFound: a fleet has no clones, or a named clone doesn't exist.
    """
    if not targets:
        return tuple(clones)
    error = absent(clones, targets)
    if error is not None:
        raise error
    return tuple(c for c in clones if any(t.matches(c.fleet, c.index) for t in targets))


def absent(clones: Sequence[Clone], targets: Sequence[Target]) -> NotFound | None:
    """Return an error that names the first target of which something isn't there, else None."""
    fleets = sorted({clone.fleet for clone in clones})
    for target in targets:
        if target.fleet not in fleets:
            mine = sorted({clone.fleet for clone in clones if clone.ours})
            return NotFound(f"no fleet {target.fleet!r}", hint=did_you_mean(target.fleet, mine))
        here = {clone.index for clone in clones if clone.fleet == target.fleet}
        missing = [i for i in target.indices or () if i not in here]
        if missing:
            names = fold([f"{target.fleet}-{index}" for index in missing])
            return NotFound(f"no clone {names}", hint=f"vmcloner list {target.fleet}")
    return None
