"""What several hosts send one item after another, merged: in some order, or as it comes."""

from __future__ import annotations

import contextlib
import heapq
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from vmcloner_core.errors import BackendError, VmclonerError
from vmcloner_core.hosts import wire
from vmcloner_core.hosts.calls import CALLS
from vmcloner_core.hosts.links import Links

T = TypeVar("T")
WAITING = 1000
"""Items of a host that are kept until they are wanted; then it is waited with, not memory used."""
LOOK = 0.5
"""Seconds after which a thread sees that nothing is wanted any more."""
Failed = Callable[[str, VmclonerError], None]


class Streams:
    """One call's items, from several hosts. Used once; to be closed."""

    def __init__(self, links: Links, name: str, asked: Mapping[str, Mapping[str, object]]) -> None:
        self._links = links
        self._call = CALLS[name]
        self._name = name
        self._asked = asked
        self._closed = threading.Event()

    def close(self) -> None:
        """Let the hosts' threads end, as soon as they have something to say."""
        self._closed.set()

    def ordered(self, key: Callable[[str, Any], Any], failed: Failed) -> Iterator[tuple[str, Any]]:
        """Yield hosts and items by a key, in whose order each host sends its own.

        :param key: None for an item that belongs nowhere.
        """
        queues = {host: self._begun(host, queue.Queue(WAITING)) for host in self._asked}
        ordered = [self._of_host(each, failed) for each in queues.values()]
        yield from heapq.merge(*ordered, key=lambda pair: _sortable(key(*pair)))

    def arriving(self, failed: Failed) -> Iterator[tuple[str, Any]]:
        """Yield hosts and items as they come, until all hosts have ended."""
        common: queue.Queue[tuple[str, Any]] = queue.Queue(WAITING)
        for host in self._asked:
            self._begun(host, common)
        for _ in self._asked:
            yield from self._of_host(common, failed)

    def _of_host(
        self, items: queue.Queue[tuple[str, Any]], failed: Failed
    ) -> Iterator[tuple[str, Any]]:
        """Yield what is in a queue until the next host ends."""
        while True:
            host, item = items.get()
            if item is None:
                return
            if isinstance(item, VmclonerError):
                failed(host, item)
                return
            yield host, item

    def _begun(
        self, host: str, items: queue.Queue[tuple[str, Any]]
    ) -> queue.Queue[tuple[str, Any]]:
        """Have a host's items put into a queue; None, or an error, is the last of them."""

        def put(item: object) -> None:
            while True:
                with contextlib.suppress(queue.Full):
                    items.put((host, item), timeout=LOOK)
                    return
                if self._closed.is_set():
                    raise BackendError("nothing is wanted any more")

        def heard(text: str) -> None:
            if self._closed.is_set():
                raise BackendError("nothing is wanted any more")
            put(wire.load(text, self._call.answer, whose=f"host {host!r}"))

        def work() -> None:
            ended: VmclonerError | None = None
            try:
                self._links.one(host, self._name, self._asked[host], type(None), heard)
            except VmclonerError as error:
                ended = error
            with contextlib.suppress(VmclonerError):
                put(ended)

        # It may wait for a host for ever, which must not keep the process.
        threading.Thread(target=work, name=f"{self._name} {host}", daemon=True).start()
        return items


def _sortable(key: Any) -> tuple[Any, ...]:
    return (1, key) if key is not None else (0,)
