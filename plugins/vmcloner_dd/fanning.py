"""Fill many volumes from one reading of their template, whatever kind of volumes they are.

A volume has its name and labels before it has its bytes, and is *incomplete* until it has them all:
what a killed process leaves is taken up by the next one, which writes only what isn't right yet.
While one is filled it is locked (flock(2)), so that two processes don't fill it both: the second
waits, and finds it done.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack

import attrs

from vmcloner_core.copying import Pace, Target, fan_out
from vmcloner_core.drivers import Lane, StorageDriver
from vmcloner_core.errors import VmclonerError, WrongState
from vmcloner_core.extents import length
from vmcloner_core.model import (
    CloneMode,
    CloneRequest,
    Copying,
    Origin,
    Outcome,
    Volume,
)
from vmcloner_core.units import format_size
from vmcloner_dd.settings import DdSettings
from vmcloner_files.errors import translate

_POLL = 0.05


@attrs.define(kw_only=True)
class _Job:
    """One volume to be filled, and who wants it."""

    request: CloneRequest
    volume: Volume
    fresh: bool
    target: Target | None = None
    error: VmclonerError | None = None

    @property
    def name(self) -> str:
        return self.volume.name


class FanningDriver(StorageDriver):
    """Base of the drivers that copy: makes batches of room for volumes, and fills them."""

    clone_lane = Lane(batch=32)
    delete_lane = Lane(batch=64)
    modes = frozenset({CloneMode.FULL})
    zeroed = False
    """Whether new volumes read as zeros before anything is written."""
    dd: DdSettings

    # --- what a kind of volume gives ------------------------------------------------------------

    @abstractmethod
    def allot(self, requests: Sequence[CloneRequest]) -> Iterator[Outcome[Volume]]:
        """Make room for volumes: there under their names, labelled, incomplete.

        Keys are the volumes' names. One that is there already is that one, complete or not
        (``changed=False``).
        """

    @abstractmethod
    def extend(self, volume: Volume, request: CloneRequest) -> Volume:
        """Give an incomplete volume as many bytes as a new one would get, where it has fewer.

        Its request or its template's image may have grown since it was made. Nobody else fills it.
        """

    @abstractmethod
    def finish(self, volumes: Sequence[Volume]) -> None:
        """Mark volumes as complete, whose bytes are on the device."""

    @abstractmethod
    def find(self, names: Sequence[str]) -> Mapping[str, Volume]:
        """Return those of our volumes that exist now, by name."""

    @abstractmethod
    def source(self, origin: Origin) -> AbstractContextManager[int]:
        """Yield a template's image, open for reading.

        :raises NotFound: there is none. :raises WrongState: it is another than ``origin``.
        """

    def opened(
        self,
        volumes: Sequence[Volume],  # noqa: ARG002
    ) -> AbstractContextManager[Mapping[str, VmclonerError]]:
        """Keep incomplete volumes usable for a while; yields the errors of those that aren't."""
        return contextlib.nullcontext({})

    # --- the contract ---------------------------------------------------------------------------

    def clone(self, requests: Sequence[CloneRequest]) -> Iterator[Outcome[Volume]]:
        """See :meth:`StorageDriver.clone`."""
        wanted = {request.volume_name: request for request in requests}
        jobs = []
        for outcome in self.allot(requests):
            if outcome.value is None or outcome.value.complete:
                yield outcome
                continue
            volume = outcome.value
            jobs.append(_Job(request=wanted[outcome.key], volume=volume, fresh=outcome.changed))
        if jobs:
            yield from self._filled(sorted(jobs, key=lambda job: job.name))

    def reset(self, requests: Sequence[CloneRequest]) -> Iterator[Outcome[Volume]]:
        """See :meth:`StorageDriver.reset`. A copy is made anew as it was made at first."""
        return StorageDriver.reset(self, requests)

    def activate(self, volumes: Sequence[Volume]) -> Iterator[Outcome[None]]:
        """See :meth:`StorageDriver.activate`. What isn't complete is no disk yet."""
        for volume in volumes:
            error = None
            if not volume.complete:
                error = WrongState(
                    f"volume {volume.path} isn't complete: its copy was cut off",
                    hint="run its create again: it goes on where it was",
                )
            yield Outcome(key=volume.name, error=error, changed=False)

    def copying(self, given: Copying) -> Copying:
        """Return how to copy: as the command says, or else the settings."""
        return attrs.evolve(
            given,
            bandwidth=given.bandwidth or self.dd.bandwidth,
            verify=given.verify or self.dd.verify,
        )

    # --- filling --------------------------------------------------------------------------------

    def _filled(self, jobs: Sequence[_Job]) -> Iterator[Outcome[Volume]]:
        with self.opened([job.volume for job in jobs]) as errors:
            for job in jobs:
                job.error = errors.get(job.name)
            with ExitStack() as stack:
                mine = list(self._claimed(jobs, stack))
                left = self.find([job.name for job in mine])
                for job in list(mine):
                    found = left.get(job.name)
                    if found is None or found.complete:  # by another process, while we waited
                        mine.remove(job)
                        gone = WrongState(f"volume {job.name} vanished while it was filled")
                        error = gone if found is None else None
                        yield Outcome(key=job.name, value=found, error=error, changed=False)
                    elif job.error is None:
                        self._open(job, found, stack)
                self._fill(mine, stack)
                failed = [job.volume for job in mine if job.error is not None]
                self._finish([job for job in mine if job.error is None])
            # Half a copy is worth keeping where we died, not where the copy can't be had.
            list(self.delete(failed))
        for job in mine:
            value = attrs.evolve(job.volume, complete=True) if job.error is None else None
            yield Outcome(key=job.name, value=value, error=job.error)

    def _finish(self, jobs: Sequence[_Job]) -> None:
        """Mark the volumes of jobs as complete; one that can't be is to be gone on with later."""
        if not jobs:
            return
        try:
            self.finish([job.volume for job in jobs])
        except VmclonerError as error:
            left = self.find([job.name for job in jobs])
            for job in jobs:
                if job.name not in left or not left[job.name].complete:
                    job.error = error

    def _claimed(self, jobs: Sequence[_Job], stack: ExitStack) -> Iterator[_Job]:
        """Lock the jobs' volumes, in the order of their names."""
        for job in jobs:
            if job.error is not None:
                yield job
                continue
            try:
                fd = os.open(job.volume.path, os.O_RDONLY | os.O_CLOEXEC)
                stack.callback(os.close, fd)
                _lock(fd)
            except OSError as error:
                job.error = translate(error, str(job.volume.path))
            yield job

    def _open(self, job: _Job, found: Volume, stack: ExitStack) -> None:
        """Open a locked volume for its copy, as large as it is to be."""
        copying = self.copying(job.request.copying)
        try:
            job.volume = found if job.fresh else self.extend(found, job.request)
            target = Target(
                path=job.volume.path,
                size=job.volume.size,
                blank=job.fresh and self.zeroed,
                resumed=not job.fresh,
                progress=copying.progress,
            )
            job.target = stack.enter_context(target.open())
        except (VmclonerError, OSError) as error:
            job.error = _translated(error, job)

    def _fill(self, jobs: Sequence[_Job], stack: ExitStack) -> None:
        """Fill the jobs' volumes; those of one template, or of the same head, in one go."""
        groups: dict[Origin | bytes, list[_Job]] = {}
        for job in jobs:
            if job.target is not None:
                groups.setdefault(job.request.origin or job.request.head, []).append(job)
        for key, group in groups.items():
            try:
                if isinstance(key, Origin):
                    source = stack.enter_context(self.source(key))
                else:
                    source = stack.enter_context(_memory(key))
                self._fan_out(source, group)
            except (VmclonerError, OSError) as error:
                for job in group:
                    job.error = job.error or _translated(error, job)

    def _fan_out(self, source: int, group: Sequence[_Job]) -> None:
        size = length(source)
        for job in group:
            if job.volume.size < size:
                job.error, job.target = _too_small(job, size), None
        targets = [job.target for job in group if job.target is not None]
        copying = self.copying(group[0].request.copying)
        fan_out(source, targets, pace=Pace(copying.bandwidth), verify=copying.verify)
        for job in group:
            if job.target is not None and job.target.error is not None:
                job.error = _translated(job.target.error, job)


def _translated(error: VmclonerError | OSError, job: _Job) -> VmclonerError:
    return translate(error, str(job.volume.path)) if isinstance(error, OSError) else error


def _too_small(job: _Job, size: int) -> WrongState:
    return WrongState(
        f"volume {job.volume.path} has {format_size(job.volume.size)}, less than what is to be "
        f"copied into it, {format_size(size)}",
        hint="run the same command again",
    )


def _lock(fd: int) -> None:
    """Lock a file or device; waits for another that fills it, however long that takes."""
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            time.sleep(_POLL)


@contextlib.contextmanager
def _memory(content: bytes) -> Iterator[int]:
    """Yield a file in memory of these bytes."""
    fd = os.memfd_create("head")
    try:
        os.pwrite(fd, content, 0)
        yield fd
    finally:
        os.close(fd)
