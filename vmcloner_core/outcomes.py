"""What a driver's batch method yields, checked: plugins of others may break the contract."""

from __future__ import annotations

import contextlib
import contextvars
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import attrs

from vmcloner_core.deadlines import Unanswered, answers
from vmcloner_core.errors import BackendError, VmclonerError, said, shown
from vmcloner_core.model import Outcome
from vmcloner_core.wrong_types import wrong_type

T = TypeVar("T")


@attrs.frozen
class Backend:
    """A backend, for messages.

    :param title: ``storage 'zfs'``. :param whose: returns what its plugin is of, for a message's
        end; empty for what vmcloner itself brings. Called only for a message.
    :param call: the method that was called.
    """

    title: str
    whose: Callable[[], str] = str
    call: str = ""

    def of(self, call: str) -> Backend:
        """Return it for messages about one of its methods."""
        return attrs.evolve(self, call=call)

    @property
    def subject(self) -> str:
        """What a message is about."""
        return f"{self.call} of {self.title}" if self.call else self.title

    def broken(self, what: str, about: str = "") -> BackendError:
        """Return the error for a backend that breaks its contract.

        :param what: it does. :param about: the member that this concerns.
        """
        return self._error(BackendError, what, about)

    def untrusted(self, what: str) -> Untrusted:
        """Return the error for a call none of whose outcomes can be believed."""
        return self._error(Untrusted, what)

    def _error(self, kind: type[B], what: str, about: str = "") -> B:
        message = f"{self.subject} {what}{self.whose()}"
        return kind(f"{about}: {message}" if about else message, hint="vmcloner plugin list")


class Untrusted(BackendError):
    """A call yielded outcomes that nobody asked for, or two for one member.

    Nobody knows what is true of its members then: all of them fail, also those whose outcomes came
    before.
    """


B = TypeVar("B", bound=BackendError)


class Watched:
    """What a thread asks a backend at present, for whoever decides that it hangs."""

    def __init__(self) -> None:
        self.asked: Backend | None = None
        self.sign = time.monotonic()
        """When an outcome came last, as :func:`time.monotonic`."""


_watched: contextvars.ContextVar[Watched | None] = contextvars.ContextVar("watched", default=None)


@contextlib.contextmanager
def watching(watched: Watched) -> Iterator[None]:
    """Have calls of backends in the block noted."""
    token = _watched.set(watched)
    try:
        yield
    finally:
        _watched.reset(token)


@contextlib.contextmanager
def _noted(backend: Backend) -> Iterator[None]:
    watched = _watched.get()
    if watched is None:
        yield
        return
    before, watched.asked = watched.asked, backend
    try:
        yield
    finally:
        watched.asked, watched.sign = before, time.monotonic()


@contextlib.contextmanager
def guarded(backend: Backend) -> Iterator[None]:
    """Translate what a backend raises in the block that is no VmclonerError.

    :raises BackendError: names the backend.
    """
    try:
        with _noted(backend):
            yield
    except (GeneratorExit, KeyboardInterrupt, VmclonerError):
        raise
    except BaseException as error:  # a plugin's bug, sys.exit too
        raise backend.broken(f"failed: {said(error)}") from error


def asked(backend: Backend, ask: Callable[[], T]) -> T:
    """Return what a call to a backend returns, within :data:`deadlines.DEADLINE`.

    :raises BackendError: there is no answer in time, or none that could be one; names the backend
        that was asked at that time. :raises VmclonerError: what the call raises.
    """
    watched = Watched()

    def watch() -> T:
        with watching(watched):
            return ask()

    found = answers({backend.title: watch})[backend.title]
    if isinstance(found, Unanswered):
        about = watched.asked or backend
        message = f"{about.subject}: {found.message}{about.whose()}"
        raise BackendError(message, hint="vmcloner host check") from found
    if isinstance(found, VmclonerError):
        raise found
    return found


def checked(
    call: Callable[[], Iterable[Outcome[T]]],
    keys: Iterable[str],
    backend: Backend,
    kind: type[T] | None = None,
) -> Iterator[Outcome[T]]:
    """Yield the outcomes of a driver's batch method: one for each of ``keys``, and no other.

    A member without an outcome, or with one that is wrong, fails. They are yielded as they come;
    see :func:`settled` for what can't be taken back.

    :param kind: the type of the value that each outcome without an error must have; without it
        there must be none.
    :raises Untrusted: at the end, if there was a second outcome for a member, or one unasked.
    :raises BackendError: the call raises what is no VmclonerError, or yields what is no outcome.
    """
    known = frozenset(keys)
    left = set(known)
    strays: list[Untrusted] = []
    try:
        for outcome in _each(call, backend):
            if outcome.key not in left:
                stray = "a second outcome" if outcome.key in known else "an outcome unasked"
                strays.append(backend.untrusted(f"yielded {stray} for {shown(outcome.key)}"))
                if len(strays) > len(known):  # it may go on like that
                    break
                continue
            left.discard(outcome.key)
            yield _right(outcome, backend, kind)
    except (GeneratorExit, KeyboardInterrupt):
        raise
    except BaseException as error:  # a driver's bug, sys.exit too
        if strays:
            raise strays[0] from error
        if isinstance(error, VmclonerError):
            raise
        about = next(iter(known)) if len(known) == 1 else ""
        raise backend.broken(f"failed: {said(error)}", about) from error
    if strays:
        raise strays[0]
    for key in sorted(left):
        yield Outcome(key=key, error=backend.broken("yielded no outcome", key))


def settled(
    call: Callable[[], Iterable[Outcome[T]]],
    keys: Iterable[str],
    backend: Backend,
    kind: type[T] | None = None,
) -> list[Outcome[T]]:
    """Return the outcomes of a driver's batch method, once the call has ended.

    For what can't be taken back: what is concluded from an outcome holds. As :func:`checked`, but a
    call that fails as a whole is a failure of each of its members without an outcome; of all, if
    none can be believed.
    """
    members = list(dict.fromkeys(keys))
    found: dict[str, Outcome[T]] = {}
    try:
        found.update((outcome.key, outcome) for outcome in checked(call, members, backend, kind))
    except VmclonerError as error:
        if isinstance(error, Untrusted):
            found.clear()
        found.update((key, Outcome(key=key, error=error)) for key in members if key not in found)
    return list(found.values())


def single(
    call: Callable[[], Outcome[T]], key: str, backend: Backend, kind: type[T] | None = None
) -> Outcome[T]:
    """Return the outcome of a driver's method that has one member; checked as a batch's.

    :raises VmclonerError: the call raises it, or breaks the contract.
    """
    (outcome,) = list(checked(lambda: (call(),), (key,), backend, kind))
    return outcome


def _each(call: Callable[[], Iterable[Outcome[T]]], backend: Backend) -> Iterator[Outcome[T]]:
    """Yield what a call yields, if these are outcomes."""
    with _noted(backend):
        outcomes = iter(call())
    while True:
        with _noted(backend):
            try:
                outcome = next(outcomes)
            except StopIteration:
                return
        if not isinstance(outcome, Outcome):
            raise backend.broken(f"yielded a {type(outcome).__name__}, not an Outcome")
        if not isinstance(outcome.key, str):
            found = type(outcome.key).__name__
            raise backend.broken(f"yielded an outcome whose key is a {found}, not a str")
        yield outcome


def _right(outcome: Outcome[T], backend: Backend, kind: type[T] | None) -> Outcome[T]:
    """Return an outcome if it is as the contract says, else the failure of its member."""
    key, value, error = outcome.key, outcome.value, outcome.error
    wrong = None
    if error is not None and not isinstance(error, VmclonerError):
        why = said(error) if isinstance(error, BaseException) else shown(repr(error))
        wrong = f"gave an error that is none of vmcloner's: {why}"
    elif not isinstance(outcome.changed, bool):
        wrong = f"gave a {type(outcome.changed).__name__} for changed, not a bool"
    elif error is None:
        wrong = _wrong_value(key, value, kind)
    return outcome if wrong is None else Outcome(key=key, error=backend.broken(wrong, key))


def _wrong_value(key: str, value: object, kind: type | None) -> str | None:
    """Return what is wrong with the value of an outcome without an error."""
    if kind is None:
        return None if value is None else f"gave a {type(value).__name__}, where no value belongs"
    if not isinstance(value, kind):
        found = "no" if value is None else f"a {type(value).__name__}, not a"
        return f"gave {found} {kind.__name__.lower()}"
    inside = wrong_type(value, kind)
    if inside is not None:
        return f"gave a {kind.__name__.lower()} whose {inside}"
    if getattr(value, "name", key) != key:
        return f"gave what is of {shown(str(getattr(value, 'name', '')))}"
    return None
