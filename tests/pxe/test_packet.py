"""DHCP messages, byte for byte and whatever comes."""

import contextlib
import struct
import uuid
from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmcloner_pxe import packet
from vmcloner_pxe.errors import Malformed

MAC = bytes.fromhex("525400000001")


def reply(
    options: bytes, *, file: bytes = b"", sname: bytes = b"", op: int = 2, checksum: bool = True
) -> bytes:
    """A server's frame, made by other means than the code under test."""
    bootp = struct.pack(
        "!BBBBIHH4s4s4s4s16s64s128s",
        *(op, 1, 6, 0, 7, 0, 0),
        *(bytes(4), bytes([10, 77, 0, 50]), bytes([10, 77, 0, 1]), bytes(4)),
        *(MAC, sname, file),
    )
    body = bootp + b"\x63\x82\x53\x63" + options
    udp = struct.pack("!HHHH", 67, 68, 8 + len(body), 0) + body
    source, target = bytes([10, 77, 0, 1]), b"\xff" * 4
    pseudo = source + target + struct.pack("!BBH", 0, 17, len(udp))
    if checksum:
        udp = udp[:6] + struct.pack("!H", packet.checksum(pseudo + udp)) + udp[8:]
    else:
        udp = udp[:6] + b"\xde\xad" + udp[8:]
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0) + source + target
    return b"\xff" * 6 + b"\x02" * 6 + b"\x08\x00" + ip + udp


def test_reads_an_offer():
    found = packet.parse(
        reply(b"\x35\x01\x02\x36\x04\x0a\x4d\x00\x01\x43\x03k\x00\x00\xff"), verify=True
    )
    assert (found.type, found.xid, found.mac) == (packet.OFFER, 7, MAC)
    assert found.address == IPv4Address("10.77.0.50")
    assert found.server == found.next_server == found.source == IPv4Address("10.77.0.1")
    assert found.options[packet.BOOT_FILE] == b"k\0\0"
    assert found.names_boot_file


def test_reads_options_in_all_fields_in_the_order_of_rfc_3396():
    found = packet.parse(
        reply(
            b"\x34\x01\x03\x35\x01\x02\x43\x02a/\xff",
            file=b"\x43\x02b/\xff",
            sname=b"\x43\x02c/\xff",
        ),
        verify=True,
    )
    assert found.options[packet.BOOT_FILE] == b"a/b/c/"
    assert found.file == b""


def test_takes_the_field_file_where_it_holds_a_name():
    assert packet.parse(reply(b"\x35\x01\x02\xff", file=b"pxe.0"), verify=True).file == b"pxe.0"


def test_believes_an_unfilled_checksum_only_where_the_kernel_says_so():
    frame = reply(b"\x35\x01\x02\xff", checksum=False)
    with pytest.raises(Malformed, match="checksum"):
        packet.parse(frame, verify=True)
    assert packet.parse(frame, verify=False).type == packet.OFFER


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        reply(b"\x35\x01\x02\xff")[:200],
        reply(b"\x35\x01\x02\xff", op=1),
        reply(b"\x35\x01"),
        reply(b"\x35\x7f\x02"),
        reply(b"\xff"),
    ],
)
def test_drops_what_is_broken(frame):
    with pytest.raises(Malformed):
        packet.parse(frame, verify=True)


@given(st.binary(max_size=600))
def test_bytes_of_any_kind_are_a_message_or_malformed(data):
    for frame in (data, reply(data), reply(b"\x34\x01\x03\x35\x01\x02", file=data[:128])):
        with contextlib.suppress(Malformed):
            packet.parse(frame, verify=False)


@given(st.binary(min_size=1, max_size=255), st.integers(0, 2**32 - 1))
def test_writes_messages_that_others_can_read(value, xid):
    body = packet.message(xid, MAC, [(packet.MESSAGE, value)])
    frame = packet.frame(body, source_mac=MAC)
    assert len(body) >= 300
    assert packet.parse_options(body[240:]) == {packet.MESSAGE: value}
    assert packet.checksum(frame[14:34]) == 0
    udp = frame[34:]
    pseudo = frame[26:34] + struct.pack("!BBH", 0, 17, len(udp))
    assert packet.checksum(pseudo + udp) == 0
    assert struct.unpack("!HH", body[8:12])[1] == 0x8000  # answers are asked for as broadcasts


def test_says_what_a_pxe_client_says():
    machine = uuid.UUID("5c7c0f3e-6f0a-5a52-9d7e-0d6a1b8a7f11")
    options = dict(packet.identity(machine))
    assert options[60] == b"PXEClient:Arch:00000:UNDI:002001"
    assert (options[93], options[94]) == (b"\0\0", b"\1\2\1")
    assert options[97] == b"\0" + machine.bytes
    assert {1, 3, 6, 43, 66, 67, 97, 128, 135, 150, 208, 209, 210, 211} <= set(options[55])
