"""Use the kernel's device-mapper by its control device, as ``dmsetup`` does, without a process.

Source: ``include/uapi/linux/dm-ioctl.h`` (interface version 4), and thin pools' messages and status
in ``Documentation/admin-guide/device-mapper/thin-provisioning.rst``.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import threading
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Protocol

import attrs

from vmcloner_core.errors import BackendError, HostCommandError

CONTROL = Path("/dev/mapper/control")
_HEADER = struct.Struct("=3I3Ii3IQ128s129s7x")  # struct dm_ioctl
_SPEC = struct.Struct("=QQiI16s")  # struct dm_target_spec
_LISTED = struct.Struct("=QI")  # struct dm_name_list, without the name
_SIZE = 16 * 1024
_MAX_SIZE = 64 * 1024**2
_FEW = 8
"""Devices about which the kernel is asked one by one, not for all that it has."""
_LIST_DEVICES = 2
_DEV_CREATE, _DEV_REMOVE, _DEV_SUSPEND, _DEV_STATUS = 3, 4, 6, 7
_TABLE_LOAD, _TABLE_STATUS, _TARGET_MSG = 9, 12, 14
_BUFFER_FULL = 1 << 8
_NOFLUSH = 1 << 11
_NO_UDEV_RULES = 0x4F << 16  # libdevmapper.h: DM_UDEV_DISABLE_*: udev ignores it
_REMOVE_TIMEOUT = 10.0
SECTOR = 512
MAX_NAME = 127


@attrs.frozen(kw_only=True)
class Device:
    """A device of the device-mapper. ``opened``: its open count. ``number``: its dev_t."""

    number: int
    opened: int


@attrs.frozen(kw_only=True)
class PoolStatus:
    """The status of a thin pool. Metadata in blocks of 4 KiB, data in chunks.

    ``mode`` is ``rw``, ``ro``, ``out_of_data_space`` or ``Fail``.
    """

    transaction_id: int = 0
    metadata_used: int = 0
    metadata_total: int = 0
    data_used: int = 0
    data_total: int = 0
    mode: str = "Fail"
    needs_check: bool = False


class DeviceMapper(Protocol):
    """The device-mapper of a host. Thread-safe."""

    def device(self, name: str) -> Device | None:
        """Return a device by name, None if there is none."""
        ...

    def present(self, names: Collection[str]) -> Collection[str]:
        """Return those of these devices that exist, in the same order."""
        ...

    def size(self, name: str) -> int | None:
        """Return a device's bytes, None if there is none."""
        ...

    def pool(self, name: str) -> PoolStatus | None:
        """Return a thin pool's status, None if there is no such device."""
        ...

    def beneath(self, name: str) -> tuple[Path, ...]:
        """Return the devices below a device; none if there is no such device."""
        ...

    def mapped(self, name: str) -> int:
        """Return the bytes of an active thin volume that are allocated in its pool."""
        ...

    def message(self, name: str, text: str) -> None:
        """Send a message to a device's target.

        :raises OSError: the target refused it: EEXIST, ENODATA, EBUSY…
        """
        ...

    def write_head(self, pool: str, device_id: int, size: int, head: bytes) -> None:
        """Write the first bytes of a thin volume that is not active.

        :param size: the volume's bytes.
        :raises OSError: writing failed.
        """
        ...

    def drop_head(self, pool: str, device_id: int) -> None:
        """Remove the device of a process that died in :meth:`write_head`."""
        ...


class KernelDeviceMapper:
    """This machine's device-mapper."""

    def __init__(self, control: Path = CONTROL) -> None:
        self._control = control
        self._lock = threading.Lock()
        self._fd: int | None = None

    def device(self, name: str) -> Device | None:
        """See :meth:`DeviceMapper.device`."""
        try:
            answer = self._call(_DEV_STATUS, name)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return None
            raise HostCommandError(f"device {name}: {error.strerror}") from error
        fields = _HEADER.unpack_from(answer)
        return Device(number=fields[10], opened=fields[6])

    def present(self, names: Collection[str]) -> Collection[str]:
        """See :meth:`DeviceMapper.present`."""
        if len(names) <= _FEW:
            return [name for name in names if self.device(name) is not None]
        there = set(self._listed())
        return [name for name in names if name in there]

    def _listed(self) -> Iterator[str]:
        """Yield the names of all devices."""
        size, answer = _SIZE, b""
        while not answer or _HEADER.unpack_from(answer)[7] & _BUFFER_FULL:
            if size > _MAX_SIZE:
                raise HostCommandError(f"{self._control}: too many devices")
            try:
                answer = self._call(_LIST_DEVICES, "", size=size)
            except OSError as error:
                raise HostCommandError(f"{self._control}: {error.strerror}") from error
            size *= 4
        place = _HEADER.unpack_from(answer)[4]
        number, step = _LISTED.unpack_from(answer, place)
        while number:  # 0: there is none
            start = place + _LISTED.size
            yield answer[start : answer.index(b"\0", start)].decode()
            if not step:
                return
            place += step
            number, step = _LISTED.unpack_from(answer, place)

    def size(self, name: str) -> int | None:
        """See :meth:`DeviceMapper.size`."""
        found = self.device(name)
        if found is None:
            return None
        shown = f"{os.major(found.number)}:{os.minor(found.number)}"
        try:
            return int(Path(f"/sys/dev/block/{shown}/size").read_text()) * SECTOR
        except (OSError, ValueError) as error:
            raise HostCommandError(f"device {name}: its size can't be read") from error

    def pool(self, name: str) -> PoolStatus | None:
        """See :meth:`DeviceMapper.pool`."""
        found = self._status(name)
        return parse_status(found[1]) if found is not None and found[0] == "thin-pool" else None

    def beneath(self, name: str) -> tuple[Path, ...]:
        """See :meth:`DeviceMapper.beneath`."""
        found = self.device(name)
        if found is None:
            return ()
        shown = f"{os.major(found.number)}:{os.minor(found.number)}"
        names = sorted(os.listdir(f"/sys/dev/block/{shown}/slaves"))  # noqa: PTH208
        return tuple(Path("/dev", name.replace("!", "/")) for name in names)

    def mapped(self, name: str) -> int:
        """See :meth:`DeviceMapper.mapped`."""
        found = self._status(name)
        if found is None or found[0] != "thin" or not found[1][:1].isdigit():
            raise HostCommandError(f"device {name} is not a working thin volume")
        return int(found[1].split()[0]) * SECTOR

    def _status(self, name: str) -> tuple[str, str] | None:
        """Return the kind of a device's first target and its status; None: no such device."""
        try:
            answer = self._call(_TABLE_STATUS, name, flags=_NOFLUSH)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return None
            raise HostCommandError(f"device {name}: {error.strerror}") from error
        start = _HEADER.unpack_from(answer)[4]
        kind = _SPEC.unpack_from(answer, start)[4].rstrip(b"\0").decode()
        return kind, answer[start + _SPEC.size :].split(b"\0", 1)[0].decode()

    def message(self, name: str, text: str) -> None:
        """See :meth:`DeviceMapper.message`."""
        self._call(_TARGET_MSG, name, struct.pack("=Q", 0) + text.encode() + b"\0")

    def write_head(self, pool: str, device_id: int, size: int, head: bytes) -> None:
        """See :meth:`DeviceMapper.write_head`."""
        found = self.device(pool)
        if found is None:
            raise OSError(errno.ENXIO, f"no device {pool}")
        name = _head_name(pool, device_id)
        number = f"{os.major(found.number)}:{os.minor(found.number)}"
        created = self._call(_DEV_CREATE, name, event=_NO_UDEV_RULES)
        try:
            table = f"{number} {device_id}".encode() + b"\0"
            table += bytes(-len(table) % 8)
            spec = _SPEC.pack(0, size // SECTOR, 0, _SPEC.size + len(table), b"thin")
            self._call(_TABLE_LOAD, name, spec + table, targets=1)
            self._call(_DEV_SUSPEND, name, event=_NO_UDEV_RULES)  # without the suspend flag: resume
            minor = os.minor(_HEADER.unpack_from(created)[10])
            fd = os.open(f"/dev/dm-{minor}", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.pwrite(fd, head, 0)
                os.fsync(fd)
            finally:
                os.close(fd)
        finally:
            self.drop_head(pool, device_id)

    def drop_head(self, pool: str, device_id: int) -> None:
        """See :meth:`DeviceMapper.drop_head`."""
        name = _head_name(pool, device_id)
        deadline = time.monotonic() + _REMOVE_TIMEOUT
        while True:
            try:
                self._call(_DEV_REMOVE, name, event=_NO_UDEV_RULES)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    return
                if error.errno != errno.EBUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)  # udev has it open
            else:
                return

    def close(self) -> None:
        """Close the control device; it is opened again when needed."""
        with self._lock:
            if self._fd is not None:
                os.close(self._fd)
                self._fd = None

    def _call(
        self,
        command: int,
        name: str,
        data: bytes = b"",
        *,
        flags: int = 0,
        targets: int = 0,
        event: int = 0,
        size: int = _SIZE,
    ) -> bytes:
        header = _HEADER.pack(
            4, 0, 0, size, _HEADER.size, targets, 0, flags, event, 0, 0, name.encode(), b""
        )
        request = bytearray(header + data)
        request += bytes(size - len(request))
        code = 3 << 30 | _HEADER.size << 16 | 0xFD << 8 | command  # _IOWR(DM_IOCTL, …)
        fcntl.ioctl(self._open(), code, request)
        return bytes(request)

    def _open(self) -> int:
        with self._lock:
            if self._fd is None:
                try:
                    self._fd = os.open(self._control, os.O_RDWR | os.O_CLOEXEC)
                except OSError as error:
                    raise BackendError(
                        f"{self._control}: {error.strerror}", hint="modprobe dm-thin-pool, as root"
                    ) from error
            return self._fd


def parse_status(text: str) -> PoolStatus:
    """Parse a thin pool's status line, from ``TRANSACTION USED/TOTAL …`` on.

    :raises HostCommandError: it is not such a line.
    """
    words = text.split()
    if words[:1] in (["Fail"], ["Error"]):
        return PoolStatus()
    try:
        metadata, data = (tuple(map(int, word.split("/"))) for word in words[1:3])
        return PoolStatus(
            transaction_id=int(words[0]),
            metadata_used=metadata[0],
            metadata_total=metadata[1],
            data_used=data[0],
            data_total=data[1],
            mode=words[4],
            needs_check="needs_check" in words,
        )
    except (ValueError, IndexError) as error:
        raise HostCommandError(f"not the status of a thin pool: {text[:200]!r}") from error


def device_name(group: str, volume: str, layer: str = "") -> str:
    """Return the device-mapper's name of a logical volume: hyphens in names are doubled."""
    parts = [group, volume, *([layer] if layer else [])]
    return "-".join(part.replace("-", "--") for part in parts)


def _head_name(pool: str, device_id: int) -> str:
    return f"vmcloner-head-{device_id}-{pool}"
