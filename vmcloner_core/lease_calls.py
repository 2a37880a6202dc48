"""What an engine does with leases, and to collect regularly: a part of the engine's API."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import attrs

from vmcloner_core.errors import InvalidRequest, NotFound
from vmcloner_core.local_host import LocalHost
from vmcloner_core.model import Clone, Lease, Moment, check_ttl
from vmcloner_core.names import Target, fold, parse_targets
from vmcloner_core.request import check_aim
from vmcloner_core.settings import Settings

if TYPE_CHECKING:
    from vmcloner_core.records import Record
    from vmcloner_core.schedule import ScheduleChange


@attrs.frozen(kw_only=True)
class LeaseState:
    """A clone's lease as it is now.

    :param lease: None if it has none, and never expires.
    :param left: seconds until its end, 0 or less if it has ended; None without a lease.
    :param changed: whether the call that returned this has changed, or would change, the lease.
    """

    clone: Clone
    lease: Lease | None
    left: float | None
    changed: bool = False


class LeaseCalls(ABC):
    """The calls of :class:`~vmcloner_core.Engine` that are about leases and regular collecting."""

    settings: Settings

    @property
    @abstractmethod
    def _host(self) -> LocalHost:
        """The host that the engine works on."""

    @abstractmethod
    def _held(self, names: Sequence[str]) -> AbstractContextManager[object]:
        """Hold locks; see :meth:`LocalHost.hold`."""

    def leases(self, clones: Iterable[Clone]) -> tuple[LeaseState, ...]:
        """Return the leases of clones, in their order. Locks nothing."""
        clones, now = tuple(clones), self._host.now()
        found = self._host.records.leases([clone.name for clone in clones])
        return tuple(_state(clone, found.get(clone.name), now) for clone in clones)

    def extend_lease(
        self,
        *targets: str,
        ttl: int | str | None = None,
        everything: bool = False,
        dry_run: bool = False,
    ) -> tuple[LeaseState, ...]:
        """Let clones' leases end ``ttl`` seconds from now, or when they do if that is later.

        A clone without a lease gets one.

        :param ttl: ``never`` takes the leases away; None for the seconds that each lease was
            granted for, else ``defaults.ttl`` of the settings.
        :param everything: all clones of this state folder, instead of targets.
        :raises InvalidRequest: ``ttl`` is out of range, or None where neither is known.
        :raises NotFound: a target names no clone, or a clone has no record; nothing was changed.
        :raises Conflict: a clone belongs to another state folder; nothing was changed.
        """
        check_ttl(ttl)

        def extended(record: Record, now: Moment) -> Lease | None:
            seconds = ttl
            if seconds is None:
                seconds = (record.lease.ttl if record.lease else 0) or self.settings.defaults.ttl
            if seconds is None:
                raise InvalidRequest(
                    f"{record.labels.clone} has no lease to extend",
                    hint="say for how long: --ttl 4h",
                )
            if isinstance(seconds, str):
                return None
            if record.lease is not None and record.lease.left(now) >= seconds:
                return record.lease
            return self._host.lease(seconds)

        return self._release("lease extend", targets, extended, everything, dry_run)

    def end_lease(
        self, *targets: str, everything: bool = False, dry_run: bool = False
    ) -> tuple[LeaseState, ...]:
        """End clones' leases now: the next ``gc --expired`` removes them. Idempotent.

        A clone without a lease gets one that has ended. Parameters and errors as for
        :meth:`extend_lease`.
        """

        def ended(record: Record, now: Moment) -> Lease | None:
            over = record.lease is not None and record.lease.left(now) <= 0
            return record.lease if over else Lease(granted=now, ttl=0)

        return self._release("lease end", targets, ended, everything, dry_run)

    def prepare_gc(
        self, *, every: int = 900, orphans: bool = False, dry_run: bool = False
    ) -> ScheduleChange:
        """Run ``gc --expired`` with these settings regularly; see :meth:`Schedule.prepare`.

        :param every: seconds between two runs. :param orphans: also with ``--orphans``.
        """
        from vmcloner_core.schedule import own_command

        config = self.settings.file
        words = ["--quiet", *(["--config", str(config)] if config is not None else [])]
        words += ["gc", "--expired", *(["--orphans"] if orphans else []), "--yes"]
        command = (*own_command(), *words)
        if dry_run:
            return self._host.schedule().prepare(command, every, dry_run=True)
        with self._held(["schedule"]):
            return self._host.schedule().prepare(command, every)

    def remove_gc(self, *, dry_run: bool = False) -> ScheduleChange:
        """Undo :meth:`prepare_gc`; see :meth:`Schedule.remove`."""
        if dry_run:
            return self._host.schedule().remove(dry_run=True)
        with self._held(["schedule"]):
            return self._host.schedule().remove()

    def _release(
        self,
        what: str,
        targets: Sequence[str],
        change: Callable[[Record, Moment], Lease | None],
        everything: bool,
        dry_run: bool,
    ) -> tuple[LeaseState, ...]:
        """Change leases with their fleets locked; all are checked before the first is changed."""
        check_aim(what, targets, everything=everything)
        wanted = parse_targets(targets)
        fleets = {target.fleet for target in wanted}
        if everything:
            clones = self._host.survey().clones
            fleets = {clone.fleet for clone in clones if clone.ours and not clone.making}
        if dry_run:
            return self._changed(wanted, fleets, change, dry_run=True)
        with self._held([f"fleet/{fleet}" for fleet in fleets]):
            return self._changed(wanted, fleets, change, dry_run=False)

    def _changed(
        self,
        wanted: Sequence[Target],
        fleets: Collection[str],
        change: Callable[[Record, Moment], Lease | None],
        *,
        dry_run: bool,
    ) -> tuple[LeaseState, ...]:
        from vmcloner_core.planner import check_ours

        clones = self._host.survey().select(wanted)
        if wanted:
            check_ours(clones)
        else:
            clones = tuple(c for c in clones if c.ours and c.fleet in fleets)
        now, records = self._host.now(), self._host.records
        kept = self._records(clones)
        leases = {name: change(record, now) for name, record in kept.items()}
        states = []
        for clone in clones:
            lease = leases[clone.name]
            changed = lease != kept[clone.name].lease
            if changed and not dry_run:
                records.update(clone.name, lease=lease)
            states.append(_state(clone, lease, now, changed=changed))
        return tuple(states)

    def _records(self, clones: Sequence[Clone]) -> Mapping[str, Record]:
        """Return the records of clones.

        :raises NotFound: one has none, as those of old versions, or another clone's.
        """
        found = self._host.records.of([clone.name for clone in clones])
        without = [
            clone.name
            for clone in clones
            if clone.name not in found or not found[clone.name].labels.same_clone(clone.labels)
        ]
        if without:
            raise NotFound(
                f"{fold(without)} has no record, where its lease would be",
                hint="vmcloner delete, and create it again",
            )
        return found


def _state(clone: Clone, lease: Lease | None, now: Moment, *, changed: bool = False) -> LeaseState:
    left = lease.left(now) if lease is not None else None
    return LeaseState(clone=clone, lease=lease, left=left, changed=changed)
