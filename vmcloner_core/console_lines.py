"""The console output of many clones as lines, each with its clone's name."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import attrs

from vmcloner_core.cancelling import pause
from vmcloner_core.drivers import ConsoleInterface
from vmcloner_core.errors import InvalidRequest, VmclonerError
from vmcloner_core.readiness import plain_text

MAX_LINE = 16 * 1024
"""Bytes; a longer line is shown in parts."""
POLL = 0.25
TURN = 16
"""Pieces of a console that are shown before the next one is looked at."""
_CHUNK = 256 * 1024
_STAMP = re.compile(r"\[ *([0-9]{1,10}\.[0-9]{1,9})\] ")
"""The time of a kernel message: seconds since the guest's kernel began (printk.time)."""


@attrs.frozen
class ConsoleLine:
    """One line of a clone's console, without escape sequences.

    :param error: why the console can't be read; then there is no text, and no more of that clone.
    """

    clone: str
    text: str = ""
    error: VmclonerError | None = None


@attrs.frozen(kw_only=True)
class Source:
    """A console to read.

    :param started: when its clone was started, in seconds since the epoch; None if not known.
    """

    name: str
    consoles: ConsoleInterface
    started: float | None = None


@attrs.define
class _Reader:
    source: Source
    offset: int = 0
    rest: bytes = b""

    def read(self, *, finish: bool, most: int | None = None) -> Iterator[str]:
        """Yield the lines that are new; with ``finish`` also the last one, if it is unfinished.

        :param most: pieces of so many :data:`_CHUNK` at most; None for all that is there.
        """
        new = False
        for _ in itertools.count() if most is None else range(most):
            before = self.offset
            data, self.offset = self.source.consoles.read(self.source.name, before, _CHUNK)
            if not data:
                break
            if self.offset != before + len(data) and self.rest:  # the clone was started anew
                yield from _shown(self.rest)
                self.rest = b""
            new = True
            *lines, self.rest = (self.rest + data).split(b"\n")
            for line in lines:
                yield from _shown(line)
            while len(self.rest) > MAX_LINE:
                yield from _shown(self.rest[:MAX_LINE])
                self.rest = self.rest[MAX_LINE:]
        if self.rest and (finish or not new):  # a prompt has no end: it is shown once it is quiet
            line, self.rest = self.rest, b""
            yield from _shown(line)


def _shown(line: bytes) -> Iterator[str]:
    """Yield a line of the console as lines of text: a carriage return begins a new one."""
    for start in range(0, max(1, len(line)), MAX_LINE):
        text = plain_text(line[start : start + MAX_LINE])
        yield from (part for part in text.split("\n") if part.strip()) if "\n" in text else [text]


def read(
    sources: Sequence[Source],
    *,
    lines: int | None = None,
    since: float | None = None,
    follow: bool = False,
    wait: Callable[[float], object] = pause,
) -> Iterator[ConsoleLine]:
    """Yield the lines of some consoles, one console after the other; then, as they come, new ones.

    :param lines: of each, the last so many of what is there at first. :param since: seconds since
        the epoch: nothing that was certainly written before; see :func:`_recent`.
    :param follow: go on for ever.
    """
    if lines is not None and lines < 0:
        raise InvalidRequest(f"lines must not be negative, but is {lines}")
    readers = [_Reader(source) for source in sources]

    def first(reader: _Reader) -> Iterator[str]:
        found = reader.read(finish=not follow)
        found = found if since is None else _recent(found, reader.source, since)
        return found if lines is None else iter(deque(found, maxlen=lines))

    yield from _each(readers, first)
    while follow and readers:
        wait(POLL)
        # However much one of them says, the others have their turn.
        yield from _each(readers, lambda reader: reader.read(finish=False, most=TURN))


def _each(
    readers: list[_Reader], read: Callable[[_Reader], Iterator[str]]
) -> Iterator[ConsoleLine]:
    """Yield what is read of each; one that can't be read is reported, and taken out."""
    for reader in list(readers):
        name = reader.source.name
        try:
            for text in read(reader):
                yield ConsoleLine(name, text)
        except VmclonerError as error:
            readers.remove(reader)
            yield ConsoleLine(name, error=error)


def _recent(lines: Iterator[str], source: Source, since: float) -> Iterator[str]:
    """Yield the lines that may have been written after a time.

    A console has no times of its own. None of it is newer than its file. Messages of the kernel
    tell how long after the clone's start they were written: what comes before one that is too old
    is left out.
    """
    with contextlib.suppress(OSError):
        if source.consoles.log(source.name).stat().st_mtime < since:
            for _ in lines:  # they count as read
                pass
            return
    kept: deque[str] = deque()
    for line in lines:
        stamp = _STAMP.match(line)
        if stamp and source.started is not None and source.started + float(stamp[1]) < since:
            kept.clear()
            continue
        kept.append(line)
    yield from kept
