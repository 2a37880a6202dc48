"""How busy the host is during a run: its processors, its memory and the run's pool."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self

import attrs

from vmcloner_core.errors import VmclonerError
from vmcloner_core.model import Capacity
from vmcloner_core.plan import Sample

log = logging.getLogger(__name__)
PROC = Path("/proc")
INTERVAL = 1.0
"""Seconds between two samples at first; of a run that takes long, a hundredth of its time."""
POOL = 5.0
"""Seconds between two looks at the pool: a look may be a program to run."""


class Sampler:
    """Takes samples from a thread of its own while it is entered; a run of a second has none.

    :param started: :func:`time.monotonic` at the run's start.
    :param capacity: returns the pool's; None if there is no single one.
    :param tell: called with each sample, never after the exit.
    """

    def __init__(
        self,
        run: str,
        started: float,
        capacity: Callable[[], Capacity] | None,
        tell: Callable[[Sample], None],
    ) -> None:
        self._run = run
        self._started = started
        self._capacity = capacity
        self._tell = tell
        self._stop = threading.Event()
        self._telling = threading.Lock()
        self._busy: _Processors | None = None

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._sample, name="sampler", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._telling:
            self._stop.set()
        self._thread.join(INTERVAL)  # not for as long as a pool may take to answer

    def tell_memory(self, clones: Mapping[str, int]) -> None:
        """Take one more sample, with the memory that clones take: bytes by name."""
        with contextlib.suppress(OSError, ValueError, KeyError), self._telling:
            busy = self._busy or _Processors()
            self._tell(attrs.evolve(self._taken(busy.percent(), None), clones=clones))

    def _sample(self) -> None:
        with contextlib.suppress(OSError, ValueError, KeyError):  # a host without these files
            self._busy = busy = _Processors()
            asked = 0.0
            while not self._stop.wait(max(INTERVAL, (time.monotonic() - self._started) / 100)):
                pool = None
                if time.monotonic() - asked >= POOL:
                    pool, asked = self._pool(), time.monotonic()
                sample = self._taken(busy.percent(), pool)
                with self._telling:
                    if not self._stop.is_set():
                        self._tell(sample)

    def _taken(self, cpu: float, pool: Capacity | None) -> Sample:
        total, available = _memory()
        return Sample(
            run=self._run,
            at=time.monotonic() - self._started,
            cpu=cpu,
            memory_used=total - available,
            memory_total=total,
            pool_used=pool.total - pool.free if pool is not None else None,
            pool_total=pool.total if pool is not None else None,
        )

    def _pool(self) -> Capacity | None:
        try:
            return self._capacity() if self._capacity is not None else None
        except VmclonerError as error:  # the run itself says what is wrong with its pool
            log.debug("no sample of the pool: %s", error)
            return None


class _Processors:
    """How busy all processors together were between two looks."""

    def __init__(self) -> None:
        self._last = self._read()

    def percent(self) -> float:
        """Return it since the last look, in percent."""
        before, self._last = self._last, self._read()
        busy, total = (new - old for new, old in zip(self._last, before, strict=True))
        return round(min(100.0, max(0.0, 100 * busy / total)), 1) if total > 0 else 0.0

    @staticmethod
    def _read() -> tuple[int, int]:
        """Return the ticks that they were busy, and all; of guests, those are in ``user`` too."""
        line = (PROC / "stat").read_text(encoding="ascii").splitlines()[0]
        ticks = [int(word) for word in line.split()[1:9]]
        idle = ticks[3] + ticks[4]
        return sum(ticks) - idle, sum(ticks)


def _memory() -> tuple[int, int]:
    """Return the bytes of memory in all, and those that are available."""
    lines = (PROC / "meminfo").read_text(encoding="ascii").splitlines()
    found = {key: int(rest.split()[0]) for key, _, rest in (line.partition(":") for line in lines)}
    return found["MemTotal"] * 1024, found["MemAvailable"] * 1024
