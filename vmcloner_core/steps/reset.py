"""Reset: restore clones' disks to their template's image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import attrs

from vmcloner_core.disks import disk_requests
from vmcloner_core.drivers import StorageDriver
from vmcloner_core.errors import VmclonerError
from vmcloner_core.model import Clone, CloneRequest, Outcome
from vmcloner_core.pipeline import More, Work
from vmcloner_core.request import TargetRequest
from vmcloner_core.steps.action import TargetAction, active, waits
from vmcloner_core.steps.step import Run, StorageStep, made


class Reset(TargetAction):
    """Reset clones to their template's state; those that were running are started again."""

    name = "reset"
    past = "reset"
    order = ("check", "destroy", "renew", "reset", "start", "wait")
    restarts = True

    def steps(self, request: TargetRequest, clone: Clone) -> tuple[str, ...]:
        """See :meth:`TargetAction.steps`."""
        stop, wait = active(clone), waits(request)
        start = stop or request.start or bool(wait)
        return (
            "check",
            *(("destroy",) if stop else ()),
            *(("renew",) if clone.domain is not None else ()),
            "reset",
            *(("start",) if start else ()),
            *wait,
        )


class ResetDisks(StorageStep):
    """Replace clones' volumes by new ones."""

    name = "reset"
    past = "reset"
    lane = "reset_lane"

    def call(
        self, run: Run, driver: StorageDriver, works: Sequence[Work], _more: More
    ) -> Iterator[Outcome[object]]:
        """See :meth:`Step.call`."""
        wanted = []
        for work in works:
            try:
                requests = self._anew(run, driver, work)
                run.host.warm.end(work.name)  # its memory is that of the old disk
                run.host.records.update(work.name, ran={})  # before: what ran is lost with the disk
                wanted.append((work, requests))
            except VmclonerError as error:
                yield Outcome(key=work.name, error=error)
        backend = run.host.drivers.backend("storage", driver.name, "reset")
        works_by = {work.name: work for work, _ in wanted}
        for outcome in made(driver.reset, driver.reset_lane, wanted, run.tally, backend):
            yield self._as_born(run, works_by[outcome.key], outcome)

    @staticmethod
    def _as_born(run: Run, work: Work, outcome: Outcome[object]) -> Outcome[object]:
        """Have a clone whose disk is its warm origin's again be forked at its next start.

        One that has got other sizes since then boots: its origin's memory is of none of these.
        """
        key = work.plan.labels.warm
        try:
            if key is not None and outcome.error is None and not work.plan.known().own_sizes:
                run.host.warm.wait(work.name, key)
        except VmclonerError as error:
            return attrs.evolve(outcome, error=outcome.error or error)
        return outcome

    @staticmethod
    def _anew(run: Run, driver: StorageDriver, work: Work) -> Sequence[CloneRequest]:
        """Return the requests for a clone's new disks: the same sizes, the image's present state.

        :raises NotFound: the pool has no image of its template (any more).
        """
        spec, labels = work.plan.known(), work.plan.labels
        template = spec.template
        origin = run.image(driver, work)
        sizes = {volume.disk: volume.size for volume in work.volumes}

        def as_large(request: CloneRequest) -> CloneRequest:
            if request.disk not in sizes:
                return request
            least = request.origin.size if request.origin is not None else 0
            return attrs.evolve(request, size=max(sizes[request.disk], least))

        wanted = disk_requests(
            template, labels, origin, driver.default_mode, work.plan.disks, spec.disk_size
        )
        return [as_large(request) for request in wanted]
