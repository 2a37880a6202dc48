"""What the backend ``xen`` needs of its host, looked at piece by piece. Changes nothing."""

from __future__ import annotations

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
    """Yield the checks, in the order in which what fails is best mended."""
    check = partial(Check, backend=backend)
    daemon = doctor.Daemon()
    yield from doctor.reach(check, connections, daemon)
    if not daemon.binding or daemon.kind not in ("", "Xen"):
        return
    yield _domain0(check, host)
    if not host.is_host:
        return
    yield _console(check, host, console_logs)
    yield _emulator(check, host, daemon.short_version)
    yield _pygrub(check, host, daemon.short_version)
    yield _restriction(check, host)
    yield _memory(check, host, dom0_memory)


def _domain0(check: partial[Check], host: XenHost) -> Check:
    if host.is_host:
        return check(name="xen", status=Status.OK, detail="this system is its Domain-0")
    return check(
        name="xen",
        status=Status.FAILED,
        detail="this system doesn't run under Xen",
        fix="apt-get install xen-system-amd64 libvirt-daemon-driver-xen, and reboot",
    )


def _console(check: partial[Check], host: XenHost, folder: Path) -> Check:
    logs = host.console_logs()
    if logs and folder.is_dir():
        return check(name="consoles", status=Status.OK, detail=f"xenconsoled logs to {folder}")
    if logs:
        return check(
            name="consoles",
            status=Status.WARNING,
            detail=f"there is no {folder}, where xenconsoled is to log guests' consoles",
            fix=f"mkdir -p {folder}",
        )
    detail = "xenconsoled keeps no logs: wait --for console and vmcloner console --log see nothing"
    if logs is None:
        detail = "xenconsoled doesn't run: guests don't start"
    return check(
        name="consoles",
        status=Status.FAILED if logs is None else Status.WARNING,
        detail=detail,
        fix="XENCONSOLED_ARGS=--log=guest in /etc/default/xen (elsewhere: XENCONSOLED_TRACE=guest "
        "in xencommons), then restart xenconsoled while no guest runs",
    )


def _emulator(check: partial[Check], host: XenHost, version: str) -> Check:
    found = host.emulator(version)
    if found is not None:
        return check(name="qemu", status=Status.OK, detail=str(found))
    return check(
        name="qemu",
        status=Status.WARNING,
        detail="no QEMU for Xen: no disks in files, and no HVM guests",
        fix="apt-get install qemu-system-xen",
    )


def _pygrub(check: partial[Check], host: XenHost, version: str) -> Check:
    found = host.program("pygrub", version)
    if found is not None:
        return check(name="pygrub", status=Status.OK, detail=str(found))
    return check(
        name="pygrub",
        status=Status.WARNING,
        detail=f"Xen {version} has none: boot = 'pygrub' doesn't work",
        fix=f"apt-get install xen-utils-{version}",
    )


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
        detail="pygrub reads guests' disks as root, without limits: Xen supports that no longer "
        "(XSA-443)",
        fix=_RESTRICT,
    )


def _memory(check: partial[Check], host: XenHost, dom0_memory: int) -> Check:
    if not host.balloons():
        return check(name="memory", status=Status.OK, detail="Domain-0's is fixed")
    return check(
        name="memory",
        status=Status.WARNING,
        detail="Domain-0 gives its memory up guest by guest (ballooning), down to "
        f"{format_size(dom0_memory)}: slow, and the first to fail when many start",
        fix="dom0_mem=2G,max:2G in GRUB_CMDLINE_XEN_DEFAULT of /etc/default/grub; update-grub; "
        "reboot",
    )
