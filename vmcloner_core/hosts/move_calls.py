"""The calls that move clones, which a host answers.

Its disks cross in chunks, as images do (:mod:`vmcloner_core.hosts.chunks`).
"""

from __future__ import annotations

import functools
import threading
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import attrs

from vmcloner_core.birth import Birth
from vmcloner_core.errors import InvalidRequest, NotFound, WrongState
from vmcloner_core.hosts.adapting import adapted_spec, check_devices, check_networks, recorded_spec
from vmcloner_core.hosts.arriving import Arrival, check_room, shares
from vmcloner_core.hosts.cargo import Cargo
from vmcloner_core.hosts.chunks import Chunk
from vmcloner_core.hosts.leaving import Leaving, cargo_of
from vmcloner_core.model import Clone, CloneSpec, Moving, State
from vmcloner_core.moves import Mark
from vmcloner_core.outcomes import checked
from vmcloner_core.plan import ClonePlan, Plan
from vmcloner_core.records import Record
from vmcloner_core.stored_ids import is_id

if TYPE_CHECKING:
    from vmcloner_core.engine import Engine, Held
    from vmcloner_core.hosts.beside import Asked, Event


class MoveCalls(ABC):
    """The calls of :class:`~vmcloner_core.hosts.beside.Beside` that move clones.

    The controller holds the clones' fleets. Each call can be made again after a kill.
    """

    def __init__(self) -> None:
        super().__init__()
        self._leaving: dict[str, Leaving] = {}
        self._arriving: dict[str, Arrival] = {}
        self._one_run = threading.Lock()

    @property
    @abstractmethod
    def _engine(self) -> Engine:
        """The engine of this host."""

    @abstractmethod
    def _holding_now(self) -> Held:
        """Return what is held. :raises WrongState: nothing is."""

    # --- the host that a clone leaves -----------------------------------------------------------

    def call_cargo(self, asked: Asked, _event: Event) -> Cargo:
        """Return what a clone is, with its disks not read yet. Changes nothing."""
        return cargo_of(self._engine, self._there(asked.name))

    def call_depart(self, asked: Asked, _event: Event) -> Cargo:
        """Mark a clone as leaving for host ``to``, and open its disks to be sent."""
        self._unload(asked.name)
        clone = self._there(asked.name)
        cargo = cargo_of(self._engine, clone)
        self._stopped(clone, State.STOPPED)
        if asked.heir and not (cargo.pool and is_id(asked.heir)):
            raise InvalidRequest(
                f"{clone.name}: pool {cargo.labels.storage!r} hands no disks over to {asked.to}"
            )
        if not asked.heir and any(volume.kind == "network" for volume in clone.volumes):
            raise InvalidRequest(
                f"{clone.name}: disks of pool {cargo.labels.storage!r} are reached over the "
                "network, and are not copied to other pools"
            )
        host = self._engine._host
        moving = Moving(leaves=True, other=asked.to, uuid=cargo.known().uuid, heir=asked.heir)
        host.moves.note(clone.name, Mark(moving=moving))
        if asked.heir:  # its disks stay where they are
            return cargo
        leaving = Leaving(host, clone)
        try:
            disks = tuple(map(leaving.opened, cargo.disks))
        except BaseException:
            leaving.close()
            raise
        self._leaving[clone.name] = leaving
        return attrs.evolve(cargo, disks=disks)

    def call_piece(self, asked: Asked, _event: Event) -> Chunk:
        """Return a part of a disk of a clone that leaves."""
        if asked.name not in self._leaving:
            raise WrongState(f"{asked.name} is not open", hint="run the same command again")
        return self._leaving[asked.name].chunk(asked.item, asked.offset)

    def call_unload(self, asked: Asked, _event: Event) -> None:
        """Close the disks of a clone."""
        self._unload(asked.name)

    def call_undefine(self, asked: Asked, _event: Event) -> None:
        """Remove the domain of a clone that leaves; its disks and its record stay."""
        self._marked(asked.name, leaves=True)
        clone = self._seen(asked.name)
        if clone is not None and clone.domain is not None:
            self._stopped(clone, State.STOPPED, State.ORPHAN)
            records, domain = self._engine._host.records, clone.domain  # it may be taken back
            records.update(clone.name, uuid=domain.uuid, macs=domain.macs)
            self._deleted(clone, ("undefine",))

    def call_give(self, asked: Asked, _event: Event) -> None:
        """Hand the disks of a clone that leaves over, if both hosts share their pool."""
        self._hand_over(asked.name, self._marked(asked.name, leaves=True).moving.heir)

    def _hand_over(self, name: str, heir: str) -> None:
        """Make a clone's disks another state folder's; none if ``heir`` is empty."""
        clone = self._seen(name)
        if not heir or clone is None:
            return
        drivers = self._engine._host.drivers
        for volume in clone.volumes:
            give = functools.partial(drivers.storage(volume.pool).hand_over, [volume], heir)
            backend = drivers.backend("storage", volume.pool)
            for outcome in checked(give, [volume.name], backend):
                outcome.unwrap()

    def call_heir(self, asked: Asked, _event: Event) -> str:
        """Return who gets the disks of a clone that is taken back: empty if they were copied.

        :raises WrongState: they were copied, and those that were here are not all here any more.
        """
        mark = self._marked(asked.name, leaves=True)
        if mark.moving.heir:
            return self._engine._host.keep_state_id()
        self._check_disks(self._there(asked.name), mark)
        return ""

    def call_restore(self, asked: Asked, _event: Event) -> None:
        """Define the domain of a clone that is taken back, if it was removed."""
        mark, clone = self._marked(asked.name, leaves=True), self._there(asked.name)
        self._check_disks(clone, mark)  # those on the other host are removed next
        if clone.domain is None:
            record = self._recorded(clone)
            self._defined(clone, recorded_spec(record, self._engine._host.made_of(clone.labels)))

    def _check_disks(self, clone: Clone, mark: Mark) -> None:
        """Check that a clone that is taken back has all its disks here. :raises WrongState: no."""
        made_of = self._recorded(clone).template()
        wanted = 1 + len(made_of.blanks if made_of is not None else ())
        if sum(volume.complete for volume in clone.volumes) < wanted:
            raise WrongState(
                f"{clone.name}: its disks are not here any more",
                hint=f"vmcloner move {clone.name} {mark.moving.other} finishes its move",
            )

    def call_drop(self, asked: Asked, _event: Event) -> None:
        """Remove all of a clone that has left, or of one that has not arrived, and its mark."""
        self._unload(asked.name)
        host, clone = self._engine._host, self._seen(asked.name)
        mark = host.moves.find(asked.name)
        if clone is not None:
            if mark is None or mark.moving.whole:
                raise WrongState(f"{asked.name} is no clone that has left")
            if mark.moving.heir and clone.volumes:  # they are the only ones
                raise WrongState(f"{asked.name}: its disks are not handed over yet")
            self._stopped(clone, State.STOPPED, State.ALLOCATED, State.ORPHAN)
            self._deleted(clone, ("undefine", "remove"))
        host.moves.remove(asked.name)

    # --- the host where it arrives --------------------------------------------------------------

    def call_admit(self, asked: Asked, _event: Event) -> None:
        """Check that clones can be had here; their template may be missing. Changes nothing.

        :raises VmclonerError: why not.
        """
        self._fit(asked, complete=False)

    def call_fit(self, asked: Asked, _event: Event) -> str:
        """Check that a clone can be had here, with the template that is here. Changes nothing.

        :returns: the id of the state folder here if the clone's pool is this host's too, else "".
        :raises VmclonerError: why not.
        """
        (cargo,) = asked.cargos
        self._fit(asked, complete=True)
        host = self._engine._host
        return host.keep_state_id() if shares(host, cargo) else ""

    def call_take(self, asked: Asked, _event: Event) -> None:
        """Keep the record of a clone whose disks are in a pool that both hosts share.

        It is whole then, but for its disks, which the other host hands over.
        """
        (cargo,) = asked.cargos
        self._fit(asked, complete=True)
        if not shares(self._engine._host, cargo):
            raise WrongState(f"{cargo.name}: its pool is not shared")
        Arrival(self._engine, cargo).take(asked.to)

    def _fit(self, asked: Asked, *, complete: bool) -> None:
        found = self._engine.survey()
        for cargo in asked.cargos:
            check_networks(self._engine, cargo, asked.networks)
            check_devices(self._engine, cargo, asked.template)
            Arrival(self._engine, cargo).check(found, complete=complete)
        check_room(self._engine._host, asked.cargos, found)

    def call_arrive(self, asked: Asked, _event: Event) -> tuple[int, ...]:
        """Mark a clone as arriving from host ``to``; returns how much of each disk is here."""
        (cargo,) = asked.cargos
        self._unload(cargo.name)
        self._fit(asked, complete=True)
        arrival = Arrival(self._engine, cargo)
        self._arriving[cargo.name] = arrival
        return arrival.begin(asked.to)

    def call_land(self, asked: Asked, _event: Event) -> int:
        """Write a part of a disk; returns how much of it is here then."""
        assert asked.chunk is not None  # noqa: S101 - the controller gives one
        return self._arrival(asked.name).write(asked.item, asked.offset, asked.chunk)

    def call_landed(self, asked: Asked, _event: Event) -> None:
        """Check the disks of a clone, keep its record, and mark it as whole."""
        self._arrival(asked.name).end()
        self._unload(asked.name)

    def _arrival(self, name: str) -> Arrival:
        if name not in self._arriving:
            raise WrongState(f"{name} is not arriving", hint="run the same command again")
        return self._arriving[name]

    def call_define(self, asked: Asked, _event: Event) -> None:
        """Define the domain of a clone that is whole here, and is nobody else's any more."""
        clone = self._seen(asked.name)
        if clone is not None and clone.moving is None and clone.domain is not None:
            return  # it was done before
        mark = self._marked(asked.name, leaves=False)
        if clone is None or not (mark.moving.whole and clone.volumes):
            raise WrongState(f"{asked.name} is not whole", hint="run the same command again")
        if clone.domain is None:
            self._defined(clone, adapted_spec(self._engine, self._recorded(clone)))

    def call_return(self, asked: Asked, _event: Event) -> None:
        """Give a clone up that has no domain here, with its disks if they are to be handed back."""
        self._unload(asked.name)
        mark, clone = self._marked(asked.name, leaves=False), self._seen(asked.name)
        if clone is not None and clone.domain is not None:
            raise WrongState(f"{asked.name} is whole", hint="run the same command again")
        if bool(asked.heir) != bool(mark.moving.heir) or (asked.heir and not is_id(asked.heir)):
            raise InvalidRequest(f"{asked.name}: its disks are not handed back to {asked.heir!r}")
        moving = attrs.evolve(mark.moving, whole=False, back=True, heir=asked.heir)
        self._engine._host.moves.note(asked.name, attrs.evolve(mark, moving=moving))
        self._hand_over(asked.name, asked.heir)

    def call_stay(self, asked: Asked, _event: Event) -> None:
        """Remove a clone's mark: it is this host's, and can be started."""
        self._unload(asked.name)
        self._engine._host.moves.remove(asked.name)

    # --- what they share ------------------------------------------------------------------------

    def _seen(self, name: str) -> Clone | None:
        found = self._engine.survey()
        found.check_complete(f"move {name}")
        return next((clone for clone in found.clones if clone.name == name), None)

    def _there(self, name: str) -> Clone:
        clone = self._seen(name)
        if clone is None:
            raise NotFound(f"no clone {name!r}")
        return clone

    def _stopped(self, clone: Clone, *states: State) -> None:
        """Check a clone's state: somebody may have started it without us."""
        if clone.state not in states:
            by = "its hypervisor's own tools" if clone.moving else f"vmcloner stop {clone.name}"
            raise WrongState(
                f"{clone.name} is {clone.state.value}",
                hint=f"stop it with {by}, then run the same command again",
            )

    def _marked(self, name: str, *, leaves: bool) -> Mark:
        mark = self._engine._host.moves.find(name)
        if mark is None or mark.moving.leaves is not leaves:
            raise WrongState(f"{name} is not being moved", hint="run the same command again")
        return mark

    def _unload(self, name: str) -> None:
        if name in self._leaving:
            self._leaving.pop(name).close()
        if name in self._arriving:
            self._arriving.pop(name).close()

    def _close_moves(self) -> None:
        for name in (*self._leaving, *self._arriving):
            self._unload(name)

    def _deleted(self, clone: Clone, steps: tuple[str, ...]) -> None:
        self._carried_out(
            "delete",
            ClonePlan(
                labels=clone.labels,
                steps=steps,
                state=clone.state,
                volumes=clone.volumes,
                domain=clone.domain,
            ),
        )

    def _recorded(self, clone: Clone) -> Record:
        record = self._engine._host.records.find(clone.name)
        if record is None:
            raise NotFound(f"{clone.name} has no record", hint="run the same command again")
        return record

    def _defined(self, clone: Clone, spec: CloneSpec) -> None:
        plan = ClonePlan(
            labels=clone.labels,
            steps=("define",),
            state=clone.state,
            volumes=clone.volumes,
            spec=spec,
        )
        self._carried_out("create", plan)

    def _carried_out(self, action: str, clone: ClonePlan) -> None:
        from vmcloner_core.steps import ACTIONS

        plan = Plan(
            action=action,
            run=Birth.now().run,
            host=self._engine.host.name,
            clones=(clone,),
            order=ACTIONS[action].order,
        )
        with self._one_run:
            result = self._holding_now().carry_out(plan)
        for failed in result.failures:
            if failed.error is not None:
                raise failed.error
