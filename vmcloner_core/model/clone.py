"""Clones: their specification, their state as shown to users, and how to reach them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from uuid import UUID

import attrs

from vmcloner_core.errors import VmclonerError
from vmcloner_core.model.domain import Domain, Nic, State
from vmcloner_core.model.identity import Identity
from vmcloner_core.model.labels import Labels
from vmcloner_core.model.lease import Lease
from vmcloner_core.model.snapshot import DiskSnapshot, Snapshot
from vmcloner_core.model.template import Template
from vmcloner_core.model.volume import Volume
from vmcloner_core.units import parse_size

Values = Mapping[str, str | int]
"""Per-clone values by name: ``memory``, ``vcpus``, ``disk_size``, others for placeholders."""


@attrs.frozen(kw_only=True)
class CloneSpec:
    """The full description of a clone, decided before any part of it exists.

    :param values: per-clone values for placeholders; ``memory`` and ``vcpus`` override the
        template's.
    :param identity: None if its template has no identity provider, or if the current step does
        not change it.
    :param lease: until when it is wanted, if it is made now; None for no end.
    """

    labels: Labels
    template: Template
    uuid: UUID
    nics: tuple[Nic, ...] = ()
    values: Values = attrs.field(factory=dict)
    identity: Identity | None = None
    lease: Lease | None = None

    @property
    def name(self) -> str:
        """The clone's name."""
        return self.labels.clone

    @property
    def macs(self) -> tuple[str, ...]:
        """The MAC addresses of its network cards, in order."""
        return tuple(nic.mac for nic in self.nics)

    @property
    def memory(self) -> int:
        """Bytes of memory."""
        return parse_size(self.values.get("memory", self.template.memory))

    @property
    def disk_size(self) -> int | None:
        """Bytes of the first disk, None for its image's size."""
        own = self.values.get("disk_size", self.template.disk_size)
        return None if own is None else parse_size(own)

    @property
    def vcpus(self) -> int:
        """Number of virtual processors."""
        return int(self.values.get("vcpus", self.template.vcpus))

    @property
    def own_sizes(self) -> tuple[str, ...]:
        """The names of those sizes that are not its template's."""
        template = self.template
        size = template.disk_size
        differs = {
            "memory": self.memory != parse_size(template.memory),
            "vcpus": self.vcpus != template.vcpus,
            "disk_size": self.disk_size != (None if size is None else parse_size(size)),
        }
        return tuple(name for name, own in differs.items() if own)


@attrs.frozen(kw_only=True)
class Moving:
    """Which part of a move between two hosts a host has. The clone can't be started on either.

    :param leaves: it leaves this host; else it arrives here.
    :param other: the other host's name, as the controller that moves it knows it.
    :param uuid: of the clone's domain. :param whole: all of an arriving clone is here.
    :param heir: the id of the state folder that gets a leaving clone's disks, in a pool that both
        hosts share; empty if they are copied.
    :param back: an arriving clone is being taken back to the host that it came from.
    """

    leaves: bool
    other: str
    uuid: UUID
    whole: bool = False
    heir: str = ""
    back: bool = False

    @property
    def to(self) -> str:
        """The host where it shall be; empty for this one."""
        return self.other if self.leaves or self.back else ""

    def __str__(self) -> str:
        way = "back to" if self.back else "to" if self.leaves else "here from"
        return f"is being moved {way} host {self.other!r}"


@attrs.frozen(kw_only=True)
class Clone:
    """A clone as shown to users: the row of ``list``, and the parts that it is assembled from.

    ``labels`` are those of the domain, or of its volume while there is no domain.

    :param ip: its first known address.
    :param recorded: whether the host has a record of it.
    :param ours: whether runs of this state folder may change it; False if only another's may.
    :param kept: the snapshots of its disks.
    :param unlabelled: names of volumes under which its pool has something without its labels.
    :param moving: its move to or from another host, None if it isn't being moved.
    :param making: a warm origin is being made from it. Who makes that deletes it.
    """

    labels: Labels
    state: State
    host: str
    volumes: tuple[Volume, ...] = ()
    domain: Domain | None = None
    ip: str | None = None
    recorded: bool = False
    ours: bool = True
    kept: tuple[DiskSnapshot, ...] = ()
    unlabelled: tuple[str, ...] = ()
    moving: Moving | None = None
    making: bool = False

    @property
    def name(self) -> str:
        """``FLEET-INDEX``."""
        return self.labels.clone

    @property
    def fleet(self) -> str:
        """Name of its fleet."""
        return self.labels.fleet

    @property
    def index(self) -> int:
        """Its number in the fleet."""
        return self.labels.index

    @property
    def template(self) -> str:
        """Name of the template that it was created from."""
        return self.labels.template

    @property
    def snapshots(self) -> tuple[Snapshot, ...]:
        """Its snapshots, the oldest first."""
        return Snapshot.assembled(self.kept)

    @property
    def reason(self) -> str:
        """Why it is in its state, in a few words; empty if there is nothing to say."""
        if self.moving is not None:
            return str(self.moving)
        if self.renamed is not None:
            return f"its domain was renamed to {self.renamed!r}"
        return self.domain.reason if self.domain is not None else ""

    @property
    def renamed(self) -> str | None:
        """The name of its domain, if somebody has renamed that."""
        domain = self.domain
        return domain.name if domain is not None and domain.name != self.name else None

    @property
    def mac(self) -> str | None:
        """Address of its first network card."""
        return self.domain.macs[0] if self.domain is not None and self.domain.macs else None


@attrs.frozen(kw_only=True)
class Moved:
    """What a move to another host does with a clone, or has done.

    :param source: the host that it leaves, empty if nothing of it has to leave one.
    :param action: ``move``; ``finish``, for one that is whole on its new host after a kill;
        ``undo``, for one that had begun to leave and is wanted where it was; ``stays``, for one
        that is there already; ``leave``, for one that can't be moved.
    :param why: why it is left. :param hint: the way out. :param error: what kept it from moving.
    """

    clone: str
    source: str
    target: str
    action: str
    labels: Labels
    why: str = ""
    hint: str | None = None
    error: VmclonerError | None = None


@attrs.frozen(kw_only=True)
class Access:
    """How to reach a clone by ssh, and how to verify its host key.

    :param address: IPv4 or IPv6. :param key: the only private key file to use, or None.
    :param known_hosts: a file in the format of sshd(8) with the clone's host keys under its name.
    :param keys: without ``key``, the private key files that are tried beside an agent's keys; empty
        for those that ssh finds itself.
    :param jump: the destination for ssh(1) of the host that it is behind, None if it is not.
    :param refusal: what to do if the clone refuses the user's keys, which it may well do; empty if
        one of them is among those that it lets in, or if these aren't known.
    """

    name: str
    address: str
    user: str
    port: int
    known_hosts: Path
    key: Path | None = None
    keys: tuple[Path, ...] = ()
    jump: str | None = None
    refusal: str = ""
