"""Let the wish to end a run reach it, and what its drivers wait for.

A caller of an engine ends what it has begun in :func:`ending_with`. A run's steps call drivers
within :func:`cancellable`. A driver that waits or tries again uses :func:`pause`, which Ctrl-C cuts
short. Threads of its own get the run by :func:`carried`.
"""

from __future__ import annotations

import contextlib
import contextvars
import threading
import time
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

from vmcloner_core.errors import Interrupted

P = ParamSpec("P")
T = TypeVar("T")
_FIRST = 0.05


class Cancellation:
    """The wish that calls of an engine end. Thread-safe, and safe in a signal handler.

    :param asked: whether there was such a wish.
    :param event: is set once the run in progress is to end; a roll-back clears it, since it must
        run to its own end.
    """

    def __init__(self) -> None:
        self.asked = False
        self.event = threading.Event()

    def cancel(self) -> None:
        """End the calls cleanly: what is in progress is finished, nothing new begins."""
        self.asked = True
        self.event.set()


_cancelled: contextvars.ContextVar[threading.Event | None] = contextvars.ContextVar(
    "cancelled", default=None
)
_given: contextvars.ContextVar[Cancellation | None] = contextvars.ContextVar("given", default=None)
_may_interrupt: contextvars.ContextVar[bool] = contextvars.ContextVar(
    "may interrupt", default=False
)


@contextlib.contextmanager
def ending_with(cancellation: Cancellation) -> Iterator[None]:
    """Have the engine's calls that are made in the block end with a cancellation of the caller's.

    Only these: other threads' and tasks' calls to the same engine go on.
    """
    token = _given.set(cancellation)
    try:
        yield
    finally:
        _given.reset(token)


def given() -> Cancellation | None:
    """Return the cancellation of :func:`ending_with`, None outside of such a block."""
    return _given.get()


@contextlib.contextmanager
def cancellable(cancelled: threading.Event) -> Iterator[None]:
    """Have calls in the block belong to a run.

    :param cancelled: is set once the run is to end.
    """
    token = _cancelled.set(cancelled)
    try:
        yield
    finally:
        _cancelled.reset(token)


def pause(seconds: float) -> None:
    """Wait; 0 only looks whether the run is to end. Outside of a run, sleep.

    :raises Interrupted: the run is to end.
    """
    cancelled = _cancelled.get()
    if cancelled is None:
        time.sleep(max(0.0, seconds))
    elif cancelled.wait(max(0.0, seconds)):
        raise Interrupted("stopped by the user")


def pauses(most: float) -> Iterator[None]:
    """Wait between looks at something, by :func:`pause`: first shortly, then ever longer.

    So it is seen late by a part of the time that it took, and what takes long is looked at rarely:
    many look at once.

    :param most: seconds of the longest one.
    """
    seconds = min(most, _FIRST)
    while True:
        pause(seconds)
        yield
        seconds = min(most, 1.25 * seconds)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Have host commands in the block end with the run, by SIGTERM: not for those that must finish.

    :raises Interrupted: the run is to end, and so a command was ended, or not begun.
    """
    pause(0)
    token = _may_interrupt.set(True)
    try:
        yield
    finally:
        _may_interrupt.reset(token)


def check_interrupted() -> None:
    """Look whether the run is to end, in a block of :func:`interruptible`; elsewhere do nothing.

    :raises Interrupted: it is.
    """
    if _may_interrupt.get():
        pause(0)


def carried(call: Callable[P, T]) -> Callable[P, T]:
    """Return a call for another thread, which belongs to the run of this one. To be called once."""
    context = contextvars.copy_context()

    def run(*args: P.args, **options: P.kwargs) -> T:
        return context.run(call, *args, **options)

    return run
