"""Run playbooks on the clones of several hosts: here, where Ansible and the playbooks are.

A provision's scripts run beside the hosts, and the playbooks after them. Each one's success is
noted in the clone's record on its host. Guests are reached through their hosts.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import attrs

from vmcloner_core import scripts
from vmcloner_core.cancelling import cancellable, pause
from vmcloner_core.errors import BackendError, Interrupted, VmclonerError
from vmcloner_core.hosts.beside import Asked
from vmcloner_core.hosts.calls import CALLS
from vmcloner_core.hosts.links import Links
from vmcloner_core.model import Access, Labels, Outcome, Script
from vmcloner_core.names import fold
from vmcloner_core.plan import CloneResult, Plan, RunResult
from vmcloner_core.remote import FANOUT
from vmcloner_core.request import Request, TargetRequest
from vmcloner_core.steps.provision import needed

STEP = "provision"


def parted(request: Request) -> tuple[Request, tuple[Script, ...]]:
    """Return a request as hosts get it, and its playbooks.

    :raises BackendError: this machine lacks what runs them.
    """
    if not isinstance(request, TargetRequest):
        return request, ()
    playbooks = tuple(script for script in request.scripts if script.playbook is not None)
    scripts.check_tools(playbooks)
    rest = tuple(script for script in request.scripts if script.playbook is None)
    return attrs.evolve(request, scripts=rest), playbooks


@attrs.frozen(kw_only=True)
class Player:
    """Runs playbooks on clones whose fleets are held.

    :param access: returns how to reach clones. :param changed: run those again that have changed.
    :param folder: gets a folder for each host, with what playbooks printed on its clones.
    """

    links: Links
    playbooks: Sequence[Script]
    changed: bool
    access: Callable[[str], Sequence[Outcome[Access]]]
    folder: Path
    cancel: threading.Event

    def __call__(self, result: RunResult, plans: Mapping[str, Plan]) -> RunResult:
        """Run them on the clones that have not failed; returns the result with theirs."""
        good = {each.name for each in result.results if each.error is None}
        hosts = {c.name: host for host, plan in plans.items() for c in plan.clones}
        labels = {c.name: c.labels for plan in plans.values() for c in plan.clones}
        if not good:
            return result
        ran, access = self._ran(good, hosts), self._access(good)

        def one(each: CloneResult) -> CloneResult:
            name = each.name
            return self._tried(each, labels[name], hosts[name], ran[name], access[name])

        with ThreadPoolExecutor(FANOUT, STEP) as pool:
            played = {r.name: pool.submit(one, r) for r in result.results if r.name in good}
            try:
                wait(played.values())
            except KeyboardInterrupt:
                self.cancel.set()
        results = tuple(
            played[each.name].result() if each.name in played else each for each in result.results
        )
        stopped = any(isinstance(each.error, Interrupted) for each in results)
        return attrs.evolve(result, results=results, interrupted=result.interrupted or stopped)

    def _ran(
        self, clones: Collection[str], hosts: Mapping[str, str]
    ) -> dict[str, Outcome[Mapping[str, str]]]:
        """Return what has run on clones, as their hosts have it in their records."""
        there: dict[str, list[str]] = {}
        for name in sorted(clones):
            there.setdefault(hosts[name], []).append(name)
        asked = {host: {"targets": (fold(names),)} for host, names in there.items()}
        missing = BackendError("its host gave no record of it")
        found = {name: Outcome[Mapping[str, str]](key=name, error=missing) for name in clones}
        for host, answer in self.links.ask("records", asked, CALLS["records"].answer).items():
            if isinstance(answer, VmclonerError):
                found |= {name: Outcome(key=name, error=answer) for name in there[host]}
                continue
            known = {record.labels.clone: record.ran for record in answer}
            found |= {n: Outcome(key=n, value=known[n]) for n in there[host] if n in known}
        return found

    def _access(self, clones: Collection[str]) -> dict[str, Outcome[Access]]:
        missing: VmclonerError = BackendError("its host did not answer for it")
        try:
            found = {each.key: each for each in self.access(fold(sorted(clones)))}
        except VmclonerError as error:
            found, missing = {}, error
        return {name: found.get(name) or Outcome(key=name, error=missing) for name in clones}

    def _tried(
        self,
        result: CloneResult,
        labels: Labels,
        host: str,
        ran: Outcome[Mapping[str, str]],
        access: Outcome[Access],
    ) -> CloneResult:
        """Run on one clone what it needs; returns its result with that."""
        started = time.monotonic()

        def noted(script: Script) -> None:
            asked = Asked(name=result.name, ran={script.name: script.digest})
            self.links.one(host, "ran", asked, type(None))

        file = self.folder / host / f"{result.name}.log"
        try:
            wanted = needed(self.playbooks, ran.unwrap(), changed=self.changed)
            if not wanted:
                return result
            with cancellable(self.cancel):
                pause(0)
                scripts.run_all(wanted, labels, access.unwrap(), file, noted)
        except VmclonerError as error:
            result = attrs.evolve(result, error=error, failed_step=STEP)
        else:
            result = attrs.evolve(result, changed=(*result.changed, STEP))
        spent = result.seconds.get(STEP, 0.0) + time.monotonic() - started
        return attrs.evolve(result, seconds={**result.seconds, STEP: spent})
