"""What the backend ``kvm`` needs of its host, looked at piece by piece. Changes nothing."""

from __future__ import annotations

import os
import pwd
import socket
import stat
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import attrs

from vmcloner_core.drivers import DriverContext
from vmcloner_core.errors import VmclonerError
from vmcloner_core.model import Check, Status
from vmcloner_libvirt.acceleration import KvmProbe
from vmcloner_libvirt.binding import libvirt
from vmcloner_libvirt.connection import Connections
from vmcloner_libvirt.metadata import parse

VIRTLOGD = Path("/run/libvirt/virtlogd-sock")
TERMINALS = Path("/dev/ptmx")


@attrs.frozen(kw_only=True)
class _User:
    """The user that the daemon runs QEMU as, with all of its groups."""

    name: str
    uid: int
    gids: frozenset[int]

    def may(self, path: Path, wanted: int) -> bool:
        """Tell whether the file's mode grants ``wanted`` (of 7: 4 read, 2 write, 1 search)."""
        info = path.stat()
        mode = stat.S_IMODE(info.st_mode)
        if self.uid == 0:
            return True
        if info.st_uid == self.uid:
            mode >>= 6
        elif info.st_gid in self.gids:
            mode >>= 3
        return mode & wanted == wanted


def examine(
    context: DriverContext, connections: Connections, probe: KvmProbe, accel: str
) -> Iterator[Check]:
    """Yield the checks, in the order in which what fails is best mended."""
    check = partial(Check, backend=context.name)
    daemon = Daemon()
    yield from reach(check, connections, daemon)
    if not daemon.binding or daemon.kind not in ("", "QEMU"):
        return
    yield _emulator(check, probe)
    yield _acceleration(check, probe, accel)
    yield _virtlogd(check)
    if daemon.capabilities is not None:
        user = _qemu_user(daemon.capabilities)
        yield _device(check, probe.device, user)
        yield _state(check, context.host.state, user)


@attrs.define
class Daemon:
    """What :func:`reach` found out about libvirt.

    :param binding: whether libvirt-python can be loaded.
    :param kind: what answered, ``QEMU``, ``Xen`` or ``TEST``; empty where nothing did.
    :param version: the hypervisor's, as libvirt has it: 4017000 is 4.17.
    :param capabilities: the hypervisor's, as XML.
    """

    binding: bool = False
    kind: str = ""
    version: int = 0
    capabilities: str | None = None

    @property
    def short_version(self) -> str:
        """``4.17``."""
        return _version(self.version).rpartition(".")[0]


def reach(check: partial[Check], connections: Connections, daemon: Daemon) -> Iterator[Check]:
    """Yield whether libvirt-python and libvirt's daemon are there; fills ``daemon`` in."""

    def ask(connection: Any) -> str:
        daemon.kind = connection.getType()
        daemon.version = connection.getVersion()
        daemon.capabilities = connection.getCapabilities()
        library = _version(connection.getLibVersion())
        return f"libvirt {library}, {daemon.kind} {_version(daemon.version)}"

    try:
        version = _version(libvirt().getVersion())
    except VmclonerError as error:
        yield check(
            name="libvirt-python",
            status=Status.FAILED,
            detail=error.message,
            fix=error.hint or "",
        )
        return
    daemon.binding = True
    yield check(name="libvirt-python", status=Status.OK, detail=f"libvirt {version}")
    try:
        detail = connections.call(ask, about=connections.uri)
    except VmclonerError as error:
        yield check(name="daemon", status=Status.FAILED, detail=error.message, fix=error.hint or "")
    else:
        yield check(name="daemon", status=Status.OK, detail=f"{connections.uri}: {detail}")


def _version(number: int) -> str:
    """Return libvirt's version numbers as people write them: 9000000 is 9.0.0."""
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
        return check(name="kvm", status=Status.OK, detail="a guest ran on it")
    if accel == "kvm":
        return check(name="kvm", status=Status.FAILED, detail=found.reason, fix=found.fix)
    detail = f"{found.reason}: guests are emulated, which is much slower"
    return check(name="kvm", status=Status.WARNING, detail=detail, fix=found.fix)


def _virtlogd(check: partial[Check]) -> Check:
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(2)
            connection.connect(str(VIRTLOGD))
    except PermissionError:
        return check(name="virtlogd", status=Status.WARNING, detail="can't tell: not root")
    except OSError as error:
        return check(
            name="virtlogd",
            status=Status.FAILED,
            detail=f"writes the console logs, and doesn't run ({error.strerror or error})",
            fix="systemctl start virtlogd, or where there is no systemd: virtlogd -d",
        )
    return check(name="virtlogd", status=Status.OK)


def _qemu_user(capabilities: str) -> _User:
    """Return whom the daemon's security driver ``dac`` runs QEMU as (``+UID:+GID``)."""
    for model in parse(capabilities).iterfind("host/secmodel"):
        if model.findtext("model") == "dac":
            label = model.findtext("baselabel") or ""
            uid, gid = (int(part.lstrip("+")) for part in label.split(":"))
            break
    else:  # no isolation by users: QEMU runs as the daemon does
        uid, gid = 0, 0
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        return _User(name=str(uid), uid=uid, gids=frozenset({gid}))
    # As libvirt's virGetGroupList: the user's own groups, and the one that is set.
    groups = os.getgrouplist(entry.pw_name, entry.pw_gid)
    return _User(name=entry.pw_name, uid=uid, gids=frozenset({gid, *groups}))


def _device(check: partial[Check], device: Path, user: _User) -> Check:
    check = partial(check, name="qemu user")
    terminal = TERMINALS
    # The daemon asks QEMU for its capabilities as root, finds KVM, sees that this user can't
    # use it, takes its cache for outdated, and asks again: for seconds, several times a domain.
    if device.exists() and not user.may(device, 6):
        return check(
            status=Status.FAILED,
            detail=f"{user.name} may not use {device}: libvirt then takes half a minute per domain",
            fix=f"chgrp kvm {device} && chmod 0660 {device}",
        )
    if not user.may(terminal, 6):
        return check(
            status=Status.FAILED,
            detail=f"{user.name} may not use {terminal}: no guest gets a console, or starts",
            fix=f"chmod 0666 {terminal.resolve()}",
        )
    return check(status=Status.OK, detail=user.name)


def _state(check: partial[Check], folder: Path, user: _User) -> Check:
    closed = [
        path
        for path in reversed([folder, *folder.parents])
        if path.exists() and not user.may(path, 1)
    ]
    if not closed:
        return check(name="state folder", status=Status.OK, detail=str(folder))
    return check(
        name="state folder",
        status=Status.FAILED,
        detail=f"{user.name} can't reach {folder}, where kernels of built templates are",
        fix=f"chmod o+x {closed[0]}",
    )
