"""Tell who has a block device open: processes, mounts, or other devices on top of it."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from vmcloner_core.process import open_files, process_shown


class Holders:
    """The users of block devices, as of the first time that they are asked for."""

    def __init__(self) -> None:
        self._processes: dict[int, int] | None = None

    def name(self, number: int) -> str:
        """Return who holds the device ``number`` (a dev_t), "" if it can't be told.

        Like ``process 123 (qemu-system-x86)``, ``a file system on /mnt`` or ``device loop0``.
        """
        if self._processes is None:
            self._processes = _open_devices()
        pid = self._processes.get(number)
        if pid is not None:
            return process_shown(pid)
        return _mounted(number) or _above(number)


def _open_devices() -> dict[int, int]:
    """Return which process has a block device open, by the device's number."""
    return {file.st_rdev: pid for pid, file in open_files() if stat.S_ISBLK(file.st_mode)}


def _mounted(number: int) -> str:
    """See proc(5), /proc/PID/mountinfo: the third field is the device, the fifth the place."""
    wanted = _shown(number)
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            words = line.split()
            if words[2:3] == [wanted]:
                return f"a file system on {words[4]}"
    return ""


def _above(number: int) -> str:
    with contextlib.suppress(OSError):
        names = sorted(os.listdir(f"/sys/dev/block/{_shown(number)}/holders"))  # noqa: PTH208
        if names:
            return f"device {names[0]}"
    return ""


def _shown(number: int) -> str:
    return f"{os.major(number)}:{os.minor(number)}"
