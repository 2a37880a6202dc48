"""What answers a controller beside a host: today's engine, asked by JSON.

One controller's. It holds fleets for it between calls, and releases them when the controller says
so or is gone.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path

import attrs

from vmcloner_core.engine import Engine, Held
from vmcloner_core.errors import BackendError, NotFound, VmclonerError, WrongState, said
from vmcloner_core.high_marks import HighMarks
from vmcloner_core.hooks import hookimpl
from vmcloner_core.hosts import wire
from vmcloner_core.hosts.calls import CALLS
from vmcloner_core.hosts.cargo import Cargo
from vmcloner_core.hosts.chunks import Chunk
from vmcloner_core.hosts.move_calls import MoveCalls
from vmcloner_core.hosts.parcel_calls import ParcelCalls
from vmcloner_core.hosts.parcels import Parcel
from vmcloner_core.plan import Plan, ProgressEvent, RunResult, Seen, StepEvent, Waiting
from vmcloner_core.request import CreateRequest, Request
from vmcloner_core.survey import Survey

Event = Callable[[str], None]
OBSERVED = {"step": StepEvent, "progress": ProgressEvent, "waiting": Waiting, "seen": Seen}
"""The kinds of events, and the type of their value."""
OTHERS = ""
"""Stands for the events that are of no run that is carried out here for the controller."""


@attrs.frozen(kw_only=True)
class Asked:
    """One call: the fields that it needs, as its name says.

    :param only: leave out the clones of other fleets: a create doesn't need them.
    :param memory: bytes of a clone of the request's template, for a host that doesn't have it yet.
    :param storage: a pool, empty for the host's default. :param item: a file of a parcel, or the
        number of a clone's disk. :param to: the other host of a move. :param heir: see
        :class:`Moving`. :param ran: playbooks that have run, see :class:`Record`.
    :param networks: those of the controller's own templates of clones. :param template: which one
        the user says that moved clones have; empty if nobody says so.
    """

    fleets: tuple[str, ...] = ()
    only: bool = False
    request: Request | None = None
    run: str = ""
    index: int = 0
    name: str = ""
    offset: int = 0
    memory: int = 0
    storage: str = ""
    item: str = ""
    parcel: Parcel | None = None
    chunk: Chunk | None = None
    to: str = ""
    heir: str = ""
    cargos: tuple[Cargo, ...] = ()
    ran: Mapping[str, str] = attrs.field(factory=dict)
    networks: tuple[str, ...] = ()
    template: str = ""


@attrs.frozen(kw_only=True)
class Hello:
    """What a host says first.

    :param place: the same only for two names of one state folder on one machine.
    """

    version: str
    place: str


@attrs.frozen(kw_only=True)
class Found:
    """What a host has: its clones, and room for more.

    :param clones: how many clones there are, also of fleets that were not asked for.
    :param highest: the highest index that a request's fleet has had, on any host.
    :param room: bytes of memory that it has for new clones of a request.
    :param need: bytes of memory that each new clone of a request takes; 0 if it isn't started.
    """

    survey: Survey
    clones: int
    highest: int = 0
    room: int = 0
    need: int = 0


@attrs.frozen(kw_only=True)
class HostState:
    """A host in a list: its version, memory for guests in bytes, and what is wrong with it."""

    version: str = ""
    clones: int = 0
    memory_free: int | None = None
    memory_total: int | None = None
    problem: str = ""


@attrs.frozen(kw_only=True)
class Answered:
    """What a call answered: a value as JSON, of the type that its method returns, or an error."""

    value: str = ""
    error: VmclonerError | None = None


class _Forward:
    """An observer that passes events on: a run's to the call that carries it out.

    The others are of the calls about templates; one of them is told at a time.
    """

    def __init__(self) -> None:
        self.listeners: dict[str, Event] = {}

    def _tell(self, run: str, kind: str, value: object) -> None:
        event = self.listeners.get(run) or self.listeners.get(OTHERS)
        if event is not None:
            event(wire.dump({"kind": kind, "value": wire.dump(value)}))

    @hookimpl
    def vmcloner_step_changed(self, event: StepEvent) -> None:
        self._tell(event.run, "step", event)

    @hookimpl
    def vmcloner_progress(self, event: ProgressEvent) -> None:
        self._tell(event.run, "progress", event)

    @hookimpl
    def vmcloner_clone_seen(self, seen: Seen) -> None:
        self._tell(seen.run, "seen", seen)

    @hookimpl
    def vmcloner_waiting(self, run: str, waiting: Waiting) -> None:
        self._tell(run, "waiting", waiting)


class Beside(ParcelCalls, MoveCalls):
    """Carries out a controller's calls with the engine of this host.

    Calls may come from several threads; those that hold, plan, run and release come one after
    another.

    :param open_engine: opens the engine with one more plugin.
    """

    def __init__(self, open_engine: Callable[[object], Engine]) -> None:
        super().__init__()
        self._forward = _Forward()
        self._open = open_engine
        self._opened: Engine | None = None
        self._lock = threading.Lock()
        self._holding = contextlib.ExitStack()
        self._held: Held | None = None
        self._plans: dict[str, Plan] = {}

    @property
    def _engine(self) -> Engine:
        with self._lock:
            if self._opened is None:
                self._opened = self._open(self._forward)
            return self._opened

    def __call__(self, name: str, text: str, event: Event) -> str:
        """Make one call; an error is part of the answer.

        :param name: one of the methods ``call_NAME``; or of :data:`CALLS`.
        :param text: :class:`Asked`, as JSON; or the arguments.
        :returns: :class:`Answered`, as JSON.
        """
        try:
            made = self._called if name in CALLS else self._asked
            answer = Answered(value=wire.dump(made(name, text, event)))
        except VmclonerError as error:
            answer = Answered(error=error)
        except Exception as error:
            answer = Answered(error=VmclonerError(said(error)))
        dumped = wire.dump(answer)
        if len(dumped) > wire.MAX_MESSAGE:
            too_long = BackendError(f"the answer to {name} is larger than {wire.MAX_MESSAGE} bytes")
            return wire.dump(Answered(error=too_long))
        return dumped

    def _asked(self, name: str, text: str, event: Event) -> object:
        """Make one of the calls that runs consist of."""
        call: Callable[[Asked, Event], object] | None = getattr(self, f"call_{name}", None)
        if call is None:
            raise NotFound(f"no call {name!r}", hint="both sides need the same version")
        return call(wire.load(text, Asked, whose="the controller"), event)

    def _called(self, name: str, text: str, event: Event) -> object:
        """Make a call of the engine; the items of a stream are events."""
        call = CALLS[name]
        given = wire.load_each(text, call.takes, whose="the controller")
        targets = given.pop("targets", ())
        if call.stream:
            for item in call.do(self._engine, *targets, **given):
                event(wire.dump(item))
            return None
        if not call.tells:
            return call.do(self._engine, *targets, **given)
        with self._told(OTHERS, event):
            return call.do(self._engine, *targets, **given)

    @contextlib.contextmanager
    def _told(self, run: str, event: Event) -> Iterator[None]:
        """Tell the caller of the events of a run."""
        self._forward.listeners[run] = event
        try:
            yield
        finally:
            self._forward.listeners.pop(run, None)

    def close(self) -> None:
        """Release what is held, and close the engine."""
        self._release()
        self._close_parcels()
        if self._opened is not None:
            self._opened.close()

    def _release(self) -> None:
        self._close_moves()
        self._held = None
        self._plans.clear()
        self._holding.close()

    # --- calls ----------------------------------------------------------------------------------

    def call_hello(self, _asked: Asked, _event: Event) -> Hello:
        """Return the version of vmcloner here, and which machine it is."""
        return Hello(version=metadata.version("vmcloner"), place=_place(self._engine.host.state))

    def call_state(self, _asked: Asked, _event: Event) -> HostState:
        """Return what the host has and can take, as far as it can be read."""
        found = self._engine.survey()
        state = HostState(version=metadata.version("vmcloner"), clones=len(found.clones))
        with contextlib.suppress(VmclonerError):
            resources = self._engine.resources()
            state = attrs.evolve(
                state, memory_free=resources.memory_free, memory_total=resources.memory_total
            )
        unread = "; ".join(str(each) for each in found.unseen)
        return attrs.evolve(state, problem=unread)

    def call_fleets(self, _asked: Asked, _event: Event) -> tuple[str, ...]:
        """Return the fleets that the host has, also of those that runs were killed on."""
        return tuple(sorted(self._engine.all_fleets()))

    def call_look(self, asked: Asked, _event: Event) -> Found:
        """Return what the host has, and its room for a request's clones; without locks."""
        return self._found(self._engine.survey(), asked)

    def call_preview(self, asked: Asked, _event: Event) -> Plan:
        """Return what a request would do; without locks, and nothing is changed."""
        return self._engine.plan(_request(asked))

    def call_hold(self, asked: Asked, _event: Event) -> Found:
        """Hold fleets until :meth:`call_release`; return what the host has."""
        self._release()
        self._held = self._holding.enter_context(self._engine.hold(*asked.fleets))
        return self._found(self._held.found, asked)

    def call_mark(self, asked: Asked, _event: Event) -> None:
        """Note the highest index of a held fleet, on any host; 0 if it is gone."""
        self._holding_now()
        for fleet in asked.fleets:
            HighMarks(self._engine.host).write(fleet, asked.index)

    def call_release(self, _asked: Asked, _event: Event) -> None:
        """Release what is held."""
        self._release()

    def call_plan(self, asked: Asked, _event: Event) -> Plan:
        """Return what a request about held fleets will do; kept for :meth:`call_run`."""
        held, request = self._holding_now(), self._engine._make_warm(_request(asked))
        plan = held.plan(request)
        self._plans = {plan.run: plan}
        return plan

    def call_run(self, asked: Asked, event: Event) -> RunResult:
        """Carry out the plan that was made last, of the run of this name."""
        if self._held is None or asked.run not in self._plans:
            raise WrongState("nothing is planned", hint="run the same command again")
        with self._told(asked.run, event):
            return self._held.carry_out(self._plans.pop(asked.run))

    def call_undo(self, asked: Asked, _event: Event) -> RunResult:
        """Carry out a request about held fleets as they are now; they stay held meanwhile."""
        return self._holding_now().again(_request(asked))

    def call_ran(self, asked: Asked, _event: Event) -> None:
        """Note in the record of a clone of a held fleet what the controller has run on it."""
        self._holding_now()
        records = self._engine._host.records
        record = records.find(asked.name)
        if record is None:
            raise NotFound(f"{asked.name} has no record")
        records.update(asked.name, ran={**record.ran, **asked.ran})

    def call_cancel(self, _asked: Asked, _event: Event) -> None:
        """End the run in progress cleanly."""
        if self._opened is not None:
            self._opened.cancel()

    def _holding_now(self) -> Held:
        if self._held is None:
            raise WrongState("nothing is held", hint="run the same command again")
        return self._held

    def _memory(self, template: str, otherwise: int) -> int:
        """Return the bytes of a clone of a template, or ``otherwise`` if that isn't here yet."""
        try:
            return self._engine.template(template).memory
        except NotFound:
            if not otherwise:
                raise
            return otherwise

    def _found(self, survey: Survey, asked: Asked) -> Found:
        request, marks = asked.request, HighMarks(self._engine.host)
        highest = max(map(marks.read, asked.fleets), default=0)
        clones = len(survey.clones)
        if asked.only:
            survey = survey.only(asked.fleets)
        if not isinstance(request, CreateRequest):
            return Found(survey=survey, clones=clones, highest=highest)
        starts = request.start or request.ready or request.wait is not None
        resources = self._engine.resources(request.hypervisor)
        memory = request.sizes.memory or self._memory(request.template, asked.memory)
        usable = resources.memory_free
        if not resources.memory_hint:  # as check_memory has it, which judges in the end
            usable = int(usable * self._engine.settings.limits.memory_overcommit)
        return Found(
            survey=survey,
            clones=clones,
            highest=highest,
            room=usable,
            need=memory + resources.memory_overhead if starts else 0,
        )


def _place(state: Path) -> str:
    """Return what tells a state folder from all others, also while it doesn't exist."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    there = next(folder for folder in (state, *state.parents) if folder.exists())
    found = there.stat()
    return f"{boot} {found.st_dev}:{found.st_ino} {state.relative_to(there)}"


def _request(asked: Asked) -> Request:
    if asked.request is None:
        raise WrongState("a call without a request")
    return asked.request
