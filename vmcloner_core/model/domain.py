"""Virtual machines: what a hypervisor needs to define one, and what it has."""

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
(arch/x86/include/asm/setup.h) less the final NUL."""


def check_mac(value: str) -> str:
    """Return a unicast MAC address in lower case with colons.

    :raises InvalidRequest: it isn't one.
    """
    mac = str(value).lower().replace("-", ":")
    if not _MAC.fullmatch(mac) or int(mac[:2], 16) & 1:
        raise InvalidRequest(f"not a unicast MAC address: {value!r}", hint="like 52:54:00:12:34:56")
    return mac


@attrs.frozen(kw_only=True)
class BootConfig:
    """What a domain boots: a kernel, what a boot loader on the host says, or its devices in order.

    :param kernel: a file of the host; the guest's own boot loader is not run. With ``initrd`` and
        ``cmdline``, absolute paths and text.
    :param devices: libvirt's boot devices, ``hd`` and ``network``, where there is no ``kernel``.
    :param bootloader: an executable of the host that the hypervisor runs at each start and each
        reboot to get kernel and initrd (Xen's way), absolute or one of its own programs' names;
        with ``bootloader_args``. ``cmdline`` is then added to what it says.
    :param on_reboot: what a reboot by the guest does: ``restart`` boots it again from what it has
        been given, ``destroy`` ends the domain, so that the next start asks the provider again.
    :param handover: the boot provider to be asked instead, as if the template named it.
    :param source: where it was found, for people: "entry 'Debian' of /boot/grub/grub.cfg".
    :param origins: where kernel and initrds come from, for people, in this order. Somebody who
        only wants to know (``BootRequest.dry_run``) gets these in place of files.
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
    """All that a hypervisor needs to define one clone's domain. ``memory`` in bytes.

    :param seed: an image that the guest reads its identity from, as a further disk, read-only.
    :param values: the clone's own values, beside those that all clones have.
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
        """What each card is on, see :attr:`NicSpec.network`."""
        return tuple(nic.spec.network for nic in self.nics)

    @property
    def name(self) -> str:
        """The domain's name, which is the clone's."""
        return self.labels.clone


class State(enum.Enum):
    """State of a clone, as ``list`` shows it."""

    ALLOCATED = "allocated"
    """Its volume exists, its domain doesn't (yet)."""
    STOPPED = "stopped"
    RUNNING = "running"
    PAUSED = "paused"
    CRASHED = "crashed"
    ORPHAN = "orphan"
    """Its domain exists, its volume is gone."""
    UNKNOWN = "unknown"
    """Its hypervisor could not be read."""


@attrs.frozen(kw_only=True)
class Domain:
    """A labelled domain as found on the host. ``state`` is never ALLOCATED, ORPHAN or UNKNOWN.

    ``memory`` in bytes: what it takes once it is started. ``networks`` says what each card is
    on, as :attr:`Network.key`; empty where that is nothing that others are on.
    """

    name: str
    uuid: uuid.UUID
    labels: Labels
    state: State
    memory: int
    macs: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    disks: tuple[Path, ...] = ()


@attrs.frozen(kw_only=True)
class DomainInventory:
    """What a hypervisor holds: our domains, and what of the others must be kept clear of."""

    domains: tuple[Domain, ...]
    foreign_names: frozenset[str] = frozenset()
    foreign_macs: frozenset[str] = frozenset()
