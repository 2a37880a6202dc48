"""A thin pool while its group's lock is held: the steps that batches consist of."""

from __future__ import annotations

import contextlib
import errno
import itertools
from collections.abc import Iterator, Mapping, Sequence

import attrs

from vmcloner_core.errors import (
    HostCommandError,
    NotEnoughResources,
    NotFound,
    VmclonerError,
    WrongState,
)
from vmcloner_core.units import format_size
from vmcloner_lvm.activation import deactivate
from vmcloner_lvm.commands import Lvm
from vmcloner_lvm.devmapper import DeviceMapper, PoolStatus, device_name
from vmcloner_lvm.metadata import stored_size
from vmcloner_lvm.metadata_reader import Reader
from vmcloner_lvm.records import check_removable
from vmcloner_lvm.transaction import numbered
from vmcloner_lvm.volumegroup import ThinPool, ThinVolume, VolumeGroup

METADATA_LIMIT = 0.9
"""Share of a pool's metadata up to which volumes are made: a pool whose metadata is full breaks."""
VOLUME_METADATA = 4096
"""Bytes of a pool's metadata that are assumed for a new volume and its first write."""
_BLOCK = 4096


@attrs.define(kw_only=True)
class Session:
    """A thin pool whose group's lock is held. Not thread-safe.

    :param group: the metadata as last read or written.
    :param made: names of the volumes that the last :meth:`tell` made, even if it failed.
    """

    lvm: Lvm
    mapper: DeviceMapper
    pool_name: str
    group: VolumeGroup
    reader: Reader
    made: list[str] = attrs.field(factory=list)

    def __str__(self) -> str:
        return f"{self.lvm.group}/{self.pool_name}"

    @property
    def pool(self) -> ThinPool:
        """The pool in the metadata."""
        return find_pool(self.group, self.pool_name)

    _device: str | None = None

    @property
    def device(self) -> str:
        """The device to which the pool's messages are sent."""
        if self._device is None:
            self.status()
        assert self._device is not None  # noqa: S101 - status() raises or finds it
        return self._device

    def status(self) -> PoolStatus:
        """Return the pool's status from the kernel.

        :raises WrongState: it is not active, or not writable.
        """
        # LVM may have put its layer over the pool meanwhile: so the name is found again.
        self._device, status = pool_device(self.mapper, self.lvm.group, self.pool_name)
        check_usable(str(self), status)
        return status

    def stray_id(self) -> int | None:
        """Return the kernel's transaction id if it is not that of the metadata, as it should be.

        None if messages are pending, or the kernel's is not known.
        """
        if self.pool.messages:
            return None
        try:
            kernel = self.status().transaction_id
        except VmclonerError:
            return None
        return kernel if kernel != self.pool.transaction_id else None

    def check_removable(self, name: str) -> None:
        """Check that a volume has no dependents; see ``records``."""
        check_removable(self.lvm.group, name, self.group.dependents.get(name, ()))

    def reread(self) -> VolumeGroup:
        """Read the metadata again, and return it."""
        self.group = self.reader.read(expected=self.group)
        return self.group

    def restore(self, group: VolumeGroup) -> None:
        """Write the volume group's metadata."""
        self.lvm.restore(group)
        self.group = numbered(group)

    # --- the kernel's side ----------------------------------------------------------------------

    def tell(self, heads: Mapping[str, bytes] | None = None, *, again: bool = False) -> None:
        """Send the messages in the metadata to the pool, and close the transaction.

        :param heads: the first bytes of new volumes, by their names.
        :param again: the transaction was interrupted: volumes that exist are made again.
        :raises VmclonerError: the kernel refused one; ``made`` has the volumes before it.
        """
        self.status()
        pool = self.pool
        self.made = []
        for name in pool.messages.creates:
            volume = self._volume(name)
            if not (again and self._kept(volume)):
                self._make(volume, (heads or {}).get(name, b""))
        for device in pool.messages.deletes:
            self._send(f"delete {device}", ignored=errno.ENODATA)
        new = pool.transaction_id
        self._send(f"set_transaction_id {new - 1} {new}")

    def _make(self, volume: ThinVolume, head: bytes) -> None:
        device = volume.device_id
        if volume.origin is None:
            self._send(f"create_thin {device}")
        else:
            self._send(f"create_snap {device} {self._volume(volume.origin).device_id}")
        self.made.append(volume.name)
        if head:
            self.write_head(volume, head)

    def _volume(self, name: str) -> ThinVolume:
        if name not in self.group.thin:
            raise HostCommandError(f"thin pool {self}: no volume {name} in the metadata")
        return self.group.thin[name]

    def write_head(self, volume: ThinVolume, head: bytes) -> None:
        """Write the first bytes of a volume that is not active.

        Whole chunks are written: a pool without zeroing would leave old bytes in the rest.

        :raises VmclonerError: writing failed.
        """
        whole = min(volume.size, whole_chunks(len(head), self.pool.chunk_size))
        head = head.ljust(whole, b"\0")
        with self._asked(f"first bytes of {volume.name}"):
            self.mapper.write_head(self.device, volume.device_id, volume.size, head)

    def forget(self, device: int) -> None:
        """Remove a device of the pool that has no volume, if it exists.

        :raises WrongState: it is in use.
        """
        self.release(device)
        self._send(f"delete {device}", ignored=errno.ENODATA)

    def release(self, device: int) -> None:
        """Close a device of the pool that a dead process was writing to.

        :raises WrongState: it is in use.
        """
        with self._asked(f"release {device}"):
            self.mapper.drop_head(self.device, device)

    def _kept(self, volume: ThinVolume) -> bool:
        """Remove a volume's device that was made before; returns True if it is in use and kept."""
        if deactivate(self.lvm, self.mapper, [volume.name], held=True)[volume.name] is not None:
            return True
        try:
            self.forget(volume.device_id)
        except WrongState:
            return True
        return False

    def _send(self, text: str, ignored: int | None = None) -> None:
        with self._asked(text):
            try:
                self.mapper.message(self.device, text)
            except OSError as error:
                if error.errno != ignored:
                    raise

    @contextlib.contextmanager
    def _asked(self, what: str) -> Iterator[None]:
        """Translate the kernel's errors; WrongState if something is in use."""
        try:
            yield
        except OSError as error:
            kind = WrongState if error.errno == errno.EBUSY else HostCommandError
            raise kind(f"thin pool {self}: {what}: {error.strerror}") from error

    # --- room -----------------------------------------------------------------------------------

    def check_room(self, heads: Sequence[int]) -> None:
        """Check that the pool's metadata and data have room for more volumes.

        :param heads: the bytes that are written to each new volume when it is made.
        :raises NotEnoughResources: says how many fit.
        """
        status, chunk = self.status(), self.pool.chunk_size
        if status.mode == "out_of_data_space" or status.data_used >= status.data_total:
            raise NotEnoughResources(
                f"thin pool {self} is full", hint=f"lvextend -L +SIZE {self}, or delete clones"
            )
        free = (status.data_total - status.data_used) * chunk
        taken = list(itertools.accumulate(whole_chunks(head, chunk) for head in heads))
        fit = sum(total <= free for total in taken)
        if fit < len(heads):
            raise NotEnoughResources(
                f"thin pool {self}: {format_size(free)} are free, {fit} of {len(heads)} new "
                f"volumes fit, which take {format_size(taken[-1])}",
                hint=f"lvextend -L +SIZE {self}, or delete clones",
            )
        fit = room(status)
        if fit < len(heads):
            used = 100 * status.metadata_used // max(1, status.metadata_total)
            raise NotEnoughResources(
                f"thin pool {self}: {used}% of its metadata is in use, {fit} more volumes fit",
                hint=f"lvextend --poolmetadatasize +SIZE {self}",
            )

    def check_area(self, group: VolumeGroup, new: int) -> None:
        """Check that a metadata text fits into the volume group's metadata areas.

        :raises NotEnoughResources: says how many of its ``new`` volumes fit.
        """
        area, size = self.reader.area(held=True), stored_size(group.tree)
        if size <= area or new == 0:
            return
        before = stored_size(self.group.tree)
        fit = max(0, (area - before) * new // max(1, size - before))
        raise NotEnoughResources(
            f"metadata area of volume group {self.lvm.group}: {fit} more volumes fit, not {new}",
            hint="a larger area needs a new disk: vmcloner host prepare lvm --metadatasize",
        )


def find_pool(group: VolumeGroup, name: str) -> ThinPool:
    """Return a group's thin pool.

    :raises NotFound: there is none of that name.
    """
    pool = group.pool(name)
    if pool is None:
        what = "is not a thin pool" if name in group.logical else "does not exist"
        raise NotFound(f"{group.name}/{name} {what}", hint="vmcloner host prepare lvm --help")
    return pool


def pool_device(mapper: DeviceMapper, group: str, pool: str) -> tuple[str, PoolStatus]:
    """Return the name of the pool's device, and its status.

    LVM puts a layer over it (``-tpool``) when the pool has volumes.

    :raises WrongState: the pool is not active.
    """
    for name in (device_name(group, pool, "tpool"), device_name(group, pool)):
        status = mapper.pool(name)
        if status is not None:
            return name, status
    raise WrongState(f"thin pool {group}/{pool} is not active", hint=f"lvchange -ay {group}/{pool}")


def check_usable(pool: str, status: PoolStatus) -> None:
    """Check that a pool is usable; it may be full.

    :param pool: its name, for the message. :raises WrongState: it is not usable.
    """
    if status.needs_check:
        state = "needs a check"
    elif status.mode not in ("rw", "out_of_data_space"):
        state = f"is in mode {status.mode}"
    else:
        return
    raise WrongState(f"thin pool {pool} {state}", hint=f"see lvmthin(7): lvconvert --repair {pool}")


def whole_chunks(size: int, chunk: int) -> int:
    """Return a size rounded up to whole chunks."""
    return size + -size % chunk


def room(status: PoolStatus) -> int:
    """Return how many more volumes fit into a pool's metadata."""
    free = int(status.metadata_total * METADATA_LIMIT) - status.metadata_used
    return max(0, free * _BLOCK // VOLUME_METADATA)
