"""Subnets for networks of vmcloner's own: free and large enough."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Sequence
from typing import Literal

from vmcloner_core.errors import Conflict, NotEnoughResources
from vmcloner_core.model import Network, NetworkRequest
from vmcloner_core.process import CommandRunner
from vmcloner_core.units import counted
from vmcloner_libvirt import iproute

LEASE_MINUTES = 15
"""DHCP lease time. With the usual hour, deleted clones would use up the range."""
DOMAIN = "internal"
"""The domain of the guests' names on networks of ours; reserved for private use (ICANN, 2024)."""
MAX_RANGE = 65535
"""Addresses: libvirt refuses larger ranges."""
_SMALL = ipaddress.IPv4Network("192.168.0.0/16")
_LARGE = ipaddress.IPv4Network("10.0.0.0/8")

Subnet = ipaddress.IPv4Network


def room(prefix: int) -> int:
    """Return the number of guests' addresses in a subnet: without both ends and the host's."""
    return max(0, min(int(2 ** (32 - prefix)) - 3, MAX_RANGE))


def span(subnet: Subnet) -> tuple[ipaddress.IPv4Address, ipaddress.IPv4Address]:
    """Return the first and the last address for guests; :func:`room` must not be 0."""
    return subnet[2], subnet[1 + room(subnet.prefixlen)]


def future(name: str, kind: Literal["network", "bridge"], subnet: Subnet) -> Network:
    """Return a network as it will be once made."""
    return Network(
        name=name,
        kind=kind,
        active=True,
        ours=True,
        address=f"{subnet[1]}/{subnet.prefixlen}",
        addresses=room(subnet.prefixlen),
    )


def routed(runner: CommandRunner) -> list[Subnet]:
    """Return the subnets in the host's routes."""
    routes = iproute.show(runner, "-4", "route", "show")
    texts = [route["dst"] for route in routes if route.get("dst") not in (None, "default")]
    return [Subnet(text, strict=False) for text in texts]


def free(request: NetworkRequest, taken: Sequence[Subnet]) -> Subnet:
    """Return the subnet for a request.

    :raises NotEnoughResources: none is large enough. :raises Conflict: the requested one is taken.
    """
    for subnet in _candidates(request):
        if request.count > room(subnet.prefixlen):
            raise NotEnoughResources(
                f"network {request.name!r}: {counted(request.count, 'guest')}, "
                f"{room(subnet.prefixlen)} fit in {subnet}",
                hint="choose a larger --subnet, or make several networks",
            )
        clash = next((other for other in taken if subnet.overlaps(other)), None)
        if clash is None:
            return subnet
        if request.subnet is not None:
            raise Conflict(
                f"network {request.name!r}: {subnet} overlaps {clash}, which this host uses",
                hint="choose another --subnet, or omit it",
            )
    raise NotEnoughResources(
        f"network {request.name!r}: no subnet is free for {counted(request.count, 'guest')}",
        hint="choose one by --subnet",
    )


def _candidates(request: NetworkRequest) -> Iterator[Subnet]:
    if request.subnet is not None:
        yield Subnet(request.subnet)
        return
    prefix = 24
    while prefix > 16 and room(prefix) < request.count:
        prefix -= 1
    if prefix == 24:
        yield from (s for s in _SMALL.subnets(new_prefix=24) if s.network_address.packed[2] >= 150)
    yield from (s for s in _LARGE.subnets(new_prefix=prefix) if s.network_address.packed[1] >= 100)
