"""Warm origins: made, listed and removed. A part of the engine's API.

A parent is a clone of a fleet of its own, made and deleted by ordinary runs. Only one origin is
made at a time on a host; whoever makes one first removes what killed calls left: parents, folders
and images that no whole origin has.
"""

from __future__ import annotations

import functools
import logging
import math
import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import attrs

from vmcloner_core import reseeding
from vmcloner_core.cancelling import Cancellation, cancellable, ending_with, pause
from vmcloner_core.clone_spec import filled
from vmcloner_core.drivers import CaptureRequest, HypervisorDriver, StorageDriver
from vmcloner_core.errors import InvalidRequest, VmclonerError, WrongState
from vmcloner_core.local_host import LocalHost
from vmcloner_core.model import MAX_TTL, Clone, Origin, Outcome, Progress, State, Template
from vmcloner_core.names import check_template, fold
from vmcloner_core.outcomes import guarded, single
from vmcloner_core.plan import Plan, Readiness, RunResult, check_timeout
from vmcloner_core.planner import makes_clones
from vmcloner_core.request import CreateRequest, Request, TargetRequest
from vmcloner_core.results import check_result
from vmcloner_core.template_calls import TemplateCalls
from vmcloner_core.warm_forks import patience
from vmcloner_core.warm_leftovers import LOCK, parents
from vmcloner_core.warm_origins import AT, READY, WarmOrigin
from vmcloner_core.warming import Wanted, check_told, current, wanted, warm_of

log = logging.getLogger(__name__)
STEP = "warm"
"""The name of the step in events."""
ANSWER = 120.0
"""Seconds in which a parent has to show that it can take a new identity, at full speed: for one
that isn't waited for by its console, from the start of its boot."""
LOOK = 0.5
_AIMS = "--at ready, --at ssh, or --at console:REGEX"
_TTL = 3600
"""Seconds of a parent's lease, beside what it is waited for."""
_WAITS = 3
"""How often a parent is waited for at most: its console, its agent, its SSH server."""


class WarmCalls(TemplateCalls):
    """The calls of :class:`~vmcloner_core.Engine` that are about warm origins."""

    @abstractmethod
    def _held(self, names: Sequence[str]) -> AbstractContextManager[Cancellation]:
        """Hold locks; see :meth:`LocalHost.hold`."""

    @abstractmethod
    def run(
        self, request: Request, *, on_plan: Callable[[Plan], None] = lambda _plan: None
    ) -> RunResult:
        """Carry a request out; see :meth:`Engine.run`."""

    def warm_origins(self, template: str | None = None) -> tuple[WarmOrigin, ...]:
        """Return the warm origins on the host, of all templates or of one, the newest first."""
        return tuple(o for o in self._host.warm.all() if template in (None, o.template))

    def warm_template(
        self,
        name: str,
        *,
        at: str = READY,
        identical: bool = False,
        storage: str | None = None,
        hypervisor: str | None = None,
        timeout: float | None = None,
    ) -> Outcome[WarmOrigin]:
        """Boot a clone of a template once, and keep its memory and disk, to fork clones from.

        Unchanged if there is such an origin of all that is there now: of the template's image and
        settings, the pool, and the hypervisor's programs. Others of the template are removed as
        soon as no clone needs them.

        :param at: when the guest is saved, once it has booted and can take a new identity:
            ``ready``, when the template's console line is there, or any with ``console:REGEX``;
            ``ssh``, when an SSH server answers in it, which its agent tells. With a template whose
            ``ready`` is that, ``ready`` is the same where there is an agent.
        :param identical: for forks that stay who this guest is: it need not be able to take a new
            identity.
        :param storage, hypervisor: None for the settings' defaults.
        :param timeout: seconds for the guest to get there, None for :class:`Readiness`'s default.
        :raises BackendError: pool or hypervisor have no warm forks; says why.
        :raises InvalidRequest: the template's guests can't be forked; names what stands against it.
        :raises WrongState: the guest can't take a new identity, or didn't get ready.
        """
        _check_aim(at)
        if timeout is not None:
            check_timeout(timeout)
        template = self._host.catalog.template(check_template(name))
        known = self._wanted_warm(template, storage, hypervisor, identical=identical)
        return self._warmed(known, at, timeout)

    def _wanted_warm(
        self, template: Template, storage: str | None, hypervisor: str | None, *, identical: bool
    ) -> Wanted:
        """Return what forks of a template need; see :func:`warming.wanted`."""
        drivers, defaults = self._host.drivers, self.settings.defaults
        pool = drivers.storage(storage or defaults.storage)
        driver = drivers.hypervisor(hypervisor or defaults.hypervisor)
        checks = self._planning.checks
        return wanted(self._host, checks, template, pool, driver, identical=identical)

    def _warmed(
        self, known: Wanted, at: str = READY, timeout: float | None = None
    ) -> Outcome[WarmOrigin]:
        """Return an origin that fits, made if there is none; see :meth:`warm_template`."""
        host, name = self._host, known.template.name
        pool, driver = known.storage, known.hypervisor
        with self._held([LOCK]) as ending:
            _check_agent(known.template, at)
            if known.identical and current(host, known) is None:
                check_told(known.template, at)
            if self._imported(known, ending.event.is_set):
                template, identical = known.template, known.identical
                known = self._wanted_warm(template, pool.name, driver.name, identical=identical)
            found = current(host, known)
            if found is not None and at in (found.depends[AT], READY):
                self._remove_unused(found)
                return Outcome(key=name, value=found, changed=False)
            origin = host.warm.new(name, pool.name, driver.name, {**known.depends, AT: at})
            self._sweep_warm()
            making = _Making(self, host, known, origin, timeout, ending.event)
            host.images.told(STEP, name, "", time.monotonic(), making)
            self._remove_unused(origin)
            return Outcome(key=name, value=origin)

    def _imported(self, known: Wanted, cancelled: Callable[[], bool]) -> bool:
        """Bring here what clones boot from; returns whether it wasn't there."""
        host, template = self._host, known.template
        if host.images.origin(known.storage, template.name) is None:
            host.import_image(template, known.storage, "", time.monotonic(), cancelled)
            return True
        return host.build_kernel(template, cancelled)

    def _make_warm(self, request: Request) -> Request:
        """Return a request that names the origin of its new clones, made if there is none.

        A fleet that is complete needs none: its clones have theirs.
        """
        if not (isinstance(request, CreateRequest) and request.warm) or request.origin is not None:
            return request
        template = request.shaped(self._host.catalog.template(request.template))
        where = (request.storage, request.hypervisor)
        known = self._wanted_warm(template, *where, identical=request.identical)
        found = current(self._host, known)
        if found is None and makes_clones(request, self._host.survey().clones):
            found = self._warmed(known).unwrap()
        return request if found is None else attrs.evolve(request, origin=found.key)

    def delete_warm(self, name: str, *, storage: str | None = None) -> tuple[WarmOrigin, ...]:
        """Remove a template's warm origins, of all pools or of one; returns them.

        :raises WrongState: a clone was, or is to be, forked from one.
        """
        gone = []
        with self._held([LOCK]):
            for origin in self.warm_origins(name):
                if storage in (None, origin.pool):
                    self._remove(origin)
                    gone.append(origin)
        return tuple(gone)

    def delete_template(self, name: str, *, storage: str | None = None) -> Outcome[None]:
        """See :meth:`TemplateCalls.delete_template`; its warm origins in that pool go with it.

        Nothing is removed if clones need any of that.
        """
        pool = storage or self.settings.defaults.storage
        with self._held([LOCK]):
            origins = [origin for origin in self.warm_origins(name) if origin.pool == pool]
            for origin in origins:
                self._check_unused(origin)
            outcome = super().delete_template(name, storage=storage)
            for origin in origins:
                self._remove(origin)
        return attrs.evolve(outcome, changed=outcome.changed or bool(origins))

    def _remove_unused(self, kept: WarmOrigin) -> None:
        """Remove what an origin replaces, except what clones need."""
        for origin in self.warm_origins(kept.template):
            if origin.key != kept.key and origin.purpose == kept.purpose:
                try:
                    self._remove(origin)
                except VmclonerError as error:
                    log.debug("%s is kept: %s", origin.key, error)

    def _remove(self, origin: WarmOrigin) -> None:
        """Remove an origin: its disk, which a pool keeps while it is in use, then its memory.

        :raises WrongState: a clone needs it.
        """
        self._check_unused(origin)
        self._host.images.delete_origin(origin.pool, origin.image)
        self._host.warm.remove(origin.key)

    def _check_unused(self, origin: WarmOrigin) -> None:
        """Check that no clone needs an origin.

        :raises WrongState: one does.
        """
        waiting = self._host.warm.users(origin.key)
        if waiting:
            raise WrongState(
                f"{fold(waiting)} is to be forked from a warm origin of {origin.template}",
                hint="start them, or delete them, first",
            )
        found = self._host.survey().clones
        forks = [clone.name for clone in found if clone.labels.warm == origin.key]
        if forks:  # if they are saved, with memory that is below theirs; a reset needs the disk
            raise WrongState(
                f"a warm origin of {origin.template} is needed by what was forked: {fold(forks)}",
                hint="delete these clones first",
            )

    def _sweep_warm(self) -> None:
        """Remove what killed calls left; the lock is held, so nobody makes an origin now."""
        host = self._host
        found = host.survey()
        for key in host.unfinished.keys(found):
            try:
                if any(clone.fleet == parents(key) for clone in found.clones):
                    check_result(self.run(TargetRequest(action="delete", targets=(parents(key),))))
                host.unfinished.remove(key)
            except VmclonerError as error:  # the next call tries again
                log.warning("%s", error)


def _check_aim(at: str) -> None:
    """Check that a parent can be waited for.

    :raises InvalidRequest: that is nothing to wait for, or takes a network card, which it lacks.
    """
    if at == READY:
        return
    try:
        kind = Readiness.parse(at).kind
    except InvalidRequest as error:
        is_pattern = at.startswith("console:") and at != "console:"
        hint = error.hint if is_pattern else _AIMS
        raise InvalidRequest(error.message, hint=hint) from error
    if kind not in ("console", "ssh"):
        raise InvalidRequest(
            f"a parent can't be waited for by {at}: it boots without a network card", hint=_AIMS
        )


def _check_agent(template: Template, at: str) -> None:
    """Check that somebody can tell whether a parent has got there.

    :raises InvalidRequest: a guest agent would have to, and the template has none.
    """
    own = template.domain
    maybe = own.agent or own.xml is not None or own.devices is not None
    if at == "ssh" and not maybe:
        raise InvalidRequest(
            f"template {template.name}: --at ssh needs a guest agent: a parent has no network card",
            hint="domain.agent = true, and qemu-guest-agent in its image",
        )


@attrs.frozen
class _Making:
    """The making of one origin. What fails, or is interrupted, leaves nothing."""

    calls: WarmCalls
    host: LocalHost
    known: Wanted
    origin: WarmOrigin
    timeout: float | None
    cancelled: threading.Event

    @property
    def fleet(self) -> str:
        return parents(self.origin.key)

    @property
    def template(self) -> Template:
        return self.known.template

    @property
    def pool(self) -> StorageDriver:
        return self.known.storage

    @property
    def driver(self) -> HypervisorDriver:
        return self.known.hypervisor

    def __call__(self, progress: Progress) -> Outcome[WarmOrigin]:
        """Make it: boot a clone, save it, and take its disk.

        A folder without a note is there before anything else is, and until nothing else is left.
        """
        self.host.warm.draft(self.origin)
        try:
            with cancellable(self.cancelled):
                parent = self._parent()
                with self.host.active(parent.volumes):
                    self._saved(parent)
                    self._capture(parent, progress)
                self._delete()
            self.host.warm.keep(self.origin)
        except BaseException:
            undoing = Cancellation()  # it goes to its end, also if the making was cancelled
            with ending_with(undoing), cancellable(undoing.event):
                self._undo()
            raise
        return Outcome(key=self.template.name, value=self.origin)

    def _parent(self) -> Clone:
        request = CreateRequest(
            fleet=self.fleet,
            template=self.template.name,
            hypervisor=self.driver.name,
            storage=self.pool.name,
            ttl=self._ttl,
            parent=True,
            identical=self.origin.identical,
        )
        check_result(self.calls.run(request))
        (parent,) = (c for c in self.host.survey().clones if c.fleet == self.fleet)
        return parent

    @property
    def _ttl(self) -> int:
        """The seconds of the parent's lease: if this is killed, and never called again."""
        return math.ceil(min(MAX_TTL, _TTL + _WAITS * (self.timeout or 0)))

    def _saved(self, parent: Clone) -> None:
        """Boot the parent, wait until it is ready, and save its memory."""
        warm, name, folder = warm_of(self.driver), parent.name, self.origin.folder
        asked = self.host.drivers.backend("hypervisor", self.driver.name)
        with guarded(asked.of("warm.boot")):
            warm.boot(name, folder)
        self._wait(name)
        if not self.origin.identical:
            self._check(name)
        self._wait_for_ssh(name)
        agents = self.driver.agents
        if agents is not None and name in agents.reported([name]):
            agents.freeze(name)  # which writes everything to its disk
            agents.thaw(name)
        with guarded(asked.of("warm.save")):
            warm.save(name, folder)

    @property
    def aim(self) -> Readiness:
        """What the parent is waited for."""
        at = self.origin.depends[AT]
        return Readiness.parse(self.template.readiness if at == READY else at, timeout=self.timeout)

    @property
    def _is_emulated(self) -> bool:
        return self.host.emulates(self.driver.name)

    def _wait(self, name: str) -> None:
        """Wait for a line of its console, if that is asked for."""
        from vmcloner_core.readiness import Awaited
        from vmcloner_core.target_planner import found_spec
        from vmcloner_core.watching import watch

        if self.aim.kind != "console":
            return
        record = self.host.records.find(name)
        assert record is not None  # noqa: S101 - its run has written it
        spec = found_spec(self._clone(name), self.template, record, self.host.seed)
        readiness = filled(self.aim, spec).limited(emulated=self._is_emulated)
        awaited = Awaited(name=name, driver=self.driver, readiness=readiness)
        for outcome in watch([awaited], cancelled=self.cancelled.is_set):
            outcome.unwrap()

    def _check(self, name: str) -> None:
        """Check that the guest has booted and can take a new identity.

        :raises WrongState: it can't.
        """
        check = functools.partial(reseeding.check, self.driver, name, self.template.name)
        self._asked(name, lambda left: check(timeout=left))

    def _wait_for_ssh(self, name: str) -> None:
        """Wait for an SSH server if that is asked for, which an agent has to tell.

        :raises WrongState: none answers; or there is no agent, and it was asked for by ``at``.
        """
        agents, port = self.driver.agents, self.template.ssh.port
        answers = agents is not None and bool(agents.reported([name]))
        if self.aim.kind == "ssh" and (answers or self.origin.depends[AT] != READY):
            check = functools.partial(reseeding.check_ssh, self.driver, name, self.template.name)
            self._asked(name, lambda left: check(port, timeout=left))

    def _asked(self, name: str, ask: Callable[[float], None]) -> None:
        """Ask something of a guest until it is true: an agent tells late.

        :param ask: is given the seconds that are left, and raises WrongState until then.
        """
        end = time.monotonic() + (self.timeout or patience(ANSWER, emulated=self._is_emulated))
        while True:
            try:
                return ask(max(1.0, end - time.monotonic()))
            except WrongState:
                state = self.driver.states().get(name)
                if time.monotonic() > end or state is not State.RUNNING:
                    raise
            pause(LOOK)

    def _capture(self, parent: Clone, progress: Progress) -> None:
        (volume,) = parent.volumes
        request = CaptureRequest(
            template=self.origin.image, volume=volume, digest=self.origin.digest
        )
        capturing = self.pool.capturing
        assert capturing is not None  # noqa: S101 - it was checked
        single(
            lambda: capturing.capture(request, _unchanged, lambda: None, progress),
            self.origin.image,
            self.host.drivers.backend("storage", self.pool.name, "capture"),
            Origin,
        ).unwrap()

    def _delete(self) -> None:
        request = TargetRequest(action="delete", targets=(self.fleet,))
        check_result(self.calls.run(request))

    def _undo(self) -> None:
        try:
            self._delete()
            self.host.images.delete_origin(self.pool.name, self.origin.image)
            self.host.warm.remove(self.origin.key)
        except VmclonerError as error:
            log.warning("%s; the next template warm removes it", error)

    def _clone(self, name: str) -> Clone:
        return next(clone for clone in self.host.survey().clones if clone.name == name)


def _unchanged(_path: Path) -> None:
    """Leave the copy of a parent's disk as it is: its memory knows it."""
