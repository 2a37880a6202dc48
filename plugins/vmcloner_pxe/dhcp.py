"""A DHCP client for a network card that is not in this host: of the guest that is to boot.

It speaks through a packet socket (packet(7)), since no interface here has the guest's address.
Frames carry the guest's MAC as their source, because switches that snoop DHCP compare it with the
message's; replies are asked for as broadcasts *and* listened for promiscuously, because servers
and bridges do either.
"""

from __future__ import annotations

import contextlib
import random
import re
import select
import socket
import struct
import time
import uuid
from collections.abc import Iterator
from ctypes import addressof, create_string_buffer
from ipaddress import IPv4Address

import attrs

from vmcloner_pxe import packet
from vmcloner_pxe.errors import Malformed, NetbootError, shown
from vmcloner_pxe.packet import Reply

TRIES = (1.0, 2.0, 4.0, 8.0)
"""Seconds that each DISCOVER and each REQUEST is waited for."""
BETTER_OFFER = 2.0
"""Seconds that an offer without a boot file waits for one that has it."""
MAX_RESTARTS = 4
MAX_JITTER = 0.2

_SOL_PACKET, _AUXDATA, _ADD_MEMBERSHIP, _PROMISC = 263, 8, 1, 1  # linux/if_packet.h
_NAME = re.compile(r"[A-Za-z0-9._-]{1,253}")
_CHECKSUM_NOT_READY = 1 << 3
_ATTACH_FILTER = 26
_ETH_P_IP = 0x0800
_MAX_FRAME = 65536


@attrs.frozen(kw_only=True)
class Lease:
    """An address that a guest was given, and what it was told to boot.

    :param boot_server: an IP address or a host's name. :param boot_file: as the server spelled it.
    :param config_file, path_prefix: PXELINUX's options 209 and 210.
    :param dns, host_name, domain: what iPXE's scripts may ask for.
    :param server, server_mac: whom to give the lease back to.
    :param silent_proxy: a proxyDHCP server that knows what to boot, but didn't say so by itself.
    """

    address: IPv4Address
    netmask: IPv4Address | None
    router: IPv4Address | None
    boot_server: str
    boot_file: str
    config_file: str | None
    path_prefix: str | None
    server: IPv4Address
    server_mac: bytes
    silent_proxy: IPv4Address | None = None
    dns: IPv4Address | None = None
    host_name: str = ""
    domain: str = ""


def open_socket(interface: str) -> socket.socket:
    """Return a packet socket for :class:`Client`; needs CAP_NET_RAW.

    :raises OSError: no such interface, or no permission.
    """
    made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)  # hears nothing before bind()
    try:
        _attach_filter(made, 0)
        made.setsockopt(_SOL_PACKET, _AUXDATA, 1)
        index = socket.if_nametoindex(interface)
        made.setsockopt(_SOL_PACKET, _ADD_MEMBERSHIP, struct.pack("IHH8s", index, _PROMISC, 0, b""))
        made.bind((interface, _ETH_P_IP))
    except BaseException:
        made.close()
        raise
    return made


def _attach_filter(where: socket.socket, xid: int) -> None:
    """Have the kernel drop what isn't UDP to port 68, from a server, of this transaction."""
    # (code, jump if true, jump if false, operand), see Documentation/networking/filter.rst
    program = [
        (0x28, 0, 0, 12),  # ldh: Ethernet's type
        (0x15, 0, 11, _ETH_P_IP),
        (0x30, 0, 0, 23),  # ldb: IP's protocol
        (0x15, 0, 9, 17),
        (0x28, 0, 0, 20),  # ldh: a fragment's offset
        (0x45, 7, 0, 0x1FFF),
        (0xB1, 0, 0, 14),  # ldxb: length of the IP header
        (0x48, 0, 0, 16),  # ldh: UDP's destination
        (0x15, 0, 4, 68),
        (0x50, 0, 0, 22),  # ldb: BOOTP's op
        (0x15, 0, 2, 2),
        (0x40, 0, 0, 26),  # ld: BOOTP's xid
        (0x15, 1, 0, xid),
        (0x06, 0, 0, 0),  # ret: drop
        (0x06, 0, 0, 0x40000),  # ret: take
    ]
    buffer = create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in program))
    where.setsockopt(
        socket.SOL_SOCKET, _ATTACH_FILTER, struct.pack("HL", len(program), addressof(buffer))
    )


class Client:
    """Gets one guest a lease. Not thread-safe; two clients with sockets of their own are.

    :param where: from :func:`open_socket`; it stays the caller's.
    :param deadline: as ``time.monotonic()`` counts.
    """

    def __init__(
        self,
        where: socket.socket,
        mac: str,
        *,
        deadline: float,
        machine: uuid.UUID | None = None,
        ipxe: bool = False,
        tries: tuple[float, ...] = TRIES,
    ) -> None:
        self._socket = where
        self._mac = bytes.fromhex(mac.replace(":", ""))
        self._deadline = deadline
        self._identity = packet.identity(machine, ipxe=ipxe)
        self._tries = tries
        self._began = time.monotonic()
        self._xid = 0
        self._proxy: Reply | None = None
        self.restarts = 0

    def lease(self) -> Lease:
        """Return a lease; of several servers' the one that says what to boot.

        :raises NetbootError: nobody offers one, or each that was offered was refused in the end.
        """
        reason = ""
        while self.restarts <= MAX_RESTARTS:
            offer = self._discover()
            reply = self._request(offer)
            if reply.type == packet.ACK:
                try:
                    return _lease(reply, self._proxy)
                except NetbootError:  # it is ours by now, whatever its server says of booting
                    self._give_back(reply.address, offer.server, reply.source_mac)
                    raise
            # Two clients were offered one address, or the server changed its mind.
            text = reply.options.get(packet.MESSAGE, b"").decode("ascii", "replace")
            reason = f" ({shown(text)})" if text else ""
            self.restarts += 1
            time.sleep(random.uniform(0, MAX_JITTER) * self.restarts)  # noqa: S311 - no secret
        raise NetbootError(
            f"the DHCP server refused {self.restarts} requests{reason}: no address available?"
        )

    def release(self, lease: Lease) -> None:
        """Give a lease back. There is no answer to that, so no telling whether it arrived."""
        self._give_back(lease.address, lease.server, lease.server_mac)

    def _give_back(self, address: IPv4Address, server: IPv4Address | None, to: bytes) -> None:
        assert server is not None  # noqa: S101 - or its offer had not been taken
        options = [
            (packet.MESSAGE_TYPE, bytes([packet.RELEASE])),
            (packet.SERVER, server.packed),
        ]
        with contextlib.suppress(OSError):  # it mustn't hide why nothing is booted
            self._socket.send(
                packet.frame(
                    packet.message(
                        random.getrandbits(32), self._mac, options, client=address, broadcast=False
                    ),
                    source_mac=self._mac,
                    source=address,
                    target_mac=to,
                    target=server,
                )
            )

    def _discover(self) -> Reply:
        self._xid = random.getrandbits(32)
        _attach_filter(self._socket, self._xid)
        for seconds in self._tries:
            self._send([(packet.MESSAGE_TYPE, bytes([packet.DISCOVER])), *self._identity])
            offer = self._best_offer(seconds)
            if offer is not None:
                return offer
        raise NetbootError(
            "no DHCP offer: no server there, or it has no address available",
        )

    def _best_offer(self, seconds: float) -> Reply | None:
        """Return the first offer that says what to boot, else the first of all.

        What a proxyDHCP server says is as good: it offers no address, only that (PXE 2.1, 2.2).
        """
        until = time.monotonic() + seconds
        first: Reply | None = None
        while (offer := next(self._offers(until), None)) is not None:
            if offer.address == packet.ANY:
                if self._proxy is None or offer.names_boot_file:
                    self._proxy = offer
            elif offer.names_boot_file:
                return offer
            elif first is None:
                first, until = offer, time.monotonic() + BETTER_OFFER
            if first is not None and self._proxy is not None and self._proxy.names_boot_file:
                break
        return first

    def _offers(self, until: float) -> Iterator[Reply]:
        for reply in self._replies(until):
            useful = reply.address != packet.ANY or reply.is_proxy
            if reply.type == packet.OFFER and reply.server and useful:
                yield reply

    def _request(self, offer: Reply) -> Reply:
        assert offer.server is not None  # noqa: S101 - or it had not been taken
        options = [
            (packet.MESSAGE_TYPE, bytes([packet.REQUEST])),
            (packet.REQUESTED_ADDRESS, offer.address.packed),
            (packet.SERVER, offer.server.packed),
            *self._identity,
        ]
        for seconds in self._tries:
            self._send(options)
            for reply in self._replies(time.monotonic() + seconds):
                if reply.server == offer.server and reply.type in (packet.ACK, packet.NAK):
                    return reply
        raise NetbootError(f"the DHCP server {offer.server} offered an address, then fell silent")

    def _send(self, options: list[tuple[int, bytes]]) -> None:
        seconds = int(time.monotonic() - self._began)
        body = packet.message(self._xid, self._mac, options, seconds=seconds)
        self._socket.send(packet.frame(body, source_mac=self._mac))

    def _replies(self, until: float) -> Iterator[Reply]:
        """Yield the replies to this exchange; what is broken or another's is dropped."""
        while (left := min(until, self._deadline) - time.monotonic()) > 0:
            if not select.select([self._socket], [], [], left)[0]:
                break
            data, ancillary, _flags, address = self._socket.recvmsg(_MAX_FRAME, 256)
            if address[2] == socket.PACKET_OUTGOING:
                continue
            try:
                reply = packet.parse(data, verify=not _unfinished(ancillary))
            except Malformed:
                continue
            if reply.xid == self._xid and reply.mac == self._mac:
                yield reply
        if time.monotonic() >= self._deadline:
            raise NetbootError("no DHCP lease in time")


def _unfinished(ancillary: list[tuple[int, int, bytes]]) -> bool:
    """Tell whether the kernel says that a packet's checksum is not filled in (virtual links)."""
    for level, kind, data in ancillary:
        if (level, kind) == (_SOL_PACKET, _AUXDATA) and len(data) >= 4:
            return bool(int(struct.unpack("I", data[:4])[0]) & _CHECKSUM_NOT_READY)
    return False


def _lease(reply: Reply, proxy: Reply | None) -> Lease:
    """Return what a server gave, and what it or else a proxyDHCP server says of booting."""
    says = proxy if proxy is not None and not reply.names_boot_file else reply
    options = says.options
    file = _text(options.get(packet.BOOT_FILE) or says.file, "boot file")
    if says.next_server != packet.ANY:
        server = str(says.next_server)
    else:
        server = _text(options.get(packet.TFTP_SERVER, b""), "TFTP server") or str(says.source)
    assert reply.server is not None  # noqa: S101 - it was compared with the offer's
    return Lease(
        address=reply.address,
        netmask=reply.ip_option(packet.NETMASK),
        router=reply.ip_option(packet.ROUTER),
        boot_server=server,
        boot_file=file,
        config_file=_text(options.get(packet.CONFIG_FILE, b""), "option 209") or None,
        path_prefix=_text(options.get(packet.PATH_PREFIX, b""), "option 210") or None,
        server=reply.server,
        server_mac=reply.source_mac,
        silent_proxy=None if says is reply or file else says.server,
        dns=reply.ip_option(packet.DNS),
        host_name=_name(reply.options.get(packet.HOST_NAME, b"")),
        domain=_name(reply.options.get(packet.DOMAIN, b"")),
    )


def _name(value: bytes) -> str:
    """Return a host's or a domain's name, "" where it can't be one."""
    name = value.split(b"\0", 1)[0].decode("ascii", "replace")
    return name if _NAME.fullmatch(name) else ""


def _text(value: bytes, what: str) -> str:
    """Return an option's text, up to the NUL that some servers end it with."""
    try:
        text = value.split(b"\0", 1)[0].decode("utf-8")
    except UnicodeDecodeError as error:
        raise NetbootError(f"the DHCP server's {what} is not text") from error
    if not text.isprintable():
        raise NetbootError(f"the DHCP server's {what} has control characters: {shown(text)}")
    return text
