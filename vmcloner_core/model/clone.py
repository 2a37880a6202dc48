"""Clones as people see them, and reach them."""

from __future__ import annotations

from pathlib import Path

import attrs

from vmcloner_core.model.domain import Domain, State
from vmcloner_core.model.labels import Labels
from vmcloner_core.model.volume import Volume


@attrs.frozen(kw_only=True)
class Clone:
    """A clone as people see it: the row of ``list``, and the parts that it was put together from.

    ``labels`` are the domain's, or its volume's while there is no domain.

    :param ip: the first address that it was found at.
    :param seeded: whether its identity is kept on the host.
    """

    labels: Labels
    state: State
    host: str
    volumes: tuple[Volume, ...] = ()
    domain: Domain | None = None
    ip: str | None = None
    seeded: bool = False

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
