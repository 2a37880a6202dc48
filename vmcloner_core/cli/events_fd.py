"""``--events-fd``: the events of runs as JSON lines, for the program that started the command."""

from __future__ import annotations

import json
import logging
import os

from vmcloner_core.event_stream import EventStream

log = logging.getLogger(__name__)


class EventsDescriptor(EventStream):
    """An observer that writes events to a file descriptor, which stays open.

    Once it can't be written (its reader has gone), that is logged, and the run continues.
    """

    def __init__(self, number: int) -> None:
        super().__init__(self._write)
        self._number: int | None = number

    def _write(self, event: dict[str, object]) -> None:
        if self._number is None:
            return
        rest = memoryview(json.dumps(event).encode() + b"\n")
        try:
            while rest:
                rest = rest[os.write(self._number, rest) :]
        except OSError as error:
            log.warning("file descriptor %d: %s: no more events", self._number, error.strerror)
            self._number = None
