"""libxl's log files: why a domain failed to start, and what to remove with a domain.

libvirt reports only "libxenlight failed to create new domain". The cause is in its log of libxl
(``libxl-driver.log``, by domain id: a failed domain has no log of its own yet), and after a boot
loader's failure in that one's log, its terminal output. That depends on the guest's disk: it is
hostile input.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

import attrs

from vmcloner_libvirt.console import log_files, remove_log

MAX_LOG = 65536
"""Bytes that are read from a log's end."""
MAX_REASON = 300
_DOMAIN = re.compile(r": Domain (\d+):(.*)")
_SCRIPT_KILLED = re.compile(r"killing execution of (.*) because of timeout")
_DEVICE_MODEL = re.compile(r"device model.*(timed out|timeout)", re.IGNORECASE)
_NO_DEVICE = re.compile(r"unable to add (disk|vif|nic) devices")
_CONTROL = re.compile(r"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|[()].|.)|[\x00-\x08\x0b-\x1f\x7f-\x9f]")
# Messages of pygrub, and their meaning (Xen: tools/pygrub/src/pygrub).
_PYGRUB = (
    (
        re.compile(r"Unable to find partition containing kernel"),
        "its disk has no file system with a boot menu (grub.cfg, menu.lst, extlinux.conf) "
        "that names a kernel",
    ),
    (
        re.compile(r"Error opening (.+) in guest"),
        "boot menu entry {0} does not exist on the disk",
    ),
    (
        re.compile(r"Error writing temporary copy of (\w+)"),
        "its {0} is too large: for pygrub's limit, or for the host's free space",
    ),
    (re.compile(r"No kernel image selected"), "its boot menu has no entry"),
    (re.compile(r"(mount_tmpfs|bad_mount|remount_tmpfs).*"), "pygrub can't restrict itself: {0}"),
    (re.compile(r"PermissionError: .*"), "pygrub has no permission to read its disk"),
)


@attrs.frozen(kw_only=True)
class Failure:
    """Why a domain wasn't made.

    :param log: a file with details, if any.
    :param slow: what timed out due to the host's load, not to the guest: a script for its disks or
        cards, its device model. Empty if nothing did.
    """

    reason: str
    log: Path | None = None
    slow: str = ""


class Logs:
    """The logs of libxl on one host. Thread-safe.

    :param xen: folder of Xen's own logs. :param libxl: folder of libvirt's logs of libxl.
    """

    def __init__(
        self,
        xen: Path = Path("/var/log/xen"),
        libxl: Path = Path("/var/log/libvirt/libxl"),
    ) -> None:
        self.xen = xen
        self.libxl = libxl

    def mark(self) -> int:
        """Return the log's present end."""
        try:
            return self._driver_log.stat().st_size
        except OSError:
            return 0

    def failure(self, name: str, mark: int, domid: int | None) -> Failure | None:
        """Return why a domain that was started after ``mark`` failed, None if no log tells.

        A boot loader's log is kept as ``bootloader.NAME.log`` until the clone's next start.

        :param domid: the id that it had. Without it the domain's lines in the log can't be told
            from those of other domains.
        """
        if domid is None:
            return None
        text = _tail(self._driver_log, mark)
        said = _said(text, domid)
        reason = self._reason(domid, said)
        log = self.bootloader_log(name)
        with contextlib.suppress(OSError):
            self._numbered(domid).replace(log)
        if not reason:
            return None
        # The script's line names no domain: at worst another domain is retried too.
        device = any(_NO_DEVICE.search(line) for line in said)
        killed = _SCRIPT_KILLED.search(text) if device else None
        slow = f"(a script took too long): {_short(killed[1])}" if killed is not None else ""
        if not slow and any(_DEVICE_MODEL.search(line) for line in said):
            slow = "(its device model took too long)"
        kept = log if os.path.exists(log) else None  # noqa: PTH110 - raises nothing
        return Failure(reason=reason, log=kept, slow=slow)

    def forget(self, name: str, domid: int) -> None:
        """Remove the boot loader's logs of a running domain: of this start and of a failed one."""
        if domid > 0:
            remove_log(self._numbered(domid))
            remove_log(self.bootloader_log(name))

    def remove(self, name: str) -> None:
        """Remove the logs of a domain that is gone."""
        for file in self._named(name):
            remove_log(file)

    def left(self, name: str) -> Iterator[Path]:
        """Yield the existing logs of a domain."""
        for file in self._named(name):
            yield from log_files(file)

    def _named(self, name: str) -> tuple[Path, ...]:
        libxl, qemu = self.libxl / f"{name}.log", self.xen / f"qemu-dm-{name}.log"
        return self.bootloader_log(name), libxl, qemu

    def bootloader_log(self, name: str) -> Path:
        """Return the file that keeps the boot loader's output of a clone that didn't start."""
        return self.xen / f"bootloader.{name}.log"

    # --- helpers ----------------------------------------------------------------------------------

    @property
    def _driver_log(self) -> Path:
        return self.libxl / "libxl-driver.log"

    def _numbered(self, domid: int) -> Path:
        return self.xen / f"bootloader.{domid}.log"

    def _reason(self, domid: int, said: list[str]) -> str:
        """Return why a domain failed; empty if no log tells.

        pygrub exits with 0 even if its restricted process fails: libxl then misses a kernel, and
        only the output tells why.
        """
        if any("because of timeout" in line for line in said):
            return "its boot loader took too long and was killed"
        output = _lines(_tail(self._numbered(domid)))
        for pattern, meaning in _PYGRUB:
            for line in output:
                if (match := pattern.search(line)) is not None:
                    return _short(meaning.format(*match.groups() or (match[0],)))
        if output and any("bootloader failed" in line for line in said):
            return _short(output[-1])
        return _short(said[0]) if said else ""


def _said(text: str, domid: int) -> list[str]:
    """Return the messages in libxl's log about one domain."""
    lines = filter(None, map(_DOMAIN.search, text.splitlines()))
    return [line[2].strip() for line in lines if int(line[1]) == domid]


def _tail(file: Path, mark: int = 0) -> str:
    """Return a file's text after ``mark``, at most its last :data:`MAX_LOG` bytes."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return ""
    try:
        size = os.fstat(descriptor).st_size
        start = max(mark if mark <= size else 0, size - MAX_LOG)
        return os.pread(descriptor, MAX_LOG, start).decode(errors="replace")
    finally:
        os.close(descriptor)


def _lines(text: str) -> list[str]:
    """Return the lines of a terminal's log, without control characters."""
    lines: Iterator[str] = (_CONTROL.sub("", line).strip() for line in re.split(r"[\r\n]+", text))
    return [line for line in lines if line]


def _short(text: str) -> str:
    text = " ".join(_CONTROL.sub("", text).split())
    return text if len(text) <= MAX_REASON else f"{text[: MAX_REASON - 1]}…"
