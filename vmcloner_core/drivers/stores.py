"""A storage driver for a place that keeps volumes by name, as libvirt or a storage appliance does.

The place itself is a :class:`Store`: it makes and removes a volume, and keeps a record beside it.
All else of the contract is here, once: what may be replaced, what is complete, who has it open.
"""

from __future__ import annotations

import contextlib
import functools
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from vmcloner_core import locks, qemu_img
from vmcloner_core.cancelling import pause
from vmcloner_core.copying import Target
from vmcloner_core.drivers.context import DriverContext, Lane
from vmcloner_core.drivers.storage import ImageFile, StorageDriver
from vmcloner_core.errors import (
    Conflict,
    NotEnoughResources,
    NotFound,
    VmclonerError,
    WrongState,
)
from vmcloner_core.full_copies import copy_one
from vmcloner_core.model import (
    AS_IT_COMES,
    Capacity,
    Check,
    CloneMode,
    CloneRequest,
    Copying,
    Labels,
    Origin,
    Outcome,
    Progress,
    Status,
    Volume,
    VolumeProgress,
    untold,
)
from vmcloner_core.os_errors import allocated, translated
from vmcloner_core.process import open_files, process_shown
from vmcloner_core.stored_ids import read_id
from vmcloner_core.units import format_size

IMAGE = ".image"
"""How the names of templates' images end."""


@attrs.frozen(kw_only=True)
class Kept:
    """A volume of a store.

    :param known: what its record says. :param whole: whether :meth:`Store.finish` was called.
    """

    path: Path
    known: Mapping[str, Any]
    whole: bool


class Store(ABC):
    """Volumes by name, each with a record of a few KiB that is made before it and removed after it.

    The driver has a name locked while it makes or removes its volume. Calls may come from several
    threads.
    """

    @abstractmethod
    def capacity(self) -> Capacity:
        """Return its space. :raises BackendError: it can't be used; with a hint."""

    @abstractmethod
    def names(self) -> Iterable[str]:
        """Return the names of the volumes that have records."""

    @abstractmethod
    def find(self, name: str) -> Kept | None:
        """Return a volume, or what a killed call left of one; None if there is neither.

        :raises Conflict: what has that name has no record of vmcloner's.
        """

    @abstractmethod
    def make(self, name: str, known: Mapping[str, Any], size: int, below: Path | None) -> Path:
        """Make a record, then a volume, not yet whole; neither is there.

        What a failed call leaves is removed by :meth:`remove`. A record that was cut short counts
        as none, for :meth:`find`, and :meth:`remove` removes it.

        :param known: for the record: JSON. :param size: bytes, exactly these.
        :param below: what an overlay reads from, a raw image; None for a raw volume of zeros.
        :returns: the path by which the volume can be filled, and hypervisors open it.
        """

    @abstractmethod
    def finish(self, name: str) -> None:
        """Mark a volume as whole, in one step."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a volume, then its record, whatever is there of them."""


class StoreDriver(StorageDriver):
    """The driver of a store whose volumes are files: LINKED clones are qcow2 overlays.

    :param spare: bytes that a volume takes beside its content: its record, an overlay's tables.
    :param ignored: how the names of processes end that may have volumes open at any time.
    """

    reset_lane = delete_lane = Lane(batch=64)  # each call looks once for files in use

    def __init__(
        self,
        context: DriverContext,
        store: Store,
        *,
        spare: int = 512 * 1024,
        ignored: tuple[str, ...] = (),
    ) -> None:
        super().__init__(context)
        self._store = store
        self._spare = spare
        self._ignored = ignored

    # --- the pool -------------------------------------------------------------------------------

    def probe(self) -> Iterator[Check]:
        """See :meth:`StorageDriver.probe`."""
        check = functools.partial(Check, backend=self.name, name="pool")
        try:
            self.capacity()
            yield check(status=Status.OK)
        except VmclonerError as error:
            yield check(status=Status.FAILED, detail=error.message, fix=error.hint or "")

    def capacity(self) -> Capacity:
        """See :meth:`StorageDriver.capacity`."""
        return self._store.capacity()

    def need(self, request: CloneRequest, count: int) -> int:
        """See :meth:`StorageDriver.need`."""
        copied = len(request.head)
        if request.origin is not None:
            copied = request.origin.allocated if request.mode is CloneMode.FULL else 0
        return count * (self._spare + copied)

    def _locked(self, *names: str) -> contextlib.AbstractContextManager[None]:
        """Lock names, for the processes with this state folder."""

        def ended() -> bool:
            pause(0)  # raises Interrupted
            return False

        folder = self.context.host.state / "stores" / self.name
        return locks.hold(folder, names, cancelled=ended)

    def _find(self, name: str) -> Kept | None:
        kept = self._store.find(name)
        if kept is not None and not _is_sound(kept.known):
            raise Conflict(
                f"the record of volume {name} of pool {self.name} is damaged",
                hint="it is not touched: remove it and the volume, or choose another name",
            )
        return kept

    def _all(self) -> Iterator[tuple[str, Kept]]:
        for name in self._store.names():
            with contextlib.suppress(Conflict, NotFound):  # not ours; removed meanwhile
                if (kept := self._find(name)) is not None:
                    yield name, kept

    @contextlib.contextmanager
    def _made(
        self, name: str, known: Mapping[str, Any], size: int, below: Path | None = None
    ) -> Iterator[Path]:
        """Make a volume, to be filled in the block; then it is whole.

        :raises WrongState: another state folder, whose locks are others, hasn't finished it.
        """
        state, held = read_id(self.context.host.state_id), self._find(name)
        if held is not None and not held.whole and held.known["state"] != state:
            raise WrongState(
                f"volume {held.path} is another state folder's, and unfinished",
                hint="use the settings that it was begun with",
            )
        self._store.remove(name)  # what a killed call left
        more = {"state": state, "size": size, "below": str(below) if below is not None else None}
        try:
            path = self._store.make(name, {**known, **more}, size, below)
            with translated(path):
                yield path
                _sync(path)
        except BaseException:
            with contextlib.suppress(VmclonerError):  # the same call makes it anew
                self._store.remove(name)
            raise
        self._store.finish(name)

    # --- templates' images ----------------------------------------------------------------------

    def import_image(
        self,
        template: str,
        image: ImageFile,
        progress: Progress,
        copying: Copying = AS_IT_COMES,
    ) -> Outcome[Origin]:
        """See :meth:`StorageDriver.import_image`."""
        name = template + IMAGE
        with self._locked(name):
            held = self._origin(name, self._find(name))
            if held is not None and held.digest == image.digest:
                return Outcome(key=template, value=held, changed=False)
            self._check_unlinked(template)
            need = qemu_img.measure(self.context.runner, image)
            if need > self.capacity().free:
                raise NotEnoughResources(
                    f"pool {self.name}: {template} needs {format_size(need)}",
                    hint="free space, or import it into another pool",
                )
            with self._made(name, {"digest": image.digest}, image.size) as path:
                if image.format == "raw":
                    _fill(image.path, path, image.size, copying, progress)
                else:
                    qemu_img.convert(self.context.runner, image, path, copying)
                    progress(image.size, image.size)
                path.chmod(0o444)
            return Outcome(key=template, value=self._origin(name, self._find(name)))

    def origins(self) -> tuple[Origin, ...]:
        """See :meth:`StorageDriver.origins`."""
        found = (self._origin(name, kept) for name, kept in self._all())
        return tuple(origin for origin in found if origin is not None)

    def _origin(self, name: str, kept: Kept | None) -> Origin | None:
        """Return an image; None if it isn't there, isn't whole, or is none."""
        if kept is None or not kept.whole or "digest" not in kept.known:
            return None
        return Origin(
            template=name.removesuffix(IMAGE),
            pool=self.name,
            size=kept.known["size"],
            allocated=allocated(kept.path),
            digest=kept.known["digest"],
        )

    def delete_origin(self, template: str) -> Outcome[None]:
        """See :meth:`StorageDriver.delete_origin`."""
        name = template + IMAGE
        with self._locked(name):
            there = self._find(name) is not None
            self._check_unlinked(template)
            self._store.remove(name)
            return Outcome(key=template, changed=there)

    def _check_unlinked(self, template: str) -> None:
        """Check that no volume reads from a template's image, nor may: whose record is damaged."""
        image = self._store.find(template + IMAGE)
        if image is None:
            return
        for name in self._store.names():
            with contextlib.suppress(Conflict, NotFound):  # not ours; removed meanwhile
                kept = self._store.find(name)
                damaged = kept is not None and not _is_sound(kept.known)
                if kept is not None and (damaged or kept.known["below"] == str(image.path)):
                    raise WrongState(
                        f"{name} {'may be' if damaged else 'is'} linked to the image of template "
                        f"{template}{': its record is damaged' if damaged else ''}",
                        hint="delete it first",
                    )

    # --- volumes --------------------------------------------------------------------------------

    def volumes(self) -> tuple[Volume, ...]:
        """See :meth:`StorageDriver.volumes`."""
        found = (self._volume(name, kept) for name, kept in self._all())
        return tuple(v for v in found if v is not None and v.labels.has_volume(v.name))

    def _volume(self, name: str, kept: Kept | None) -> Volume | None:
        labels = Labels.from_mapping(kept.known.get("labels", {})) if kept is not None else None
        if kept is None or labels is None:
            return None
        below = kept.known["below"]
        return Volume(
            name=name,
            pool=self.name,
            labels=labels,
            path=kept.path,
            size=kept.known["size"],
            format="qcow2" if below else "raw",
            backing=Path(below) if below else None,
            complete=kept.whole,
        )

    def _own(self, name: str, labels: Labels) -> Volume | None:
        """Return a clone's volume, None if there is none. Another clone's is a Conflict."""
        kept = self._find(name)
        volume = self._volume(name, kept)
        if kept is not None and (volume is None or not volume.labels.same_clone(labels)):
            raise Conflict(f"volume {name} of pool {self.name} is another clone's")
        return volume

    def clone(
        self, requests: Sequence[CloneRequest], progress: VolumeProgress = untold
    ) -> Iterator[Outcome[Volume]]:
        """See :meth:`StorageDriver.clone`."""
        for request in requests:
            try:
                yield self._clone(request, functools.partial(progress, request.volume_name))
            except VmclonerError as error:
                yield Outcome(key=request.volume_name, error=error)

    def _clone(self, request: CloneRequest, progress: Progress) -> Outcome[Volume]:
        name, origin = request.volume_name, request.origin
        image = origin.template + IMAGE if origin is not None else name
        size = request.size_over(origin.size if origin is not None else 0)
        with self._locked(name, image):
            there = self._own(name, request.labels)
            if there is not None and there.complete:
                return Outcome(key=name, value=there, changed=False)
            source, below = self._find(image) if origin is not None else None, None
            if origin is not None:
                origin.check_held(self._origin(image, source))
                assert source is not None  # noqa: S101 - else the check has failed
                below = source.path if request.mode is CloneMode.LINKED else None
            known = {"labels": request.labels.to_mapping()}
            with self._made(name, known, size, below) as path:
                if source is None:
                    with path.open("r+b") as file:
                        file.write(request.head)
                elif below is None:
                    _fill(source.path, path, size, request.copying, progress)
            return Outcome(key=name, value=self._own(name, request.labels))

    def delete(self, volumes: Sequence[Volume]) -> Iterator[Outcome[None]]:
        """See :meth:`StorageDriver.delete`."""
        users = self._users(volumes)
        for volume in volumes:
            try:
                with self._locked(volume.name):
                    there = self._own(volume.name, volume.labels)
                    if there is not None and there.name in users:
                        raise WrongState(f"{there.path} is in use by {users[there.name]}")
                    self._store.remove(volume.name)
                yield Outcome(key=volume.name, changed=there is not None)
            except VmclonerError as error:
                yield Outcome(key=volume.name, error=error)

    def _users(self, volumes: Sequence[Volume]) -> dict[str, str]:
        """Return which processes have volumes open, by the volumes' names."""
        files: dict[tuple[int, int], str] = {}
        for volume in volumes:
            with contextlib.suppress(OSError):  # it isn't there
                status = volume.path.stat()
                files[status.st_dev, status.st_ino] = volume.name
        users: dict[str, str] = {}
        for pid, status in open_files() if files else ():
            name = files.get((status.st_dev, status.st_ino))
            if name is not None and not (user := process_shown(pid)).endswith(self._ignored):
                users[name] = user
        return users


def _is_sound(known: Mapping[str, Any]) -> bool:
    """Tell whether a record is as this driver writes them."""
    labels, of_image = known.get("labels"), isinstance(known.get("digest"), str)
    of_disk = isinstance(labels, dict) and Labels.from_mapping(labels) is not None
    if not {"state", "below"} <= known.keys() or not isinstance(known["below"], str | None):
        return False
    return isinstance(known.get("size"), int) and of_image is not of_disk


def _sync(path: Path) -> None:
    """Have a volume on the disk before it is marked as whole: others are made of it."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _fill(source: Path, path: Path, size: int, options: Copying, progress: Progress) -> None:
    """Copy a raw image into a volume of zeros that was made just now."""
    target = Target(path=path, size=size, blank=True, progress=progress)
    with source.open("rb") as file:
        copy_one(file.fileno(), target, options)
