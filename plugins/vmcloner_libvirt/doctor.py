"""Checks of what the backend ``kvm`` needs on its host. Changes nothing."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Generator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import attrs

from vmcloner_core.drivers import DriverContext
from vmcloner_core.errors import VmclonerError
from vmcloner_core.model import Check, Status
from vmcloner_libvirt import firewall, needs, tpm
from vmcloner_libvirt.acceleration import KvmProbe
from vmcloner_libvirt.binding import libvirt
from vmcloner_libvirt.bridges import Bridges
from vmcloner_libvirt.connection import Connections, is_session
from vmcloner_libvirt.metadata import parse
from vmcloner_libvirt.networks import networks
from vmcloner_libvirt.users import User, owner_of_qemu

VIRTLOGD = Path("/run/libvirt/virtlogd-sock")
TERMINALS = Path("/dev/ptmx")


def examine(
    context: DriverContext, connections: Connections, probe: KvmProbe, accel: str
) -> Iterator[Check]:
    """Yield the checks, in the order in which failures are best fixed."""
    check = partial(Check, backend=context.name)
    session = is_session(connections.uri)
    mended = partial(check, setup=not session)
    daemon = yield from reach(mended, connections)
    if daemon is None or daemon.kind not in ("", "QEMU"):
        return
    yield _emulator(mended, probe)
    yield _acceleration(check, probe, accel)
    if not session:  # a user's own libvirtd starts its virtlogd
        yield from _virtlogd(mended)
    if daemon.capabilities is not None:
        user = User.of(os.geteuid()) if session else _qemu_user(daemon.capabilities)
        if not session:  # where the daemon's user isn't QEMU's
            yield _device(check, probe.device, user)
        yield _state(check, context.host.state, user)
    yield _optional(check, connections)
    yield _forwarding(check, context, connections)


@attrs.frozen
class Daemon:
    """What :func:`reach` found about libvirt.

    :param kind: ``QEMU``, ``Xen`` or ``TEST``; empty if nothing answered.
    :param version: the hypervisor's, as libvirt encodes it: 4017000 is 4.17.
    :param capabilities: the hypervisor's, as XML.
    """

    kind: str = ""
    version: int = 0
    capabilities: str | None = None

    @property
    def short_version(self) -> str:
        """``4.17``."""
        return _version(self.version).rpartition(".")[0]


def reach(check: partial[Check], connections: Connections) -> Generator[Check, None, Daemon | None]:
    """Yield whether libvirt-python and libvirt's daemon work.

    :returns: the daemon, None without libvirt-python.
    """

    def ask(c: Any) -> tuple[str, Daemon]:
        return _version(c.getLibVersion()), Daemon(c.getType(), c.getVersion(), c.getCapabilities())

    try:
        version = _version(libvirt().getVersion())
    except VmclonerError as error:
        fix = error.hint or ""
        yield check(name="libvirt-python", status=Status.FAILED, detail=error.message, fix=fix)
        return None
    yield check(name="libvirt-python", status=Status.OK, detail=f"libvirt {version}")
    try:
        library, daemon = connections.ask(ask)
    except VmclonerError as error:
        yield check(name="daemon", status=Status.FAILED, detail=error.message, fix=error.hint or "")
        return Daemon()
    detail = f"libvirt {library}, {daemon.kind} {_version(daemon.version)}"
    yield check(name="daemon", status=Status.OK, detail=f"{connections.uri}: {detail}")
    return daemon


def _version(number: int) -> str:
    """Return a version number of libvirt's as text: 9000000 is 9.0.0."""
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"


def _emulator(check: partial[Check], probe: KvmProbe) -> Check:
    path = probe.emulator()
    if path is None:
        return check(
            name="qemu",
            status=Status.FAILED,
            detail="no QEMU for x86 is installed",
            fix="apt-get install qemu-system-x86",
        )
    return check(name="qemu", status=Status.OK, detail=path)


def _acceleration(check: partial[Check], probe: KvmProbe, accel: str) -> Check:
    if accel == "tcg":
        return check(name="kvm", status=Status.OK, detail="not used: accel is set to tcg")
    found = probe.cached(fresh=True)
    if found.works:
        return check(name="kvm", status=Status.OK, detail="a test guest ran on it")
    if accel == "kvm":
        return check(name="kvm", status=Status.FAILED, detail=found.reason, fix=found.fix)
    detail = f"{found.reason}: guests are emulated, which is much slower"
    return check(name="kvm", status=Status.WARNING, detail=detail, fix=found.fix)


def _virtlogd(check: partial[Check]) -> Iterator[Check]:
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(2)
            connection.connect(str(VIRTLOGD))
            process = _peer(connection)
    except PermissionError:
        yield check(name="virtlogd", status=Status.WARNING, detail="unknown: needs root")
        return
    except OSError as error:
        yield check(
            name="virtlogd",
            status=Status.FAILED,
            detail=f"not running, so there are no console logs ({error.strerror or error})",
            fix="systemctl start virtlogd, or without systemd: virtlogd -d",
        )
        return
    yield check(name="virtlogd", status=Status.OK)
    if process == 0:
        yield check(
            name="processes",
            status=Status.WARNING,
            detail="this container doesn't see the host's: who has a disk open isn't found out "
            "before it is deleted",
            fix="start the container with --pid host",
        )


def _peer(connection: socket.socket) -> int:
    """Return the process at a socket's other end: 0 if its PID namespace isn't seen from here."""
    found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", found)[0])


def _optional(check: partial[Check], connections: Connections) -> Check:
    """Tell what templates may ask for and not all hosts have."""
    check = partial(check, name="optional")
    try:
        features = parse(
            connections.ask(lambda c: c.getDomainCapabilities(None, None, "q35", None))
        )
    except VmclonerError as error:
        return check(status=Status.WARNING, detail=f"unknown: {error.message}")
    parts = {
        "UEFI firmware": (needs.has_firmware(features), "ovmf"),
        "TPM emulator": (needs.has_tpm(features), "swtpm swtpm-tools"),
        "virtiofsd": (needs.has_virtiofsd(), "virtiofsd"),
    }
    missing = {name: package for name, (there, package) in parts.items() if not there}
    closed = None if is_session(connections.uri) else tpm.closed_keys()
    if closed is not None and "TPM emulator" not in missing:
        detail = f"{closed[0]}: clones with a new TPM don't start"
        return check(status=Status.WARNING, detail=detail, fix=closed[1])
    if not missing:
        return check(status=Status.OK, detail=", ".join(parts))
    return check(
        status=Status.WARNING,
        detail=f"no {', no '.join(missing)}: templates that need it are refused",
        fix=f"apt-get install {' '.join(missing.values())}",
    )


def _forwarding(check: partial[Check], context: DriverContext, connections: Connections) -> Check:
    """Tell whether the host drops what it forwards, as Docker makes it."""
    check, runner = partial(check, name="forwarding"), context.runner
    if os.geteuid() != 0:
        return check(status=Status.WARNING, detail="unknown: reading the packet filter needs root")
    if not firewall.drops(runner):
        return check(status=Status.OK, detail="the packet filter doesn't drop by default")
    try:
        found = connections.ask(networks)
    except VmclonerError:
        found = ()
    bridges = [network.bridge for network in found if network.bridge is not None]
    bridges += [network.name for network in Bridges(runner, context.host).inspect()]
    cut_off = firewall.dropped(runner, bridges)
    if bridges and not cut_off:
        return check(status=Status.OK, detail="dropped by default, but not for these networks")
    if not cut_off:
        return check(
            status=Status.WARNING,
            detail="forwarded packets are dropped by default (Docker sets that): guests on a "
            "network with NAT may reach nothing outside",
            fix=firewall.mend("BRIDGE"),
        )
    return check(
        status=Status.WARNING,
        detail=firewall.lost(", ".join(cut_off)),
        fix=firewall.mend(cut_off[0]),
    )


def _qemu_user(capabilities: str) -> User:
    """Return the user that runs QEMU: the daemon's, root, if there is no separate one."""
    return User.of(*(owner_of_qemu(parse(capabilities)) or (0, 0)))


def _device(check: partial[Check], device: Path, user: User) -> Check:
    check = partial(check, name="qemu user")
    terminal = TERMINALS
    # The daemon queries QEMU's capabilities as root and finds KVM; since this user can't use it,
    # the daemon drops its cache and queries again: for seconds, several times per domain.
    if device.exists() and not user.may(device, 6):
        return check(
            status=Status.FAILED,
            detail=f"no permission for {user.name} to use {device}: libvirt takes 30 s per domain",
            fix=f"chgrp kvm {device} && chmod 0660 {device}",
        )
    if not user.may(terminal, 6):
        return check(
            status=Status.FAILED,
            detail=f"no permission for {user.name} to use {terminal}: guests can't start",
            fix=f"chmod 0666 {terminal.resolve()}",
        )
    return check(status=Status.OK, detail=user.name)


def _state(check: partial[Check], folder: Path, user: User) -> Check:
    closed = [
        path
        for path in reversed([folder, *folder.parents])
        if os.path.exists(path) and not user.may(path, 1)  # noqa: PTH110 - raises nothing
    ]
    if not closed:
        return check(name="state folder", status=Status.OK, detail=str(folder))
    return check(
        name="state folder",
        status=Status.FAILED,
        detail=f"{user.name} can't reach {folder} with the kernels of built templates",
        fix=f"chmod o+x {closed[0]}",
    )
