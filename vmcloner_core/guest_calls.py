"""The engine's calls that look at clones and carry files: a part of :class:`Engine`."""

from __future__ import annotations

import functools
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vmcloner_core.errors import BackendError, InvalidRequest
from vmcloner_core.local_host import LocalHost
from vmcloner_core.model import Access, Clone, Outcome, State, Statistics, Usage
from vmcloner_core.plan import check_timeout
from vmcloner_core.remote import FANOUT
from vmcloner_core.request import check_jobs

if TYPE_CHECKING:
    from vmcloner_core.console_lines import ConsoleLine
    from vmcloner_core.drivers import HypervisorDriver
    from vmcloner_core.run_events import RunEvent
    from vmcloner_core.survey import Unseen
    from vmcloner_core.transfers import Copied


class SharedCalls(ABC):
    """What an engine of one host and a controller of many do in the same way."""

    def missed(self) -> tuple[Unseen, ...]:
        """Return which hosts could not answer since this was called last: none of one host."""
        return ()

    @abstractmethod
    def statistics(self, *targets: str) -> tuple[tuple[Clone, Statistics | None], ...]:
        """Return clones with what each has used since its start; see :meth:`Engine.statistics`."""

    def usage(self, *targets: str, seconds: float = 1.0) -> tuple[Usage, ...]:
        """Return what clones use now: the rates over some seconds, for which this waits.

        :raises NotFound: a target names no clone.
        """
        before = {clone.name: read for clone, read in self.statistics(*targets)}
        time.sleep(seconds)
        return tuple(
            Usage.between(clone.name, clone.state.value, before.get(clone.name), now)
            for clone, now in self.statistics(*targets)
        )

    @abstractmethod
    def access(self, *targets: str) -> tuple[Outcome[Access], ...]:
        """Return how to reach clones; see :meth:`Engine.access`."""

    def put(
        self,
        *targets: str,
        files: Sequence[Path],
        to: str,
        recursive: bool = False,
        timeout: float = 600.0,
        jobs: int = FANOUT,
    ) -> tuple[Copied, ...]:
        """Copy files of this host to many clones at once; returns what became of each.

        A file that is there is overwritten, so that the same call again completes what failed.

        :param to: a path in the guests, as for scp. :param recursive: folders too.
        :param timeout: seconds for each clone. :param jobs: clones at once.
        :raises NotFound: a target names no clone, or a file isn't there.
        :raises InvalidRequest: a file is a folder, without ``recursive``.
        """
        from vmcloner_core import transfers

        def copy(accesses: Sequence[Access]) -> tuple[Copied, ...]:
            return transfers.put(
                accesses, files, to, recursive=recursive, timeout=timeout, jobs=jobs
            )

        return self._copied(targets, timeout, jobs, copy)

    def get(
        self,
        *targets: str,
        paths: Sequence[str],
        folder: Path,
        rename: str | None = None,
        recursive: bool = False,
        max_size: int = 4 * 1024**3,
        timeout: float = 600.0,
        jobs: int = FANOUT,
    ) -> tuple[Copied, ...]:
        """Copy files from many clones at once; returns what became of each.

        Those of a clone are in ``folder/CLONE`` then; with ``rename`` in ``folder`` itself, and a
        single file has that name. Nothing that a guest sends gets elsewhere. What is there is
        replaced; of a clone that fails, nothing is kept.

        :param paths: in the guests, as for scp. :param max_size: bytes, of each clone.
        :param rename: the name of a single file, or "" for its own. Only for one clone.
        :raises NotFound: a target names no clone.
        """
        from vmcloner_core import transfers

        if max_size < 1:
            raise InvalidRequest(f"max_size must be positive, not {max_size}")

        def place(name: str) -> tuple[Path, str | None]:
            return (folder / name, None) if rename is None else (folder, rename or None)

        def copy(accesses: Sequence[Access]) -> tuple[Copied, ...]:
            if rename is not None and len(accesses) > 1:
                raise InvalidRequest("files of several clones can't have one name")
            return transfers.get(
                accesses,
                paths,
                place,
                recursive=recursive,
                max_size=max_size,
                timeout=timeout,
                jobs=jobs,
            )

        return self._copied(targets, timeout, jobs, copy)

    def _copied(
        self,
        targets: Sequence[str],
        timeout: float,
        jobs: int,
        copy: Callable[[Sequence[Access]], tuple[Copied, ...]],
    ) -> tuple[Copied, ...]:
        from vmcloner_core.transfers import Copied

        check_jobs(jobs)
        check_timeout(timeout)
        outcomes = self.access(*targets)
        done = {c.name: c for c in copy([o.unwrap() for o in outcomes if o.ok])}
        return tuple(done.get(o.key) or Copied(name=o.key, error=o.error) for o in outcomes)


class GuestCalls(SharedCalls):
    """What :class:`Engine` does with clones that exist, without changing them."""

    @property
    @abstractmethod
    def _host(self) -> LocalHost:
        """The host."""

    @abstractmethod
    def list(self, *targets: str) -> tuple[Clone, ...]:
        """Return clones; see :meth:`Engine.list`."""

    def console_lines(
        self,
        *targets: str,
        lines: int | None = None,
        since: float | None = None,
        follow: bool = False,
    ) -> Iterator[ConsoleLine]:
        """Yield the lines of clones' consoles, one clone after the other, rotated parts included.

        :param lines: of each clone, only so many, the last. :param since: seconds since the epoch:
            leave out what was written before, as far as that is known.
        :param follow: go on with what all of them write, for ever.
        :raises NotFound: a target names no clone. :raises BackendError: a hypervisor has none.
        """
        from vmcloner_core import console_lines

        sources = []
        for clone in self.list(*targets):
            if clone.domain is None:
                continue
            driver = self._host.drivers.hypervisor(clone.labels.hypervisor)
            if driver.consoles is None:
                raise BackendError(f"{clone.name}: hypervisor {driver.name!r} has no consoles")
            known = since is not None and clone.state is State.RUNNING
            started = driver.started(clone.name) if known else None
            source = console_lines.Source(
                name=clone.name, consoles=driver.consoles, started=started
            )
            sources.append(source)
        return console_lines.read(sources, lines=lines, since=since, follow=follow)

    def statistics(self, *targets: str) -> tuple[tuple[Clone, Statistics | None], ...]:
        """Return clones with what each has used since its start; None where that isn't known.

        :raises NotFound: a target names no clone.
        """
        clones = self.list(*targets)
        found: dict[str, Statistics] = {}
        for backend in {clone.labels.hypervisor for clone in clones if clone.domain is not None}:
            names = {clone.name for clone in clones if clone.labels.hypervisor == backend}
            read = functools.partial(_statistics, names)
            found |= self._host.drivers.ask("hypervisor", backend, "statistics.read", read, dict)
        return tuple((clone, found.get(clone.name)) for clone in clones)

    def events(
        self, *, run: str | None = None, follow: bool = False, plans: bool = False
    ) -> Iterator[RunEvent]:
        """Yield the events of runs on this host, of all processes; see docs/events.md.

        :param run: only of this run. :param follow: only what comes from now on, for ever; of one
            run: all of it, until it has ended.
        :param plans: only the first event of each run, its plan.
        :raises NotFound: there is no log of that run.
        """
        from vmcloner_core import run_events

        return run_events.read(self._host.host.runs, run=run, follow=follow, plans=plans)


def _statistics(names: Collection[str], driver: HypervisorDriver) -> dict[str, Statistics]:
    return {} if driver.statistics is None else dict(driver.statistics.read(names))
