"""libvirt's networks: their address ranges and leases, and making vmcloner's own.

https://libvirt.org/formatnetwork.html
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
from lxml import etree

from vmcloner_core.drivers import DriverContext, NetworkInterface
from vmcloner_core.errors import BackendError, Conflict, VmclonerError, WrongState
from vmcloner_core.model import Network, NetworkChange, NetworkRequest
from vmcloner_core.process import CommandRunner
from vmcloner_core.units import counted
from vmcloner_libvirt import iproute, subnets, whereabouts
from vmcloner_libvirt.binding import libvirt
from vmcloner_libvirt.bridges import Bridges
from vmcloner_libvirt.connection import Connections
from vmcloner_libvirt.errors import is_code
from vmcloner_libvirt.metadata import parse
from vmcloner_libvirt.operations import tolerate
from vmcloner_libvirt.subnets import Subnet

NAMESPACE = "https://vmcloner.github.io/ns/network/1"
_TAG = f"{{{NAMESPACE}}}network"
_SEEN = {"REACHABLE", "STALE", "DELAY", "PROBE", "PERMANENT"}


class Networks(NetworkInterface):
    """The networks of one host: libvirt's, and bridges of vmcloner's own. Thread-safe."""

    def __init__(self, context: DriverContext, connections: Connections) -> None:
        self._runner = context.runner
        self._bridges = Bridges(context.runner, context.host)
        self._connections = connections

    def inspect(self) -> tuple[Network, ...] | None:
        """See :meth:`NetworkInterface.inspect`."""
        own = self._bridges.inspect()
        try:
            return (*own, *self._connections.ask(networks))
        except BackendError as error:
            if error.__cause__ is not None and is_code(error.__cause__, "VIR_ERR_NO_SUPPORT"):
                return own or None  # this connection has no network driver
            raise

    def prepare(self, request: NetworkRequest) -> NetworkChange:
        """See :meth:`NetworkInterface.prepare`."""
        if request.bridge:
            return self._bridges.prepare(request)
        return self._connections.call(
            lambda connection: prepare(connection, self._runner, request),
            about=f"network {request.name}",
        )

    def remove(self, request: NetworkRequest) -> NetworkChange:
        """See :meth:`NetworkInterface.remove`."""
        if request.bridge:
            return self._bridges.remove(request)
        return self._connections.call(
            lambda connection: remove(connection, request), about=f"network {request.name}"
        )

    def sources(self) -> list[Mapping[str, tuple[str, ...]]]:
        """Return addresses by MAC, the most reliable source first."""
        return [
            self._connections.ask(leased),
            self._bridges.leased(),
            neighbours(self._runner),
        ]


# --- reading ------------------------------------------------------------------------------------


def networks(connection: Any) -> tuple[Network, ...]:
    """Return all networks, with the MAC addresses that hold leases."""
    found: list[Network] = []
    for network in connection.listAllNetworks():
        with tolerate("VIR_ERR_NO_NETWORK"):
            found.append(_described(network))
    return tuple(sorted(found, key=lambda network: network.name))


def _described(network: Any) -> Network:
    root = parse(network.XMLDesc(0))
    active = bool(network.isActive())
    ranges = [
        (ipaddress.IPv4Address(e.get("start")), ipaddress.IPv4Address(e.get("end")))
        for e in root.iterfind("ip/dhcp/range")
        if ":" not in e.get("start", ":")
    ]
    host = _host_address(root)
    bridge, tag = root.find("bridge"), root.find(f"metadata/{_TAG}")
    return Network(
        name=network.name(),
        active=active,
        ours=tag is not None,
        address=None if host is None else str(host),
        addresses=sum(int(end) - int(start) + 1 for start, end in ranges) if ranges else None,
        leases=frozenset(lease["mac"].lower() for lease in _leases(network)) if active else (),
        bridge=None if bridge is None else bridge.get("name"),
        lab=None if tag is None else tag.get("lab"),
    )


def _host_address(root: Any) -> ipaddress.IPv4Interface | None:
    for element in root.iterfind("ip"):
        address = element.get("address", "")
        if element.get("family", "ipv4") == "ipv4" and address:
            prefix = element.get("prefix") or element.get("netmask") or "32"
            return ipaddress.IPv4Interface(f"{address}/{prefix}")
    return None


def _leases(network: Any) -> Sequence[Mapping[str, Any]]:
    """Return the leases that haven't expired; libvirt reads them from dnsmasq's file."""
    leases: Sequence[Mapping[str, Any]] = ()
    with tolerate("VIR_ERR_NO_SUPPORT", "VIR_ERR_OPERATION_INVALID", "VIR_ERR_NO_NETWORK"):
        leases = network.DHCPLeases()
    return [lease for lease in leases if lease.get("mac") and lease.get("ipaddr")]


def leased(connection: Any) -> dict[str, tuple[str, ...]]:
    """Return the leased addresses by MAC, the newest first."""
    module = libvirt()
    given: dict[str, list[tuple[int, str]]] = {}
    for network in connection.listAllNetworks(module.VIR_CONNECT_LIST_NETWORKS_ACTIVE):
        for lease in _leases(network):
            held = given.setdefault(lease["mac"].lower(), [])
            held.append((int(lease["expirytime"]), lease["ipaddr"]))
    return whereabouts.newest_first(given)


def neighbours(runner: CommandRunner) -> dict[str, tuple[str, ...]]:
    """Return the host's neighbour entries by MAC (ip-neighbour(8))."""
    if runner.which("ip") is None:
        return {}
    try:
        entries = iproute.show(runner, "-4", "neigh", "show")
    except (VmclonerError, ValueError):
        return {}  # only an additional source
    seen: dict[str, list[str]] = {}
    for entry in entries:
        if entry.get("lladdr") and entry.get("dst") and _SEEN & set(entry.get("state", ())):
            seen.setdefault(entry["lladdr"].lower(), []).append(entry["dst"])
    return {mac: tuple(addresses) for mac, addresses in seen.items()}


# --- making and removing ------------------------------------------------------------------------


def prepare(connection: Any, runner: CommandRunner, request: NetworkRequest) -> NetworkChange:
    """Make, widen or start a network of ours, for ``request.count`` guests.

    :raises Conflict: a network of that name isn't ours, or the subnet is taken.
    :raises WrongState: it would have to be changed while guests are on it.
    """
    found = {network.name(): network for network in connection.listAllNetworks()}
    network = found.get(request.name)
    if network is None:
        subnet = subnets.free(request, _taken(runner, found.values()))
        return _defined(connection, request, subnet, "define")
    held = _described(network)
    _check_ours(held)
    subnet = Subnet(ipaddress.IPv4Interface(held.address or "0.0.0.0/32").network)
    wanted = Subnet(request.subnet or str(subnet))
    if (held.addresses or 0) < request.count or wanted != subnet:
        if users := _users(network):
            raise WrongState(
                f"network {request.name!r} can't get another subnet: {_on_it(users)} on it",
                hint="stop them first, or make another network by --name",
            )
        others = [other for name, other in found.items() if name != request.name]
        taken = [other for other in _taken(runner, others) if other != subnet]
        return _defined(connection, request, subnets.free(request, taken), "redefine", network)
    if parse(network.XMLDesc(0)).find("domain") is None and not _users(
        network
    ):  # made by an earlier version
        return _defined(connection, request, subnet, "redefine", network)
    steps = () if held.active else ("start",)
    if steps and not request.dry_run:
        network.create()
    with tolerate("VIR_ERR_OPERATION_INVALID"):
        if not network.autostart() and not request.dry_run:
            network.setAutostart(1)
    return NetworkChange(network=attrs.evolve(held, active=True), steps=steps)


def _defined(
    connection: Any, request: NetworkRequest, subnet: Subnet, step: str, old: Any = None
) -> NetworkChange:
    if not request.dry_run:
        if old is not None and old.isActive():
            old.destroy()
        identifier = None if old is None else old.UUIDString()
        lab = request.lab if old is None else _described(old).lab
        network = connection.networkDefineXML(document(request.name, subnet, identifier, lab))
        network.setAutostart(1)
        network.create()
    made = subnets.future(request.name, "network", subnet)
    return NetworkChange(network=made, steps=(step, "start"))


def remove(connection: Any, request: NetworkRequest) -> NetworkChange:
    """Remove a network of ours, if it exists.

    :raises Conflict: it isn't ours. :raises WrongState: guests are on it.
    """
    found = {network.name(): network for network in connection.listAllNetworks()}
    network = found.get(request.name)
    gone = Network(name=request.name, active=False)
    if network is None:
        return NetworkChange(network=gone)
    held = _described(network)
    _check_ours(held)
    if users := _users(network):
        raise WrongState(f"{_on_it(users)} on network {held.name!r}", hint="stop them first")
    if not request.dry_run:
        with tolerate("VIR_ERR_OPERATION_INVALID", "VIR_ERR_NO_NETWORK"):
            network.destroy()
        with tolerate("VIR_ERR_NO_NETWORK"):
            network.undefine()
    return NetworkChange(network=gone, steps=("stop", "undefine") if held.active else ("undefine",))


def _check_ours(network: Network) -> None:
    if not network.ours:
        raise Conflict(
            f"network {network.name!r} exists and isn't vmcloner's",
            hint="choose another name by --name; it is left unchanged",
        )


def _users(network: Any) -> int:
    """Return how many cards of running guests are on a network."""
    with tolerate("VIR_ERR_NO_SUPPORT"):  # libvirt's test driver has no ports
        return len(network.listAllPorts()) if network.isActive() else 0
    return 0


def document(
    name: str, subnet: Subnet, identifier: str | None = None, lab: str | None = None
) -> str:
    """Return the XML of a network with NAT and DHCP over a whole subnet."""
    root = etree.Element("network")
    etree.SubElement(root, "name").text = name
    if identifier is not None:
        etree.SubElement(root, "uuid").text = identifier
    metadata = etree.SubElement(root, "metadata")
    values = {"version": "1", **({} if lab is None else {"lab": lab})}
    etree.SubElement(metadata, _TAG, values, nsmap={"vmcloner": NAMESPACE})
    etree.SubElement(root, "forward", mode="nat")
    # Guests resolve each other's names, which DHCP tells; outside, nobody is asked for them.
    etree.SubElement(root, "domain", name=subnets.DOMAIN, localOnly="yes")
    host = etree.SubElement(root, "ip", address=str(subnet[1]), prefix=str(subnet.prefixlen))
    dhcp = etree.SubElement(host, "dhcp")
    first, last = subnets.span(subnet)
    given = etree.SubElement(dhcp, "range", start=str(first), end=str(last))
    etree.SubElement(given, "lease", expiry=str(subnets.LEASE_MINUTES), unit="minutes")
    return str(etree.tostring(root, encoding="unicode"))


def _taken(runner: CommandRunner, every: Any) -> list[Subnet]:
    """Return the subnets that the host's routes and networks use."""
    hosts = (_host_address(parse(network.XMLDesc(0))) for network in every)
    return [*subnets.routed(runner), *(host.network for host in hosts if host is not None)]


def _on_it(guests: int) -> str:
    return f"{counted(guests, 'guest')} {'is' if guests == 1 else 'are'}"
