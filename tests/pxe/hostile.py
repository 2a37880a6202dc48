"""Servers that misbehave, each in the way that a file's name or a MAC address asks for.

    hostile.py tftp ADDRESS FOLDER LOG    serves FOLDER, and MODES' names as it shouldn't
    hostile.py http ADDRESS    redirects /to?URL to the URL
    hostile.py dhcp ADDRESS    NAKs 52:54:06; offers 52:54:08 an address, but no boot file

What clients complain about by ERROR goes to LOG, one JSON object a line.
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

from vmcloner_pxe import packet

TIB = 1024**4


class Session:
    """One client's request, answered from a port of its own."""

    def __init__(self, address: str, client: tuple[str, int], request: bytes, log: Path) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind((address, 0))
        self.socket.connect(client)
        self.socket.settimeout(3)
        self.client = client[0]
        fields = request[2:].split(b"\0")
        self.name = fields[0].decode()
        self.options = {
            k.decode().lower(): int(v) for k, v in zip(fields[2:-1:2], fields[3::2], strict=False)
        }
        self.log = log

    def options_accepted(self, **options: int) -> bool:
        self.socket.send(
            b"\0\6" + b"".join(b"%s\0%d\0" % (k.encode(), v) for k, v in options.items())
        )
        return self.acknowledged(0)

    def acknowledged(self, block: int) -> bool:
        while True:
            try:
                answer = self.socket.recv(600)
            except OSError:
                return False
            code, number = struct.unpack("!HH", answer[:4])
            if code == 5:
                with self.log.open("a") as stream:
                    stream.write(json.dumps({"name": self.name, "error": number}) + "\n")
                return False
            if code == 4 and number == block & 0xFFFF:
                return True

    def send(self, blocks: Iterator[bytes]) -> None:
        for number, block in enumerate(blocks, 1):
            self.socket.send(struct.pack("!HH", 3, number & 0xFFFF) + block)
            if not self.acknowledged(number):
                return

    def fail(self, code: int, text: str) -> None:
        self.socket.send(struct.pack("!HH", 5, code) + text.encode() + b"\0")


def blocks(content: bytes, size: int) -> Iterator[bytes]:
    for at in range(0, len(content) + 1, size):
        yield content[at : at + size]


def kernel(size: int) -> bytes:
    content = bytearray(size)
    content[0x202:0x206] = b"HdrS"
    return bytes(content)


def endless() -> Iterator[bytes]:
    yield kernel(1428)
    while True:
        yield bytes(1428)


def truncated(s: Session) -> None:
    if s.options_accepted(tsize=100_000, blksize=1428):
        s.send(blocks(kernel(50_000), 1428))


def longer(s: Session) -> None:
    if s.options_accepted(tsize=50_000, blksize=1428):
        s.send(blocks(kernel(100_000), 1428))


def without_options(s: Session) -> None:
    s.send(blocks(kernel(100_000), 512))


def stalled(s: Session) -> None:
    if s.options_accepted(tsize=100_000, blksize=1428):
        for number in (1, 2, 3):
            s.socket.send(struct.pack("!HH", 3, number) + kernel(1428))
            s.acknowledged(number)
        s.acknowledged(-1)


def wrong_blocks(s: Session) -> None:
    """Send for ever what wasn't asked for, so that the client is never kept waiting."""
    if s.options_accepted(tsize=100_000, blksize=1428):
        with contextlib.suppress(ConnectionError):  # the client has given up
            while True:
                s.socket.send(struct.pack("!HH", 3, 99) + bytes(10))
                time.sleep(0.01)


def long_block(s: Session) -> None:
    if s.options_accepted(blksize=1428):
        s.socket.send(struct.pack("!HH", 3, 1) + bytes(1500))
        s.acknowledged(1)


def for_its_owner(s: Session) -> None:
    """Serve only a client that has an address of the pool, as servers that check it do."""
    if s.client == "10.77.0.9":
        s.fail(2, "not from this address")
    else:
        s.send(blocks(kernel(2000), 512))


def every_other(s: Session) -> None:
    """Send windows of which the second block is lost the first time."""
    if not s.options_accepted(tsize=14280, blksize=1428, windowsize=4):
        return
    content, lost = list(blocks(kernel(14280), 1428)), False
    at = 0
    while at < len(content):
        for number in range(at + 1, min(at + 4, len(content)) + 1):
            if number == 2 and not lost:
                lost = True
                continue
            s.socket.send(struct.pack("!HH", 3, number) + content[number - 1])
        answer = s.socket.recv(100)
        at = struct.unpack("!HH", answer[:4])[1]


MODES: dict[str, Callable[[Session], object]] = {
    "stall": stalled,
    "truncated": truncated,
    "longer": longer,
    "huge": lambda s: s.options_accepted(tsize=TIB),
    "endless": lambda s: s.options_accepted(blksize=1428) and s.send(endless()),
    "unasked": lambda s: s.options_accepted(tsize=1000, rollover=1),
    "larger": lambda s: s.options_accepted(blksize=65464),
    "window": lambda s: s.options_accepted(windowsize=65),
    "negative": lambda s: (s.socket.send(b"\0\6tsize\0-5\0"), s.acknowledged(0)),
    "garbage": lambda s: (s.socket.send(b"\0\6tsize"), s.acknowledged(0)),
    "kind": lambda s: s.socket.send(b"\0\x63\0\0"),
    "silent": lambda _s: None,
    "plain": without_options,
    "longblock": long_block,
    "wrongblocks": wrong_blocks,
    "owner": for_its_owner,
    "lossy": every_other,
    "escape": lambda s: s.fail(0, "\x1b[2J\r\nfake: line"),
}


def serve_tftp(address: str, folder: Path, log: Path) -> None:
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind((address, 69))
    while True:
        request, client = server.recvfrom(1000)
        session = Session(address, client, request, log)
        threading.Thread(target=answer, args=(session, folder), daemon=True).start()


def answer(session: Session, folder: Path) -> None:
    if session.name in MODES:
        MODES[session.name](session)
        return
    path = folder / session.name
    if ".." in session.name or not path.is_file():
        session.fail(1, "not found")
        return
    content = path.read_bytes()
    if session.options_accepted(tsize=len(content), blksize=1428):
        session.send(blocks(content, 1428))


def serve_dhcp(address: str) -> None:
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
    server.bind(("", 67))
    own = socket.inet_aton(address)
    while True:
        request = server.recv(2000)
        mac = request[28:34]
        asked = packet.parse_options(request[240:])[packet.MESSAGE_TYPE][0]
        if mac[:3] == b"\x52\x54\x06":
            kind, file = packet.OFFER if asked == packet.DISCOVER else packet.NAK, b"pxelinux.0"
        elif mac[:3] == b"\x52\x54\x08" and asked == packet.DISCOVER:
            kind, file = packet.OFFER, b""
        else:
            continue
        options = bytes([53, 1, kind, 54, 4]) + own + b"\x38\x04busy\xff"
        header = b"\2" + request[1:16] + bytes([10, 77, 0, 60]) + own + bytes(4)
        reply = (
            header
            + request[28:44]
            + bytes(64)
            + file.ljust(128, b"\0")
            + request[236:240]
            + options
        )
        server.sendto(reply.ljust(300, b"\0"), ("255.255.255.255", 68))


class Redirecting(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(302)
        self.send_header("Location", self.path.partition("?")[2])
        self.end_headers()


if __name__ == "__main__":
    if sys.argv[1] == "tftp":
        serve_tftp(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
    elif sys.argv[1] == "http":
        HTTPServer((sys.argv[2], 80), Redirecting).serve_forever()
    else:
        serve_dhcp(sys.argv[2])
