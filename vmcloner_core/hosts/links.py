"""Calls to several hosts at once, and what each answered."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from vmcloner_core.errors import BackendError, InvalidRequest, VmclonerError, shown
from vmcloner_core.hosts import wire
from vmcloner_core.hosts.beside import Answered, Asked, Hello
from vmcloner_core.hosts.carrier import Carrier, Event, Unreachable
from vmcloner_core.model import RemoteHost
from vmcloner_core.settings import LOCAL

T = TypeVar("T")
AT_ONCE = 64
"""Hosts that are called at once."""


def ignored(_text: str) -> None:
    """Ignore an event."""


class Links:
    """The hosts of a controller, by name. Thread-safe."""

    def __init__(self, carrier: Carrier, addresses: Sequence[RemoteHost], version: str) -> None:
        self._carrier = carrier
        self._addresses = {address.name: address for address in addresses}
        self._version = version
        self._greeted: dict[str, str] = {}
        self.absent: frozenset[str] = frozenset()

    @property
    def names(self) -> tuple[str, ...]:
        """The hosts, in the order in which their locks are taken; without the absent ones."""
        return tuple(name for name in self.known if name not in self.absent)

    @property
    def known(self) -> tuple[str, ...]:
        """The hosts, with those that a run leaves out because they were lost."""
        return tuple(sorted(self._addresses))

    def destination(self, name: str) -> str | None:
        """Return where ssh finds a host; None for this machine."""
        return None if name == LOCAL else self._addresses[name].ssh

    def connect(self, names: Iterable[str]) -> dict[str, VmclonerError]:
        """Connect to hosts; returns why some can't be used, by name.

        A host whose version differs is one of them: both sides must mean the same by a call. So is
        the second of two names of one machine: its locks are those of the first.
        """
        wanted = [name for name in names if name not in self._greeted]
        failed: dict[str, VmclonerError] = {}
        failed |= self._carrier.connect([self._addresses[name] for name in wanted])
        asked = {name: Asked() for name in wanted if name not in failed}
        for name, said in self.ask("hello", asked, Hello).items():
            if isinstance(said, VmclonerError):
                failed[name] = said
            elif (
                error := self._differs(name, said.version) or self._same(name, said.place)
            ) is None:
                self._greeted[name] = said.place
            else:
                failed[name] = error
        return failed

    def _same(self, name: str, place: str) -> VmclonerError | None:
        for other, its in self._greeted.items():
            if its == place:
                return InvalidRequest(
                    f"hosts {other!r} and {name!r} are the same machine",
                    hint="remove one of them from the settings",
                )
        return None

    def _differs(self, name: str, there: str) -> VmclonerError | None:
        if there == self._version:
            return None
        return BackendError(
            f"host {name!r} has vmcloner {shown(there, 40)}, this machine {self._version}",
            hint=f"vmcloner host add {name} installs this version there",
        )

    def one(self, name: str, call: str, asked: object, kind: type[T], event: Event = ignored) -> T:
        """Make one call, of which :class:`~vmcloner_core.hosts.beside.Beside` says what it does.

        :param asked: what it takes: :class:`Asked`, or the arguments of one of :data:`CALLS`.
        :param kind: the type of its answer.
        :raises VmclonerError: what the host answered, or that it did not.
        """
        question = wire.dump(asked)
        if len(question) > wire.MAX_MESSAGE:
            raise BackendError(f"host {name!r}: {call} asks more than {wire.MAX_MESSAGE} bytes")
        try:
            text = self._carrier.call(name, call, question, event)
        except Unreachable:
            self._greeted.pop(name, None)
            raise
        whose = f"host {name!r}"
        answer = wire.load(text, Answered, whose=whose)
        if answer.error is not None:
            raise answer.error
        return wire.load(answer.value, kind, whose=whose)

    def ask(
        self, call: str, asked: Mapping[str, object], kind: type[T]
    ) -> dict[str, T | VmclonerError]:
        """Make a call on several hosts at once; returns each one's answer or error."""
        return each(asked, lambda name: self.one(name, call, asked[name], kind))

    def reached(self, call: str, asked: object, kind: type[T]) -> dict[str, T | VmclonerError]:
        """Connect to all hosts and make a call on those that can be used.

        :returns: each host's answer, or why it has none, in the order of their names.
        """
        lost = self.connect(self.known)
        usable = {name: asked for name in self.known if name not in lost}
        found = {**lost, **self.ask(call, usable, kind)}
        return {name: found[name] for name in self.known}

    def all(self, call: str, asked: Mapping[str, object], kind: type[T]) -> dict[str, T]:
        """Make a call on several hosts at once; returns each one's answer.

        :raises VmclonerError: the error of the first host that has one, with the host's name.
        """
        found: dict[str, T] = {}
        for name, answer in self.ask(call, asked, kind).items():
            if isinstance(answer, VmclonerError):
                raise type(answer)(f"host {name!r}: {answer.message}", hint=answer.hint)
            found[name] = answer
        return found

    def close(self) -> None:
        """End all connections."""
        self._carrier.close()


def each(
    names: Iterable[str], do: Callable[[str], T], *, waits: bool = False
) -> dict[str, T | VmclonerError]:
    """Do something for several hosts at once; returns the result or error of each.

    :param waits: whether hosts take long over it: then all of them are asked at once.
    """
    wanted = list(names)
    at_once = len(wanted) if waits else min(AT_ONCE, len(wanted))

    def tried(name: str) -> T | VmclonerError:
        try:
            return do(name)
        except VmclonerError as error:
            return error

    if len(wanted) < 2:
        return {name: tried(name) for name in wanted}
    with ThreadPoolExecutor(at_once, "host") as pool:
        return dict(zip(wanted, pool.map(tried, wanted), strict=True))
