"""Set: change the memory, the processors and the first disk of clones that exist."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Sequence

import attrs

from vmcloner_core.drivers import HypervisorDriver, Lane, ResizeInterface, StorageDriver
from vmcloner_core.errors import BackendError, InvalidRequest, VmclonerError, WrongState
from vmcloner_core.model import Clone, Outcome, State, Volume
from vmcloner_core.names import fold
from vmcloner_core.outcomes import guarded, settled
from vmcloner_core.pipeline import More, Work
from vmcloner_core.request import TargetRequest
from vmcloner_core.steps.action import TargetAction
from vmcloner_core.steps.step import HypervisorStep, Run, StorageStep
from vmcloner_core.units import format_size

log = logging.getLogger(__name__)


class Set(TargetAction):
    """Change clones' memory, processors and disks."""

    name = "set"
    past = "changed"
    order = ("check", "grow", "resize")

    def steps(self, request: TargetRequest, clone: Clone) -> tuple[str, ...]:  # noqa: ARG002
        """See :meth:`TargetAction.steps`."""
        size = request.sizes
        resize = (size.memory, size.vcpus) != (None, None)
        # Whatever size the disk has: a killed run may not have told the guest or the record.
        return (*(("grow",) if size.disk is not None else ()), *(("resize",) if resize else ()))


# --- steps --------------------------------------------------------------------------------------


class GrowDisk(StorageStep):
    """Make clones' first disks larger; a running guest sees it at once."""

    name = "grow"
    past = "changed"
    lane = "reset_lane"

    def call(
        self, run: Run, driver: StorageDriver, works: Sequence[Work], _more: More
    ) -> Iterator[Outcome[object]]:
        """See :meth:`Step.call`. What writes to a file of a running guest also makes it larger."""
        size = run.plan.sizes.disk
        assert size is not None  # noqa: S101 - the step is only in plans with it
        size = driver.whole(size)
        growing: dict[str, _Growing] = {}
        for work in works:
            try:
                one = _growing(run, work, size)
                if one.live is not None and one.volume.kind == "file":
                    _tell(run, one, size)
            except VmclonerError as error:
                yield Outcome(key=work.name, error=error)
            else:
                growing[one.volume.name] = one
        volumes = [one.volume for one in growing.values()]
        backend = run.host.drivers.backend("storage", driver.name, "grow")
        grow = functools.partial(driver.grow, volumes, size)
        for grown in settled(grow, growing, backend, Volume):
            yield self._told(run, growing[grown.key], size, grown)

    @staticmethod
    def _told(run: Run, growing: _Growing, size: int, grown: Outcome[Volume]) -> Outcome[object]:
        """Tell a running guest and the record of a disk that has grown."""
        work, error = growing.work, grown.error
        if error is None:
            try:
                if growing.live is not None and growing.volume.kind != "file":
                    _tell(run, growing, size)
                keep_values(run, work, disk_size=run.plan.sizes.disk)
            except VmclonerError as lost:
                error = lost
        return Outcome(key=work.name, error=error, changed=grown.changed)


@attrs.frozen(kw_only=True)
class _Growing:
    """A clone's first disk that is to grow. ``live``: tells its guest, None if it isn't running."""

    work: Work
    volume: Volume
    live: ResizeInterface | None


def _tell(run: Run, growing: _Growing, size: int) -> None:
    """Have a running guest see a larger disk."""
    name = growing.work.plan.labels.hypervisor
    with guarded(run.host.drivers.backend("hypervisor", name, "sizes.grow_disk")):
        assert growing.live is not None  # noqa: S101 - callers look
        growing.live.grow_disk(growing.work.name, growing.volume, size)


def _growing(run: Run, work: Work, size: int) -> _Growing:
    """Return a clone's first disk, if it can have that size.

    :raises VmclonerError: it can't, or not now.
    """
    volume = next((each for each in work.volumes if each.disk == 0), None)
    if volume is None:
        raise WrongState(f"{work.name} has no disk", hint="run its create again")
    if size < volume.size:
        raise InvalidRequest(
            f"{work.name}: its disk has {format_size(volume.size)}, and can only grow"
        )
    hypervisor = run.host.drivers.hypervisor(work.plan.labels.hypervisor)
    state = hypervisor.states().get(work.name)
    waits = run.host.warm.waiting().get(work.name, False)  # to be forked: as if it were saved
    if (state is State.SAVED or (waits and state is State.STOPPED)) and size > volume.size:
        raise WrongState(
            f"{work.name} is saved: its memory knows its disk as it is",
            hint=f"vmcloner restore {work.name}, or vmcloner stop {work.name} --kill",
        )
    runs = state in (State.RUNNING, State.PAUSED)
    live = resizes(hypervisor, work.name) if runs else None
    return _Growing(work=work, volume=volume, live=live)


class Resize(HypervisorStep):
    """Change clones' memory and processors: at once where that is possible."""

    name = "resize"
    past = "changed"
    lane = "define_lane"

    def lane_of(self, driver: HypervisorDriver) -> Lane:
        """Return the lane of definitions: this changes these."""
        return driver.define_lane

    def call(
        self, run: Run, driver: HypervisorDriver, works: Sequence[Work], _more: More
    ) -> Iterator[Outcome[object]]:
        """See :meth:`Step.call`."""
        sizes, by_name = run.plan.sizes, {work.name: work for work in works}
        given = {"memory": sizes.memory, "vcpus": sizes.vcpus}
        later = []
        interface = resizes(driver, works[0].name)
        backend = run.host.drivers.backend("hypervisor", driver.name, "sizes.resize")
        change = functools.partial(interface.resize, list(by_name), sizes.memory, sizes.vcpus)
        for outcome in settled(change, by_name, backend, bool):
            error = outcome.error
            if error is None:
                try:
                    keep_values(run, by_name[outcome.key], **given)
                except VmclonerError as lost:
                    error = lost
                later += [outcome.key] if outcome.value is False else []
            yield Outcome(key=outcome.key, error=error, changed=outcome.changed)
        if later:
            log.warning("%s: memory and vcpus change at the next start", fold(later))


def resizes(driver: HypervisorDriver, name: str) -> ResizeInterface:
    """Return a driver's interface for sizes.

    :raises BackendError: it has none.
    """
    if driver.sizes is None:
        raise BackendError(
            f"{name}: hypervisor {driver.name!r} can't change the size of domains",
            hint=f"vmcloner delete {name}, and create it again",
        )
    return driver.sizes


def keep_values(run: Run, work: Work, **values: int | None) -> None:
    """Keep changed values in a clone's record, from which it is made again."""
    record = run.host.records.find(work.name)
    if record is not None:
        new = {key: value for key, value in values.items() if value is not None}
        run.host.records.update(work.name, values={**record.values, **new})
