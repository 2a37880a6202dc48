"""The Xen installation of a host: its programs, its daemons, Domain-0's memory.

Sources: xl.cfg(5), xl.conf(5), xl(1) "ENVIRONMENT VARIABLES", libvirt's libxl.conf, and Debian's
packages xen-utils and xen-utils-common.
"""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import attrs

from vmcloner_core.errors import BackendError, VmclonerError
from vmcloner_core.process import CommandRunner

_PROGRAMS = (
    "usr/lib/xen-{version}/bin",  # Debian and Ubuntu, where several versions may be installed
    "usr/libexec/xen/bin",
    "usr/lib/xen/bin",
    "usr/lib64/xen/bin",
    "usr/local/lib/xen/bin",
    "usr/bin",
)
_EMULATORS = (
    "usr/libexec/xen-qemu-system-i386",  # Debian's package qemu-system-xen
    "usr/lib/xen-{version}/bin/qemu-system-i386",
    "usr/lib/xen/bin/qemu-system-i386",
    "usr/libexec/xen/bin/qemu-system-i386",
    "usr/local/lib/xen/bin/qemu-system-i386",
    "usr/bin/qemu-system-i386",
)
_DAEMONS = ("run/libvirtd.pid", "run/virtxend.pid")
# As libvirt's libxlGetAutoballoonConf decides, from Xen's own command line.
_FIXED = re.compile(r"(^| )dom0_mem=((|min:|max:)[0-9]+[bBkKmMgGtT]?,?)+($| )")
_AUTOBALLOON = re.compile(r"^\s*autoballoon\s*=\s*\"?(-?\w+)", re.MULTILINE)


@attrs.frozen(kw_only=True)
class XenHost:
    """Looks things up on one host.

    :param runner: runs commands on it. :param root: where its file system starts.
    """

    runner: CommandRunner
    root: Path = Path("/")

    @property
    def is_host(self) -> bool:
        """Whether this system is a Xen host (Domain-0)."""
        return "control_d" in self._read("proc/xen/capabilities")

    def program(self, name: str, version: str) -> Path | None:
        """Return the path of one of Xen's own programs (``pygrub``), None if it is missing.

        :param version: of the running Xen, ``4.17``.
        """
        return self._first(f"{folder.format(version=version)}/{name}" for folder in _PROGRAMS)

    def emulator(self, version: str) -> Path | None:
        """Return the QEMU for HVM guests and for disks in files."""
        return self._first(place.format(version=version) for place in _EMULATORS)

    def console_logs(self) -> bool | None:
        """Tell whether xenconsoled(8) keeps logs of guests' consoles; None if it doesn't run."""
        words = self._command_line("xenconsoled")
        if words is None:
            return None
        logged = {
            value
            for word, after in zip(words, [*words[1:], ""], strict=True)
            if (value := after if word == "--log" else word.removeprefix("--log=")) != word
        }
        return bool(logged & {"guest", "all"})

    def bootloader_user(self) -> pwd.struct_passwd | None:
        """Return the user that libxl runs boot loaders as, None for root.

        :raises BackendError: libvirt's daemon isn't found, or its environment can't be read or
            names a user that doesn't exist.
        """
        environment = self._daemon_environment()
        if environment.get("LIBXL_BOOTLOADER_RESTRICT", "0").lower() not in ("1", "true", "yes"):
            return None
        name = environment.get("LIBXL_BOOTLOADER_USER", "")
        try:
            return pwd.getpwnam(name)
        except KeyError:
            raise BackendError(
                f"libxl is set to run boot loaders as user {name!r}, which doesn't exist"
                if name
                else "libxl is set to restrict boot loaders, but not as which user",
                hint="set LIBXL_BOOTLOADER_USER in the environment of libvirt's daemon",
            ) from None

    def balloons(self) -> bool:
        """Tell whether libvirt takes guests' memory from Domain-0."""
        found = _AUTOBALLOON.search(self._read("etc/libvirt/libxl.conf"))
        if found is not None and found[1] in ("0", "1"):
            return found[1] == "1"
        return _FIXED.search(self.commandline()) is None

    def commandline(self) -> str:
        """Return Xen's own command line, empty where it can't be read."""
        try:
            text = self.runner.run(["xl", "info"], timeout=30).stdout.decode(errors="replace")
        except VmclonerError:
            return ""
        for line in text.splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "xen_commandline":
                return value.strip()
        return ""

    # --- helpers ----------------------------------------------------------------------------------

    def _first(self, places: Iterator[str]) -> Path | None:
        found = (path for place in places if os.access(path := self.root / place, os.X_OK))
        return next(found, None)

    def _read(self, place: str) -> str:
        try:
            return (self.root / place).read_text(errors="replace")
        except OSError:
            return ""

    def _command_line(self, program: str) -> list[str] | None:
        for process in (self.root / "proc").glob("[0-9]*"):
            words = self._read(f"proc/{process.name}/cmdline").split("\0")
            if Path(words[0]).name == program:
                return words
        return None

    def _daemon_environment(self) -> Mapping[str, str]:
        for place in _DAEMONS:
            pid = self._read(place).strip()
            if not pid.isdigit():
                continue
            file = self.root / "proc" / pid / "environ"
            try:
                items = file.read_bytes().split(b"\0")
            except FileNotFoundError:
                continue
            except OSError as error:
                raise BackendError(
                    f"can't read the environment of libvirt's daemon, {file}: {error.strerror}",
                    hint="run as root (sudo)",
                ) from error
            pairs = (os.fsdecode(item).partition("=") for item in items)
            return {name: value for name, _, value in pairs}
        raise BackendError("libvirt's daemon isn't running", hint="systemctl start libvirtd")
