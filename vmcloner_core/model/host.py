"""A machine that runs clones: its folders, its networks, what it has for guests."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import attrs

from vmcloner_core.errors import InvalidRequest


@attrs.frozen(kw_only=True)
class BackendTable:
    """What settings say of one backend: which driver, and the driver's own keys.

    :param where: the table's file and key, for messages.
    """

    name: str
    driver: str
    values: Mapping[str, Any]
    where: str


@attrs.frozen(kw_only=True)
class Host:
    """A machine that runs clones. There may be several; each driver is made for one.

    :param state: folder of vmcloner's own files on that host (console logs, built templates,
        what clones were started from).
    :param address: where it is reached, None for the machine that the process runs on.
    :param storage, hypervisors: its backends, by name.
    """

    name: str
    state: Path
    address: str | None = None
    storage: Mapping[str, BackendTable] = attrs.field(factory=dict, repr=False)
    hypervisors: Mapping[str, BackendTable] = attrs.field(factory=dict, repr=False)

    @property
    def consoles(self) -> Path:
        """Folder of the console logs, ``CLONE.log``."""
        return self.state / "console"

    @property
    def records(self) -> Path:
        """Folder of the clones' records: one folder per clone, with its host keys and seed."""
        return self.state / "identity"

    @property
    def state_id(self) -> Path:
        """File with the id of the state folder, which labels of its clones carry."""
        return self.state / "id"

    @property
    def runs(self) -> Path:
        """Folder of the runs' logs."""
        return self.state / "runs"

    @property
    def templates(self) -> Path:
        """Folder of what image builders made, one folder per template."""
        return self.state / "templates"

    @property
    def boots(self) -> Path:
        """Folder of what boot providers fetched for clones, one folder per clone."""
        return self.state / "boot"


@attrs.frozen(kw_only=True)
class HostResources:
    """What the host has for guests, in bytes.

    :param memory_free: what guests can get, with what a kernel could reclaim.
    :param memory_overhead: what a guest takes beside its own memory.
    :param memory_hint: where memory can't be overcommitted: what would give guests more of it.
    """

    memory_total: int
    memory_free: int
    cpus: int
    memory_overhead: int = 0
    memory_hint: str = ""


def _frozen(values: Iterable[str]) -> frozenset[str]:
    return frozenset(values)


def network_key(kind: str, name: str) -> str:
    """Return what tells a network from a bridge of the same name."""
    return name if kind == "network" else f"{kind}:{name}"


@attrs.frozen(kw_only=True)
class Network:
    """A network of the host that cards can be on by its name, or a bridge that gives addresses.

    :param ours: whether vmcloner made it.
    :param address: the host's own address on it, with prefix length.
    :param addresses: how many DHCP can give out; None where it isn't the network that does.
    :param leases: MAC addresses that hold one of them now.
    :param bridge: the name of its bridge on the host, None where it has none.
    """

    name: str
    active: bool
    kind: Literal["network", "bridge"] = "network"
    ours: bool = False
    address: str | None = None
    addresses: int | None = None
    leases: frozenset[str] = attrs.field(default=frozenset(), converter=_frozen)
    bridge: str | None = None

    @property
    def key(self) -> str:
        """What tells it from a network of another kind with the same name."""
        return network_key(self.kind, self.name)


_NOT_FOR_HOSTS = tuple(
    ipaddress.IPv4Network(text)
    for text in ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3")
)
"""This network, loopback, link-local, multicast and reserved addresses (RFC 6890)."""


def _ipv4_subnet(_instance: object, _attribute: object, value: str | None) -> None:
    try:
        subnet = ipaddress.IPv4Network(value or "10.0.0.0/8")
        if any(subnet.overlaps(other) for other in _NOT_FOR_HOSTS):
            raise ValueError(f"{subnet} is not for hosts")
    except ValueError as error:
        raise InvalidRequest(f"subnet: {error}", hint="like 192.168.150.0/24") from error


def _network_name(_instance: object, _attribute: object, value: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,49}", value):
        raise InvalidRequest(f"not a network's name: {value!r}")


@attrs.frozen(kw_only=True)
class NetworkRequest:
    """Ask for a network of vmcloner's own with room for ``count`` guests.

    :param subnet: IPv4, None for one that is free.
    :param bridge: a bridge of the host's own, with NAT and DHCP, in place of a network of the
        hypervisor's.
    :param dry_run: change nothing, tell only what would be.
    """

    name: str = attrs.field(default="vmcloner", validator=_network_name)
    count: int = attrs.field(default=250, validator=attrs.validators.ge(1))
    subnet: str | None = attrs.field(default=None, validator=_ipv4_subnet)
    bridge: bool = False
    dry_run: bool = False


@attrs.frozen(kw_only=True)
class NetworkChange:
    """A network as it is now, or would be, and what that took; no steps where it was so before."""

    network: Network
    steps: tuple[str, ...] = ()
