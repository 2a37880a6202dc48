"""Checks of what the backend ``xen`` needs on its host. Changes nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from vmcloner_core.errors import VmclonerError
from vmcloner_core.model import Check, Status
from vmcloner_core.units import format_size
from vmcloner_libvirt import doctor
from vmcloner_libvirt.connection import Connections
from vmcloner_libvirt.xenhost import XenHost

USER = "xen-bootloader"
_RESTRICT = (
    f"adduser --system --group {USER}; then in `systemctl edit libvirtd`, under [Service]: "
    f"Environment=LIBXL_BOOTLOADER_RESTRICT=1 LIBXL_BOOTLOADER_USER={USER}; "
    "systemctl restart libvirtd"
)


def examine(
    backend: str,
    connections: Connections,
    host: XenHost,
    console_logs: Path,
    dom0_memory: int,
) -> Iterator[Check]:
    """Yield the checks, in the order in which failures are best fixed."""
    check = partial(Check, backend=backend)
    daemon = yield from doctor.reach(check, connections)
    if daemon is None or daemon.kind not in ("", "Xen"):
        return
    version = daemon.short_version
    yield _domain0(check, host)
    if not host.is_host:
        return
    yield _console(check, host, console_logs)
    qemu, pygrub = host.emulator(version), host.program("pygrub", version)
    without = "no QEMU for Xen: neither HVM guests nor disks in files work"
    yield _program(partial(check, name="qemu"), qemu, without, "qemu-system-xen")
    without = f"missing in Xen {version}: boot = 'pygrub' doesn't work"
    yield _program(partial(check, name="pygrub"), pygrub, without, f"xen-utils-{version}")
    yield _restriction(check, host)
    yield _memory(check, host, dom0_memory)


def _domain0(check: partial[Check], host: XenHost) -> Check:
    if host.is_host:
        return check(name="xen", status=Status.OK, detail="this system is Domain-0")
    return check(
        name="xen",
        status=Status.FAILED,
        detail="this system doesn't run under Xen",
        fix="apt-get install xen-system-amd64 libvirt-daemon-driver-xen, and reboot",
    )


def _console(check: partial[Check], host: XenHost, folder: Path) -> Check:
    logs = host.console_logs()
    if logs and os.path.isdir(folder):  # noqa: PTH112 - raises nothing
        return check(name="consoles", status=Status.OK, detail=f"xenconsoled logs to {folder}")
    if logs:
        return check(
            name="consoles",
            status=Status.WARNING,
            detail=f"xenconsoled's log folder {folder} doesn't exist",
            fix=f"mkdir -p {folder}",
        )
    detail = "xenconsoled keeps no logs: wait --for console and console --log have no input"
    if logs is None:
        detail = "xenconsoled isn't running: guests can't start"
    return check(
        name="consoles",
        status=Status.FAILED if logs is None else Status.WARNING,
        detail=detail,
        fix="XENCONSOLED_ARGS=--log=guest in /etc/default/xen (elsewhere: XENCONSOLED_TRACE=guest "
        "in xencommons), then restart xenconsoled while no guest runs",
    )


def _program(check: partial[Check], found: Path | None, without: str, package: str) -> Check:
    if found is not None:
        return check(status=Status.OK, detail=str(found))
    return check(status=Status.WARNING, detail=without, fix=f"apt-get install {package}")


def _restriction(check: partial[Check], host: XenHost) -> Check:
    check = partial(check, name="boot loader")
    try:
        user = host.bootloader_user()
    except VmclonerError as error:
        return check(status=Status.WARNING, detail=error.message, fix=error.hint or "")
    if user is not None:
        return check(status=Status.OK, detail=f"restricted: pygrub runs as {user.pw_name}")
    return check(
        status=Status.WARNING,
        detail="pygrub reads guests' disks as root, unrestricted: no longer supported by Xen "
        "(XSA-443)",
        fix=_RESTRICT,
    )


def _memory(check: partial[Check], host: XenHost, dom0_memory: int) -> Check:
    if not host.balloons():
        return check(name="memory", status=Status.OK, detail="Domain-0's memory is fixed")
    return check(
        name="memory",
        status=Status.WARNING,
        detail="Domain-0 gives up its memory guest by guest (ballooning), down to "
        f"{format_size(dom0_memory)}: slow, and fails first when many guests start",
        fix="dom0_mem=2G,max:2G in GRUB_CMDLINE_XEN_DEFAULT of /etc/default/grub; update-grub; "
        "reboot",
    )
