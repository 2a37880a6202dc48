"""Bring a site to what a lab's file says: order what differs, and make requests of it.

Each request is an ordinary run: it locks its fleet, and can be repeated. Whatever kills an apply,
the same apply compares again and does the rest.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import attrs

from vmcloner_core import scripts
from vmcloner_core.errors import Conflict, Interrupted, PartialFailure, VmclonerError
from vmcloner_core.labs.compare import Comparer, missing
from vmcloner_core.labs.model import Change, Lab, LabResult
from vmcloner_core.labs.site import NetworkOn, Site
from vmcloner_core.model import Clone
from vmcloner_core.names import fold
from vmcloner_core.plan import Readiness, RunResult, Sizes
from vmcloner_core.request import Request, TargetRequest
from vmcloner_core.results import check_result
from vmcloner_core.steps.provision import needed
from vmcloner_core.units import counted

OVER_SSH = ("ssh", "cloud-init")
"""The kinds of readiness after which scripts can be run."""
_NEW = ("create", "replace")
_ENDS = ("remove", "replace")


class Applier:
    """Applies one lab to one site. Used once.

    :param cancelled: tells whether the user wants it to end. :param on_run: called with each run's
        result.
    """

    def __init__(
        self,
        lab: Lab,
        site: Site,
        *,
        cancelled: Callable[[], bool] = lambda: False,
        on_run: Callable[[RunResult], None] = lambda _result: None,
    ) -> None:
        self._lab = lab
        self._site = site
        self._cancelled = cancelled
        self._on_run = on_run
        self._compare = Comparer(lab, site)
        self._results: list[RunResult] = []
        self._failures: list[tuple[str, VmclonerError]] = []
        self._stay: frozenset[str] = frozenset()

    def diff(self) -> tuple[Change, ...]:
        """Return what differs."""
        return self._compare(self._site.survey()).changes

    def __call__(
        self,
        options: Collection[str],
        *,
        dry_run: bool,
        on_changes: Callable[[Sequence[Change], Sequence[Change]], None],
    ) -> LabResult:
        """Apply it; see :meth:`Engine.apply_lab`."""
        with contextlib.nullcontext() if dry_run else self._locked():
            found = self._site.survey()
            compared = self._compare(found)
            todo = tuple(c for c in compared.changes if c.option in ("", *options))
            left = tuple(c for c in compared.changes if c not in todo)
            scripts.check_tools([s for fleet in self._lab.fleets.values() for s in fleet.scripts])
            gone = _gone(todo)
            stay = [clone for clone in found.clones if clone.name not in gone]
            requests = {name: tuple(self._requests(name, stay, todo)) for name in self._lab.order()}
            later = self._site.forecast(self._lab, compared, found, gone, requests)
            if any(change.kind == "network" and change.action == "remove" for change in todo):
                self._check_free(self._compare.unwanted(), later)
            on_changes(todo, left)
            if not dry_run:
                # What lacks an option stays as it is: it isn't started, nor waited for.
                self._stay = frozenset(c.name for c in left if c.action in _ENDS)
                self._carry_out(todo, requests, options)
            return LabResult(changes=todo, left=left, results=tuple(self._results))

    def _requests(
        self, name: str, stay: Sequence[Clone], todo: Sequence[Change]
    ) -> Iterator[Request]:
        """Yield the requests that change a fleet, in their order.

        :param stay: all clones on the host but those that are deleted first.
        """
        own = [c for c in todo if c.fleet == name]
        resized: dict[Sizes, list[str]] = {}
        for change in own:
            if change.action == "resize":
                resized.setdefault(self._compare.sizes(name, change.name), []).append(change.name)
        for sizes, clones in resized.items():  # all with the same new ones at once
            yield self._request("set", clones, sizes=sizes)
        there = {clone.index for clone in stay if clone.fleet == name}
        new = [*missing(there, len(there) + sum(c.action in _NEW for c in own))]
        index = {clone.name: clone.index for clone in stay}
        partial = [index[c.name] for c in own if c.action == "complete"]
        still = [index[c.name] for c in own if c.action == "start"]
        if new or partial or still:
            yield self._lab.request(name, (*new, *partial), tuple(still))

    def _request(self, action: str, clones: Sequence[str], **more: Any) -> TargetRequest:
        """Return a request about clones, which is refused if they aren't the lab's by then."""
        return TargetRequest(action=action, targets=tuple(clones), lab=self._lab.name, **more)

    def _locked(self) -> contextlib.AbstractContextManager[None]:
        return self._site.hold(self._lab, self._cancelled)

    def _carry_out(
        self,
        todo: Sequence[Change],
        requests: Mapping[str, Sequence[Request]],
        options: Collection[str],
    ) -> None:
        self._prepare([c for c in todo if c.action not in ("remove", "replace")])
        gone = _gone(todo)
        if gone:
            self._run(self._request("delete", gone))

        def made(name: str) -> None:
            for request in requests[name]:
                self._run(request)

        settled = functools.partial(self._settle, changed="--provision" in options)
        failed: set[str] = set()
        for level in self._lab.levels():
            failed |= {name for name in level if failed & set(self._lab.fleets[name].after)}
            for step in (made, settled):  # the guests of a level boot beside each other
                for name in [name for name in level if name not in failed]:
                    if not self._succeeds(name, step):
                        failed.add(name)
        self._raise_failures(failed)
        if any(change.kind == "network" and change.action == "remove" for change in todo):
            self._remove([*self._compare.unwanted()])

    def _succeeds(self, name: str, step: Callable[[str], None]) -> bool:
        """Do something to a fleet; a failure is kept: other fleets don't depend on it.

        :raises Interrupted: the user stopped it.
        """
        try:
            step(name)
        except Interrupted:
            raise
        except VmclonerError as error:
            self._failures.append((name, error))
            return False
        return True

    def _prepare(self, todo: Iterable[Change]) -> None:
        """Make images and networks: fleets need them."""
        for change in todo:
            if change.kind == "image":
                image = self._lab.images[change.name]
                if change.action == "pull":
                    self._site.pull(change.name)
                else:
                    self._site.build(change.name, image)
            elif change.kind == "network":
                network = self._lab.networks[change.name]
                request = network.request(change.name, self._lab.name)
                self._site.prepare(request, network.hypervisor)

    def _settle(self, name: str, *, changed: bool) -> None:
        """Wait until a fleet is ready, then run its scripts where they have not run.

        :param changed: run those again that have changed.
        """
        fleet = self._lab.fleets[name]
        found = self._site.survey().clones
        own = [c for c in found if c.fleet == name and c.name not in self._stay]
        clones = [clone.name for clone in own]
        if not fleet.start or not clones:
            return
        ready = fleet.readiness
        wait = self._request("wait", clones, wait=ready, ready=ready is None, timeout=fleet.timeout)
        scripts = functools.partial(
            attrs.evolve, action="provision", scripts=fleet.scripts, changed_scripts=changed
        )
        records = self._site.records(own)
        pending = [n for n, r in records.items() if needed(fleet.scripts, r.ran, changed=changed)]
        if ready is None:
            ready = Readiness.parse(self._compare.template(fleet).readiness)
        if not pending:
            self._run(wait)
        elif ready.kind in OVER_SSH:
            self._run(scripts(wait))  # none waits for another to get its scripts
        else:
            self._run(wait)
            ssh = Readiness.parse(OVER_SSH[0], timeout=fleet.timeout)
            self._run(scripts(wait, targets=tuple(pending), wait=ssh, ready=False))

    def _run(self, request: Request) -> None:
        if self._cancelled():
            raise Interrupted("stopped", hint="run the same command again")
        result = self._site.run(request)
        self._results.append(result)
        self._on_run(result)
        check_result(result)

    def _raise_failures(self, failed: Collection[str]) -> None:
        """Raise what went wrong: the error itself, if it is one of a whole fleet."""
        if not self._failures:
            return
        name, error = self._failures[0]
        if len(failed) == 1 and not isinstance(error, PartialFailure):
            raise self._lab.located(error, f"fleets.{name}") from error
        raise PartialFailure(
            f"apply: {len(failed)} of {counted(len(self._lab.fleets), 'fleet')} not as the file "
            f"says ({', '.join(sorted(failed))}); {name}: {error.message}",
            failures=[pair for name, each in self._failures for pair in _members(name, each)],
            hint="run the same command again",
        ) from error

    def _check_free(self, networks: Iterable[NetworkOn], clones: Iterable[Clone]) -> None:
        """Check that no clones, not even stopped ones, are on networks that are to be removed.

        :raises Conflict: some are.
        """
        used = [(c.host, key, c.name) for c in clones if c.domain for key in c.domain.networks]
        for found in networks:
            place = (found.host, found.network.key)
            names = [name for host, key, name in used if (host, key) == place]
            if names:
                error = Conflict(
                    f"network {found.network.name} can't be removed: {fold(names)} would lose it",
                    hint="delete these clones, or write its table into the file",
                )
                raise self._lab.located(error, "")

    def _remove(self, networks: Iterable[NetworkOn]) -> None:
        for network in networks:
            self._site.remove(network)

    # --- delete ---------------------------------------------------------------------------------

    def parts(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the names of the clones and of the networks that carry the lab's name.

        :raises Conflict: other clones are on one of these networks.
        """
        found = self._site.survey()
        own = dict.fromkeys(clone.name for clone in self._compare.members(found))
        networks = self._site.networks(self._lab)
        self._check_free(networks, [clone for clone in found.clones if clone.name not in own])
        return tuple(own), tuple(dict.fromkeys(each.network.name for each in networks))

    def delete(self) -> RunResult | None:
        """Delete the lab; see :meth:`Engine.delete_lab`."""
        with self._locked():
            clones, _ = self.parts()
            if clones:
                self._run(self._request("delete", clones))
            self._remove(self._site.networks(self._lab))
        return self._results[0] if self._results else None


def _gone(todo: Iterable[Change]) -> tuple[str, ...]:
    """Return the clones that are deleted."""
    return tuple(c.name for c in todo if c.kind == "clone" and c.action in _ENDS)


def _members(fleet: str, error: VmclonerError) -> Sequence[tuple[str, VmclonerError]]:
    return error.failures if isinstance(error, PartialFailure) else [(fleet, error)]
