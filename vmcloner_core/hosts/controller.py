"""The controller of many hosts: the calls of an engine, for all of them together.

Its answers are those of :class:`~vmcloner_core.engine.Engine`, so a program that uses one can use
the other. Semantics:

- A run takes its fleets' locks on every host, in the order of the hosts' names, before it looks at
  any; so two controllers can't make the same clone twice.
- A run is refused while a host can't be reached, since that host may have the clones that are
  missing elsewhere. ``without`` leaves hosts out deliberately: then only indices above the highest
  known one are made.
- A host that is lost during a run fails its own clones; the others are finished. The same command
  completes the rest when the host is back.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

import attrs

from vmcloner_core import own_key
from vmcloner_core.birth import Birth
from vmcloner_core.cancelling import Cancellation
from vmcloner_core.errors import (
    Conflict,
    Interrupted,
    InvalidRequest,
    NotFound,
    VmclonerError,
    WrongState,
    did_you_mean,
)
from vmcloner_core.hosts import merging, parts, playing
from vmcloner_core.hosts.adapting import check_devices, own_networks
from vmcloner_core.hosts.beside import Asked, Beside, Found
from vmcloner_core.hosts.carrier import Carrier, InProcess, Unreachable
from vmcloner_core.hosts.draining import Drained, Why, placed
from vmcloner_core.hosts.images import OWN, Images
from vmcloner_core.hosts.links import Links, each
from vmcloner_core.hosts.moving import FINISH, SEND, Mover, check_all, judge
from vmcloner_core.hosts.reads import Reads
from vmcloner_core.lab_calls import LabCalls
from vmcloner_core.model import Host, Moved, RemoteHost, Script
from vmcloner_core.names import fold, parse_targets
from vmcloner_core.plan import ALL, OnFailure, Plan, RunResult, Waiting
from vmcloner_core.planning import Planning
from vmcloner_core.plugins import PluginHost
from vmcloner_core.reporting import reported
from vmcloner_core.request import CreateRequest, Request, TargetRequest
from vmcloner_core.run_calls import RunCalls
from vmcloner_core.runlog import RunLog
from vmcloner_core.settings import Settings
from vmcloner_core.survey import Survey

if TYPE_CHECKING:
    from vmcloner_core.labs import Lab
    from vmcloner_core.labs.site import Site

log = logging.getLogger(__name__)
T = TypeVar("T")
MAX_REPLANS = 10
"""How often hosts plan again because others use the same MAC addresses."""


class Controller(RunCalls, LabCalls, Reads):
    """Makes, runs and removes clones on several hosts.

    Reads may be called from any thread. One run at a time: a second waits.

    :param own: the controller's own folders, as those of a host: its run logs are there.
    :param without: hosts that are left out of everything.
    """

    def __init__(
        self,
        settings: Settings,
        plugins: PluginHost,
        carrier: Carrier,
        addresses: Sequence[RemoteHost],
        own: Host,
        *,
        version: str,
        without: Collection[str] = (),
    ) -> None:
        known = sorted(address.name for address in addresses)
        for name in without:
            if name not in known:
                raise NotFound(f"unknown host {name!r}", hint=did_you_mean(name, known))
        super().__init__(settings, plugins, own)
        if known and not set(known) - set(without):
            raise InvalidRequest("no host is left", hint="leave out fewer with --without")
        self._connections = Links(carrier, [a for a in addresses if a.name not in without], version)
        self._own = Links(
            InProcess({OWN: Beside(lambda _plugin: self._own_engine())}),
            [RemoteHost(name=OWN, ssh=OWN, python="")],
            version,
        )
        self.without = tuple(sorted(without))
        self.drained = Drained(own.state)
        self._run_lock = threading.Lock()
        self._cancel = threading.Event()
        self._running: frozenset[str] = frozenset()
        self._calls: list[Cancellation] = []

    @property
    def _links(self) -> Links:
        return self._connections

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the hosts."""
        return self._links.known

    def close(self) -> None:
        """End the connections, and what runs beside the hosts."""
        self._links.close()
        self._own.close()
        super().close()

    def cancel(self) -> None:
        """Stop the current run cleanly on all hosts; safe to call from any thread."""
        self._cancel.set()
        for ending in self._calls:
            ending.cancel()
        running = self._running
        if running:
            asked = dict.fromkeys(running, Asked())
            ask = functools.partial(self._links.ask, "cancel", asked, type(None))
            threading.Thread(target=ask, daemon=True).start()

    @contextlib.contextmanager
    def _cancellable(self) -> Iterator[Cancellation]:
        """See :meth:`LabCalls._cancellable`."""
        ending = Cancellation()
        self._calls.append(ending)
        try:
            yield ending
        finally:
            self._calls.remove(ending)

    def _lab_site(self, lab: Lab) -> Site:
        from vmcloner_core.hosts.labs import ManyHosts
        from vmcloner_core.labs.one_host import OneHost

        host = self._this_host
        planning = Planning(self.settings, self.plugins, host)
        return ManyHosts(lab, self, self._links, OneHost(self._own_engine(), host, planning))

    # --- runs -----------------------------------------------------------------------------------

    def plan(self, request: Request) -> Plan:
        """Return what a request would do, checked against all hosts. Changes nothing."""
        request, _ = playing.parted(self._reach_all(request))
        fleets = self._fleets(request)
        images, memory = self._images(request)
        asked = {name: _asked(request, name, fleets, memory) for name in self._links.names}
        found = self._links.all("look", asked, Found)
        return self._plans("preview", request, found, images)[0]

    def check_room(self, request: CreateRequest, gone: Collection[str], *, new: bool) -> None:
        """Check that hosts have room for new clones, once some others are deleted. Changes nothing.

        :param gone: the names of those. :param new: the template isn't anywhere yet, so that a
            clone's memory isn't known.
        :raises VmclonerError: no host may get them, or not all of them.
        """
        request = cast("CreateRequest", self._reach_all(request))
        if new:
            return
        _, memory = self._images(request)
        asked = {n: _asked(request, n, (request.fleet,), memory) for n in self._links.names}
        found = {
            name: parts.without(each, gone)
            for name, each in self._links.all("look", asked, Found).items()
        }
        need = max((each.need for each in found.values()), default=0)
        parts.of_create(request, found, need, lost=self._partial)

    def run(
        self, request: Request, *, on_plan: Callable[[Plan], None] = lambda _plan: None
    ) -> RunResult:
        """Plan a request and carry the plan out on all hosts, with its fleets locked on each.

        :param on_plan: called with the whole plan before anything is changed; may raise to stop.
        :raises VmclonerError: the request can't be carried out at all; nothing was changed.
        """
        with self._run_lock:
            self._cancel.clear()
            request, playbooks = playing.parted(self._reach_all(request))
            if self._links.absent:
                self.drained.add(dict.fromkeys(self._links.absent, Why.LOST))
            images, memory = self._images(request)
            with self._held(self._fleets(request), request, memory) as found:
                plan, plans = self._plans("plan", request, found, images)
                on_plan(plan)
                if isinstance(request, CreateRequest):
                    self._mark(request.fleet, found, [c.labels.index for c in plan.clones])
                result = self._carried_out(request, plan, plans, playbooks)
                self._unmark(result, found)
                return result

    def move(
        self,
        *targets: str,
        host: str,
        template: str | None = None,
        dry_run: bool = False,
        on_found: Callable[[Sequence[Moved]], None] = lambda _found: None,
    ) -> tuple[Moved, ...]:
        """Move stopped clones to a host, by copying their disks. Idempotent.

        A move that was killed or cut off is finished by the same call. Until then the clone can't
        be started on either host.

        :param template: the clones' one, if that has domain XML or devices of its own: only the
            old host says which they have, and it may be a hostile one.
        :param dry_run: change nothing. :param on_found: called with what will be done before
            anything is changed; may raise to stop.
        :returns: what was done with each clone; one that could not be moved has its error.
        :raises VmclonerError: one can't be moved; nothing was changed.
        """

        def found(judged: Sequence[Moved]) -> None:
            check_all(judged)
            on_found(judged)

        return self.move_each(
            {host: targets}, template=template or "", dry_run=dry_run, on_found=found
        )

    def move_each(
        self,
        wanted: Mapping[str, Sequence[str]],
        *,
        template: str = "",
        dry_run: bool = False,
        on_found: Callable[[Sequence[Moved]], None] = lambda _found: None,
    ) -> tuple[Moved, ...]:
        """Move clones as :meth:`move` does; those that can't be moved are left, and say why.

        :param wanted: for each host what shall be there.
        """
        for host in wanted:
            if host not in self.names:
                raise NotFound(f"unknown host {host!r}", hint=did_you_mean(host, self.names))
        targets = tuple(target for given in wanted.values() for target in given)
        request = TargetRequest(action="move", targets=targets)
        with self._run_lock:
            self._cancel.clear()
            request = cast("TargetRequest", self._reach_all(request))
            _check_open(self._links.absent & set(wanted))
            with self._held(self._fleets(request), request) as found:
                surveys = {name: each.survey for name, each in found.items()}
                mover = self._mover(template)
                found_out = [
                    moved
                    for host, given in wanted.items()
                    for moved in judge(surveys, parse_targets(given), host)
                ]
                goes = {moved.target for moved in found_out if moved.action in (SEND, FINISH)}
                _check_open(goes & self.drained.read().keys())  # what had begun to leave may stay
                judged = mover.check(found_out)
                on_found(judged)
                return judged if dry_run else mover(judged)

    def _mover(self, template: str) -> Mover:
        return Mover(
            self._links,
            self._sender,
            self._networks,
            self.plugins,
            Birth.now().run,
            self.settings.limits.uploads,
            self._cancel,
            template,
            lambda cargo: check_devices(self._own_engine(), cargo, template),
        )

    def _networks(self, template: str) -> frozenset[str]:
        """Return the networks of the controller's own template of a name; none if it has none."""
        return own_networks(self._own_engine(), template)

    def _mark(self, fleet: str, found: Mapping[str, Found], new: Iterable[int]) -> None:
        """Have all hosts know the highest index of a fleet, before clones are made."""
        there = [c.index for each in found.values() for c in each.survey.clones if c.fleet == fleet]
        partial = self._partial or len(found) == 1
        known = [each.highest for each in found.values()] if partial else []
        top = max((*there, *new, *known), default=0)
        asked = {
            name: Asked(fleets=(fleet,), index=top)
            for name, each in found.items()
            if each.highest != top
        }
        self._links.all("mark", asked, type(None))

    def _unmark(self, result: RunResult, found: Mapping[str, Found]) -> None:
        """Forget the highest index of fleets that a delete has removed on all hosts."""
        if result.plan.action != "delete" or self._partial or len(found) == 1:
            return
        gone = {clone.name for clone in result.results if clone.error is None}
        clones = [clone for each in found.values() for clone in each.survey.clones]
        left = {clone.fleet for clone in clones if clone.name not in gone}
        fleets = tuple(sorted({clone.fleet for clone in clones} - left))
        if fleets and any(each.highest for each in found.values()):
            asked = dict.fromkeys(found, Asked(fleets=fleets))
            self._links.ask("mark", asked, type(None))  # at worst, an index stays unused

    @property
    def _partial(self) -> bool:
        """Whether hosts are left out that may have clones."""
        return bool(self.without or self._links.absent)

    def _reach_all(self, request: Request) -> Request:
        """Connect to all hosts; returns the request with the hosts that get no new clones barred.

        Hosts that are lost for good, by this request or an earlier one, are left out.

        :raises VmclonerError: one can't be reached or used.
        """
        create = request if isinstance(request, CreateRequest) else None
        for name in create.where.hosts if create is not None else ():
            if name not in self._links.known:
                raise NotFound(f"unknown host {name!r}", hint=did_you_mean(name, self._links.known))
        drained = self.drained.read()
        replaces = create is not None and create.where.replace_lost
        absent: dict[str, Why] = {}
        for name, error in self._links.connect(self._links.known).items():
            lost = replaces or drained.get(name) is Why.LOST
            if lost and isinstance(error, Unreachable):
                absent[name] = Why.LOST
                continue
            raise type(error)(
                f"{request.action}: {error.message}",
                hint=f"--without {name} leaves it out" if error.hint is None else error.hint,
            )
        self._links.absent = frozenset(absent)
        if absent:
            log.warning("%s: lost, and left out", fold(sorted(absent)))
        if not self._links.names:
            raise Unreachable("no host can be reached", hint="vmcloner host list")
        if create is None:
            return request
        barred = {**drained, **absent}
        return attrs.evolve(create, where=placed(create.where, barred, self._links.known))

    def _images(self, request: Request) -> tuple[Images, int]:
        """Return what sends the request's template, and a clone's memory for hosts without it."""
        images = self._sender()
        return images, images.look(request) if isinstance(request, CreateRequest) else 0

    def _sender(self) -> Images:
        return Images(
            self._links,
            self._own,
            self.plugins,
            uploads=self.settings.limits.uploads,
            cancelled=self._cancel.is_set,
        )

    def _fleets(self, request: Request) -> tuple[str, ...]:
        if isinstance(request, CreateRequest):
            return (request.fleet,)
        if not request.everything:
            return tuple(sorted({target.fleet for target in parse_targets(request.targets)}))
        kind: Any = tuple[str, ...]
        found = self._links.all("fleets", dict.fromkeys(self._links.names, Asked()), kind)
        return tuple(sorted({fleet for fleets in found.values() for fleet in fleets}))

    @contextlib.contextmanager
    def _held(
        self, fleets: Sequence[str], request: Request, memory: int = 0
    ) -> Iterator[dict[str, Found]]:
        """Hold fleets on every host, one host after another; yields what each has."""
        found: dict[str, Found] = {}
        try:
            for name in self._links.names:
                if self._cancel.is_set():
                    raise Interrupted("stopped by the user")
                self._running = frozenset({name})
                asked = _asked(request, name, tuple(fleets), memory)
                found |= self._links.all("hold", {name: asked}, Found)
            self._running = frozenset()
            yield found
        finally:
            self._running = frozenset()
            self._links.ask("release", dict.fromkeys(self._links.names, Asked()), type(None))

    def _plans(
        self, call: str, request: Request, found: Mapping[str, Found], images: Images
    ) -> tuple[Plan, dict[str, Plan]]:
        """Return the plan of all hosts together, and each host's own."""
        surveys = {name: each.survey for name, each in found.items()}
        birth = Birth.now()
        if isinstance(request, CreateRequest):
            merging.check_once(
                tuple(
                    clone
                    for clone in merging.survey(surveys, {}).clones
                    if clone.fleet == request.fleet
                )
            )
            asked = parts.of_create(
                attrs.evolve(request, birth=birth, authorized_keys=_keys(request, call)),
                found,
                max((each.need for each in found.values()), default=0),
                lost=self._partial,
            )
            new = [name for name, part in asked.items() if part.indices]
            if call == "plan":
                images.send(birth.run, new)
            else:
                images.there(new)
            plans = self._planned(call, asked, surveys)
            for _ in range(MAX_REPLANS):
                avoid = parts.same_macs(plans, surveys)
                if not avoid:
                    break
                for name, macs in avoid.items():
                    asked[name] = attrs.evolve(asked[name], avoid=asked[name].avoid | macs)
                plans |= self._planned(call, {name: asked[name] for name in avoid}, surveys)
            else:
                raise Conflict("no free MAC addresses were found", hint="choose another fleet name")
            missing = None
        else:
            if request.everything:
                merging.survey(surveys, {}).check_complete(f"{request.action} --all")
            own = attrs.evolve(request, run=birth.run)
            named, missing = parts.of_targets(own, surveys)
            plans = self._planned(call, named, surveys)
            if request.count is not None:
                plans = self._planned(call, parts.at_most(own, plans), surveys)
        if not plans:
            plans = {name: _nothing(request, name) for name in list(found)[:1]}
        waits = any("wait" in c.steps for mine in plans.values() for c in mine.clones)
        quota = request.min_ready if waits else ALL
        whole = merging.plan(plans, run=birth.run, quota=quota, missing=missing)
        if isinstance(request, CreateRequest):
            warnings = (*whole.warnings, *parts.too_many(request, surveys))
            whole = attrs.evolve(whole, on_failure=request.on_failure, warnings=warnings)
        return whole, plans

    def _planned(
        self, call: str, asked: Mapping[str, Request], found: Mapping[str, Survey]
    ) -> dict[str, Plan]:
        wanted = {name: Asked(request=request) for name, request in asked.items()}
        return {
            name: parts.of_plan(name, asked[name], found[name], plan, held=call == "plan")
            for name, plan in self._links.all(call, wanted, Plan).items()
        }

    def _carried_out(
        self,
        request: Request,
        plan: Plan,
        plans: Mapping[str, Plan],
        playbooks: Sequence[Script] = (),
    ) -> RunResult:
        started = time.monotonic()

        def carried_out() -> RunResult:
            result = self._ran(plan, plans, started)
            if playbooks:
                play = self._player(cast("TargetRequest", request), playbooks)
                result = attrs.evolve(play(result, plans), seconds=time.monotonic() - started)
            rolls = isinstance(request, CreateRequest) and request.on_failure is OnFailure.ROLLBACK
            return self._rolled_back(result, plans) if rolls and not result.enough else result

        def so_far(error: VmclonerError) -> RunResult:
            """Return the result of a run that an error ended: what hosts did is not known."""
            found = dict.fromkeys(plans, error)
            result = merging.result(plan, plans, found, time.monotonic() - started)
            return attrs.evolve(result, error=error)

        return reported(plan, RunLog(self.host.runs, plan.run), self.plugins, carried_out, so_far)

    def _ran(self, plan: Plan, plans: Mapping[str, Plan], started: float) -> RunResult:
        told: dict[str, Waiting] = {}
        busy = {name: Asked(run=mine.run) for name, mine in plans.items() if mine.clones}
        self._running = frozenset(busy)
        found: dict[str, RunResult | VmclonerError] = {
            name: RunResult(plan=mine, results=(), seconds=0.0)
            for name, mine in plans.items()
            if name not in busy
        }

        def heard(host: str, text: str) -> None:
            self._heard(plan.run, host, text, told)

        def one(name: str) -> RunResult:
            if self._cancel.is_set():
                raise Interrupted("stopped by the user")
            event = functools.partial(heard, name)
            return self._links.one(name, "run", busy[name], RunResult, event)

        pool = ThreadPoolExecutor(1, "run")
        running = pool.submit(each, busy, one, waits=True)
        pool.shutdown(wait=False)  # a second Ctrl-C gives up the calls in progress
        try:
            found |= running.result()
        except KeyboardInterrupt:
            self.plugins.run_stopping(plan.run, {})
            self.cancel()
            found |= running.result()
        self._running = frozenset()
        return merging.result(plan, plans, found, time.monotonic() - started)

    def _player(self, request: TargetRequest, playbooks: Sequence[Script]) -> playing.Player:
        return playing.Player(
            links=self._links,
            playbooks=playbooks,
            changed=request.changed_scripts,
            access=self.access,
            folder=self.host.state / "hosts",
            cancel=self._cancel,
        )

    def _rolled_back(self, result: RunResult, plans: Mapping[str, Plan]) -> RunResult:
        """Delete what a failed create made, on all hosts."""
        made = {each.name for each in result.results if each.created} - set(result.kept)
        asked = {}
        for host, plan in plans.items():
            names = tuple(clone.name for clone in plan.clones if clone.name in made)
            if names:
                asked[host] = TargetRequest(action="delete", targets=names)
        left: set[str] = set(made)

        def one(host: str) -> RunResult:
            # The fleet stays held: a controller that waits for it here would get it, and then wait
            # for the hosts that this one holds.
            return self._links.one(host, "undo", Asked(request=asked[host]), RunResult)

        for host, answer in each(asked, one, waits=True).items():
            if isinstance(answer, RunResult):
                done = {clone.name for clone in answer.results if clone.error is None}
                left -= done & set(asked[host].targets)
        return attrs.evolve(
            result, left=tuple(sorted(left)), rolled_back=tuple(sorted(made - left))
        )


def _keys(request: CreateRequest, call: str) -> tuple[str, ...]:
    """Return the public keys for new clones: with the controller's own, which a run makes."""
    own = own_key.made_key() if call == "plan" else own_key.public_key()
    return (*request.authorized_keys, *((own,) if own is not None else ()))


def _asked(request: Request, host: str, fleets: tuple[str, ...], memory: int) -> Asked:
    """Return a request for a host that may make clones of it; the others need no template of it.

    :param memory: bytes of a clone, for a host that doesn't have the template yet; 0 if all have.
    """
    if not isinstance(request, CreateRequest):
        return Asked(fleets=fleets, memory=memory)
    makes = request if request.where.allows(host) else None
    return Asked(fleets=fleets, only=True, request=makes, memory=memory)


def _check_open(closed: Collection[str]) -> None:
    """Check that no clones are moved to hosts that get none. :raises WrongState: some are."""
    for host in sorted(closed):
        raise WrongState(
            f"no clones are moved to {host}: it is drained or lost",
            hint=f"vmcloner host undrain {host}",
        )


def _nothing(request: Request, host: str) -> Plan:
    """Return the plan of a request for which no host has to do anything."""
    if isinstance(request, CreateRequest):
        raise InvalidRequest(f"create {request.fleet}: no clones are asked for")
    from vmcloner_core.steps import ACTIONS

    return Plan(
        action=request.action, run="", host=host, clones=(), order=ACTIONS[request.action].order
    )
