"""What comes before clones' disks are removed or replaced: that nothing else uses them."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from vmcloner_core.disk_users import DiskUsers, check_back
from vmcloner_core.drivers import HypervisorDriver, Lane
from vmcloner_core.errors import HostCommandError, VmclonerError, WrongState
from vmcloner_core.model import Outcome, Volume
from vmcloner_core.outcomes import settled
from vmcloner_core.pipeline import More, Work
from vmcloner_core.steps.step import HypervisorStep, Run

log = logging.getLogger(__name__)


class CheckUse(HypervisorStep):
    """Check that nothing but a clone uses its disks; and that its domain is still its own."""

    name = "check"
    past = "checked"

    def lane_of(self, driver: HypervisorDriver) -> Lane:  # noqa: ARG002 - reads what was read once
        """Return one call for all."""
        return Lane(batch=sys.maxsize)

    def call(
        self, run: Run, driver: HypervisorDriver, works: Sequence[Work], _more: More
    ) -> Iterator[Outcome[object]]:
        """See :meth:`Step.call`."""
        for work in works:
            try:
                self._check(run, driver, work)
            except VmclonerError as error:
                yield Outcome(key=work.name, error=error)
            else:
                yield Outcome(key=work.name, changed=False)

    @staticmethod
    def _check(run: Run, driver: HypervisorDriver, work: Work) -> None:
        renamed = work.plan.renamed
        if renamed is not None:
            raise WrongState(
                f"{work.name}: its domain was renamed to {renamed!r}",
                hint=f"virsh domrename {renamed} {work.name} (while it is off)",
            )
        users = run.users()
        users.check(work.name, (*work.volumes, *work.plan.kept), driver.is_own_process)
        if "reset" in work.plan.steps:
            check_back(work.name, users.moved(work.name, work.volumes))
        if {"snapshot", "revert"}.intersection(work.plan.steps):
            for moved in users.moved(work.name, work.volumes):
                raise WrongState(
                    f"{work.name}: its disk is on {moved.now}, not on {moved.volume.path}",
                    hint=f"virsh blockcommit, or vmcloner reset {work.name}",
                )


class Renew(HypervisorStep):
    """Remove what belongs to clones' old disks: saved memory, snapshots, firmware variables."""

    name = "renew"
    past = "renewed"
    lane = "undefine_lane"

    def call(
        self, run: Run, driver: HypervisorDriver, works: Sequence[Work], _more: More
    ) -> Iterator[Outcome[object]]:
        """See :meth:`Step.call`."""
        users = run.users()
        disks: dict[str, dict[Path, Volume]] = {}
        for work in works:
            try:
                remove_overlays(users, work)
            except VmclonerError as error:
                yield Outcome(key=work.name, error=error)
            else:
                moved = users.moved(work.name, work.volumes)
                disks[work.name] = {each.now: each.volume for each in moved}
        backend = run.host.drivers.backend("hypervisor", driver.name, "renew")
        yield from settled(lambda: driver.renew(disks), disks, backend)


def remove_overlays(users: DiskUsers, work: Work) -> None:
    """Remove the overlays that snapshots of a clone made beside its volumes; log what is left.

    The lowest first: a domain whose overlay is gone still tells which volume it belonged to.

    :raises HostCommandError: one can't be removed.
    """
    removed = users.overlays(work.name, work.volumes)
    for path in removed:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise HostCommandError(
                f"{work.name}: can't remove its overlay {path}: {error.strerror}"
            ) from error
    for moved in users.moved(work.name, work.volumes):
        for path in moved.overlays or (moved.now,):
            if path not in removed:
                log.warning("%s: its disk was on %s, which was not removed", work.name, path)
