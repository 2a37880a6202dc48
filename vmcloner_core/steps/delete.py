"""Delete: stop clones, then remove everything that belongs to them."""

from __future__ import annotations

import functools
import uuid
from collections.abc import Iterator, Sequence
from itertools import chain

from vmcloner_core.drivers import HypervisorDriver, StorageDriver
from vmcloner_core.errors import Conflict, VmclonerError
from vmcloner_core.model import Clone, Outcome, State
from vmcloner_core.outcomes import settled
from vmcloner_core.pipeline import More, Work
from vmcloner_core.request import TargetRequest
from vmcloner_core.steps.action import TargetAction, active
from vmcloner_core.steps.check import remove_overlays
from vmcloner_core.steps.snapshots import removed
from vmcloner_core.steps.step import (
    HypervisorStep,
    Run,
    StorageStep,
    by_pool,
    cut,
    owners,
    together,
)


class Delete(TargetAction):
    """Stop and remove clones; missing ones are a success."""

    name = "delete"
    past = "deleted"
    order = ("check", "destroy", "undefine", "remove")
    lowest_first = False
    missing_ok = True

    def steps(self, request: TargetRequest, clone: Clone) -> tuple[str, ...]:  # noqa: ARG002
        """See :meth:`TargetAction.steps`."""
        if clone.unlabelled:
            return ("remove",)  # which fails, before anything of it is changed
        return (
            "check",
            *(("destroy",) if active(clone) else ()),
            "undefine",  # also of a domain that is gone: what it left
            *(("remove",) if clone.volumes or clone.kept or clone.recorded else ()),
        )


class Undefine(HypervisorStep):
    """Undefine clones' domains, and remove what they were started from or left."""

    name = "undefine"
    past = "deleted"
    lane = "undefine_lane"

    def undoes(self, work: Work) -> bool:
        """Keep a domain that existed before the run."""
        return work.plan.state in (None, State.ALLOCATED)

    def call(
        self, run: Run, driver: HypervisorDriver, works: Sequence[Work], _more: More
    ) -> Iterator[Outcome[object]]:
        """See :meth:`Step.call`."""
        there: list[str] = []
        gone: dict[str, uuid.UUID | None] = {}
        for work in works:
            try:
                if run.plan.action != Delete.name:
                    there.append(work.name)  # a roll-back's domains have had no snapshots
                    continue
                remove_overlays(run.users(), work)
                if work.plan.domain is not None:
                    there.append(work.name)
                else:
                    record = run.host.records.find(work.name)
                    gone[work.name] = record.uuid if record is not None else None
            except VmclonerError as error:
                yield Outcome(key=work.name, error=error)
        backend = run.host.drivers.backend("hypervisor", driver.name)
        for outcome in chain(
            settled(lambda: driver.undefine(there), there, backend.of("undefine")),
            settled(lambda: driver.forget(gone), gone, backend.of("forget")),
        ):
            yield outcome if outcome.error is not None else run.host.starter.forget(outcome)


class Remove(StorageStep):
    """Remove clones' snapshots and volumes, then their records."""

    name = "remove"
    past = "deleted"
    lane = "delete_lane"

    def members(self, work: Work) -> int:
        """Return its number of volumes: drivers count these."""
        return max(1, len(work.volumes) + len(work.plan.kept))

    def undoes(self, work: Work) -> bool:
        """Keep volumes that existed before the run."""
        return bool(work.own)

    def call(
        self, run: Run, _driver: StorageDriver, works: Sequence[Work], _more: More
    ) -> Iterator[Outcome[object]]:
        """See :meth:`Step.call`. Also removes disks in another pool than the clone's."""
        drivers = run.host.drivers
        yield from (_refused(work) for work in works if work.plan.unlabelled)
        works = [work for work in works if not work.plan.unlabelled]
        kept = {outcome.key: outcome for outcome in self._without_snapshots(run, works)}
        yield from (outcome for outcome in kept.values() if outcome.error is not None)
        works = [work for work in works if kept[work.name].error is None]
        outcomes = (
            outcome
            for name, volumes in by_pool(works).items()
            for batch in cut(volumes, drivers.storage(name).delete_lane.batch)
            for outcome in settled(
                functools.partial(drivers.storage(name).delete, batch),
                [volume.name for volume in batch],
                drivers.backend("storage", name, "delete"),
            )
        )
        by_name = {work.name: work for work in works}
        empty = (Outcome[object](key=work.name) for work in works if not work.volumes)
        for gone in chain(empty, together(owners(works), outcomes)):
            yield self._forgotten(run, by_name[gone.key], gone)

    @staticmethod
    def _without_snapshots(run: Run, works: Sequence[Work]) -> Iterator[Outcome[object]]:
        """Remove clones' snapshots, which a roll-back's clones don't have."""
        roll_back = run.plan.action != Delete.name
        yield from removed(run, [(work, () if roll_back else work.plan.kept) for work in works])

    @staticmethod
    def _forgotten(run: Run, work: Work, removed: Outcome[object]) -> Outcome[object]:
        """Remove the record of a clone of which nothing else is left.

        The record goes last: while any part of a clone is left, the same create gives it the same
        identity again, which its disk and ``known_hosts`` files already have. So a roll-back keeps
        the record of a clone that existed in part before the run.
        """
        if removed.error is not None or not work.forget:
            return removed
        try:
            run.host.snapshots.forget(work.name)
            run.host.warm.end(work.name)
            run.host.records.remove(work.plan.labels)
        except VmclonerError as error:
            return Outcome(key=work.name, error=error)
        return removed


def _refused(work: Work) -> Outcome[object]:
    """Return the outcome of a clone whose disks may be what has lost its labels."""
    plan = work.plan
    names = ", ".join(plan.unlabelled)
    error = Conflict(
        f"volume {names} in storage {plan.labels.storage!r} does not have the labels of "
        f"{plan.name}: nothing of it was removed",
        hint="remove that volume yourself or restore its labels, then run the same command again",
    )
    return Outcome(key=work.name, error=error)
