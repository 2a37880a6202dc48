"""What libxl leaves in files: why a domain wasn't made, and what to remove with it.

libvirt says only "libxenlight failed to create new domain". The cause is in its log of libxl
(``libxl-driver.log``, by domain id: a domain that fails has no log of its own yet), and where a
boot loader failed, in that one's log, which holds what it wrote to its terminal. The guest's disk
has a say in what that is: it is hostile input.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

import attrs

MAX_LOG = 65536
"""Bytes of a log that are looked at: its last ones."""
MAX_REASON = 300
_DOMAIN = re.compile(r": Domain (\d+):(.*)")
_SCRIPT_KILLED = re.compile(r"killing execution of .* because of timeout")
_NO_DEVICE = re.compile(r"unable to add (disk|vif|nic) devices")
_CONTROL = re.compile(r"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|[()].|.)|[\x00-\x08\x0b-\x1f\x7f-\x9f]")
# What pygrub prints, and what it means. (tools/pygrub/src/pygrub of Xen)
_PYGRUB = (
    (
        re.compile(r"Unable to find partition containing kernel"),
        "its disk has no file system with a boot menu (grub.cfg, menu.lst, extlinux.conf) "
        "that names a kernel",
    ),
    (
        re.compile(r"Error opening (.+) in guest"),
        "its boot menu names {0}, which its disk hasn't",
    ),
    (
        re.compile(r"Error writing temporary copy of (\w+)"),
        "its {0} is too large: more than pygrub may write, or than the host has room for",
    ),
    (re.compile(r"No kernel image selected"), "its boot menu has no entry"),
    (re.compile(r"(mount_tmpfs|bad_mount|remount_tmpfs).*"), "pygrub can't shut itself in: {0}"),
    (re.compile(r"PermissionError: .*"), "pygrub may not read its disk"),
)


@attrs.frozen(kw_only=True)
class Failure:
    """Why a domain wasn't made.

    :param log: where more of it is, if anywhere. :param slow: a script of the host's for its disks
        or cards was given no more time, which tells of the host's load and not of the guest.
    """

    reason: str
    log: Path | None = None
    slow: bool = False


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
        """Return the place in the log that what happens from now on comes behind."""
        try:
            return self._driver_log.stat().st_size
        except OSError:
            return 0

    def failure(self, name: str, mark: int, domid: int | None) -> Failure | None:
        """Return why the domain that was to be made since ``mark`` wasn't, None if nothing says so.

        A boot loader's log is kept as ``bootloader.NAME.log`` until the clone's next start.

        :param domid: the id that it had. Where that isn't known nothing tells what of the log is
            its own: the host may have domains that aren't ours.
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
        # The line about the script doesn't say whose it was: at worst one more is tried again.
        device = any(_NO_DEVICE.search(line) for line in said)
        slow = device and _SCRIPT_KILLED.search(text) is not None
        return Failure(reason=reason, log=log if log.exists() else None, slow=slow)

    def forget(self, name: str, domid: int) -> None:
        """Remove what the boot loader of a domain that runs has said, now and when it failed."""
        if domid > 0:
            _remove(self._numbered(domid))
            _remove(self.bootloader_log(name))

    def remove(self, name: str) -> None:
        """Remove the logs of a domain that is gone; of what isn't there, nothing."""
        _remove(self.bootloader_log(name))
        for file in (self.libxl / f"{name}.log", self.xen / f"qemu-dm-{name}.log"):
            remove_rotated(file)

    def bootloader_log(self, name: str) -> Path:
        """Return where what the boot loader said is kept, of a clone that didn't start."""
        return self.xen / f"bootloader.{name}.log"

    # --- how ----------------------------------------------------------------------------------

    @property
    def _driver_log(self) -> Path:
        return self.libxl / "libxl-driver.log"

    def _numbered(self, domid: int) -> Path:
        return self.xen / f"bootloader.{domid}.log"

    def _reason(self, domid: int, said: list[str]) -> str:
        """Return what became of a domain; empty where nothing says so.

        pygrub ends well in spite of itself when the process that it shut in fails: then libxl
        misses a kernel, and only what was printed tells why.
        """
        if any("because of timeout" in line for line in said):
            return "its boot loader took too long, and was killed"
        output = _lines(_tail(self._numbered(domid)))
        for pattern, meaning in _PYGRUB:
            for line in output:
                if (match := pattern.search(line)) is not None:
                    return _short(meaning.format(*match.groups() or (match[0],)))
        if output and any("bootloader failed" in line for line in said):
            return _short(output[-1])
        return _short(said[0]) if said else ""


def _said(text: str, domid: int) -> list[str]:
    """Return what libxl's log says of one domain."""
    lines = filter(None, map(_DOMAIN.search, text.splitlines()))
    return [line[2].strip() for line in lines if int(line[1]) == domid]


def remove_rotated(file: Path) -> None:
    """Remove a log and the older parts of it that are kept as ``.0``, ``.1`` …"""
    for old in (file, *file.parent.glob(f"{file.name}.[0-9]*")):
        _remove(old)


def _remove(file: Path) -> None:
    with contextlib.suppress(OSError):
        file.unlink()


def _tail(file: Path, mark: int = 0) -> str:
    """Return what is in a file behind ``mark``, of its last :data:`MAX_LOG` bytes."""
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
    """Return what a terminal's log says, line by line, without its control characters."""
    lines: Iterator[str] = (_CONTROL.sub("", line).strip() for line in re.split(r"[\r\n]+", text))
    return [line for line in lines if line]


def _short(text: str) -> str:
    text = " ".join(_CONTROL.sub("", text).split())
    return text if len(text) <= MAX_REASON else f"{text[: MAX_REASON - 1]}…"
