"""A thin pool: read its contents, and lock it to change them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

from vmcloner_core.errors import BackendError, WrongState
from vmcloner_core.stored_ids import KnownPool, id_of
from vmcloner_lvm.batches import doubt
from vmcloner_lvm.commands import Lvm
from vmcloner_lvm.devmapper import DeviceMapper, PoolStatus, device_name
from vmcloner_lvm.locking import group_lock
from vmcloner_lvm.metadata_reader import Reader
from vmcloner_lvm.recovery import pending, recover
from vmcloner_lvm.session import Session, find_pool, pool_device
from vmcloner_lvm.volumegroup import VolumeGroup, strings


class Pool:
    """A thin pool. Thread-safe.

    :param known: remembers which pool it is.
    """

    def __init__(self, lvm: Lvm, name: str, mapper: DeviceMapper, known: KnownPool) -> None:
        self.lvm = lvm
        self.name = name
        self.mapper = mapper
        self._known = known
        self._lock = threading.Lock()
        self._folder: Path | None = None
        data = device_name(lvm.group, f"{name}_tdata")
        self._reader = Reader(lvm, lambda: mapper.beneath(data))

    def __str__(self) -> str:
        return f"{self.lvm.group}/{self.name}"

    def read(self) -> VolumeGroup:
        """Return the group's metadata, after finishing what is pending in the pool.

        The group's lock is held while it is read, so something pending was left by a crash.

        :raises NotFound: there is no such group or pool.
        :raises BackendError: it is not the pool that was used before.
        :raises WrongState: the group or pool is not usable.
        """
        group = self._read()
        if not pending(group, self.name):
            return group
        with self.locked() as session:
            return session.group

    @contextlib.contextmanager
    def locked(self) -> Iterator[Session]:
        """Hold the group's lock; yields the pool, with nothing pending."""
        with group_lock(self._locking_folder(), self.lvm.group):
            session = Session(
                lvm=self.lvm,
                mapper=self.mapper,
                pool_name=self.name,
                group=self._checked(self._reader.read()),
                reader=self._reader,
            )
            recover(session)
            self._known.remember(_identity(session.group, self.name))
            yield session

    def look(self) -> tuple[VolumeGroup, str | None]:
        """Return the metadata, and why it is not safe to edit it (None if it is)."""
        group = self._read()
        pool = find_pool(group, self.name)
        return group, doubt(group, pool, self.status())

    def chunk_size(self, group: VolumeGroup) -> int:
        """Return the bytes of the pool's chunks."""
        return find_pool(group, self.name).chunk_size

    def zeroes(self, group: VolumeGroup) -> bool:
        """Tell whether the pool zeroes chunks before use."""
        return find_pool(group, self.name).zeroes

    def area(self) -> int:
        """Return the largest possible size of the group's metadata text, in bytes."""
        return self._reader.area(held=False)

    def status(self) -> PoolStatus:
        """Return the pool's status from the kernel.

        :raises WrongState: it is not active.
        """
        return pool_device(self.mapper, self.lvm.group, self.name)[1]

    def _read(self) -> VolumeGroup:
        with group_lock(self._locking_folder(), self.lvm.group, shared=True):
            return self._checked(self._reader.read())

    def _checked(self, group: VolumeGroup) -> VolumeGroup:
        find_pool(group, self.name)
        self._known.check(f"pool {self}", _identity(group, self.name))
        name = self.lvm.group
        if group.missing:
            raise WrongState(
                f"volume group {name} lacks {', '.join(group.missing)}",
                hint=f"pvs; vgreduce --removemissing {name}",
            )
        if "EXPORTED" in strings(group.values, "status"):
            raise WrongState(f"volume group {name} is exported", hint=f"vgimport {name}")
        if group.values.get("lock_type", "none") != "none":
            raise BackendError(
                f"volume group {name} is shared between hosts (lvmlockd)",
                hint="use a group of this host alone",
            )
        return group

    def _locking_folder(self) -> Path:
        with self._lock:
            if self._folder is None:
                self._folder = self.lvm.locking_folder()
            return self._folder


def _identity(group: VolumeGroup, pool: str) -> str:
    """Return the id of a pool: no other group or pool of these names has it."""
    return id_of(str(group.values.get("id")), str(group.logical[pool].values().get("id")))
