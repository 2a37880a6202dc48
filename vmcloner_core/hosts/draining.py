"""Hosts that get no new clones: those that are to be emptied, and those that were lost.

The controller remembers them in its state folder. Nothing is changed on the hosts by that.
"""

from __future__ import annotations

import enum
import json
import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from vmcloner_core import locks
from vmcloner_core.errors import NotFound, VmclonerError, WrongState, did_you_mean
from vmcloner_core.hosts import merging
from vmcloner_core.model import Clone, Moved, State
from vmcloner_core.names import fold
from vmcloner_core.os_errors import of_state
from vmcloner_core.placing import Where
from vmcloner_core.request import TargetRequest
from vmcloner_core.survey import Survey
from vmcloner_core.trusted_files import exists, make_folder, read_file, replacing

if TYPE_CHECKING:
    from vmcloner_core.hosts.controller import Controller

log = logging.getLogger(__name__)
FILE = "drained.json"


class Why(enum.Enum):
    """Why a host gets no new clones: the user said so, or it was lost for good."""

    DRAINED = "drained"
    LOST = "lost"


class Drained:
    """The hosts that get no new clones.

    :param state: the controller's state folder.
    """

    def __init__(self, state: Path) -> None:
        self._state = state
        self._file = state / FILE

    def read(self) -> dict[str, Why]:
        """Return these hosts, and why.

        :raises WrongState: the file that has them is damaged.
        """
        if not exists(self._file):
            return {}
        try:
            return {str(n): Why(why) for n, why in json.loads(self._text()).items()}
        except (ValueError, AttributeError, TypeError) as error:
            raise WrongState(
                f"{self._file} is damaged", hint="remove it, and drain again"
            ) from error

    def _text(self) -> bytes:
        return read_file(self._file, trusted=True)

    def add(self, hosts: Mapping[str, Why]) -> bool:
        """Note hosts; tell whether that changed anything. Idempotent."""
        with self._changing() as known:
            before = dict(known)
            known.update(hosts)
            return before != known

    def remove(self, host: str) -> bool:
        """Forget a host; tell whether that changed anything. Idempotent."""
        with self._changing() as known:
            return known.pop(host, None) is not None

    @contextmanager
    def _changing(self) -> Iterator[dict[str, Why]]:
        try:
            make_folder(self._state)
            with locks.hold(self._state, [FILE]):
                before = self.read()
                known = dict(before)
                yield known
                if known != before:
                    text = json.dumps({name: why.value for name, why in sorted(known.items())})
                    with replacing(self._file, 0o644) as stream:
                        stream.write(text.encode())
        except OSError as error:
            raise of_state(error, self._file) from error


def placed(where: Where, drained: Collection[str], hosts: Sequence[str]) -> Where:
    """Return where new clones go, without the hosts that get none.

    :param hosts: all of them. :raises WrongState: none is left.
    """
    where = attrs.evolve(where, barred=frozenset(drained) & frozenset(hosts))
    if hosts and not any(map(where.allows, hosts)):
        raise WrongState(
            f"no new clones are placed on {fold(sorted(where.barred))}",
            hint="name another host with --hosts, or vmcloner host undrain HOST",
        )
    return where


@attrs.frozen(kw_only=True)
class Emptied:
    """What a drain does with a clone of the host.

    :param action: ``delete``, ``move`` or ``leave``. :param why: why it is left, empty if it is
        not, or was to be. :param target: the host that it is moved to.
    """

    clone: str
    state: State
    action: str
    why: str = ""
    error: VmclonerError | None = None
    target: str = ""

    @property
    def failed(self) -> bool:
        """Whether it is still there, and should not be."""
        return bool(self.why) or self.error is not None


def check_known(controller: Controller, host: str) -> None:
    """Check that a host is in the settings. :raises NotFound: it isn't."""
    known = controller.names
    if host not in known:
        raise NotFound(f"unknown host {host!r}", hint=did_you_mean(host, known))


def drain(
    controller: Controller,
    host: str,
    *,
    delete: bool = False,
    move: bool = False,
    dry_run: bool = False,
    on_found: Callable[[Sequence[Emptied]], None] = lambda _found: None,
) -> tuple[Emptied, ...]:
    """Place no new clones on a host, and delete its stopped ones if ``delete``. Idempotent.

    If ``move``, these are moved to the other hosts. Those that run stay as they are.

    :param on_found: called with what is there before a clone is deleted; may raise to stop.
    :returns: its clones, and what became of them; none if it can't be reached and needn't be.
    :raises VmclonerError: with ``delete`` or ``move``, it or another host can't be reached.
    """
    check_known(controller, host)
    if not dry_run:
        controller.drained.add({host: Why.DRAINED})
    found = controller.survey()
    if delete or move:
        found.check_complete(f"drain {host}")
    for unseen in found.unseen:
        if unseen.host == host:
            log.warning("%s", unseen)
    twice = merging.twice(found.clones)
    clones = [clone for clone in found.clones if clone.host == host]
    if move:
        return _moved(controller, host, found, dry_run=dry_run, on_found=on_found)
    emptied = tuple(_judged(clone, delete=delete, twice=clone.name in twice) for clone in clones)
    on_found(emptied)
    gone = [each.clone for each in emptied if each.action == "delete"]
    if dry_run or not gone:
        return emptied
    errors = _deleted(controller, gone)
    return tuple(attrs.evolve(each, error=errors.get(each.clone)) for each in emptied)


def _moved(
    controller: Controller,
    host: str,
    found: Survey,
    *,
    dry_run: bool,
    on_found: Callable[[Sequence[Emptied]], None],
) -> tuple[Emptied, ...]:
    """Move a host's stopped clones to the others, as evenly as new ones are placed."""
    clones = {clone.name: clone for clone in found.clones if clone.host == host}
    others = [n for n in controller.names if n not in {host, *controller.drained.read()}]
    if clones and not others:
        raise WrongState(
            f"no host is left to move the clones of {host} to",
            hint="vmcloner host undrain HOST, or host drain --delete",
        )
    wanted = _placed(list(clones.values()), found.clones, others)
    if not wanted:
        return ()

    def told(moves: Sequence[Moved]) -> tuple[Emptied, ...]:
        return tuple(
            Emptied(
                clone=each.clone,
                state=clones[each.clone].state,
                action="leave" if each.action == "leave" else "move",
                why=each.why,
                error=each.error,
                target="" if each.action == "leave" else each.target,
            )
            for each in moves
        )

    moves = controller.move_each(wanted, dry_run=dry_run, on_found=lambda m: on_found(told(m)))
    return tuple(sorted(told(moves), key=lambda each: list(clones).index(each.clone)))


def _placed(
    leaving: Sequence[Clone], there: Sequence[Clone], others: Sequence[str]
) -> dict[str, list[str]]:
    """Return where clones shall go: to the host with the fewest of the fleet, then of all.

    A move that has begun goes on.
    """
    fleets = Counter((clone.host, clone.fleet) for clone in there)
    every = Counter(clone.host for clone in there)
    arriving = {clone.name: clone.host for clone in there if clone.host in others and clone.moving}
    wanted: dict[str, list[str]] = {}
    for clone in sorted(leaving, key=lambda clone: clone.state is not State.STOPPED):
        to = arriving.get(clone.name) or min(
            others, key=lambda name: (fleets[name, clone.fleet], every[name], name)
        )
        wanted.setdefault(to, []).append(clone.name)
        fleets[to, clone.fleet] += 1
        every[to] += 1
    return wanted


def _judged(clone: Clone, *, delete: bool, twice: bool) -> Emptied:
    why = ""
    if delete and not clone.ours:
        why = "is of another state folder"
    elif delete and twice:
        why = "is on another host too"
    elif delete and clone.making:
        why = "is what a warm origin is being made from"
    elif delete and clone.state is not State.STOPPED:
        why = f"is {clone.state.value}"
    action = "delete" if delete and not why else "leave"
    return Emptied(clone=clone.name, state=clone.state, action=action, why=why)


def _deleted(controller: Controller, names: Sequence[str]) -> dict[str, VmclonerError]:
    """Delete stopped clones; returns the errors of those that could not be."""

    def check(plan: Any) -> None:
        started = [clone.name for clone in plan.clones if "destroy" in clone.steps]
        if started:
            raise WrongState(
                f"{fold(started)} was started meanwhile", hint="run the same command again"
            )

    request = TargetRequest(action="delete", targets=(fold(names),))
    result = controller.run(request, on_plan=check)
    return {each.name: each.error for each in result.results if each.error is not None}
