"""Virtual machines: what a hypervisor needs to define one, and what it reports."""

from __future__ import annotations

import enum
import re
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import attrs

from vmcloner_core.errors import InvalidRequest
from vmcloner_core.model.labels import Labels
from vmcloner_core.model.template import DomainOptions, NicSpec
from vmcloner_core.model.volume import Volume

_MAC = re.compile(r"(?:[0-9a-f]{2}:){5}[0-9a-f]{2}")


MAX_CMDLINE = 2047
"""Bytes of a kernel's command line: Linux's COMMAND_LINE_SIZE on x86
(arch/x86/include/asm/setup.h) minus the final NUL."""


def check_mac(value: str) -> str:
    """Return a unicast MAC address in lower case with colons.

    :raises InvalidRequest: ``value`` is not one.
    """
    mac = str(value).lower().replace("-", ":")
    if not _MAC.fullmatch(mac) or int(mac[:2], 16) & 1:
        raise InvalidRequest(
            f"not a unicast MAC address: {value!r}", hint="for example 52:54:00:12:34:56"
        )
    return mac


FORWARDED_PORT = 2222
"""The port at :func:`forwarded_address` that leads to ``NicSpec.forward`` of the guest."""


def forwarded_address(mac: str) -> str:
    """Return the loopback address of a card in user mode; cards of one host have distinct ones.

    From the octets of the MAC address in which vmcloner's differ.
    """
    return ".".join(["127", *(str(int(octet, 16)) for octet in mac.split(":")[3:])])


@attrs.frozen(kw_only=True)
class BootConfig:
    """What a domain boots: a kernel, the choice of a boot loader on the host, or its devices.

    :param kernel: a file on the host; the guest's own boot loader is not run. ``initrd`` and
        ``cmdline`` belong to it. Paths are absolute.
    :param devices: libvirt's boot devices, ``hd`` and ``network``, if there is no ``kernel``.
    :param bootloader: an executable on the host that the hypervisor (Xen) runs at each start and
        each reboot to get kernel and initrd: an absolute path, or the name of one of Xen's own
        programs; with ``bootloader_args``. ``cmdline`` is then added to its result.
    :param on_reboot: what a reboot by the guest does: ``restart`` boots it again with the same
        configuration, ``destroy`` ends the domain, so that the next start resolves again.
    :param handover: the boot provider to use instead, as if the template named it.
    :param source: where it was found, for display: "entry 'Debian' of /boot/grub/grub.cfg".
    :param origins: where kernel and initrds come from, for display, in this order. A dry run
        (``BootRequest.dry_run``) returns these instead of files.
    """

    kernel: Path | None = None
    initrd: Path | None = None
    cmdline: str | None = None
    devices: tuple[str, ...] = ("hd",)
    bootloader: Path | None = None
    bootloader_args: tuple[str, ...] = ()
    on_reboot: Literal["restart", "destroy"] = "restart"
    handover: str | None = None
    source: str = attrs.field(default="", eq=False)
    origins: tuple[str, ...] = attrs.field(default=(), eq=False)


@attrs.frozen(kw_only=True)
class Nic:
    """A network card of one clone: its specification and its address."""

    spec: NicSpec
    mac: str = attrs.field(converter=check_mac)


@attrs.frozen(kw_only=True)
class DomainSpec:
    """Everything that a hypervisor needs to define one clone's domain. ``memory`` in bytes.

    :param seed: an image with the guest's identity, attached as an additional read-only disk.
    :param values: per-clone values, in addition to those that all clones have.
    """

    labels: Labels
    uuid: uuid.UUID
    memory: int
    vcpus: int
    boot: BootConfig
    volumes: tuple[Volume, ...]
    nics: tuple[Nic, ...]
    options: DomainOptions = attrs.field(factory=DomainOptions)
    seed: Path | None = None
    values: Mapping[str, str | int] = attrs.field(factory=dict)

    @property
    def networks(self) -> tuple[str, ...]:
        """The network of each card, see :attr:`NicSpec.network`."""
        return tuple(nic.spec.network for nic in self.nics)

    @property
    def name(self) -> str:
        """The name of the domain, equal to that of the clone."""
        return self.labels.clone


class State(enum.Enum):
    """State of a clone, as ``list`` shows it."""

    ALLOCATED = "allocated"
    """Its volume exists, but its domain does not (yet)."""
    STOPPED = "stopped"
    SAVED = "saved"
    """Off, with its memory in a file: the next start continues from there."""
    RUNNING = "running"
    PAUSED = "paused"
    CRASHED = "crashed"
    ORPHAN = "orphan"
    """Its domain exists, but its volume does not."""
    UNKNOWN = "unknown"
    """Its hypervisor could not be read."""


@attrs.frozen(kw_only=True)
class Domain:
    """A labelled domain as found on the host. ``state`` is never ALLOCATED, ORPHAN or UNKNOWN.

    ``memory`` is in bytes: what it uses once it is started. ``networks`` has the network of each
    card, as :attr:`Network.key`; an empty string for a card without a shared network. ``disks`` has
    the file or device that each disk uses now; otherwise, that it will use at its next start.

    :param reason: why it is in that state, in a few words ("I/O error"); empty if there is nothing
        to say.
    """

    name: str
    uuid: uuid.UUID
    labels: Labels
    state: State
    memory: int
    reason: str = ""
    macs: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    disks: tuple[Path, ...] = ()


@attrs.frozen(kw_only=True)
class DiskFile:
    """A file or device that a domain uses. ``format`` as libvirt names it, "" if not known."""

    path: Path
    format: str = ""


@attrs.frozen(kw_only=True)
class DomainUse:
    """What a domain, ours or not, uses of the host's files and devices.

    :param disks: what its writable disks use now, and what they will use at its next start.
    :param files: all that it refers to, the former too: what its disks are overlays of, and the
        copies that block jobs are making.
    :param snapshots: files that its snapshots' descriptions name.
    :param job: the block job on one of its disks, in a few words ("copy of vda"); "" for none.
    """

    name: str
    uuid: uuid.UUID
    disks: tuple[DiskFile, ...] = ()
    files: tuple[DiskFile, ...] = ()
    snapshots: tuple[Path, ...] = ()
    job: str = ""


@attrs.frozen(kw_only=True)
class DomainInventory:
    """The contents of a hypervisor: our domains, and names and MAC addresses used by others.

    :param strays: domains with the labels of a clone of another name: that clone's domain, renamed,
        or a copy of it. Their names and addresses are foreign ones too.
    """

    domains: tuple[Domain, ...]
    strays: tuple[Domain, ...] = ()
    foreign_names: frozenset[str] = frozenset()
    foreign_macs: frozenset[str] = frozenset()
