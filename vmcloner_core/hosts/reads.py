"""The controller's calls that are no runs: each host is asked, and the answers are merged.

A host that can't answer keeps no other from it: see :meth:`Reads.missed`.
"""

from __future__ import annotations

import functools
import inspect
import logging
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import attrs

from vmcloner_core import ssh_access
from vmcloner_core.engine import Engine
from vmcloner_core.errors import (
    BackendError,
    InvalidRequest,
    NotFound,
    VmclonerError,
    did_you_mean,
    shown,
)
from vmcloner_core.guest_calls import SharedCalls
from vmcloner_core.hosts import merging, reaching, wire
from vmcloner_core.hosts.beside import OBSERVED, Asked, HostState
from vmcloner_core.hosts.calls import CALLS, ON_ONE
from vmcloner_core.hosts.links import Links, each
from vmcloner_core.hosts.streams import Streams
from vmcloner_core.lease_calls import LeaseState
from vmcloner_core.local_host import LocalHost
from vmcloner_core.model import (
    Access,
    Check,
    Clone,
    CloneSpec,
    Host,
    Leftover,
    Outcome,
    Statistics,
    Status,
)
from vmcloner_core.names import fold, parse_targets
from vmcloner_core.plan import Waiting
from vmcloner_core.plugins import PluginHost
from vmcloner_core.remote import FANOUT, Answer
from vmcloner_core.request import check_aim
from vmcloner_core.settings import LOCAL, Settings
from vmcloner_core.survey import Survey, Unseen
from vmcloner_core.template_calls import TemplateRow

if TYPE_CHECKING:
    from vmcloner_core.audit import Report
    from vmcloner_core.booting import Preview
    from vmcloner_core.console_lines import ConsoleLine
    from vmcloner_core.run_events import RunEvent

log = logging.getLogger(__name__)
T = TypeVar("T")
MAX_LINE = 16 * 1024
"""Characters of a console's line that a host gives."""


class Reads(SharedCalls):
    """What a controller does with clones of all hosts without planning.

    :param own: the controller's own folders.
    """

    def __init__(self, settings: Settings, plugins: PluginHost, own: Host) -> None:
        self.settings = settings
        self.plugins = plugins
        self.host = own
        self._missed: dict[str, Unseen] = {}
        self._this: Engine | None = None
        self._this_host = LocalHost(own, plugins)

    @property
    @abstractmethod
    def _links(self) -> Links:
        """The hosts."""

    def __getattr__(self, name: str) -> Any:
        """Return a call of one host, see :data:`ON_ONE`; refuse the engine's others.

        :raises InvalidRequest: a call that works on this machine only.
        """
        if name in ON_ONE:
            return functools.partial(self._on_one, name)
        if name.startswith("_") or not hasattr(Engine, name):
            raise AttributeError(name)
        raise InvalidRequest(
            "this works on one host only, not across several",
            hint="run it on that host, or with --host local for this machine",
        )

    def close(self) -> None:
        """Close the engine of this machine, if it was needed."""
        if self._this is not None:
            self._this.close()

    def missed(self) -> tuple[Unseen, ...]:
        """Return which hosts could not answer since this was called last, and why."""
        missed, self._missed = tuple(self._missed.values()), {}
        return missed

    # --- asking ---------------------------------------------------------------------------------

    def _miss(self, host: str, error: VmclonerError) -> None:
        self._missed[host] = Unseen(host=host, kind="host", name=host, error=error)

    def _answered(self, name: str, asked: Mapping[str, Mapping[str, object]]) -> dict[str, Any]:
        """Make a call on hosts that are connected; those that fail are :meth:`missed`."""
        answers: dict[str, Any] = {}
        found = each(asked, lambda host: self._one(host, name, asked[host]), waits=True)
        for host, answer in found.items():
            if isinstance(answer, VmclonerError):
                self._miss(host, answer)
            else:
                answers[host] = answer
        return answers

    def _one(self, host: str, name: str, asked: Mapping[str, object]) -> Any:
        heard = functools.partial(self._heard, "", host, told={})
        return self._links.one(host, name, asked, CALLS[name].answer, heard)

    def _connected(self) -> tuple[str, ...]:
        """Connect; returns the hosts that can be used, the others are :meth:`missed`."""
        lost = self._links.connect(self._links.names)
        for host, error in lost.items():
            self._miss(host, error)
        return tuple(name for name in self._links.names if name not in lost)

    def _everywhere(self, name: str, **asked: object) -> dict[str, Any]:
        return self._answered(name, dict.fromkeys(self._connected(), asked))

    def _of_clones(self, name: str, clones: Iterable[Clone], **asked: object) -> dict[str, Any]:
        """Make a call on the hosts of some clones, with each one's clones as targets."""
        by_host = merging.by_host(clones)
        return self._answered(
            name, {host: {"targets": (fold(names),), **asked} for host, names in by_host.items()}
        )

    def _there(self, clone: str, call: str, **asked: object) -> Any:
        """Make a call on the host of a clone."""
        return self._one(self.show(clone).host, call, {"name": clone, **asked})

    def _on_one(self, name: str, *args: object, **options: object) -> Any:
        """Make a call on the only host, or on this machine if there are several."""
        call = getattr(Engine, name)
        if len(self._links.names) != 1 or self._links.names == (LOCAL,):
            return call(self._own_engine(), *args, **options)
        asked = inspect.signature(call).bind(None, *args, **options).arguments
        del asked["self"]
        (host,) = self._links.names
        for value in asked.values():
            if isinstance(value, Path) and not value.is_absolute():
                raise InvalidRequest(f"{value}: not a whole path", hint=f"of a file on {host}")
        for error in self._links.connect([host]).values():
            raise error
        return self._one(host, name, asked)

    def _own_engine(self) -> Engine:
        """Return the engine of this machine; whether it is one of the hosts or not."""
        if self._this is None:
            self._this = Engine(self.settings, self.plugins, self._this_host)
        return self._this

    def _heard(self, run: str, host: str, text: str, told: dict[str, Waiting]) -> None:
        """Tell the observers of an event of a host.

        :param told: what each host's clones wait for, which this notes.
        """
        event = wire.load(text, dict[str, Any], whose=f"host {host!r}")
        kind = OBSERVED.get(str(event.get("kind")))
        if kind is None:
            return
        value: Any = _plain(wire.load(str(event.get("value")), kind, whose=f"host {host!r}"))
        if isinstance(value, Waiting):
            told[host] = value
            self.plugins.waiting(run, merging.waiting(dict(told)))
        elif event["kind"] == "step":
            self.plugins.step_changed(value)
        elif event["kind"] == "seen":
            self.plugins.clone_seen(value)
        else:
            self.plugins.progress(attrs.evolve(value, what=f"{value.what} on {host}"))

    # --- clones ---------------------------------------------------------------------------------

    def survey(self, *targets: str) -> Survey:
        """Return the clones of all hosts, and what could not be read; see :meth:`Engine.survey`."""
        lost: dict[str, VmclonerError] = {}
        found: dict[str, Survey] = {}
        for name, answer in self._links.reached("survey", {}, Survey).items():
            if isinstance(answer, VmclonerError):
                lost[name] = answer
            else:
                found[name] = answer
        merged = merging.survey(found, lost)
        return attrs.evolve(merged, clones=merged.select(parse_targets(targets)))

    def list(self, *targets: str) -> tuple[Clone, ...]:
        """Return the clones of :meth:`survey`."""
        found = self.survey(*targets)
        for unseen in found.unseen:
            if unseen.kind == "host":
                self._miss(unseen.host, unseen.error)
            else:
                log.warning("host %s: %s", unseen.host, unseen)
        return found.clones

    def fleets(self) -> tuple[str, ...]:
        """Return the names of the fleets that have clones on any host."""
        return tuple(sorted({clone.fleet for clone in self.survey().clones}))

    def show(self, name: str) -> Clone:
        """Return one clone. :raises NotFound: there is none of that name."""
        found = self.survey()
        for clone in found.clones:
            if clone.name == name:
                return clone
        found.check_complete(f"no clone {name!r}")
        raise NotFound(
            f"no clone {name!r}", hint=did_you_mean(name, [c.name for c in found.clones])
        )

    def domain_xml(self, name: str) -> str:
        """Return the domain XML of a clone, as it would be defined now."""
        return str(self._there(name, "domain_xml"))

    def domain_native(self, name: str) -> str:
        """Return a clone's domain in its hypervisor's native format."""
        return str(self._there(name, "domain_native"))

    def screenshot(self, name: str) -> bytes:
        """Return a picture of a clone's screen, as PNG."""
        picture: bytes = self._there(name, "screenshot")
        return picture

    def spec(self, clone: Clone) -> CloneSpec:
        """Return what an existing clone is made from; see :meth:`Engine.spec`."""
        spec: CloneSpec = self._one(clone.host, "spec", {"name": clone.name})
        return spec

    def started(self, clone: Clone) -> float | None:
        """Return when a running clone was started; see :meth:`Engine.started`."""
        found: float | None = self._one(clone.host, "started", {"name": clone.name})
        return found

    def statistics(self, *targets: str) -> tuple[tuple[Clone, Statistics | None], ...]:
        """Return clones with what each has used; see :meth:`Engine.statistics`."""
        clones = self.list(*targets)
        found = _by_clone(self._of_clones("statistics", clones), lambda row: row[0].name)
        rows = ((clone, found.get((clone.host, clone.name))) for clone in clones)
        return tuple((clone, row[1] if row is not None else None) for clone, row in rows)

    def boots(self, *targets: str) -> tuple[Preview, ...]:
        """Return what clones would boot now; see :meth:`Engine.boots`."""
        clones = self.list(*targets)
        found = _by_clone(self._of_clones("boots", clones), lambda preview: preview.name)
        pairs = ((clone.host, clone.name) for clone in clones)
        return tuple(found[pair] for pair in pairs if pair in found)

    # --- leases ---------------------------------------------------------------------------------

    def leases(self, clones: Iterable[Clone]) -> tuple[LeaseState, ...]:
        """Return the leases of clones, in their order; see :meth:`Engine.leases`.

        A clone whose host doesn't answer counts as one without a lease.
        """
        clones = tuple(clones)
        found = self._of_clones("leases", clones)
        return tuple(
            state or LeaseState(clone=clone, lease=None, left=None)
            for clone, state in _in_order(clones, found)
        )

    def extend_lease(
        self,
        *targets: str,
        ttl: int | str | None = None,
        everything: bool = False,
        dry_run: bool = False,
    ) -> tuple[LeaseState, ...]:
        """Let clones' leases end later, on all hosts; see :meth:`Engine.extend_lease`."""
        return self._leased("extend_lease", targets, everything, dry_run, ttl=ttl)

    def end_lease(
        self, *targets: str, everything: bool = False, dry_run: bool = False
    ) -> tuple[LeaseState, ...]:
        """End clones' leases now, on all hosts; see :meth:`Engine.end_lease`."""
        return self._leased("end_lease", targets, everything, dry_run)

    def _leased(
        self, call: str, targets: Sequence[str], everything: bool, dry_run: bool, **more: object
    ) -> tuple[LeaseState, ...]:
        """Change leases. All hosts check theirs before the first is changed."""
        check_aim(call.replace("_", " "), targets, everything=everything)
        clones = self.list(*targets)
        if everything:
            clones = tuple(clone for clone in clones if clone.ours and not clone.making)
        asked = {
            host: {"targets": (fold(names),), "dry_run": True, **more}
            for host, names in merging.by_host(clones).items()
        }
        found = self._links.all(call, asked, CALLS[call].answer)
        if not dry_run:
            found = self._answered(
                call, {host: {**given, "dry_run": False} for host, given in asked.items()}
            )
        return tuple(state for _, state in _in_order(clones, found) if state is not None)

    # --- hosts ----------------------------------------------------------------------------------

    def hosts(self) -> dict[str, HostState | VmclonerError]:
        """Return each host's state, or why it can't be used."""
        return self._links.reached("state", Asked(), HostState)

    def check_host(self, *backends: str) -> Iterator[Check]:
        """Yield what each backend needs on each host; see :meth:`Engine.check_host`.

        The backends' names begin with the host's: ``lab1/kvm``.
        """
        kind: Any = tuple[Check, ...]
        asked = {"targets": backends}
        for name, answer in self._links.reached("check_host", asked, kind).items():
            if isinstance(answer, VmclonerError):
                yield Check(
                    backend=name,
                    name="host",
                    status=Status.FAILED,
                    detail=answer.message,
                    fix=answer.hint or "",
                )
            else:
                for check in answer:
                    yield attrs.evolve(check, backend=f"{name}/{check.backend}")

    def gc(
        self,
        *,
        expired: bool = False,
        orphans: bool = False,
        dry_run: bool = False,
        on_found: Callable[[Sequence[Leftover]], None] = lambda _left: None,
        on_unseen: Callable[[Unseen], None] = lambda unseen: log.warning("%s", unseen),
    ) -> tuple[Leftover, ...]:
        """Remove what killed runs left on every host that can be reached; see :meth:`Engine.gc`.

        Each host looks again before it removes: what is left over only since it was shown goes too.

        :param on_unseen: also called with each host that can't be reached.
        """
        asked = {"expired": expired, "orphans": orphans}
        found = self._everywhere("gc", **asked, dry_run=True)
        left = _left(found)
        if left:
            on_found(left)
        if left and not dry_run:
            again = {host: {**asked, "dry_run": False} for host in found if found[host].left}
            done = self._answered("gc", again)
            found, left = found | done, _left(done)
        for unseen in self.missed():
            on_unseen(unseen)
        for host, those in found.items():
            for unseen in those.unseen:
                on_unseen(attrs.evolve(unseen, host=host))
        return left

    def template_rows(self) -> tuple[TemplateRow, ...]:
        """Return each host's templates, and those of this machine."""
        found = self._everywhere("template_rows")
        if LOCAL not in found and len(self._links.names) > 1:
            found[LOCAL] = self._own_engine().template_rows()
        return tuple(attrs.evolve(row, host=host) for host, rows in found.items() for row in rows)

    def capture_template(self, clone: str, name: str, **options: Any) -> Any:
        """Make a template of a clone on its host; see :meth:`Engine.capture_template`."""
        return self._one(
            self.show(clone).host, "capture_template", {"clone": clone, "name": name, **options}
        )

    # --- consoles and events --------------------------------------------------------------------

    def console_log(self, clone: Clone) -> None:
        """Return None: the file with a clone's console output is on its host."""

    def read_console(self, name: str, offset: int = 0, limit: int = 65536) -> tuple[bytes, int]:
        """Return a clone's console output from ``offset``, and the offset to continue from."""
        read: tuple[bytes, int] = self._there(name, "read_console", offset=offset, limit=limit)
        return read

    def console_lines(
        self,
        *targets: str,
        lines: int | None = None,
        since: float | None = None,
        follow: bool = False,
    ) -> Iterator[ConsoleLine]:
        """Yield the lines of clones' consoles, in their order; see :meth:`Engine.console_lines`.

        With ``follow``, as they come from the hosts.
        """
        clones = self.list(*targets)
        order = {(clone.host, clone.name): place for place, clone in enumerate(clones)}
        asked = {
            host: {"targets": (fold(names),), "lines": lines, "since": since, "follow": follow}
            for host, names in merging.by_host(clones).items()
        }
        streams = Streams(self._links, "console_lines", asked)
        try:
            pairs = (
                streams.arriving(self._miss)
                if follow
                else streams.ordered(lambda host, line: order.get((host, line.clone)), self._miss)
            )
            for host, line in pairs:
                if (host, line.clone) in order:
                    yield attrs.evolve(line, text=line.text[:MAX_LINE])
        finally:
            streams.close()

    def events(
        self, *, run: str | None = None, follow: bool = False, plans: bool = False
    ) -> Iterator[RunEvent]:
        """Yield the events of runs on all hosts by their time; see :meth:`Engine.events`.

        With ``follow``, as they come from the hosts.

        :raises NotFound: no host has a log of that run.
        """
        hosts = self._connected()
        asked = {"run": run, "follow": follow, "plans": plans}
        streams = Streams(self._links, "events", dict.fromkeys(hosts, asked))
        without: list[VmclonerError] = []

        def failed(host: str, error: VmclonerError) -> None:
            if isinstance(error, NotFound):  # a run need not concern all hosts
                without.append(error)
            else:
                self._miss(host, error)

        try:
            pairs = (
                streams.arriving(failed)
                if follow
                else streams.ordered(lambda _host, event: event.time, failed)
            )
            for host, event in pairs:
                yield attrs.evolve(event, host=host)
        finally:
            streams.close()
        if without and len(without) == len(hosts):
            raise without[0]

    # --- reaching clones ------------------------------------------------------------------------

    def access(self, *targets: str) -> tuple[Outcome[Access], ...]:
        """Return how to reach each clone by ssh through its host; see :meth:`Engine.access`."""
        clones = tuple(clone for clone in self.list(*targets) if targets or not clone.making)
        found: dict[tuple[str, str], Outcome[Access]] = {}
        for host, answer in self._of_clones("reach", clones).items():
            folder, jump = self.host.state / "hosts" / host, self._links.destination(host)
            for one in answer:
                found[host, one.name] = reaching.access(one, jump, folder)
        missing = BackendError("its host did not answer for it")
        return tuple(
            found.get((clone.host, clone.name)) or Outcome(key=clone.name, error=missing)
            for clone in clones
        )

    def reach(self, clone: Clone) -> Outcome[Access]:
        """Return how to reach a clone by ssh as it is now, or why it can't be reached."""
        return self.access(clone.name)[0]

    def execute(
        self, *targets: str, command: str, timeout: float = 60.0, jobs: int = FANOUT
    ) -> tuple[Answer, ...]:
        """Run a command on many clones at once by ssh; see :meth:`Engine.execute`."""
        return ssh_access.execute(self.access(*targets), command, timeout=timeout, jobs=jobs)

    def audit(self, *targets: str, timeout: float = 60.0, jobs: int = FANOUT) -> Report:
        """Read running clones' identities from inside; see :meth:`Engine.audit`."""
        from vmcloner_core import audit

        return audit.judge(self.execute(*targets, command=audit.SCRIPT, timeout=timeout, jobs=jobs))


def _by_clone(
    found: Mapping[str, Iterable[T]], name: Callable[[T], str]
) -> dict[tuple[str, str], T]:
    """Return what hosts have answered, by host and clone."""
    return {(host, name(each)): each for host, those in found.items() for each in those}


def _in_order(
    clones: Iterable[Clone], found: Mapping[str, Iterable[LeaseState]]
) -> Iterator[tuple[Clone, LeaseState | None]]:
    """Yield clones with what their hosts said of their leases; None if nothing."""
    states = _by_clone(found, lambda state: state.clone.name)
    for clone in clones:
        state = states.get((clone.host, clone.name))
        yield clone, state and attrs.evolve(state, clone=clone)


def _left(found: Mapping[str, Any]) -> tuple[Leftover, ...]:
    return tuple(
        attrs.evolve(each, host=host) for host, those in found.items() for each in those.left
    )


def _plain(event: Any) -> Any:
    """Return an event of a host with its texts safe to display."""
    values = {field.name: getattr(event, field.name) for field in attrs.fields(type(event))}
    return attrs.evolve(event, **{k: shown(v) for k, v in values.items() if isinstance(v, str)})
