"""Find the user of a block device: a process, a mount, or another device on top of it."""

from __future__ import annotations

import stat

from vmcloner_core.process import device_holder, open_files, process_shown


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
        return device_holder(number)


def _open_devices() -> dict[int, int]:
    """Return which process has a block device open, by the device's number."""
    return {file.st_rdev: pid for pid, file in open_files() if stat.S_ISBLK(file.st_mode)}
