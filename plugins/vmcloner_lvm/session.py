"""One pool while this process holds its volume group's lock: the steps that batches are made of."""

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
"""A thin pool whose metadata runs full is broken: no more volumes above this share of it."""
VOLUME_METADATA = 4096
"""Bytes of a pool's metadata that a new volume is reckoned with: its first write's."""
_BLOCK = 4096


@attrs.define(kw_only=True)
class Session:
    """A thin pool whose group's lock is held. Not thread-safe.

    :param group: the metadata as last read, or written.
    :param made: names of the volumes that the last :meth:`tell` made, also where it failed.
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
        """The pool, as the metadata has it."""
        return find_pool(self.group, self.pool_name)

    _device: str | None = None

    @property
    def device(self) -> str:
        """The device that takes messages for the pool."""
        if self._device is None:
            self.status()
        assert self._device is not None  # noqa: S101 - status() raises or finds it
        return self._device

    def status(self) -> PoolStatus:
        """Return what the kernel says of the pool.

        :raises WrongState: it isn't active, or can't be written.
        """
        # LVM may have put its layer over the pool since: what it is called is asked with it.
        self._device, status = pool_device(self.mapper, self.lvm.group, self.pool_name)
        check_usable(str(self), status)
        return status

    def stray_id(self) -> int | None:
        """Return the kernel's transaction id where it should be the metadata's, and isn't.

        None where messages are pending, or the kernel can't be asked.
        """
        if self.pool.messages:
            return None
        try:
            kernel = self.status().transaction_id
        except VmclonerError:
            return None
        return kernel if kernel != self.pool.transaction_id else None

    def check_removable(self, name: str) -> None:
        """Check that a volume can be removed without others; see ``records``."""
        check_removable(self.lvm.group, name, self.group.dependents.get(name, ()))

    def reread(self) -> VolumeGroup:
        """Read the metadata again, and return it."""
        self.group = self.reader.read(expected=self.group)
        return self.group

    def restore(self, group: VolumeGroup) -> None:
        """Make ``group`` the volume group's metadata."""
        self.lvm.restore(group)
        self.group = numbered(group)

    # --- the kernel's side ----------------------------------------------------------------------

    def tell(self, heads: Mapping[str, bytes] | None = None, *, again: bool = False) -> None:
        """Carry out the messages that the metadata has for the pool, and close its transaction.

        :param heads: the first bytes of new volumes, by their names.
        :param again: it was begun before: what it had made is made anew, what it had deleted is
            gone.
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
            raise HostCommandError(f"thin pool {self}: the metadata have no volume {name}")
        return self.group.thin[name]

    def write_head(self, volume: ThinVolume, head: bytes) -> None:
        """Write the first bytes of a volume that isn't active.

        Whole chunks: a pool that doesn't zero them would leave others' bytes in the rest.

        :raises VmclonerError: they can't be written.
        """
        whole = min(volume.size, whole_chunks(len(head), self.pool.chunk_size))
        head = head.ljust(whole, b"\0")
        with self._asked(f"first bytes of {volume.name}"):
            self.mapper.write_head(self.device, volume.device_id, volume.size, head)

    def forget(self, device: int) -> None:
        """Remove a device of the pool that no volume has (any more), if it is there.

        :raises WrongState: it is in use.
        """
        self.release(device)
        self._send(f"delete {device}", ignored=errno.ENODATA)

    def release(self, device: int) -> None:
        """Let go of a device of the pool, to which a process that died was writing.

        :raises WrongState: it is in use.
        """
        with self._asked(f"release {device}"):
            self.mapper.drop_head(self.device, device)

    def _kept(self, volume: ThinVolume) -> bool:
        """Remove what was made of a volume before; tell whether it is in use, and so is kept."""
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
        """Say of the kernel's refusals what was asked; WrongState where something is in use."""
        try:
            yield
        except OSError as error:
            kind = WrongState if error.errno == errno.EBUSY else HostCommandError
            raise kind(f"thin pool {self}: {what}: {error.strerror}") from error

    # --- room -----------------------------------------------------------------------------------

    def check_room(self, heads: Sequence[int]) -> None:
        """Check that the pool has room for more volumes: in its metadata and, for heads, its data.

        :param heads: for each new volume, how many bytes are written to it at once.
        :raises NotEnoughResources: says how many would fit.
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
                f"thin pool {self}: {format_size(free)} of its data are free, {fit} of "
                f"{len(heads)} new volumes fit, which take {format_size(taken[-1])} at once",
                hint=f"lvextend -L +SIZE {self}, or delete clones",
            )
        fit = room(status)
        if fit < len(heads):
            used = 100 * status.metadata_used // max(1, status.metadata_total)
            raise NotEnoughResources(
                f"thin pool {self}: {used}% of its metadata are in use, {fit} more volumes fit",
                hint=f"lvextend --poolmetadatasize +SIZE {self}",
            )

    def check_area(self, group: VolumeGroup, new: int) -> None:
        """Check that a metadata text fits in the volume group's metadata areas.

        :raises NotEnoughResources: says how many of its ``new`` volumes would fit.
        """
        area, size = self.reader.area(held=True), stored_size(group.tree)
        if size <= area or new == 0:
            return
        before = stored_size(self.group.tree)
        fit = max(0, (area - before) * new // max(1, size - before))
        raise NotEnoughResources(
            f"metadata area of volume group {self.lvm.group}: {fit} more volumes fit, not {new}",
            hint="a larger one is made by pvcreate --metadatasize: vmcloner host prepare lvm",
        )


def find_pool(group: VolumeGroup, name: str) -> ThinPool:
    """Return a group's thin pool.

    :raises NotFound: there is none of that name.
    """
    pool = group.pool(name)
    if pool is None:
        what = "isn't a thin pool" if name in group.logical else "doesn't exist"
        raise NotFound(f"{group.name}/{name} {what}", hint="vmcloner host prepare lvm --help")
    return pool


def pool_device(mapper: DeviceMapper, group: str, pool: str) -> tuple[str, PoolStatus]:
    """Return the name of the device that is the pool, and its status.

    LVM puts a layer of its own over it (``-tpool``) once the pool has volumes.

    :raises WrongState: the pool isn't active.
    """
    for name in (device_name(group, pool, "tpool"), device_name(group, pool)):
        status = mapper.pool(name)
        if status is not None:
            return name, status
    raise WrongState(f"thin pool {group}/{pool} isn't active", hint=f"lvchange -ay {group}/{pool}")


def check_usable(pool: str, status: PoolStatus) -> None:
    """Check that a pool can be read and its volumes changed; it may be full.

    :param pool: its name, for the message. :raises WrongState: it can't.
    """
    if status.needs_check:
        state = "needs a check"
    elif status.mode not in ("rw", "out_of_data_space"):
        state = f"is in mode {status.mode}"
    else:
        return
    raise WrongState(f"thin pool {pool} {state}", hint=f"see lvmthin(7): lvconvert --repair {pool}")


def whole_chunks(size: int, chunk: int) -> int:
    """Return the bytes of the chunks that the first ``size`` bytes of a volume lie in."""
    return size + -size % chunk


def room(status: PoolStatus) -> int:
    """Return how many more volumes a pool's own metadata has room for."""
    free = int(status.metadata_total * METADATA_LIMIT) - status.metadata_used
    return max(0, free * _BLOCK // VOLUME_METADATA)
