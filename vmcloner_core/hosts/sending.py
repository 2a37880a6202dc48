"""Parts of files on their way to hosts: read ahead, kept for several, and told to observers."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self

from vmcloner_core.errors import VmclonerError
from vmcloner_core.hosts.carrier import Unreachable
from vmcloner_core.hosts.chunks import CHUNK, Chunk
from vmcloner_core.hosts.parcels import STEP
from vmcloner_core.plan import ProgressEvent, StepEvent, StepStatus
from vmcloner_core.plugins import PluginHost

KEPT = 16
"""Parts of files that are kept for the other hosts: 64 MiB at most."""


class SourceLost(Unreachable):
    """The host that a file comes from is gone."""


class Parts:
    """The parts of files, each read once for all hosts that need it at about the same time.

    The next part is read while one is on its way.

    :param keep: parts that are kept; 2 will do for one host.
    """

    def __init__(self, read: Callable[[str, int], Chunk], keep: int = KEPT) -> None:
        self._read = read
        self._keep = keep
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, int], Future[Chunk]] = OrderedDict()
        self._reader = ThreadPoolExecutor(1, "read")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.shutdown(cancel_futures=True)

    def __call__(self, item: str, offset: int) -> Chunk:
        """Return a part. :raises SourceLost: its host is gone."""
        try:
            chunk = self._begun(item, offset).result()
        except Unreachable as error:
            raise SourceLost(error.message, hint=error.hint) from error
        if chunk.octets:
            self._begun(item, chunk.at + CHUNK)
        return chunk

    def _begun(self, item: str, offset: int) -> Future[Chunk]:
        with self._lock:
            key = item, offset
            if key not in self._kept:
                self._kept[key] = self._reader.submit(self._read, item, offset)
            while len(self._kept) > self._keep:
                self._kept.popitem(last=False)
            return self._kept[key]


class Told:
    """Tells observers how far the transfers are, all together."""

    def __init__(self, plugins: PluginHost, run: str, template: str) -> None:
        self._plugins = plugins
        self._run = run
        self._template = template
        self._begun = time.monotonic()
        self._lock = threading.Lock()
        self._done: dict[tuple[str, str], int] = {}
        self.total = 0

    def __enter__(self) -> None:
        self._event(StepStatus.STARTED)

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if error is None:
            self._event(StepStatus.DONE)
        elif isinstance(error, VmclonerError):
            self._event(StepStatus.FAILED, error)

    def _event(self, status: StepStatus, error: VmclonerError | None = None) -> None:
        spent = time.monotonic() - self._begun
        self._plugins.step_changed(
            StepEvent(
                run=self._run,
                clone=self._template,
                step=STEP,
                status=status,
                at=spent,
                seconds=spent,
                error=error,
            )
        )

    def passed(self, host: str, item: str, chunk: Chunk) -> None:
        """Note that a part of a file is on a host."""
        if chunk.octets:
            with self._lock:
                done = self._done.get((host, item), 0) + chunk.data
                self._progress(host, item, done)

    def arrived(self, host: str, item: str, data: int) -> None:
        """Note that a file is on a host."""
        with self._lock:
            self._progress(host, item, data)

    def _progress(self, host: str, item: str, done: int) -> None:
        self._done[host, item] = done
        self._plugins.progress(
            ProgressEvent(
                run=self._run,
                what=f"{STEP} {self._template}",
                done=min(sum(self._done.values()), self.total),
                total=self.total,
            )
        )
