"""A machine that runs clones: its folders, networks and resources."""

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
    """The settings of one backend: which driver, and the driver's own keys.

    :param where: the table's file and key, for messages.
    """

    name: str
    driver: str
    values: Mapping[str, Any]
    where: str


@attrs.frozen(kw_only=True)
class Host:
    """A machine that runs clones. There may be several; each driver instance belongs to one.

    :param state: folder for vmcloner's own files on that host (console logs, built templates,
        boot files).
    :param address: its network address, None for the machine that the process runs on.
    :param seed: of its clones' UUIDs and MAC addresses; None for the host's own identity.
    :param networks: the networks, as :attr:`Network.key`, that clones from other hosts may be on,
        beside those of its own templates and those that vmcloner made.
    :param storage, hypervisors: its backends, by name.
    """

    name: str
    state: Path
    address: str | None = None
    seed: str | None = None
    networks: tuple[str, ...] = ()
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
        """File with the id of the state folder; the labels of its clones contain this id."""
        return self.state / "id"

    @property
    def runs(self) -> Path:
        """Folder of the run logs."""
        return self.state / "runs"

    @property
    def admitted(self) -> Path:
        """Folder of what runs have been admitted for and haven't made yet, ``FLEET.json``."""
        return self.state / "admitted"

    @property
    def high_marks(self) -> Path:
        """Folder of fleets' highest indices, a file for each."""
        return self.state / "highest"

    @property
    def moves(self) -> Path:
        """Folder with a file for each clone that is being moved to or from another host."""
        return self.state / "moves"

    @property
    def pools(self) -> Path:
        """Folder of the definitions of pools, ``POOL.json``."""
        return self.state / "pools"

    @property
    def benchmarks(self) -> Path:
        """Folder of the marks of benchmarks' fleets, a file for each."""
        return self.state / "benchmarks"

    @property
    def templates(self) -> Path:
        """Folder for the results of image builders, one folder per template."""
        return self.state / "templates"

    @property
    def received(self) -> Path:
        """Folder for templates that controllers sent, ``NAME.toml`` and ``NAME/`` each."""
        return self.state / "received"

    @property
    def snapshots(self) -> Path:
        """Folder with what snapshots of clones have beside their disks."""
        return self.state / "snapshots"

    @property
    def warm(self) -> Path:
        """Folder with the memory that clones are forked from, one folder per origin."""
        return self.state / "warm"

    @property
    def boots(self) -> Path:
        """Folder for files that boot providers fetched for clones, one folder per clone."""
        return self.state / "boot"


@attrs.frozen(kw_only=True)
class RemoteHost:
    """Another machine that runs clones, and where its engine is.

    :param ssh: destination for ssh(1): a name of ssh_config, ``USER@HOST``.
    :param python: the Python interpreter there that has vmcloner.
    :param config: its settings file there, None for the first that exists.
    """

    name: str
    ssh: str
    python: str
    config: str | None = None


@attrs.frozen(kw_only=True)
class HostResources:
    """Resources of the host for guests, in bytes.

    :param memory_free: memory available to guests, including what the kernel could reclaim.
    :param memory_overhead: memory that a guest uses in addition to its own.
    :param memory_hint: if memory cannot be overcommitted: how to get more of it for guests.
    :param emulated: whether its processors are emulated for guests, which makes these much slower.
    :param pages: free bytes in huge pages, by the size of these pages; the default size first.
    """

    memory_total: int
    memory_free: int
    cpus: int
    memory_overhead: int = 0
    memory_hint: str = ""
    emulated: bool = False
    pages: Mapping[int, int] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class Needs:
    """What is to be said of a host before clones like one are made, which it can run.

    :param warnings: what the clones will lack.
    :param page: bytes of the huge pages that a clone's memory is made of, 0 for the host's default
        size; None if it has ordinary memory.
    """

    warnings: tuple[str, ...] = ()
    page: int | None = None


def _frozen(values: Iterable[str]) -> frozenset[str]:
    return frozenset(values)


def network_key(kind: str, name: str) -> str:
    """Return a key that distinguishes a network from a bridge of the same name."""
    return name if kind == "network" else f"{kind}:{name}"


@attrs.frozen(kw_only=True)
class Network:
    """A network on the host that cards can name, or a bridge with a DHCP server.

    :param ours: whether vmcloner created it.
    :param address: the host's own address on it, with prefix length.
    :param addresses: size of the DHCP range; None if the network itself has no DHCP server.
    :param leases: MAC addresses with a current lease.
    :param bridge: the name of its bridge on the host, None if it has none.
    :param lab: the lab that it was made for, None for none.
    """

    name: str
    active: bool
    kind: Literal["network", "bridge"] = "network"
    ours: bool = False
    address: str | None = None
    addresses: int | None = None
    leases: frozenset[str] = attrs.field(default=frozenset(), converter=_frozen)
    bridge: str | None = None
    lab: str | None = None

    @property
    def key(self) -> str:
        """Distinguishes it from a network of another kind with the same name."""
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
        raise InvalidRequest(f"subnet: {error}", hint="for example 192.168.150.0/24") from error


def _network_name(_instance: object, _attribute: object, value: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,49}", value):
        raise InvalidRequest(f"not a network name: {value!r}")


@attrs.frozen(kw_only=True)
class NetworkRequest:
    """Request a network for vmcloner with addresses for ``count`` guests.

    :param subnet: IPv4, None for any free one.
    :param bridge: create a bridge on the host, with NAT and DHCP, instead of a network of the
        hypervisor.
    :param dry_run: show what would change; change nothing.
    :param lab: the lab that a new network is part of; one that exists stays as it is.
    """

    name: str = attrs.field(default="vmcloner", validator=_network_name)
    count: int = attrs.field(default=250, validator=attrs.validators.ge(1))
    subnet: str | None = attrs.field(default=None, validator=_ipv4_subnet)
    bridge: bool = False
    dry_run: bool = False
    lab: str | None = None


@attrs.frozen(kw_only=True)
class NetworkChange:
    """A network as it is or would be, and the steps to get there; none if nothing changes."""

    network: Network
    steps: tuple[str, ...] = ()
