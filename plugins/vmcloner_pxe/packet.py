"""DHCP messages in Ethernet frames: written and read as bytes, without any input or output.

RFC 2131 (DHCP), 2132 and 3396 (options, long options), 4578 (what a PXE client says of itself),
5071 (PXELINUX's options), 791 and 768 (IP and UDP).
"""

from __future__ import annotations

import random
import struct
import uuid
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address
from typing import Final

import attrs

from vmcloner_pxe.errors import Malformed

DISCOVER, OFFER, REQUEST, ACK, NAK, RELEASE = 1, 2, 3, 5, 6, 7

DNS, HOST_NAME, DOMAIN = 6, 12, 15
NETMASK, ROUTER, REQUESTED_ADDRESS, OVERLOAD, MESSAGE_TYPE, SERVER = 1, 3, 50, 52, 53, 54
PARAMETERS, MESSAGE, MAX_MESSAGE, VENDOR_CLASS, TFTP_SERVER, BOOT_FILE = 55, 56, 57, 60, 66, 67
USER_CLASS, ARCHITECTURE, INTERFACE, MACHINE, CONFIG_FILE, PATH_PREFIX = 77, 93, 94, 97, 209, 210
IPXE = 175

ANY = IPv4Address("0.0.0.0")  # noqa: S104 - the address of a client that has none
EVERYBODY = IPv4Address("255.255.255.255")
BROADCAST: Final = b"\xff" * 6

_MAGIC = b"\x63\x82\x53\x63"
_BOOTP = struct.Struct("!BBBBIHH4s4s4s4s16s64s128s")
_MIN_BOOTP = 300  # bytes; relays drop what is shorter (RFC 1542, 2.1)
_BROADCAST_FLAG = 0x8000
_ETHERNET, _IP, _UDP = 14, 20, 8
_ETHERTYPE_IP = b"\x08\x00"
_UDP_PROTOCOL = 17
_FROM_SERVER = 2
_WANTED = bytes(
    [1, 3, 6, 12, 15, 43, 54, 60, 66, 67, 97, *range(128, 136), 150, 208, 209, 210, 211]
)


@attrs.frozen(kw_only=True)
class Reply:
    """What a DHCP server said.

    :param server: the option 54. :param next_server: the field siaddr.
    :param source, source_mac: who sent it.
    """

    type: int
    xid: int
    mac: bytes
    address: IPv4Address
    next_server: IPv4Address
    server: IPv4Address | None
    file: bytes
    options: Mapping[int, bytes]
    source: IPv4Address
    source_mac: bytes

    @property
    def names_boot_file(self) -> bool:
        """Whether it says what to boot."""
        return bool(self.options.get(BOOT_FILE) or self.file)

    @property
    def is_proxy(self) -> bool:
        """Whether its server is one for PXE clients (a proxyDHCP server names no address)."""
        return self.options.get(VENDOR_CLASS, b"").startswith(b"PXEClient")

    def ip_option(self, code: int) -> IPv4Address | None:
        """Return the (first) address that an option holds."""
        value = self.options.get(code, b"")
        return IPv4Address(value[:4]) if len(value) >= 4 else None


def identity(machine: uuid.UUID | None, *, ipxe: bool = False) -> list[tuple[int, bytes]]:
    """Return the options by which a PXE client on a PC with a BIOS tells what it is (RFC 4578).

    :param ipxe: say that iPXE runs already, by both of the marks that servers go by.
    """
    options = [
        (MAX_MESSAGE, struct.pack("!H", 1472)),
        (PARAMETERS, _WANTED),
        (VENDOR_CLASS, b"PXEClient:Arch:00000:UNDI:002001"),
        (ARCHITECTURE, b"\x00\x00"),
        (INTERFACE, b"\x01\x02\x01"),
        (MACHINE, b"\x00" + (machine or uuid.UUID(int=0)).bytes),
    ]
    if ipxe:
        options += [(USER_CLASS, b"iPXE"), (IPXE, b"\xeb\x03\x01\x15\x01")]
    return options


def message(
    xid: int,
    mac: bytes,
    options: Iterable[tuple[int, bytes]],
    *,
    seconds: int = 0,
    client: IPv4Address = ANY,
    broadcast: bool = True,
) -> bytes:
    """Return a client's message, BOOTP's header and options.

    :param seconds: since the client began. :param client: the address that it has.
    """
    fields = _BOOTP.pack(
        1,
        1,
        6,
        0,
        xid,
        min(seconds, 0xFFFF),
        _BROADCAST_FLAG if broadcast else 0,
        client.packed,
        ANY.packed,
        ANY.packed,
        ANY.packed,
        mac,
        b"",
        b"",
    )
    packed = b"".join(bytes([code, len(value)]) + value for code, value in options)
    return (fields + _MAGIC + packed + b"\xff").ljust(_MIN_BOOTP, b"\0")


def frame(
    payload: bytes,
    *,
    source_mac: bytes,
    source: IPv4Address = ANY,
    target_mac: bytes = BROADCAST,
    target: IPv4Address = EVERYBODY,
) -> bytes:
    """Return an Ethernet frame that carries ``payload`` from port 68 to port 67."""
    length = _UDP + len(payload)
    udp = struct.pack("!HHHH", 68, 67, length, 0) + payload
    pseudo = source.packed + target.packed + struct.pack("!BBH", 0, _UDP_PROTOCOL, length)
    udp = udp[:6] + struct.pack("!H", checksum(pseudo + udp) or 0xFFFF) + udp[8:]
    ip = struct.pack(
        "!BBHHHBBH4s4s",
        0x45,
        0,
        _IP + length,
        random.getrandbits(16),
        0,
        64,
        _UDP_PROTOCOL,
        0,
        source.packed,
        target.packed,
    )
    ip = ip[:10] + struct.pack("!H", checksum(ip)) + ip[12:]
    return target_mac + source_mac + _ETHERTYPE_IP + ip + udp


def checksum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071); 0 where ``data`` contains its own, right one."""
    padded = data + b"\0" * (len(data) & 1)
    total: int = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def parse(data: bytes, *, verify: bool) -> Reply:
    """Return the DHCP reply in an Ethernet frame.

    :param verify: check UDP's checksum. Not where the kernel says that it isn't filled in yet,
        as it is on virtual links.
    :raises Malformed: it is none, or a broken one.
    """
    ip, udp = _ip(data)
    bootp = _payload(ip, udp, verify=verify)
    if len(bootp) < _BOOTP.size + 4 or bootp[236:240] != _MAGIC:
        raise Malformed("no DHCP message")
    op, hardware, length, _hops, xid, *_rest = _BOOTP.unpack(bootp[: _BOOTP.size])
    if (op, hardware, length) != (_FROM_SERVER, 1, 6):
        raise Malformed("not to an Ethernet client")
    options, name = _all_options(bootp)
    kind = options.get(MESSAGE_TYPE, b"")
    if len(kind) != 1:
        raise Malformed("no message type")
    server = options.get(SERVER, b"")
    return Reply(
        type=kind[0],
        xid=xid,
        mac=bootp[28:34],
        address=IPv4Address(bootp[16:20]),
        next_server=IPv4Address(bootp[20:24]),
        server=IPv4Address(server) if len(server) == 4 else None,
        file=name,
        options=options,
        source=IPv4Address(ip[12:16]),
        source_mac=data[6:12],
    )


def _ip(data: bytes) -> tuple[bytes, bytes]:
    """Return the IP header of a frame, and what follows it."""
    if len(data) < _ETHERNET + _IP + _UDP or data[12:14] != _ETHERTYPE_IP:
        raise Malformed("no IP packet")
    header = (data[_ETHERNET] & 15) * 4
    total = int.from_bytes(data[16:18], "big")
    if data[_ETHERNET] >> 4 != 4 or header < _IP or not header + _UDP <= total:
        raise Malformed("bad IP header")
    if total > len(data) - _ETHERNET or data[_ETHERNET + 9] != _UDP_PROTOCOL:
        raise Malformed("truncated, or not UDP")
    packet = data[_ETHERNET : _ETHERNET + total]
    return packet[:header], packet[header:]


def _payload(ip: bytes, udp: bytes, *, verify: bool) -> bytes:
    length, wanted = struct.unpack("!HH", udp[4:8])
    if not _UDP <= length <= len(udp):
        raise Malformed("bad UDP length")
    udp = udp[:length]
    pseudo = ip[12:20] + struct.pack("!BBH", 0, _UDP_PROTOCOL, length)
    if verify and wanted and checksum(pseudo + udp):
        raise Malformed("bad UDP checksum")
    return udp[_UDP:]


def _all_options(bootp: bytes) -> tuple[dict[int, bytes], bytes]:
    """Return a message's options, and its field ``file`` where that holds a name.

    The fields ``file`` and ``sname`` may hold options too (RFC 2132, 9.3); option values that
    were split are put together in the order of RFC 3396, 7.
    """
    name, area = bootp[108:236], bootp[240:]
    options = parse_options(area)
    overload = options.get(OVERLOAD, b"\0")[:1]
    if overload in (b"\1", b"\3"):
        options = _merged(options, parse_options(name))
        name = b""
    if overload in (b"\2", b"\3"):
        options = _merged(options, parse_options(bootp[44:108]))
    return options, name.split(b"\0", 1)[0]


def _merged(first: dict[int, bytes], second: dict[int, bytes]) -> dict[int, bytes]:
    return {c: first.get(c, b"") + second.get(c, b"") for c in {**first, **second}}


def parse_options(data: bytes) -> dict[int, bytes]:
    """Return the options of one area by their codes.

    :raises Malformed: one overruns the area.
    """
    options: dict[int, bytes] = {}
    at = 0
    while at < len(data) and data[at] != 255:
        code = data[at]
        at += 1
        if code == 0:
            continue
        if at >= len(data) or at + 1 + data[at] > len(data):
            raise Malformed(f"option {code} overruns the message")
        value = data[at + 1 : at + 1 + data[at]]
        options[code] = options.get(code, b"") + value
        at += 1 + data[at]
    return options
