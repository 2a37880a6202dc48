"""Seal a captured disk: remove from it what makes its machine the one that it is.

A guest of our own does it, which QEMU runs contained and without a network: its kernel reads the
disk, which is hostile, and it reads every file system that the kernel knows. It executes nothing of
the disk. See contrib/adr/0026.
"""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import stat
from collections.abc import Sequence
from pathlib import Path

from vmcloner_core import contained
from vmcloner_core.errors import BackendError, DeadlineExceeded, HostCommandError, WrongState
from vmcloner_core.model import SealSpec
from vmcloner_core.os_errors import translated
from vmcloner_core.process import CommandRunner

log = logging.getLogger(__name__)
QEMU = "qemu-system-x86_64"
KVM = Path("/dev/kvm")
EMULATED = "tcg,tb-size=64"
TIMEOUT = 900.0
"""Seconds that sealing may take; a boot takes seconds, also where it is emulated."""
MEMORY = 256
"""MiB of the guest."""
RULES = (
    # Who the machine is. systemd makes a new id where the file is empty (machine-id(5)).
    ("empty", "/etc/machine-id"),
    ("file", "/var/lib/dbus/machine-id"),
    ("name", "/etc/hostname"),
    ("remove", "/etc/ssh/ssh_host_*_key"),
    ("remove", "/etc/ssh/ssh_host_*_key.pub"),
    ("remove", "/etc/dropbear/dropbear_*_host_key"),
    ("remove", "/etc/iscsi/initiatorname.iscsi"),
    ("remove", "/etc/nvme/hostnqn"),
    ("remove", "/etc/nvme/hostid"),
    ("remove", "/var/lib/systemd/random-seed"),
    ("remove", "/var/lib/systemd/credential.secret"),
    ("remove", "/var/lib/urandom/random-seed"),
    ("remove", "/var/lib/seedrng/*"),
    ("remove", "/boot/loader/random-seed"),
    ("remove", "/boot/efi/loader/random-seed"),
    ("remove", "/efi/loader/random-seed"),
    # cloud-init's: without it, it takes the clone for the machine that it has set up.
    ("remove", "/var/lib/cloud/*"),
    ("remove", "/var/log/cloud-init*"),
    ("remove", "/etc/netplan/50-cloud-init.yaml"),
    ("remove", "/etc/network/interfaces.d/50-cloud-init*"),
    ("remove", "/etc/NetworkManager/system-connections/cloud-init-*"),
    ("remove", "/etc/systemd/network/10-cloud-init-*"),
    # The same of reseed.sh.
    ("remove", "/etc/systemd/network/10-vmcloner-*"),
    ("remove", "/var/lib/vmcloner-seed"),
    # The network: leases, DHCP identities, cards by their addresses.
    ("remove", "/etc/udev/rules.d/70-persistent-net.rules"),
    ("remove", "/var/lib/dhcp/*"),
    ("remove", "/var/lib/dhclient/*"),
    ("remove", "/var/lib/dhcpcd/*"),
    ("remove", "/var/lib/dhcpcd5/*"),
    ("remove", "/var/lib/NetworkManager/*"),
    ("remove", "/var/lib/systemd/network/*"),
    # What it has done.
    ("remove", "/var/log/journal/*"),
    ("remove", "/var/log/*.gz"),
    ("remove", "/var/log/*.[0-9]"),
    ("remove", "/var/log/*/*.gz"),
    ("remove", "/var/log/*/*.[0-9]"),
    ("empty", "/var/log"),
    ("remove", "/var/lib/systemd/coredump/*"),
    ("remove", "/var/crash/*"),
    ("remove", "/root/.bash_history"),
    ("remove", "/root/.ash_history"),
    ("remove", "/home/*/.bash_history"),
    ("remove", "/tmp/*"),  # noqa: S108 - the guest's
    ("remove", "/var/tmp/*"),  # noqa: S108
)
"""(verb, pattern) in order. ``remove`` overwrites and removes what a pattern matches; ``file`` does
so unless it is a link; ``empty`` empties a file, or all in a folder; ``name`` empties a file that
contains the captured clone's name and nothing else."""
_KERNEL = "console=ttyS0 quiet panic=-1 mitigations=off nokaslr tsc=reliable no_timer_check"
_SECTOR = 512
_SAID = 65536
"""Bytes of what the guest says that are read."""
_ROOM = 64 * 1024**2
"""Bytes that QEMU may write to another file than the disk."""


def seal(
    runner: CommandRunner,
    guest: Path,
    disk: Path,
    work: Path,
    clone: str,
    spec: SealSpec,
    *,
    compact: bool,
    emulated: bool = False,
) -> None:
    """Seal a raw disk, in place.

    :param guest: the folder with the guest's ``vmlinuz`` and ``initrd.img``.
    :param disk: a file or a block device to which nothing else writes.
    :param work: an empty folder, for what the guest is told and what it says.
    :param clone: the name of the clone that it is a copy of. :param spec: the template's own rules.
    :param compact: give back the space of what its file systems don't use.
    :param emulated: don't try KVM: where it opens and hardly runs, a boot takes minutes.
    :raises WrongState: it can't be sealed, and why. :raises BackendError: there is no QEMU.
    :raises HostCommandError: the guest did not say that it did its work.
    """
    if runner.which(QEMU) is None:
        raise BackendError(
            f"{clone}: sealing boots a guest, and {QEMU} is not installed",
            hint="apt-get install qemu-system-x86, or --no-seal",
        )
    token = secrets.token_hex(16)
    rules, said = work / "rules", work / "said"
    with translated(disk):
        rules.write_bytes(_rules(spec))
        told = f"seal_token={token} seal_clone={clone}" + (" seal_compact=1" if compact else "")
        for accelerator in (EMULATED,) if emulated else _accelerators():
            said.write_bytes(b"")
            argv = _command(guest, disk, rules, said, told, accelerator)
            try:
                runner.run(argv, timeout=TIMEOUT)
                break
            except DeadlineExceeded as error:
                raise HostCommandError(f"{clone}: the guest that seals it did not end") from error
            except HostCommandError as error:
                message = error.message.replace(argv[0], QEMU, 1)
                if accelerator == EMULATED:
                    raise type(error)(message) from error
                log.debug("%s: emulated, since: %s", clone, message)
        with said.open("rb") as stream:
            _judge(clone, token, stream.read(_SAID).decode("ascii", "replace"))


def _accelerators() -> Sequence[str]:
    """Return what QEMU may use, in order: that KVM has a device doesn't mean that it works."""
    return ("kvm", EMULATED) if os.access(KVM, os.R_OK | os.W_OK) else (EMULATED,)


def _judge(clone: str, token: str, said: str) -> None:
    """Check that the guest has said that it did its work.

    :raises WrongState: it says why it could not. :raises HostCommandError: it says nothing.
    """
    found = re.findall(rf"^{token} (error|sealed) ([^\r\n]*)", said, re.MULTILINE)
    for verb, text in found:
        if verb == "error":
            reason = "".join(c if c.isprintable() else "?" for c in text[:300])
            raise WrongState(
                f"{clone}: its disk can't be sealed: {reason}",
                hint="mend that in the clone; or --no-seal, and its clones share its identity",
            )
    if not found:
        raise HostCommandError(f"{clone}: the guest that seals its disk ended without a result")


def _rules(spec: SealSpec) -> bytes:
    """Return the rules as the guest reads them from a disk."""
    own = (("remove", spec.remove), ("empty", spec.empty), ("keep", spec.keep))
    rules = [*RULES, *((verb, pattern) for verb, patterns in own for pattern in patterns)]
    text = "".join(f"{verb} {pattern}\n" for verb, pattern in rules).encode()
    return text + bytes(-len(text) % _SECTOR)


def _command(
    guest: Path, disk: Path, rules: Path, said: Path, told: str, accelerator: str
) -> list[str]:
    """Return the command line of QEMU, contained. ``told``: for the guest's environment."""
    kernel, initrd = guest / "vmlinuz", guest / "initrd.img"
    status = disk.stat()
    device, size = stat.S_ISBLK(status.st_mode), status.st_size
    own = {"driver": "host_device" if device else "file", "filename": str(disk), "discard": "unmap"}
    unmap = {"discard": "unmap", "detect-zeroes": "unmap"}
    nodes: dict[str, dict[str, object]] = {
        "disk": {"file": own, **unmap},
        "rules": {"read-only": True, "file": {"driver": "file", "filename": str(rules)}},
    }
    argv = [
        *(QEMU, "-nodefaults", "-no-user-config", "-display", "none", "-nic", "none"),
        *("-no-reboot", "-machine", "pc", "-accel", accelerator),
        *("-cpu", "max", "-m", str(MEMORY), "-kernel", str(kernel), "-initrd", str(initrd)),
        *("-append", f"{_KERNEL} {told}", "-serial", "null", "-serial", f"file:{said}"),
        *("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny"),
    ]
    for name, node in nodes.items():
        words = json.dumps({"driver": "raw", "node-name": name, **node})
        argv += ["-blockdev", words, "-device", f"virtio-blk-pci,drive={name}"]
    return contained.command(
        argv,
        read=[kernel, initrd, rules],
        write=[disk, said, KVM],
        size=max(size, _ROOM),
        seconds=TIMEOUT * 2,
    )
