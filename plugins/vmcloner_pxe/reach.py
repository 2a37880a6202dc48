"""Which servers files are fetched from: none that only this host can reach.

The boot server says what is fetched, and it may be hostile, while this host reaches what no guest
does: its own services to begin with. So addresses are looked at when their names are resolved, and
what was looked at is what is connected to.
"""

from __future__ import annotations

import errno
import socket
import struct
from ipaddress import IPv4Address, IPv6Address, ip_address

import attrs

from vmcloner_pxe.errors import NetbootError, reason

_GETROUTE, _REQUEST, _ERROR = 26, 1, 2  # linux/rtnetlink.h, linux/netlink.h
_DESTINATION, _INTERFACE = 1, 4
_FIB_MATCH = 0x2000  # the route itself, which has the interface that an address of ours is on
_LOCAL, _NOT_ONE_HOST = 2, (3, 4, 5)  # broadcast, anycast, multicast
_HEAD, _ROUTE, _ATTRIBUTE = struct.Struct("IHHII"), struct.Struct("8BI"), struct.Struct("HH")
_HINT = "a boot server on this host goes by its address on the guests' bridge, named by DHCP"


@attrs.frozen(kw_only=True)
class Reach:
    """What may be reached for a guest. Thread-safe.

    :param interface: the bridge (or interface) that it is on.
    :param named: servers by which DHCP said that it boots: where this host itself is one, by its
        address on that interface, that address may be reached.
    """

    interface: str | None = None
    named: frozenset[str] = frozenset()

    def address(self, host: str, family: socket.AddressFamily = socket.AF_UNSPEC) -> str:
        """Return the address of a server, to be connected to.

        :param host: its name, or an address. :param family: ``AF_INET`` for IPv4 alone.
        :raises NetbootError: there is no such host, or it may not be reached.
        """
        try:
            found = socket.getaddrinfo(host, None, family, socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise NetbootError(f"server {host}: no such host") from error
        address = str(found[0][4][0])
        if why := self._refusal(ip_address(address.partition("%")[0])):
            raise NetbootError(f"server {host}: {why}; nothing is fetched from there", hint=_HINT)
        return address

    def _refusal(self, address: IPv4Address | IPv6Address) -> str | None:
        """Return what speaks against an address."""
        if isinstance(address, IPv6Address) and address.ipv4_mapped:
            address = address.ipv4_mapped
        kinds = {
            "a loopback": address.is_loopback,
            "a link-local": address.is_link_local,
            "a multicast": address.is_multicast,
            "an unspecified": address.is_unspecified,
        }
        for kind, applies in kinds.items():
            if applies:
                return f"{address} is {kind} address"
        route, interface = _route(address)
        if route in _NOT_ONE_HOST:
            return f"{address} is not the address of one host"
        if route == _LOCAL and not (str(address) in self.named and self._is_ours(interface)):
            return f"{address} is this host's own"
        return None

    def _is_ours(self, index: int) -> bool:
        try:
            return self.interface is not None and socket.if_nametoindex(self.interface) == index
        except OSError:
            return False


def _route(address: IPv4Address | IPv6Address) -> tuple[int, int]:
    """Return the kind of route that leads to an address, and its interface (rtnetlink(7)).

    Zeros where none does.
    """
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    route = _ROUTE.pack(family, address.max_prefixlen, 0, 0, 0, 0, 0, 0, _FIB_MATCH)
    attribute = _ATTRIBUTE.pack(_ATTRIBUTE.size + len(address.packed), _DESTINATION)
    body = route + attribute + address.packed
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as kernel:
            kernel.send(_HEAD.pack(_HEAD.size + len(body), _GETROUTE, _REQUEST, 1, 0) + body)
            answer = kernel.recv(65536)
    except OSError as error:
        raise NetbootError(f"{address}: no telling whose it is: {reason(error)}") from error
    length, kind, *_rest = _HEAD.unpack_from(answer)
    at = _HEAD.size
    if kind == _ERROR:
        code = -int(struct.unpack_from("i", answer, at)[0])
        if code in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES):
            return 0, 0
        raise NetbootError(f"{address}: no telling whose it is: {errno.errorcode.get(code, code)}")
    found, interface = answer[at + 7], 0
    at += _ROUTE.size
    while at + _ATTRIBUTE.size <= length:
        size, code = _ATTRIBUTE.unpack_from(answer, at)
        if code == _INTERFACE:
            interface = struct.unpack_from("I", answer, at + _ATTRIBUTE.size)[0]
        at += max(_ATTRIBUTE.size, size + 3 & ~3)
    return found, interface
