"""Provision: run scripts and playbooks once on each clone that is ready."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from vmcloner_core.drivers import HypervisorDriver, Lane
from vmcloner_core.errors import VmclonerError, WrongState
from vmcloner_core.model import Clone, Outcome, Script
from vmcloner_core.pipeline import More, Work
from vmcloner_core.remote import FANOUT
from vmcloner_core.request import TargetRequest
from vmcloner_core.steps.action import TargetAction, waits
from vmcloner_core.steps.step import HypervisorStep, Run

LOG = "run.log"
"""What the last scripts printed, in the folder of the clone's record."""


class Provision(TargetAction):
    """Run scripts on clones that have not had them."""

    name = "provision"
    past = "provisioned"
    order = ("check", "wait", "provision")
    tells = ("wait", "provision")
    own_word = False

    def steps(self, request: TargetRequest, clone: Clone) -> tuple[str, ...]:  # noqa: ARG002
        """See :meth:`TargetAction.steps`."""
        return (*waits(request), "provision")


class RunScripts(HypervisorStep):
    """Run scripts in a guest, in their order; each one's success is noted in the clone's record."""

    name = "provision"
    past = "provisioned"
    patience = math.inf  # each script has its own time limit

    def lane_of(self, driver: HypervisorDriver) -> Lane:  # noqa: ARG002 - it isn't called
        """Return one call for each clone: none waits for another's scripts."""
        return Lane(batch=1, concurrency=FANOUT)

    def call(
        self, run: Run, driver: HypervisorDriver, works: Sequence[Work], _more: More
    ) -> Iterator[Outcome[object]]:
        """See :meth:`Step.call`."""
        for work in works:
            try:
                yield Outcome(key=work.name, changed=self._provisioned(run, driver, work))
            except VmclonerError as error:
                yield Outcome(key=work.name, error=error)

    @staticmethod
    def _provisioned(run: Run, driver: HypervisorDriver, work: Work) -> bool:
        """Run what a clone still needs; returns whether that was anything."""
        from vmcloner_core import scripts

        host, labels = run.host, work.plan.labels
        record = host.records.find(work.name)
        if record is None:
            raise WrongState(
                f"{work.name} has no record that could note its scripts",
                hint=f"vmcloner delete {work.name}, and create it again",
            )
        wanted = needed(run.plan.scripts, record.ran, changed=run.plan.changed_scripts)
        if not wanted:
            return False
        found = driver.addresses().get(work.name, ())
        address = found[0] if found else host.records.planned_address(work.name)
        if address is None:
            raise WrongState(
                f"{work.name}: no address is known",
                hint='scripts need ssh: in [[nics]], kind = "network" or "bridge", or with "user" '
                "forward = 22",
            )
        ran = dict(record.ran)

        def noted(script: Script) -> None:
            ran[script.name] = script.digest
            host.records.update(work.name, ran=dict(ran))

        file = host.records.folder / work.name / LOG
        scripts.run_all(wanted, labels, host.access(labels, address), file, noted)
        return True


def needed(
    wanted: Sequence[Script], ran: Mapping[str, str], *, changed: bool
) -> tuple[Script, ...]:
    """Return the scripts that a clone still needs.

    :param ran: see :attr:`Record.ran`. :param changed: also those whose files have changed since.
    """
    return tuple(
        script
        for script in wanted
        if script.name not in ran or (changed and ran[script.name] != script.digest)
    )
