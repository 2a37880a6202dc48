"""Admit starts of guests by what the host can carry.

Guests that boot all at once on a busy host all become ready at the very end, or run out of time.
One after another, they take as long together, but half of them are ready after half of that time.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path

BURST = 4
"""Guests for each processor that may boot at once on a host that isn't busy and has KVM."""
SAMPLE = 0.5
"""Seconds between two looks at the host."""
STEP = 1.0
"""Seconds from one admission of a further guest to the next: so long it takes to see its load."""
SETTLE = 3.0
"""Seconds for which a guest counts as booting if nobody waits until it is ready."""
BOUND = 30.0
"""Seconds for which starts may be held up in a run that doesn't wait for its clones."""
LONGEST = 300.0
"""Seconds after which a guest that still isn't ready no longer keeps others from booting."""
BUSY = 0.25
"""Share of time in which something waited for a processor, above which the host is busy."""


class HostLoad:
    """Tells whether the host's processors are busy: by pressure (PSI) and run queue. Thread-safe.

    Both are files of the kernel, see proc(5); a kernel without PSI has the run queue only.
    """

    def __init__(
        self, cpus: int, proc: Path = Path("/proc"), clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._cpus = cpus
        self._proc = proc
        self._clock = clock
        self._lock = threading.Lock()
        self._seen: tuple[float, int] | None = None
        self._busy = False

    def __call__(self) -> bool:
        """Return what was seen in the last :data:`SAMPLE` seconds."""
        with self._lock:
            now = self._clock()
            if self._seen is None or now - self._seen[0] >= SAMPLE:
                self._busy = self._looked(now)
            return self._busy

    def _looked(self, now: float) -> bool:
        pressure = self._read("pressure/cpu", r"some avg10=(\d+)\S* .*?total=(\d+)")
        queue = self._read("loadavg", r"\S+ \S+ \S+ (\d+)/()")
        share, total = int(pressure[0] or 0) / 100, int(pressure[1] or 0)
        if self._seen is not None and now > self._seen[0]:
            share = (total - self._seen[1]) / 1e6 / (now - self._seen[0])
        self._seen = (now, total)
        return share > BUSY or int(queue[0] or 0) - 1 > self._cpus  # one is this thread

    def _read(self, name: str, pattern: str) -> tuple[str, str]:
        try:
            found = re.match(pattern, (self._proc / name).read_text(encoding="ascii"))
        except OSError:
            found = None
        return (found[1], found[2]) if found is not None else ("", "")


class Gate:
    """Decides which clones may start now. This one admits all of them."""

    def admit(self, name: str) -> bool:  # noqa: ARG002 - for those that decide
        """Tell whether a clone may start now; one that was admitted stays so."""
        return True

    def left(self, name: str, *, failed: bool) -> None:
        """Note that a clone's run has ended: it is ready, if that was waited for, or it failed."""


class Admission(Gate):
    """Admits as many starts as the host can carry. Thread-safe.

    :param limit: how many guests may boot at once; None to decide by the host's load.
    :param waits: whether a clone's run ends when it is ready, not when it is started.
    :param emulated: whether guests are emulated: then each of them keeps a processor busy.
    :param open_: tells that all are to be admitted, for example since the run is cancelled.
    """

    def __init__(
        self,
        limit: int | None,
        waits: Collection[str],
        *,
        emulated: bool = False,
        open_: Callable[[], bool] = lambda: False,
        cpus: int | None = None,
        busy: Callable[[], bool] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limit = limit
        self._waits = waits
        self._emulated = emulated
        self._open = open_
        self._cpus = cpus or os.cpu_count() or 1
        self._busy = busy or HostLoad(self._cpus)
        self._clock = clock
        self._lock = threading.Lock()
        self._booting: dict[str, float] = {}
        """Until when each counts as booting."""
        self._last = self._clock()
        self._held: float | None = None
        """Since when starts have been held up."""

    def admit(self, name: str) -> bool:
        """See :meth:`Gate.admit`."""
        with self._lock:
            now = self._clock()
            if name in self._booting or self._open():
                return True
            self._booting = {name: end for name, end in self._booting.items() if end > now}
            if not self._room(now):
                self._held = now if self._held is None else self._held
                return False
            self._last = now
            self._booting[name] = now + (LONGEST if name in self._waits else SETTLE)
            return True

    def left(self, name: str, *, failed: bool) -> None:
        """See :meth:`Gate.left`."""
        with self._lock:
            if failed or name in self._waits:
                self._booting.pop(name, None)

    def _room(self, now: float) -> bool:
        booting = len(self._booting)
        if self._limit is not None:
            return booting < self._limit
        if booting < self._cpus or (not self._waits and self._out_of_patience(now)):
            return True
        if self._busy():
            return False
        burst = not self._emulated and booting < BURST * self._cpus
        return burst or now - self._last >= STEP

    def _out_of_patience(self, now: float) -> bool:
        return self._held is not None and now - self._held > BOUND
