"""The calls that send templates and images, which a host answers."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from vmcloner_core.errors import VmclonerError, WrongState
from vmcloner_core.hosts.chunks import Chunk
from vmcloner_core.hosts.packing import Packed, pack
from vmcloner_core.hosts.parcels import Holding, Parcel, holding
from vmcloner_core.hosts.receiving import Received
from vmcloner_core.images import known_digest
from vmcloner_core.names import fold
from vmcloner_core.template_leftovers import clones_of

if TYPE_CHECKING:
    from vmcloner_core.engine import Engine
    from vmcloner_core.hosts.beside import Asked, Event


class ParcelCalls(ABC):
    """The calls of :class:`~vmcloner_core.hosts.beside.Beside` that are about parcels."""

    def __init__(self) -> None:
        super().__init__()
        self._sent: dict[str, tuple[Packed, contextlib.ExitStack]] = {}

    @property
    @abstractmethod
    def _engine(self) -> Engine:
        """The engine of this host."""

    def call_holding(self, asked: Asked, _event: Event) -> Holding:
        """Return what the host has of a template, and of its image in a pool."""
        return holding(self._engine, asked.name, asked.storage)

    def call_newest(self, asked: Asked, _event: Event) -> str:
        """Return the digest of the image of a template that would be sent; empty if not known."""
        try:
            there = holding(self._engine, asked.name, asked.storage)
            if not there.template or there.sent or there.digest:
                return "" if there.sent else there.digest
            template = self._engine.template(asked.name)
            return known_digest(template, self._engine._host.images.builder(template))
        except VmclonerError:
            return ""  # the hosts have what they need

    def call_retire(self, asked: Asked, _event: Event) -> str:
        """Remove a template that was sent here, with its image, unless its clones need these.

        :returns: why it is kept, empty if it is gone. A template of the host's own is kept.
        """
        if not holding(self._engine, asked.name, asked.storage).sent:
            return "it is the host's own"
        if self._engine.template(asked.name).kernel is not None:
            users = clones_of(asked.name, self._engine.survey())
            if users:
                return f"{fold(users)} boots its kernel"
        try:
            self._engine.delete_template(asked.name, storage=asked.storage or None)
        except WrongState as error:
            return error.message
        return ""

    def call_pack(self, asked: Asked, _event: Event) -> Parcel:
        """Return a template's parcel; its files stay open until :meth:`call_unpack`."""
        self.call_unpack(asked, _event)
        stack = contextlib.ExitStack()
        try:
            sending = pack(self._engine, asked.name, asked.storage, stack)
        except BaseException:
            stack.close()
            raise
        self._sent[asked.name] = sending, stack
        return sending.parcel

    def call_unpack(self, asked: Asked, _event: Event) -> None:
        """Close a parcel's files."""
        if asked.name in self._sent:
            self._sent.pop(asked.name)[1].close()

    def call_chunk(self, asked: Asked, _event: Event) -> Chunk:
        """Return a part of a file of a parcel."""
        if asked.name not in self._sent:
            raise WrongState(f"{asked.name} is not packed", hint="run the same command again")
        return self._sent[asked.name][0].chunk(asked.item, asked.offset)

    def call_offer(self, asked: Asked, _event: Event) -> tuple[int, ...]:
        """Return how much of each file of a parcel is here, with room for the rest checked."""
        return Received(self._engine, _parcel(asked), asked.storage).begin()

    def call_receive(self, asked: Asked, _event: Event) -> int:
        """Write a part of a file of a parcel; returns how much of the file is here then."""
        assert asked.chunk is not None  # noqa: S101 - the controller gives one
        arrival = Received(self._engine, _parcel(asked), asked.storage)
        return arrival.receive(asked.item, asked.offset, asked.chunk)

    def call_arrived(self, asked: Asked, _event: Event) -> bool:
        """Check what has arrived, and use it; returns whether that changed anything."""
        return Received(self._engine, _parcel(asked), asked.storage).end()

    def _close_parcels(self) -> None:
        for _, stack in self._sent.values():
            stack.close()
        self._sent.clear()


def _parcel(asked: Asked) -> Parcel:
    if asked.parcel is None:
        raise WrongState("a call without a parcel")
    return asked.parcel
