"""Clones: what they are, as people see them, how they are reached."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from uuid import UUID

import attrs

from vmcloner_core.model.domain import Domain, Nic, State
from vmcloner_core.model.identity import Identity
from vmcloner_core.model.labels import Labels
from vmcloner_core.model.template import Template
from vmcloner_core.model.volume import Volume
from vmcloner_core.units import parse_size

Values = Mapping[str, str | int]
"""A clone's own values, by name: ``memory``, ``vcpus``, and any that placeholders name."""


@attrs.frozen(kw_only=True)
class CloneSpec:
    """What a clone is, decided before anything of it exists.

    :param values: its own values for placeholders; ``memory`` and ``vcpus`` among them stand in
        the place of the template's.
    :param identity: who it is, None where its template has no identity provider, or where the
        step at hand does not change it.
    """

    labels: Labels
    template: Template
    uuid: UUID
    nics: tuple[Nic, ...] = ()
    values: Values = attrs.field(factory=dict)
    identity: Identity | None = None

    @property
    def name(self) -> str:
        """The clone's name."""
        return self.labels.clone

    @property
    def macs(self) -> tuple[str, ...]:
        """The MAC addresses of its cards, in their order."""
        return tuple(nic.mac for nic in self.nics)

    @property
    def memory(self) -> int:
        """Bytes of memory."""
        return parse_size(self.values.get("memory", self.template.memory))

    @property
    def vcpus(self) -> int:
        """Number of virtual processors."""
        return int(self.values.get("vcpus", self.template.vcpus))


@attrs.frozen(kw_only=True)
class Clone:
    """A clone as people see it: the row of ``list``, and the parts that it was put together from.

    ``labels`` are the domain's, or its volume's while there is no domain.

    :param ip: the first address that it was found at.
    :param recorded: whether the host keeps a record of it.
    :param ours: whether this state folder's runs may touch it, and not another's alone.
    """

    labels: Labels
    state: State
    host: str
    volumes: tuple[Volume, ...] = ()
    domain: Domain | None = None
    ip: str | None = None
    recorded: bool = False
    ours: bool = True

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
        """Name of the template it was made from."""
        return self.labels.template

    @property
    def mac(self) -> str | None:
        """Address of its first network card."""
        return self.domain.macs[0] if self.domain is not None and self.domain.macs else None


@attrs.frozen(kw_only=True)
class Access:
    """How a clone is reached by ssh, and how it proves who it is.

    :param address: IPv4 or IPv6. :param key: a private key file, None for the caller's own.
    :param known_hosts: a file of sshd(8)'s format with the clone's host keys under its name.
    """

    name: str
    address: str
    user: str
    port: int
    known_hosts: Path
    key: Path | None = None
