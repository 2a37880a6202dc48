"""Set up a bare machine for clones on KVM: what ``vmcloner host setup`` finds and does.

A plan is made first, as a list of commands; then they are run. A step that was done before is left
out, so the same command completes what was interrupted.
"""

from __future__ import annotations

import contextlib
import grp
import importlib.util
import os
import pwd
import socket
import stat
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs

from vmcloner_core.errors import HostCommandError, InvalidRequest, VmclonerError
from vmcloner_core.model import BackendTable, Host
from vmcloner_core.process import CommandRunner
from vmcloner_libvirt import libvirtd

PACKAGES = (
    *("libvirt-daemon-system", "libvirt-clients"),
    *("qemu-system-x86", "qemu-utils", "seabios", "ipxe-qemu"),
    *("dnsmasq-base", "iproute2", "openssh-client"),
)
"""What Debian and Ubuntu call what clones on KVM need: libvirt, QEMU, networks, ssh."""
BUILDING = ("libvirt-dev", "pkgconf", "gcc", "libc6-dev", "python3-dev")
"""What libvirt's Python binding is built with, where it isn't installed yet."""
PROGRAMS = {
    "libvirtd": "libvirt's daemon",
    "virsh": "libvirt's client",
    "qemu-system-x86_64": "QEMU for x86",
    "qemu-img": "QEMU's tools for images",
    "dnsmasq": "dnsmasq, for networks",
    "ip": "iproute2",
    "ssh": "OpenSSH's client",
}
"""What is looked for where there is no apt."""
GROUPS = ("libvirt", "kvm")
MODE = 0o755
SOCKET = Path("/run/libvirt/libvirt-sock")
"""Of the system's libvirtd, or of systemd, which starts it then."""
SYSTEMD = Path("/run/systemd/system")
"""It is there where systemd runs (sd_booted(3))."""
APT = ("apt-get", "-q", "-o", "DPkg::Lock::Timeout=300")
CANT_TELL = "this user can't tell"
BINDING = "pip install 'vmcloner[libvirt]' into the environment that vmcloner is in"
SECONDS = 1800.0
"""For a command: packages may come from far away."""


@attrs.frozen(kw_only=True)
class Step:
    """A step of the set-up.

    :param detail: what is there, or why nothing can be done.
    :param argv: the command that does it; empty if there is nothing to do, or nobody but the user
        can do it.
    :param by_hand: whether the user has to do it.
    :param unknown: whether this user can't tell if it is done; ``detail`` says why.
    """

    name: str
    detail: str = ""
    argv: tuple[str, ...] = ()
    by_hand: bool = False
    unknown: bool = False

    @property
    def done(self) -> bool:
        """Whether nothing is left to do."""
        return not (self.argv or self.by_hand)


def plan(host: Host, runner: CommandRunner, user: str | None) -> Iterator[Step]:
    """Yield the steps but the network's, in their order. Changes nothing.

    :param user: who is to work with libvirt without being root; None for nobody.
    """
    built = has_binding()
    if _has_apt(runner):
        yield from _packages(runner, PACKAGES if built else (*PACKAGES, *BUILDING))
    else:
        yield _programs(runner)
    if not built:
        yield Step(name="libvirt-python", detail=BINDING, by_hand=True)
    yield _groups(user)
    yield from _folders(host)
    yield _daemon(runner)


def carry_out(step: Step, runner: CommandRunner) -> None:
    """Run a step's command.

    :raises HostCommandError: it failed; names the step. :raises BackendError: it isn't installed.
    """
    env = {"DEBIAN_FRONTEND": "noninteractive", "NEEDRESTART_SUSPEND": "1"}
    try:
        runner.run(step.argv, timeout=SECONDS, env=env)
    except HostCommandError as error:
        raise HostCommandError(
            f"{step.name}: {error.message}",
            hint="mend that, then run the same command again",
            output=error.output,
        ) from error


def _has_apt(runner: CommandRunner) -> bool:
    return bool(runner.which("apt-get") and runner.which("dpkg-query"))


def _packages(runner: CommandRunner, wanted: Sequence[str]) -> Iterator[Step]:
    missing = [package for package in wanted if not _is_installed(runner, package)]
    if not missing:
        yield Step(name="packages", detail=" ".join(wanted))
        return
    yield Step(name="package lists", argv=(*APT, "update"))
    install = (*APT, "install", "-y", "--no-install-recommends", *missing)
    yield Step(name="packages", argv=install)


def _is_installed(runner: CommandRunner, package: str) -> bool:
    try:
        said = runner.run(("dpkg-query", "-W", "-f", "${db:Status-Status}", package)).stdout
    except VmclonerError:  # dpkg has never heard of it
        return False
    return said == b"installed"


def _programs(runner: CommandRunner) -> Step:
    missing = [what for name, what in PROGRAMS.items() if runner.which(name) is None]
    if not missing:
        return Step(name="packages", detail="all programs are installed")
    return Step(
        name="packages",
        detail=f"install with this system's package manager: {', '.join(missing)}",
        by_hand=True,
    )


def _groups(user: str | None) -> Step:
    if user is None:
        return Step(name="groups", detail="not needed: root may use libvirt")
    lacking = [name for name in GROUPS if user not in _members(name)]
    if not lacking:
        return Step(name="groups", detail=f"{user} is in {' and '.join(GROUPS)}")
    return Step(
        name="groups",
        detail=f"{user} may then use libvirt, as much as root may; after the next login",
        argv=("usermod", "-aG", ",".join(lacking), user),
    )


def _members(group: str) -> Sequence[str]:
    try:
        return grp.getgrnam(group).gr_mem
    except KeyError:  # comes with a package
        return ()


def _folders(host: Host) -> Iterator[Step]:
    """Yield the folders of records and of the pool of files, which QEMU's user has to enter."""
    pools = [_pool(table, host) for table in host.storage.values() if table.driver == "files"]
    for name, folder in [("state folder", host.state), *(("pool", path) for path in pools)]:
        make = ("install", "-d", "-m", f"{MODE:04o}", str(folder))
        try:
            mode = folder.stat().st_mode
        except PermissionError as error:  # this user may not look, as in a dry run
            yield Step(name=name, detail=f"{CANT_TELL}: {error.strerror}", argv=make, unknown=True)
            continue
        except OSError:
            mode = 0
        if not stat.S_ISDIR(mode):
            yield Step(name=name, argv=make)
        elif not mode & stat.S_IXOTH:  # nobody gets or loses more of a folder than that
            yield Step(name=name, argv=("chmod", "o+x", str(folder)))
        else:
            yield Step(name=name, detail=str(folder))


def _pool(table: BackendTable, host: Host) -> Path:
    """Return a pool's folder. :raises InvalidRequest: the settings give no absolute path."""
    path = table.values.get("path", str(host.state / "pool"))
    if not isinstance(path, str) or not Path(path).is_absolute():
        raise InvalidRequest(f"{table.where}: path of a pool must be absolute, not {path!r}")
    return Path(path)


def _daemon(runner: CommandRunner) -> Step:
    if is_answering(runner):
        return Step(name="libvirtd", detail="runs")
    if not _has_apt(runner) and runner.which("libvirtd") is None:
        return Step(name="libvirtd", detail="after packages", by_hand=True)
    step = _started()
    if os.geteuid() == 0:
        return step
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(SOCKET))
    except PermissionError as error:
        return attrs.evolve(step, detail=f"{CANT_TELL}: {error.strerror}", unknown=True)
    except OSError:
        return step
    return Step(name="libvirtd", detail="runs, and takes no calls of this user")


def _started() -> Step:
    if SYSTEMD.is_dir():
        argv = ("systemctl", "enable", "--now", "libvirtd")
        return Step(name="libvirtd", detail="a service of systemd", argv=argv)
    return Step(
        name="libvirtd",
        detail='no systemd here: kept running by this program, with "stop" it stops it',
        argv=(sys.executable, "-P", str(Path(libvirtd.__file__)), "start"),
    )


def has_binding() -> bool:
    """Tell whether libvirt's Python binding is installed."""
    return importlib.util.find_spec("libvirt") is not None


def is_answering(runner: CommandRunner) -> bool:
    """Tell whether the system's libvirtd runs and answers."""
    try:
        runner.run(("virsh", "-q", "-c", libvirtd.URI, "uri"), timeout=libvirtd.FIRST_ANSWER)
    except VmclonerError:
        return False
    return True


def caller() -> str | None:
    """Return the user who runs this, or called sudo for it; None for root itself."""
    user: str | int = os.geteuid() or os.environ.get("SUDO_UID", "")
    with contextlib.suppress(ValueError, OverflowError, KeyError):  # no number, or nobody's
        entry = pwd.getpwuid(int(user))
        return entry.pw_name if entry.pw_uid else None
    return None
