"""The definitions of many domains: while one is looked at, the next are on their way."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from queue import Empty, SimpleQueue
from typing import Any

from vmcloner_libvirt.binding import libvirt
from vmcloner_libvirt.errors import is_code

TOGETHER = 20
"""Definitions that one thread fetches before they are looked at."""
ASKERS = 2
"""Threads that fetch. On two processors, 300 domains are read in two thirds of the time that they
take one by one; more threads make that no shorter."""


def definitions(domains: Sequence[Any]) -> Iterator[str | None]:
    """Yield each domain's XML, None for one that is gone.

    :raises libvirt.libvirtError: the connection is lost.
    """
    batches = [domains[at : at + TOGETHER] for at in range(0, len(domains), TOGETHER)]
    if len(batches) <= 1:
        yield from _read(domains)
        return
    waiting: SimpleQueue[tuple[Sequence[Any], SimpleQueue[Any]]] = SimpleQueue()
    answers: list[SimpleQueue[Any]] = []
    for batch in batches:
        answers.append(SimpleQueue())
        waiting.put((batch, answers[-1]))

    def ask() -> None:
        for batch, answer in _taken(waiting):
            try:
                answer.put(_read(batch))
            except BaseException as error:  # it is raised where the answer is awaited
                answer.put(error)

    for _ in range(min(ASKERS, len(batches))):
        # Daemon threads: one that a hung libvirtd doesn't answer must not hold up the exit.
        threading.Thread(target=ask, name="definitions", daemon=True).start()
    try:
        for answer in answers:
            found = answer.get()
            if isinstance(found, BaseException):
                raise found
            yield from found
    finally:
        for _ in _taken(waiting):
            pass  # nobody wants the rest


def _taken(waiting: SimpleQueue[Any]) -> Iterator[Any]:
    with contextlib.suppress(Empty):
        while True:
            yield waiting.get_nowait()


def _read(domains: Sequence[Any]) -> list[str | None]:
    found: list[str | None] = []
    for domain in domains:
        try:
            found.append(domain.XMLDesc(0))
        except libvirt().libvirtError as error:
            if not is_code(error, "VIR_ERR_NO_DOMAIN"):
                raise
            found.append(None)
    return found
