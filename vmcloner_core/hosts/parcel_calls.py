"""The calls that send templates and images, which a host answers."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from vmcloner_core.errors import WrongState
from vmcloner_core.hosts.chunks import Chunk
from vmcloner_core.hosts.packing import Packed, pack
from vmcloner_core.hosts.parcels import Holding, Parcel, holding
from vmcloner_core.hosts.receiving import Received

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
