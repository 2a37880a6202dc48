"""Find the user of a block device: a process, a mount, or another device on top of it."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from vmcloner_core.process import open_files, process_shown


class Holders:
    """The users of block devices. Processes are read once, when they are first needed."""

    def __init__(self) -> None:
        self._processes: dict[int, int] | None = None

    def name(self, number: int) -> str:
        """Return the user of the device ``number`` (a dev_t), "" if that is not known.

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
    """See proc(5), /proc/PID/mountinfo: field 3 is the device, field 5 the mount point."""
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
