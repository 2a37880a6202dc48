"""The contract of storage backends."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import attrs

from vmcloner_core.drivers.capture import CaptureInterface
from vmcloner_core.drivers.context import DriverContext, Lane
from vmcloner_core.drivers.snapshots import DiskSnapshotInterface
from vmcloner_core.errors import InvalidRequest, VmclonerError, WrongState
from vmcloner_core.model import (
    AS_IT_COMES,
    Capacity,
    Check,
    CloneMode,
    CloneRequest,
    Copying,
    Leftover,
    Origin,
    Outcome,
    Progress,
    Volume,
    VolumeProgress,
    untold,
)


@attrs.frozen(kw_only=True)
class ImageFile:
    """A checked disk image: it has the format, is complete, and refers to no other file.

    :param size: virtual bytes. :param digest: ``sha256:…`` or ``sparse-sha256:…`` of the source, or
        of the build's input: if it is equal, a pool need not import the image again.
    """

    path: Path
    format: Literal["raw", "qcow2"]
    size: int
    digest: str


class StorageDriver(ABC):
    """Keeps templates' images (origins) and clones' disks (volumes) in one pool of one host.

    Labels are stored in the same step that makes a volume: a crash never leaves a volume without
    labels under its final name.

    Example::

        class DirectoryDriver(SimpleStorageDriver):
            def clone_one(self, request):
                path = self.folder / request.volume_name
                ...
                return Outcome(key=request.volume_name, value=volume)
    """

    clone_lane = Lane()
    reset_lane = Lane()
    delete_lane = Lane()
    modes: frozenset[CloneMode] = frozenset(CloneMode)
    """The clone modes that the pool supports. FULL clones are copies; LINKED ones copy nothing."""
    copies = True
    """Whether imports and FULL clones honour :class:`~vmcloner_core.model.Copying`.

    False declares that the pool copies no bytes itself, so there is nothing to limit or verify.
    """

    snapshots: DiskSnapshotInterface | None = None
    """Snapshots of its volumes, if it has them: set in ``__init__``."""

    def __init__(self, context: DriverContext) -> None:
        self.context = context
        self.name = context.name

    @property
    def capturing(self) -> CaptureInterface | None:
        """What makes templates' images of its volumes; None if the pool can't."""
        return None

    @property
    def default_mode(self) -> CloneMode:
        """The mode of clones for which a request names none: LINKED if the pool supports it."""
        return CloneMode.LINKED if CloneMode.LINKED in self.modes else CloneMode.FULL

    @property
    def activates(self) -> bool:
        """Whether volumes are active only while their domains run: :meth:`deactivate` does it."""
        return type(self).deactivate is not StorageDriver.deactivate

    @abstractmethod
    def probe(self) -> Iterator[Check]:
        """Yield what this backend needs on its host, and whether it is there. Changes nothing.

        Never raises: something missing is a FAILED check with its fix.
        """

    @abstractmethod
    def import_image(
        self,
        template: str,
        image: ImageFile,
        progress: Progress,
        copying: Copying = AS_IT_COMES,
    ) -> Outcome[Origin]:
        """Import an image into the pool as the template's read-only origin.

        Idempotent by ``image.digest``. An origin with another digest is replaced, but only if no
        volume is linked to it. An interrupted import leaves nothing under the origin's name.

        :raises WrongState: clones are linked to the origin that would be replaced.
        :raises NotEnoughResources: no room in the pool; the message says how much is needed.
        """

    @abstractmethod
    def origins(self) -> tuple[Origin, ...]:
        """Return the pool's origins, by template name."""

    @abstractmethod
    def delete_origin(self, template: str) -> Outcome[None]:
        """Remove a template's origin; success with ``changed=False`` if there is none.

        :raises WrongState: clones are linked to it.
        """

    @abstractmethod
    def clone(
        self, requests: Sequence[CloneRequest], progress: VolumeProgress = untold
    ) -> Iterator[Outcome[Volume]]:
        """Make volumes; keys are the volumes' names (``request.volume_name``).

        ``progress`` is called for each volume into which bytes are copied.
        An existing volume with labels of the same clone is returned unchanged (``changed=False``).
        One of another clone or template, or without labels, is a Conflict.
        A ``size`` above the origin's gives a larger disk; below it is InvalidRequest. A request
        without an origin gives a raw volume of ``size`` bytes: ``head``, then zeros.
        A pool may round sizes up. A pool that takes time to fill a volume may, when killed, leave
        it incomplete (``Volume.complete``) under its name and with its labels; it isn't activated
        then, and the same request resumes it.
        """

    @abstractmethod
    def delete(self, volumes: Sequence[Volume]) -> Iterator[Outcome[None]]:
        """Remove volumes; keys are the volumes' names. A missing volume is a success.

        A volume whose labels on the host name another clone than ``volume.labels`` is a Conflict;
        one in use is WrongState, and names its user if that is known.
        """

    def reset(
        self, requests: Sequence[CloneRequest], progress: VolumeProgress = untold
    ) -> Iterator[Outcome[Volume]]:
        """Replace volumes by new ones, as :meth:`clone` would make them.

        Keys are the volumes' names. A replaced volume keeps its labels, path and format; a missing
        one is made. Errors are those of :meth:`clone` and :meth:`delete`: another clone's volume is
        a Conflict, one in use is WrongState. If the host crashes at any moment, the same call again
        finishes the work.

        This one deletes and clones. A backend that can replace a volume in one step overrides it.
        """
        found = {volume.name: volume for volume in self.volumes()}
        there = [
            attrs.evolve(found[r.volume_name], labels=r.labels)
            for r in requests
            if r.volume_name in found
        ]
        kept = set()
        for outcome in self.delete(there):
            if outcome.error is not None:
                kept.add(outcome.key)
                yield Outcome(key=outcome.key, error=outcome.error)
        yield from self.clone(
            [
                attrs.evolve(r, labels=found[r.volume_name].labels) if r.volume_name in found else r
                for r in requests
                if r.volume_name not in kept
            ],
            progress,
        )

    def whole(self, size: int) -> int:
        """Return the bytes that a disk of ``size`` bytes has here: a pool may round them up."""
        return size

    def grow(self, volumes: Sequence[Volume], size: int) -> Iterator[Outcome[Volume]]:
        """Make volumes larger; keys are their names. One of at least that size stays as it is.

        The new part reads as zeros. While a guest uses a file, its hypervisor has made that larger
        before: then only what the pool notes of it changes. A killed call may leave a volume
        incomplete; the same call, and :meth:`clone`, complete it, and keep what is on it.

        A missing volume is NotFound, another clone's a Conflict. By default, a pool can't do this:
        InvalidRequest.

        :param size: bytes, rounded up as by :meth:`whole`.
        """
        for volume in volumes:
            error = InvalidRequest(
                f"{volume.name}: pool {self.name!r} can't make its disks larger ({size} bytes)",
                hint="set disk_size in the template, and create the clone again",
            )
            yield Outcome(key=volume.name, error=error)

    def hand_over(self, volumes: Sequence[Volume], state: str) -> Iterator[Outcome[None]]:
        """Make volumes another state folder's, in one step each; keys are their names.

        Hosts that share a pool move clones by that: the label ``state`` changes, and nothing else.
        One that has that label already is a success; another clone's, or another host's, is a
        Conflict, and a missing one NotFound. By default, a pool can't do this: InvalidRequest.

        Volumes are found by their names, not by their paths: with the label that they have, the
        host that is to get them asks whether it sees them.

        :param state: the id of the state folder that has them from now on.
        """
        for volume in volumes:
            error = InvalidRequest(
                f"{volume.name}: pool {self.name!r} hands no disks over ({state})"
            )
            yield Outcome(key=volume.name, error=error)

    @property
    def hands_over(self) -> bool:
        """Whether other hosts have this pool too, and :meth:`hand_over` makes volumes theirs.

        By default it is False. A pool of one host must not say so, whatever its driver can do.
        """
        return False

    @abstractmethod
    def volumes(self) -> tuple[Volume, ...]:
        """Return all volumes of the pool that have our labels.

        Leave out those whose name isn't a disk of the clone in their labels
        (:meth:`Labels.has_volume`): they are copies that a user made.
        """

    @abstractmethod
    def capacity(self) -> Capacity:
        """Return the pool's space, and its limits other than bytes."""

    @abstractmethod
    def need(self, request: CloneRequest, count: int) -> int:
        """Return the bytes that ``count`` volumes like this take when they are made."""

    def activate(self, volumes: Sequence[Volume]) -> Iterator[Outcome[None]]:
        """Make volumes usable before their domains start; keys are the volumes' names.

        An incomplete volume is WrongState.
        """
        for volume in volumes:
            error = None
            if not volume.complete:
                error = WrongState(
                    f"volume {volume.path} is incomplete: its copy was interrupted",
                    hint="run its create again to resume the copy",
                )
            yield Outcome(key=volume.name, error=error, changed=False)

    def deactivate(self, volumes: Sequence[Volume]) -> Iterator[Outcome[None]]:
        """Undo :meth:`activate` once their domains have stopped; keys are the volumes' names."""
        for volume in volumes:
            yield Outcome(key=volume.name, changed=False)

    def unlabelled(self, names: Sequence[str]) -> Sequence[str]:  # noqa: ARG002
        """Return those of these names of volumes that something without a clone's labels has.

        A clone that has lost such a volume is not deleted: the user is told what it may be.
        """
        return ()

    def sweep(self) -> None:
        """Remove what processes that died left half made in the pool, and nothing else.

        Called at the start of each run. Other processes may be at work in the pool.
        """

    def leftovers(self) -> tuple[Leftover, ...]:
        """Return what :meth:`sweep` would remove now."""
        return ()

    def close(self) -> None:
        """Release what the driver holds. It isn't used afterwards."""


class SimpleStorageDriver(StorageDriver):
    """Base for a backend that works one volume at a time: turns that into batches."""

    @abstractmethod
    def clone_one(self, request: CloneRequest) -> Outcome[Volume]:
        """Make one volume, as :meth:`StorageDriver.clone`; may raise VmclonerError."""

    @abstractmethod
    def delete_one(self, volume: Volume) -> Outcome[None]:
        """Remove one volume, as :meth:`StorageDriver.delete`; may raise VmclonerError."""

    def clone(
        self,
        requests: Sequence[CloneRequest],
        progress: VolumeProgress = untold,  # noqa: ARG002 - a simple backend reports no progress
    ) -> Iterator[Outcome[Volume]]:
        """Make volumes one after the other."""
        for request in requests:
            try:
                yield self.clone_one(request)
            except VmclonerError as error:
                yield Outcome(key=request.volume_name, error=error)

    def delete(self, volumes: Sequence[Volume]) -> Iterator[Outcome[None]]:
        """Remove volumes one after the other."""
        for volume in volumes:
            try:
                yield self.delete_one(volume)
            except VmclonerError as error:
                yield Outcome(key=volume.name, error=error)
