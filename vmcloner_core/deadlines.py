"""Ask backends with a deadline: a daemon that hangs must neither hang a command nor its Ctrl-C."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

from vmcloner_core.errors import BackendError, VmclonerError, said
from vmcloner_core.units import format_seconds

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")
DEADLINE = 30.0
"""Seconds for one question to a backend."""
_SLICE = 0.1


class Unanswered(BackendError):
    """A backend gave no answer, or none that could be one: its plugin's fault."""


class Late(Unanswered):
    """A backend gave no answer in time."""


def instance(found: object, kind: type[T]) -> T:
    """Return what a backend gave, if it is of the kind that it must be.

    :raises Unanswered: it isn't.
    """
    if not isinstance(found, kind):
        raise Unanswered(f"its plugin gave a {type(found).__name__}")
    return found


def answers(
    asks: Mapping[K, Callable[[], T]], seconds: float = DEADLINE
) -> dict[K, T | VmclonerError]:
    """Return what each call returns or raises; they run at the same time.

    A call that raises what is no VmclonerError, or gives no answer in time, is a BackendError. The
    latter is left to its thread, which doesn't keep the process from ending.
    """
    found: dict[K, T | VmclonerError] = {}

    def ask(key: K, call: Callable[[], T]) -> None:
        try:
            found[key] = call()
        except VmclonerError as error:
            found[key] = error
        except BaseException as error:  # a driver's bug, sys.exit too, is that driver's alone
            bug = Unanswered(said(error))
            bug.__cause__ = error
            found[key] = bug

    threads = {
        key: threading.Thread(target=ask, args=(key, call), daemon=True, name=f"ask {key}")
        for key, call in asks.items()
    }
    for thread in threads.values():
        thread.start()
    end = time.monotonic() + seconds
    for thread in threads.values():
        # In slices: an untimed wait keeps the interpreter from running signal handlers.
        while thread.is_alive() and time.monotonic() < end:
            thread.join(_SLICE)
    late = Late(f"no answer within {format_seconds(seconds)}")
    return {key: found.get(key, late) for key in asks}
