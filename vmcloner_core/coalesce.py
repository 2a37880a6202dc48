"""Combine the calls of concurrent threads: those that arrive during a call share the next one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Generic, TypeVar

import attrs

T = TypeVar("T")
R = TypeVar("R")


@attrs.define(eq=False)
class _Ticket(Generic[T, R]):
    """What one caller asks for, by key, and its results once they are known."""

    items: dict[str, T]
    results: dict[str, R] | None = None


class Coalescer(Generic[T, R]):
    """Calls ``work`` with the items of all threads that are waiting. Thread-safe.

    :param work: does the work for a list of items; returns results by key.
    :param key: returns an item's key. Items with equal keys are passed to ``work`` once.
    :param most: the largest number of items for one call of ``work``.
    """

    def __init__(
        self,
        work: Callable[[Sequence[T]], Mapping[str, R]],
        *,
        key: Callable[[T], str] = str,
        most: int | None = None,
    ) -> None:
        self._work = work
        self._key = key
        self._most = most
        self._waiting: list[_Ticket[T, R]] = []
        self._guard = threading.Lock()
        self._turn = threading.Lock()

    def __call__(self, items: Iterable[T]) -> dict[str, R]:
        """Return the results for ``items``; a key that ``work`` left out is missing.

        An exception of ``work`` is raised in the thread that made the call. The other threads that
        it was made for call again.
        """
        ticket: _Ticket[T, R] = _Ticket({self._key(item): item for item in items})
        with self._guard:
            self._waiting.append(ticket)
        with self._turn:
            if ticket.results is None:
                ticket.results = self._serve(ticket)
        return ticket.results

    def _serve(self, own: _Ticket[T, R]) -> dict[str, R]:
        """Do the work of all that wait; returns the results of ``own``."""
        with self._guard:
            others, self._waiting = [t for t in self._waiting if t is not own], []
        items = {key: item for ticket in (*others, own) for key, item in ticket.items.items()}
        values = list(items.values())
        step = self._most or max(1, len(values))
        results: dict[str, R] = {}
        for start in range(0, len(values), step):
            results.update(self._work(values[start : start + step]))
        for ticket in others:
            ticket.results = _pick(ticket, results)
        return _pick(own, results)


def _pick(ticket: _Ticket[T, R], results: Mapping[str, R]) -> dict[str, R]:
    return {key: results[key] for key in ticket.items if key in results}
