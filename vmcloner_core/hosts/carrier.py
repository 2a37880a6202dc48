"""The contract for what carries calls to the engines beside hosts."""

from __future__ import annotations

import abc
import functools
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from vmcloner_core.engine import Engine
from vmcloner_core.errors import BackendError
from vmcloner_core.hosts import wire
from vmcloner_core.hosts.beside import Beside
from vmcloner_core.model import RemoteHost
from vmcloner_core.settings import LOCAL

MAX_MESSAGE = wire.MAX_MESSAGE
"""Bytes of a call's or an answer's text, which a carrier has to carry."""
Event = Callable[[str], None]
"""What is called with each event of a call, as JSON text; from any thread."""
EVENT, ANSWER, BEAT = "e", "a", "b"
"""The first character of what :func:`begin` sends: an event, the answer, which is the last, or a
sign of life."""
BEAT_EVERY = 5.0
"""Seconds between signs of life: what carries the calls may answer where the engine hangs."""


@functools.cache
def _beside(config: str | None) -> Beside:
    def opened(plugin: object) -> Engine:
        path = Path(config) if config is not None else None
        return Engine.open(config=path, host=LOCAL, plugins=[plugin])

    return Beside(opened)


def answer(config: str | None, name: str, text: str, event: Event) -> str:
    """Answer a call beside a host, in the process that a carrier has started there.

    :param config: the settings file, None for the first that exists. :param name, text, event: of
        the call, as in :meth:`Carrier.call`.
    """
    return _beside(config)(name, text, event)


def begin(send: Callable[[str], None], config: str | None, name: str, text: str) -> None:
    """Begin to answer a call in a thread of its own, beside a host.

    :param send: takes what is sent back, from any thread. :param config, name, text: as in
        :func:`answer`.
    """
    done = threading.Event()

    def beat() -> None:
        while not done.wait(BEAT_EVERY):
            send(BEAT)

    def work() -> None:
        said = answer(config, name, text, lambda event: send(EVENT + event))
        done.set()
        send(ANSWER + said)

    for target in (work, beat):
        threading.Thread(target=target, name=name, daemon=True).start()


class Unreachable(BackendError):
    """A host does not answer, or its connection ended during a call.

    What it had begun to do may be done or not: read it back from the host.
    """


class Carrier(abc.ABC):
    """Carries calls to hosts. Thread-safe.

    A call that was sent is answered once, or raises :class:`Unreachable`. What runs beside the
    hosts ends with the carrier: its locks are released then.
    """

    settings: ClassVar[type[Any] | None] = None
    """The attrs class of the settings' table ``[carrier]`` without ``driver``; its constructor
    takes an instance. None if it has no settings: its constructor takes nothing."""

    @abc.abstractmethod
    def connect(self, hosts: Sequence[RemoteHost]) -> dict[str, Unreachable]:
        """Connect to hosts, at once to all that are not connected yet.

        :returns: why some could not be reached, by name.
        """

    @abc.abstractmethod
    def call(self, host: str, name: str, text: str, event: Event) -> str:
        """Make one call and return its answer, both JSON text; ``event`` gets its events.

        :raises Unreachable: the host is not connected, or its connection ended.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """End all connections, and what runs beside the hosts."""


class Mixed(Carrier):
    """Calls some hosts by one carrier, the others by another: this machine, and the rest."""

    def __init__(self, own: InProcess, others: Carrier) -> None:
        self._own = own
        self._others = others

    def _of(self, host: str) -> Carrier:
        return self._own if host in self._own.hosts else self._others

    def connect(self, hosts: Sequence[RemoteHost]) -> dict[str, Unreachable]:
        """Connect each host by its carrier."""
        return {
            **self._own.connect([h for h in hosts if h.name in self._own.hosts]),
            **self._others.connect([h for h in hosts if h.name not in self._own.hosts]),
        }

    def call(self, host: str, name: str, text: str, event: Event) -> str:
        """Make one call by the host's carrier."""
        return self._of(host).call(host, name, text, event)

    def close(self) -> None:
        """Close both."""
        self._own.close()
        self._others.close()


class InProcess(Carrier):
    """Calls engines of this process; for the machine that the controller runs on, and for tests.

    :param besides: what carries out the calls, by host.
    """

    def __init__(self, besides: dict[str, Beside]) -> None:
        self._besides = besides
        self._lock = threading.Lock()
        self._lost: set[str] = set()

    @property
    def hosts(self) -> frozenset[str]:
        """The names of its hosts."""
        return frozenset(self._besides)

    def connect(self, hosts: Sequence[RemoteHost]) -> dict[str, Unreachable]:
        """Return those that are not there."""
        return {h.name: self._gone(h.name) for h in hosts if h.name in self._lost}

    def lose(self, host: str) -> None:
        """Behave as if a host had been switched off."""
        with self._lock:
            self._lost.add(host)

    def call(self, host: str, name: str, text: str, event: Event) -> str:
        """Make one call in the caller's thread."""
        if host in self._lost:
            raise self._gone(host)
        answer = self._besides[host](name, text, event)
        if host in self._lost:
            raise self._gone(host)
        return answer

    def close(self) -> None:
        """Release what is held."""
        for beside in self._besides.values():
            beside.close()

    @staticmethod
    def _gone(host: str) -> Unreachable:
        return Unreachable(f"host {host!r} does not answer")
