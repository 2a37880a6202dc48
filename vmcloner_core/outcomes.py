"""What a driver's batch method yields, checked: plugins of others may break the contract."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import attrs

from vmcloner_core.errors import BackendError, VmclonerError, said, shown
from vmcloner_core.model import Outcome

T = TypeVar("T")
log = logging.getLogger(__name__)


@attrs.frozen
class Backend:
    """A backend, for messages.

    :param title: ``storage 'zfs'``. :param whose: returns what its plugin is of, for a message's
        end; empty for what vmcloner itself brings. Called only for a message.
    """

    title: str
    whose: Callable[[], str] = str

    def broken(self, what: str, about: str = "") -> BackendError:
        """Return the error for a backend that breaks its contract.

        :param what: it does. :param about: the member that this concerns.
        """
        message = f"{self.title} {what}{self.whose()}"
        return BackendError(
            f"{about}: {message}" if about else message, hint="vmcloner plugin list"
        )


@contextlib.contextmanager
def guarded(backend: Backend) -> Iterator[None]:
    """Translate what a backend raises in the block that is no VmclonerError.

    :raises BackendError: names the backend.
    """
    try:
        yield
    except (GeneratorExit, KeyboardInterrupt, VmclonerError):
        raise
    except BaseException as error:  # a plugin's bug, sys.exit too
        raise backend.broken(f"failed: {said(error)}") from error


def checked(
    call: Callable[[], Iterable[Outcome[T]]],
    keys: Iterable[str],
    backend: Backend,
    kind: type[T] | None = None,
) -> Iterator[Outcome[T]]:
    """Yield the outcomes of a driver's batch method: one for each of ``keys``, and no other.

    A member without an outcome, or with one that is wrong, fails. Outcomes of others and second
    ones are logged.

    :param kind: the type of the value that each outcome without an error must have.
    :raises BackendError: the call raises what is no VmclonerError, or yields what is no outcome.
    """
    known = frozenset(keys)
    left = set(known)
    try:
        for outcome in call():
            if not isinstance(outcome, Outcome):
                raise backend.broken(f"yielded a {type(outcome).__name__}, not an Outcome")
            if outcome.key not in left:
                stray = "a second outcome" if outcome.key in known else "an outcome unasked"
                name = shown(str(outcome.key))
                log.warning("%s yielded %s for %s%s", backend.title, stray, name, backend.whose())
                continue
            left.discard(outcome.key)
            yield _right(outcome, backend, kind)
    except (GeneratorExit, KeyboardInterrupt, VmclonerError):
        raise
    except BaseException as error:  # a driver's bug, sys.exit too
        about = next(iter(known)) if len(known) == 1 else ""
        raise backend.broken(f"failed: {said(error)}", about) from error
    for key in sorted(left):
        yield Outcome(key=key, error=backend.broken("yielded no outcome", key))


def _right(outcome: Outcome[T], backend: Backend, kind: type[T] | None) -> Outcome[T]:
    """Return an outcome if it is as the contract says, else the failure of its member."""
    key, value, error = outcome.key, outcome.value, outcome.error
    wrong = None
    if error is not None and not isinstance(error, VmclonerError):
        why = said(error) if isinstance(error, BaseException) else shown(repr(error))
        wrong = f"gave an error that is none of vmcloner's: {why}"
    elif error is None and kind is not None and not isinstance(value, kind):
        found = "no" if value is None else f"a {type(value).__name__}, not a"
        wrong = f"gave {found} {kind.__name__.lower()}"
    elif error is None and getattr(value, "name", key) != key:
        wrong = f"gave what is of {shown(str(getattr(value, 'name', '')))}"
    return outcome if wrong is None else Outcome(key=key, error=backend.broken(wrong, key))
