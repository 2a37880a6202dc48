"""Fill volumes with full copies, many at once; a copy that was interrupted is resumed.

For storage drivers whose volumes get their names and labels before their bytes. Such a volume is
incomplete (``Volume.complete``) until all of its bytes are on the device. If the process dies, the
same request resumes the copy: only bytes that differ from the source are written.

A volume is locked (flock(2)) while it is filled. A second process that wants to fill it waits, and
then finds it complete.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack

import attrs

from vmcloner_core.cancelling import pause
from vmcloner_core.copying import Pace, Target, fan_out
from vmcloner_core.errors import Interrupted, VmclonerError, WrongState
from vmcloner_core.extents import length
from vmcloner_core.model import CloneRequest, Copying, Origin, Outcome, Volume, VolumeProgress
from vmcloner_core.os_errors import translate
from vmcloner_core.units import format_size

_POLL = 0.05


class CopyPool(ABC):
    """A pool with volumes that a :class:`Copier` fills."""

    zeroed = False
    """Whether a new volume reads as zeros."""

    @abstractmethod
    def extend(self, volume: Volume, request: CloneRequest) -> Volume:
        """Enlarge an incomplete volume to the size that the request asks for, if it is smaller.

        The request or the template's image may have changed since the volume was made. The volume
        is locked.
        """

    @abstractmethod
    def finish(self, volumes: Sequence[Volume]) -> None:
        """Mark volumes as complete; their bytes are on the device."""

    @abstractmethod
    def find(self, names: Sequence[str]) -> Mapping[str, Volume]:
        """Return the volumes of these names that exist now and have our labels."""

    @abstractmethod
    def source(self, origin: Origin) -> AbstractContextManager[int]:
        """Yield a template's image, open for reading.

        :raises NotFound: there is none. :raises WrongState: it is not the image of ``origin``.
        """

    def opened(
        self,
        volumes: Sequence[Volume],  # noqa: ARG002
    ) -> AbstractContextManager[Mapping[str, VmclonerError]]:
        """Make volumes usable for the time of the copy; yields the errors of those that failed."""
        return contextlib.nullcontext({})


@attrs.define(kw_only=True)
class Copy:
    """A volume to fill. ``fresh``: it was made just now, so nothing was written to it before."""

    request: CloneRequest
    volume: Volume
    fresh: bool
    target: Target | None = None
    error: VmclonerError | None = None

    @property
    def name(self) -> str:
        """Name of the volume."""
        return self.volume.name

    @property
    def failed(self) -> bool:
        """Whether it can't be filled, now or later."""
        return self.error is not None and not isinstance(self.error, Interrupted)

    def fail(self, error: VmclonerError | OSError) -> None:
        """Set the error, unless there is one already."""
        if isinstance(error, OSError):
            error = translate(error, self.volume.path)
        self.error = self.error or error


@attrs.frozen
class Copier:
    """Fills volumes of a pool. Thread-safe.

    :param delete: the driver's method, for volumes whose copy failed.
    :param defaults: how to copy where a request does not say.
    """

    pool: CopyPool
    delete: Callable[[Sequence[Volume]], Iterator[Outcome[None]]]
    defaults: Copying

    def fill(self, copies: Sequence[Copy], progress: VolumeProgress) -> Iterator[Outcome[Volume]]:
        """Fill volumes; keys are their names. A volume whose copy fails is removed.

        One whose run is to end stays, incomplete: the same request resumes its copy.
        """
        if not copies:
            return
        copies = sorted(copies, key=lambda copy: copy.name)
        with self.pool.opened([copy.volume for copy in copies]) as errors:
            mine = []
            with ExitStack() as stack:
                for copy in copies:  # in the order of their names, or two processes would deadlock
                    copy.error = errors.get(copy.name)
                    if copy.error is None:
                        _claim(copy, stack)
                there = self.pool.find([copy.name for copy in copies])
                for copy in copies:
                    found = there.get(copy.name)
                    if found is None:
                        vanished = WrongState(f"volume {copy.name} was removed during its copy")
                        yield Outcome(key=copy.name, error=vanished)
                    elif found.complete:  # filled by another process while this one waited
                        yield Outcome(key=copy.name, value=found, changed=False)
                    else:
                        mine.append(copy)
                        if copy.error is None:
                            self._open(copy, found, stack, progress)
                self._fill(mine)
                failed = [copy.volume for copy in mine if copy.failed]
                self._finish([copy for copy in mine if copy.error is None])
            list(self.delete(failed))
        for copy in mine:
            value = None if copy.failed else copy.volume
            if value is not None and copy.error is None:
                value = attrs.evolve(value, complete=True)
            yield Outcome(key=copy.name, value=value, error=copy.error)

    def _open(self, copy: Copy, found: Volume, stack: ExitStack, progress: VolumeProgress) -> None:
        """Open a locked volume for its copy, with its final size."""
        try:
            copy.volume = found if copy.fresh else self.pool.extend(found, copy.request)
            target = Target(
                path=copy.volume.path,
                size=copy.volume.size,
                blank=copy.fresh and self.pool.zeroed,
                resumed=not copy.fresh,
                progress=functools.partial(progress, copy.name),
            )
            copy.target = stack.enter_context(target.open())
        except (VmclonerError, OSError) as error:
            copy.fail(error)

    def _fill(self, copies: Sequence[Copy]) -> None:
        """Fill volumes: with one reading for all that have the same source."""
        groups: dict[Origin | bytes, list[Copy]] = {}
        for copy in copies:
            if copy.target is not None:
                groups.setdefault(copy.request.origin or copy.request.head, []).append(copy)
        for key, group in groups.items():
            try:
                source = self.pool.source(key) if isinstance(key, Origin) else _memory(key)
                with source as fd:
                    self._fan_out(fd, group)
            except (VmclonerError, OSError) as error:
                for copy in group:
                    copy.fail(error)

    def _fan_out(self, source: int, group: Sequence[Copy]) -> None:
        size = length(source)
        for copy in group:
            if copy.volume.size < size:
                copy.error, copy.target = _too_small(copy, size), None
        targets = [copy.target for copy in group if copy.target is not None]
        copying = group[0].request.copying.with_defaults(self.defaults)
        fan_out(source, targets, pace=Pace(copying.bandwidth), verify=copying.verify)
        for copy in group:
            if copy.target is not None and copy.target.error is not None:
                copy.fail(copy.target.error)

    def _finish(self, copies: Sequence[Copy]) -> None:
        """Mark volumes as complete. One that cannot be marked stays, to be resumed later."""
        if not copies:
            return
        try:
            self.pool.finish([copy.volume for copy in copies])
        except VmclonerError as error:
            there = self.pool.find([copy.name for copy in copies])
            for copy in copies:
                if copy.name not in there or not there[copy.name].complete:
                    copy.fail(error)


def copy_one(source: int, target: Target, copying: Copying) -> None:
    """Copy a source to one target.

    :param source: an open file or block device.
    :raises OSError: reading, writing or verifying failed.
    """
    with target.open():
        fan_out(source, [target], pace=Pace(copying.bandwidth), verify=copying.verify)
    if target.error is not None:
        raise target.error


def _claim(copy: Copy, stack: ExitStack) -> None:
    """Lock a volume; waits while another process fills it, however long that takes."""
    try:
        # NFS locks a file alone only if it is open for writing; udev looks at a device after that.
        how = os.O_RDWR if copy.volume.path.is_file() else os.O_RDONLY
        fd = os.open(copy.volume.path, how | os.O_CLOEXEC)
        stack.callback(os.close, fd)
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                pause(_POLL)
    except OSError as error:
        copy.fail(error)


def _too_small(copy: Copy, size: int) -> WrongState:
    return WrongState(
        f"volume {copy.volume.path} has {format_size(copy.volume.size)}, less than the "
        f"{format_size(size)} to copy",
        hint="run the same command again",
    )


@contextlib.contextmanager
def _memory(content: bytes) -> Iterator[int]:
    """Yield a file in memory that holds ``content``."""
    fd = os.memfd_create("head")
    try:
        os.pwrite(fd, content, 0)
        yield fd
    finally:
        os.close(fd)
