"""Move clones from one host to another.

In this order, each of which can be repeated: the clone is marked on the host that it leaves, then
on the one where it arrives; its disks and its record are sent, and checked; its old domain is
removed, and its new one defined; what is left of the old one is removed; the marks are removed.
A marked clone can't be started, so it can't run twice, and nothing is removed before all of it is
on the other host.

Until the new domain is defined, a clone can be taken back. The order is the reverse: the mark where
it has arrived says that it is not whole there any more, and disks that were handed over are handed
back; its old domain is defined again if it was removed; what has arrived is removed, then the
marks.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import attrs

from vmcloner_core.errors import BackendError, Interrupted, VmclonerError, WrongState
from vmcloner_core.hosts import merging
from vmcloner_core.hosts.beside import Asked
from vmcloner_core.hosts.cargo import Cargo
from vmcloner_core.hosts.carrier import Unreachable
from vmcloner_core.hosts.chunks import Chunk
from vmcloner_core.hosts.images import Images
from vmcloner_core.hosts.links import Links
from vmcloner_core.hosts.sending import Parts, Told
from vmcloner_core.model import Clone, Moved, Moving, State
from vmcloner_core.names import Target, fold
from vmcloner_core.placing import Where
from vmcloner_core.plugins import PluginHost
from vmcloner_core.request import CreateRequest
from vmcloner_core.survey import Survey, absent

SEND, FINISH, UNDO, STAYS, LEAVE = "move", "finish", "undo", "stays", "leave"


def judge(surveys: Mapping[str, Survey], targets: Sequence[Target], host: str) -> tuple[Moved, ...]:
    """Return what a move of clones to a host has to do, by name.

    :param surveys: what each host has.
    :raises NotFound: a target names nothing. :raises BackendError: one may be on what could not be
        read.
    """
    found = merging.survey(surveys, {})
    error = absent(found.clones, targets)
    if error is not None:
        found.check_complete(error.message)
        raise error
    there: dict[str, dict[str, Clone]] = {}
    for clone in found.clones:
        if any(target.matches(clone.fleet, clone.index) for target in targets):
            there.setdefault(clone.name, {})[clone.host] = clone
    found.check_seen("move", [c.labels for parts in there.values() for c in parts.values()])
    return tuple(_judged(name, parts, host, surveys) for name, parts in there.items())


def _judged(
    name: str, parts: Mapping[str, Clone], host: str, surveys: Mapping[str, Survey]
) -> Moved:
    leaves = [h for h, c in parts.items() if c.moving is not None and c.moving.leaves]
    arrives = [h for h, c in parts.items() if c.moving is not None and not c.moving.leaves]
    free = [h for h, clone in parts.items() if clone.moving is None]
    source = next(iter(leaves or free), "")
    moved = Moved(
        clone=name,
        source=source,
        target=host,
        action=SEND,
        labels=next(iter(parts.values())).labels,
    )
    left = functools.partial(attrs.evolve, moved, action=LEAVE)
    if leaves and free == [host] and _same(parts[source], parts[host]):
        return attrs.evolve(moved, action=FINISH)
    if len(leaves) > 1 or len(arrives) > 1 or len(free) + bool(leaves or arrives) > 1:
        first = f", after rm moves/{name} in its state folder" if leaves or arrives else ""
        there = " and ".join(parts)
        return left(why=f"is on hosts {there}", hint=f"delete it on one of them{first}")
    if arrives:
        return _arriving(moved, parts[arrives[0]], parts.get(source), surveys)
    why, hint = _elsewhere(parts[source], surveys) if leaves else ("", None)
    if host == source and not why:
        return attrs.evolve(moved, source="", action=UNDO if leaves else STAYS)
    if not why:
        why, hint = _unfit(parts[source])
    return left(why=why, hint=hint) if why else moved


def _same(one: Clone, other: Clone) -> bool:
    """Tell whether a clone that leaves is what is left of one that has arrived elsewhere."""
    return (
        one.domain is None
        and other.domain is not None
        and one.moving is not None
        and (one.moving.uuid == other.domain.uuid)
    )


def _elsewhere(clone: Clone, surveys: Mapping[str, Survey]) -> tuple[str, str | None]:
    """Return why a clone that leaves may be whole elsewhere, and the way out; nothing if it isn't.

    The host that it is marked for has no part of it, or is not seen.
    """
    moving = clone.moving
    assert moving is not None  # noqa: S101 - the caller's
    if moving.other not in surveys:
        why = f"may be whole on host {moving.other!r}, which is not seen"
        return why, f"{_AGAIN}; {_way_out(clone)}"
    if clone.domain is None:  # it was removed when all had arrived
        why = f"was whole on host {moving.other!r}, and is not there any more"
        return why, f"move it to the host that has it now; {_way_out(clone)}"
    return "", None


_AGAIN = "run the same command again when that host is back"


def _way_out(clone: Clone) -> str:
    """Return how to end a move whose other host is gone for good: a decision that is the user's."""
    return (
        f"if no other host will ever have it: rm moves/{clone.name} in the state folder of "
        f"{clone.host}"
    )


def _arriving(
    moved: Moved, clone: Clone, leaving: Clone | None, surveys: Mapping[str, Survey]
) -> Moved:
    """Return what to do with a clone of which a host has an arriving part.

    :param leaving: the part on the host that it leaves, None if that is not seen.
    """
    moving, at = clone.moving, clone.host
    assert moving is not None  # noqa: S101 - the caller's
    left = functools.partial(attrs.evolve, moved, action=LEAVE)
    if leaving is None and clone.domain is None:  # its domain was never removed, or it went on
        seen = moving.other in surveys
        state = "which has nothing of it any more" if seen else "which is not seen"
        why = f"its disk is on host {moving.other!r}, {state}"
        return left(why=why, hint=_way_out(clone) if seen else f"{_AGAIN}; {_way_out(clone)}")
    if leaving is not None and leaving.moving is not None and leaving.moving.other != at:
        why, hint = _elsewhere(leaving, surveys)
        if why:
            return left(why=why, hint=hint)
    if moved.target == at and not moving.back:
        return attrs.evolve(moved, action=SEND if _may_differ(moving, leaving) else FINISH)
    if moved.target == moved.source and clone.domain is None:
        return attrs.evolve(moved, source=at, action=UNDO)
    way, to = ("back to", moved.source or moving.other) if moving.back else ("to", at)
    return left(
        why=f"is being moved {way} host {to!r}",
        hint=f"vmcloner move {moved.clone} {to} finishes it",
    )


def _may_differ(arriving: Moving, leaving: Clone | None) -> bool:
    """Tell whether what has arrived may be another state of the disks than the one that is left.

    Somebody may have started the clone with its hypervisor's own tools.
    """
    if leaving is None or leaving.moving is None or not arriving.whole:
        return not arriving.whole
    return leaving.domain is not None and not leaving.moving.heir


def _unfit(clone: Clone) -> tuple[str, str | None]:
    """Return why a clone can't leave its host, and the way out; nothing if it can."""
    name = clone.name
    if not clone.ours:
        return "is of another state folder", None
    if clone.making:
        return "is what a warm origin is being made from", None
    if clone.renamed is not None:
        return clone.reason, "give it its name back"
    if clone.kept:
        kept = ", ".join(snapshot.name for snapshot in clone.snapshots)
        return (
            f"has snapshots, which are not taken along: {kept}",
            f"vmcloner snapshot delete {name} NAME",
        )
    if clone.state is State.STOPPED:
        return "", None
    stops = clone.state in (State.RUNNING, State.PAUSED, State.SAVED, State.CRASHED)
    way = f"vmcloner stop {name}" if stops else f"vmcloner delete {name}"
    return f"is {clone.state.value}", way


@attrs.frozen
class Mover:
    """Carries out what :func:`judge` said, with the clones' fleets held on all hosts.

    :param images: returns what sends templates. :param networks: returns the networks of the
        controller's own template of a name. :param at_once: clones that are sent at once.
    :param template: the one that the user says clones have; empty if nobody says so.
    :param vouch: checks a clone by the controller's own template, which hosts may lack.
    """

    links: Links
    images: Callable[[], Images]
    networks: Callable[[str], Collection[str]]
    plugins: PluginHost
    run: str
    at_once: int
    cancel: threading.Event
    template: str
    vouch: Callable[[Cargo], None]

    def check(self, wanted: Sequence[Moved]) -> tuple[Moved, ...]:
        """Return what can be moved, and what can't be with the reason. Changes nothing."""
        cargos: dict[str, dict[str, Cargo]] = {}
        errors: dict[str, VmclonerError] = {}
        for each in wanted:
            if each.action == SEND:
                try:
                    cargo = self._cargo(each, "cargo")
                    self.vouch(cargo)
                    self._admitted(each.target, [cargo])
                    cargos.setdefault(each.target, {})[each.clone] = cargo
                except VmclonerError as error:
                    errors[each.clone] = error
        for target, arriving in cargos.items():
            try:
                self._admitted(target, list(arriving.values()))
            except VmclonerError as error:
                errors |= dict.fromkeys(arriving, error)
        return tuple(_told(each, errors.get(each.clone)) for each in wanted)

    def _admitted(self, target: str, cargos: Sequence[Cargo]) -> None:
        self.links.one(target, "admit", self._arriving(cargos), type(None))

    def _arriving(self, cargos: Sequence[Cargo], source: str = "") -> Asked:
        networks = {key for cargo in cargos for key in self.networks(cargo.labels.template)}
        return Asked(
            to=source,
            cargos=tuple(cargos),
            networks=tuple(sorted(networks)),
            template=self.template,
        )

    def __call__(self, wanted: Sequence[Moved]) -> tuple[Moved, ...]:
        """Move clones; each one's error is in its result."""
        sent = [each for each in wanted if each.action == SEND]
        if sent:
            self._templates(sent)
        told = Told(self.plugins, self.run, fold([each.clone for each in sent]) if sent else "")
        one = functools.partial(self._moved, told=told)
        with ThreadPoolExecutor(max(1, min(self.at_once, len(wanted))), "move") as pool:
            try:
                with told if sent else contextlib.nullcontext():
                    return tuple(pool.map(one, wanted))
            except KeyboardInterrupt:
                self.cancel.set()
                raise

    def _templates(self, sent: Sequence[Moved]) -> None:
        """Send the clones' templates to their new hosts: their resets, and kernels, need them."""
        needed = {(e.labels.template, e.labels.storage, e.target): e.labels.fleet for e in sent}
        for (template, storage, host), fleet in needed.items():
            images = self.images()
            where = Where(hosts=(host,))
            images.look(CreateRequest(fleet=fleet, template=template, storage=storage, where=where))
            images.send(self.run, [host])

    def _moved(self, wanted: Moved, told: Told) -> Moved:
        if wanted.action in (STAYS, LEAVE):
            return wanted
        try:
            if self.cancel.is_set():
                raise Interrupted("stopped by the user")
            if wanted.action == SEND:
                self._sent(wanted, told)
            if wanted.action in (SEND, FINISH):
                self._finished(wanted)
            elif wanted.action == UNDO:
                self._taken_back(wanted)
        except VmclonerError as error:
            return attrs.evolve(wanted, error=error)
        return wanted

    def _do(self, host: str, call: str, wanted: Moved) -> None:
        self.links.one(host, call, Asked(name=wanted.clone), type(None))

    def _sent(self, wanted: Moved, told: Told) -> None:
        """Send a clone's disks and its record, until all of it is on its new host."""
        name, source, target = wanted.clone, wanted.source, wanted.target
        fits = self._arriving([self._cargo(wanted, "cargo")])
        heir = self.links.one(target, "fit", fits, str)
        cargo = self._cargo(wanted, "depart", heir)
        if heir:
            self.links.one(target, "take", self._arriving([cargo], source), type(None))
            return
        told.total += cargo.data
        kind: Any = tuple[int, ...]
        there = self.links.one(target, "arrive", self._arriving([cargo], source), kind)
        if len(there) != len(cargo.disks) or min(there) < 0:
            raise BackendError(f"host {target!r}: it has other disks of {name} than were sent")

        def piece(item: str, at: int) -> Chunk:
            return self.links.one(source, "piece", Asked(name=name, item=item, offset=at), Chunk)

        with Parts(piece, keep=2) as parts:  # eight clones may be on their way
            for disk, since in zip(cargo.disks, there, strict=True):
                item = str(disk.number)
                self._disk(wanted, item, since, disk.size, parts, told)
                told.arrived(name, item, disk.data)
        self._do(target, "landed", wanted)

    def _cargo(self, wanted: Moved, call: str, heir: str = "") -> Cargo:
        """Return what the host that a clone leaves says of it."""
        asked = Asked(name=wanted.clone, to=wanted.target, heir=heir)
        cargo = self.links.one(wanted.source, call, asked, Cargo)
        if not cargo.labels.same_clone(wanted.labels):
            raise BackendError(f"host {wanted.source!r} gave {cargo.name} for {wanted.clone}")
        return cargo

    def _disk(
        self, wanted: Moved, item: str, since: int, size: int, parts: Parts, told: Told
    ) -> None:
        """Send the rest of a disk."""
        while since < size:
            if self.cancel.is_set():
                raise Interrupted("stopped by the user")
            chunk = parts(item, since)
            asked = Asked(name=wanted.clone, item=item, offset=since, chunk=chunk)
            now = self.links.one(wanted.target, "land", asked, int)
            if not since < now == chunk.end(size):  # a hostile host could go on for ever
                raise WrongState(
                    f"{wanted.clone}: another move began anew", hint="run the same command again"
                )
            since = now
            told.passed(wanted.clone, item, chunk)

    def _finished(self, wanted: Moved) -> None:
        """Make a clone that is whole on its new host that host's, and nobody else's."""
        if wanted.source:
            self._do(wanted.source, "undefine", wanted)
            self._do(wanted.source, "give", wanted)
        try:
            self._do(wanted.target, "define", wanted)
        except Unreachable:
            raise
        except VmclonerError as error:
            if not wanted.source:
                raise
            way_back = f"vmcloner move {wanted.clone} {wanted.source} takes it back"
            hint = f"{error.hint}; {way_back}" if error.hint else way_back
            raise type(error)(error.message, hint=hint) from error
        if wanted.source:
            self._do(wanted.source, "drop", wanted)
        self._do(wanted.target, "stay", wanted)

    def _taken_back(self, wanted: Moved) -> None:
        """Make a clone its old host's again. ``source``: where a part has arrived, if one has."""
        if wanted.source:
            heir = self.links.one(wanted.target, "heir", Asked(name=wanted.clone), str)
            returned = Asked(name=wanted.clone, heir=heir)
            self.links.one(wanted.source, "return", returned, type(None))
            self._do(wanted.target, "restore", wanted)
            self._do(wanted.source, "drop", wanted)
        self._do(wanted.target, "stay", wanted)


def _told(wanted: Moved, error: VmclonerError | None) -> Moved:
    if error is None:
        return wanted
    return attrs.evolve(wanted, action=LEAVE, why=error.message, hint=error.hint, error=error)


def check_all(judged: Sequence[Moved]) -> None:
    """Check that all clones can be moved.

    :raises VmclonerError: why one can't be; names it, and the way out.
    """
    for each in judged:
        if each.action == LEAVE:
            if each.error is not None:
                raise each.error
            raise WrongState(f"{each.clone} {each.why}", hint=each.hint)
