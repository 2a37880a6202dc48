"""A TFTP client that is quick, and believes nothing that a server says of itself.

RFC 1350 (TFTP), 2347-2349 (options, blksize, tsize), 7440 (windowsize). It reads in binary mode
only, and never names a local file: bytes go to a function.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import time
from collections.abc import Callable, Iterator

import attrs

from vmcloner_pxe.errors import NetbootError, Refused, shown

PORT = 69
BLOCK_SIZE = 1428
"""Bytes of a block that fill an Ethernet frame with room for a tunnel's headers."""
WINDOW = 16
TIMEOUT = 2.0
RETRIES = 5
BACKOFF = 1.5
MAX_NAME = 400
"""Bytes of a remote file's name: RFC 2347 limits a request to 512."""

_RRQ, _DATA, _ACK, _ERROR, _OACK = 1, 3, 4, 5, 6
_DATA_HEAD, _ACK_HEAD = b"\0\3", b"\0\4"
_UNDEFINED, _NOT_FOUND, _ACCESS, _DISK_FULL, _BAD_OPTIONS = 0, 1, 2, 3, 8
_DEFAULT_BLOCK = 512
_IP_RECVERR = 11  # linux/in.h
_RECEIVE_BUFFER = 1024**2
_MAX_PACKET = 65536


@attrs.frozen(kw_only=True)
class Patience:
    """How long a silent server is waited for: seconds, then ``backoff`` times as long, …"""

    timeout: float = TIMEOUT
    retries: int = RETRIES
    backoff: float = BACKOFF

    def waits(self) -> Iterator[float]:
        """Yield the seconds of each wait, the first and those after each retry."""
        for number in range(self.retries + 1):
            yield self.timeout * self.backoff**number


class Download:
    """One file of a TFTP server, from the request on. A context manager; not thread-safe.

    :param server: an IP address. :param max_size: bytes; a larger file is refused.
    :param deadline: for the whole of it, as ``time.monotonic()`` counts.

    After :meth:`open`, ``size`` is what the server says the file has, None where it doesn't say.
    Left without :meth:`read`, the server is told that the file isn't wanted after all.
    """

    def __init__(
        self,
        server: str,
        name: str,
        *,
        max_size: int,
        deadline: float,
        port: int = PORT,
        block_size: int = BLOCK_SIZE,
        window: int = WINDOW,
        patience: Patience | None = None,
    ) -> None:
        self.size: int | None = None
        self._what = f"tftp://{server}/{shown(name)}"
        self._server, self._port = server, port
        self._max_size, self._deadline = max_size, deadline
        self._asked = {b"blksize": block_size, b"tsize": 0, b"windowsize": window}
        self._request = self._make_request(name)
        self._patience = patience or Patience()
        self._block_size, self._window = _DEFAULT_BLOCK, 1
        self._first: bytes | None = None  # the first block, of a server without options
        self._received = 0  # blocks, in order; the wire has this modulo 65536
        self._total = 0  # bytes
        self._unacknowledged = 0  # blocks of the window so far
        self._complained = -1  # the block after which something else was said to have come
        self._waits, self._asked_again = self._patience.waits(), False
        self._done = False
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        # A closed port answers by ICMP; an unconnected socket hears of that only on request.
        self._socket.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)

    def __enter__(self) -> Download:
        return self

    def __exit__(self, *_error: object) -> None:
        if not self._done:
            self._complain(_UNDEFINED, "not wanted")
        self._socket.close()

    def _make_request(self, name: str) -> bytes:
        encoded = name.encode(errors="surrogatepass")
        if not name.isprintable() or not 0 < len(encoded) <= MAX_NAME:
            raise NetbootError(f"{self._what}: no file's name that TFTP can ask for")
        options = b"".join(b"%s\0%d\0" % item for item in self._asked.items())
        return struct.pack("!H", _RRQ) + encoded + b"\0octet\0" + options

    # --- opening ---

    def open(self) -> None:
        """Ask for the file.

        :raises Refused: the server doesn't have it, or doesn't give it.
        :raises NetbootError: it doesn't answer, or not as the protocol says.
        """
        for wait in self._patience.waits():
            with self._translated():
                self._socket.sendto(self._request, (self._server, self._port))
            answer = self._first_answer(wait)
            if answer is not None:
                self._begin(answer)
                return
        raise NetbootError(f"{self._what}: timeout: the server doesn't answer")

    def _first_answer(self, wait: float) -> bytes | None:
        until = time.monotonic() + wait
        while (left := self._left(until)) > 0:
            self._socket.settimeout(left)
            try:
                with self._translated():
                    answer, (address, port) = self._socket.recvfrom(_MAX_PACKET)
            except TimeoutError:
                return None
            if address == self._server and len(answer) >= 4:
                # From here on the kernel drops what others send.
                with self._translated():
                    self._socket.connect((address, port))
                return answer
        return None

    def _begin(self, answer: bytes) -> None:
        code, number = struct.unpack("!HH", answer[:4])
        if code == _OACK:
            self._accept_options(answer[2:])
        elif code == _DATA and number == 1:
            self._first = answer  # RFC 2347: a server without options just begins
        else:
            self._fail_by(answer)

    def _accept_options(self, text: bytes) -> None:
        fields = text.split(b"\0")
        pairs = dict(zip([f.lower() for f in fields[:-1:2]], fields[1::2], strict=False))
        if len(fields) % 2 == 0 or fields[-1]:
            self._refuse_option("a broken list of options")
        for name, value in pairs.items():
            number = int(value) if value.isdigit() and len(value) < 20 else -1
            if name not in self._asked or number < 0:
                self._refuse_option(f"option {name!r} = {value[:40]!r}, which wasn't asked for")
            if name != b"tsize" and not 1 <= number <= self._asked[name]:
                self._refuse_option(f"{name.decode()} {number}, more than was asked for")
            if name == b"tsize":
                self.size = number
            elif name == b"blksize":
                self._block_size = number
            else:
                self._window = number
        if self._block_size < 8:  # RFC 2348
            self._refuse_option(f"blksize {self._block_size}")
        self._check_size(self.size or 0)

    def _refuse_option(self, reason: str) -> None:
        self._complain(_BAD_OPTIONS, "option refused")
        raise NetbootError(f"{self._what}: the server answers with {shown(reason)}")

    def _check_size(self, size: int) -> None:
        if size > self._max_size:
            self._complain(_DISK_FULL, "too large")
            raise NetbootError(
                f"{self._what}: larger than {self._max_size} bytes", hint="raise --max-size"
            )

    # --- reading ---

    def read(self, write: Callable[[memoryview], object]) -> int:
        """Hand the file's bytes to ``write``, in order; return how many they are.

        Each piece is valid until ``write`` returns.

        :raises NetbootError: the server stops, or sends more or less than it said.
        """
        ended = self._begun(write)
        self._acknowledge()
        self._be_patient(next(self._waits))
        packet = bytearray(self._block_size + 5)  # one more shows a block too long
        while not ended:
            self._left(self._deadline)  # a server that keeps sending is never waited for
            length = self._in_order(packet, write)
            ended = self._out_of_line(memoryview(packet)[:length], write)
        self._done = True
        if self.size is not None and self._total != self.size:
            raise NetbootError(f"{self._what}: truncated: {self._total} of {self.size} bytes")
        return self._total

    def _begun(self, write: Callable[[memoryview], object]) -> bool:
        """Take the block that a server without options began with; tell if it was the last."""
        if self._first is None:
            return False
        block = memoryview(self._first)[4:]
        self._count(len(block))
        write(block)
        return len(block) < self._block_size

    def _in_order(self, packet: bytearray, write: Callable[[memoryview], object]) -> int:
        """Take full blocks while they come in order; return the length of what else came.

        That is 0 where nothing came in time. A server without windows sends nothing until it has
        our ACK, so as little as can be is done before that: the rest is done while it works.
        """
        receive, send = self._socket.recv_into, self._socket.send
        size = self._block_size
        block = memoryview(packet)[4 : 4 + size]
        most = self._max_size - size
        while True:
            number = (self._received + 1 & 0xFFFF).to_bytes(2)
            expected, answer = _DATA_HEAD + number, _ACK_HEAD + number
            due = self._unacknowledged + 1 == self._window and self._total <= most
            try:
                length = receive(packet)
            except BlockingIOError:  # what SO_RCVTIMEO gives
                self._ask_again()
                return 0
            except OSError as error:
                raise NetbootError(f"{self._what}: {error.strerror}") from error
            if length != size + 4 or packet[:4] != expected:
                return length
            if due:
                try:  # noqa: SIM105 - it costs nothing, and suppress() does
                    send(answer)
                except OSError:  # as in _acknowledge()
                    pass
            self._count(size)
            self._unacknowledged = 0 if due else self._unacknowledged + 1
            write(block)
            if self._asked_again:
                self._waits, self._asked_again = self._patience.waits(), False
                self._be_patient(next(self._waits))
            self._left(self._deadline)

    def _out_of_line(self, packet: memoryview, write: Callable[[memoryview], object]) -> bool:
        """Take what isn't a full block in order; tell whether it was the file's last block."""
        if len(packet) < 4:
            return False
        kind, number = struct.unpack("!HH", packet[:4])
        if kind != _DATA:
            if kind != _OACK or self._received:  # it didn't hear our first ACK
                self._fail_by(bytes(packet))
            self._acknowledge()
        elif number == (self._received + 1) & 0xFFFF:
            self._count(len(packet) - 4)
            self._acknowledge()
            write(packet[4:])
            return True
        elif self._complained != self._received:
            # Lost or repeated: say once where we are, and let the rest of the window pass.
            self._complained = self._received
            self._acknowledge()
        return False

    def _ask_again(self) -> None:
        """Repeat our last ACK to a silent server.

        :raises NetbootError: that was done often enough.
        """
        wait = next(self._waits, None)
        if wait is None:
            raise NetbootError(
                f"{self._what}: timeout: the server fell silent after block {self._received}"
            )
        self._be_patient(wait)
        self._asked_again = True
        self._acknowledge()

    def _be_patient(self, seconds: float) -> None:
        # The kernel's own time limit: half the system calls of settimeout()'s poll and receive.
        seconds = max(0.001, min(seconds, self._left(self._deadline)))
        self._socket.setblocking(True)
        whole, rest = divmod(seconds, 1)
        self._socket.setsockopt(
            socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", int(whole), int(rest * 1e6))
        )

    def _count(self, length: int) -> None:
        """Count a block in.

        :raises NetbootError: it is too long, or more than may come.
        """
        if length > self._block_size:
            self._complain(_BAD_OPTIONS, "block too long")
            raise NetbootError(f"{self._what}: a block is longer than {self._block_size} bytes")
        self._received += 1
        self._total += length
        self._check_size(self._total)

    # --- speaking ---

    def _acknowledge(self) -> None:
        self._unacknowledged = 0
        # One that gets lost is repeated; a closed port shows at the next receive.
        with contextlib.suppress(OSError):
            self._socket.send(_ACK_HEAD + (self._received & 0xFFFF).to_bytes(2))

    def _complain(self, code: int, text: str) -> None:
        self._done = True
        with contextlib.suppress(OSError):  # not connected yet: nobody to tell
            self._socket.send(struct.pack("!HH", _ERROR, code) + text.encode() + b"\0")

    def _fail_by(self, answer: bytes) -> None:
        """Raise what an answer means that is neither data nor options."""
        self._done = True
        code, number = struct.unpack("!HH", answer[:4])
        if code != _ERROR:
            raise NetbootError(f"{self._what}: the server answers with a packet of kind {code}")
        said = answer[4:].split(b"\0", 1)[0].decode("utf-8", "replace")
        message = f"{self._what}: the server says: {shown(said) or 'no reason'} (error {number})"
        if number in (_UNDEFINED, _NOT_FOUND, _ACCESS):
            raise Refused(message)
        raise NetbootError(message)

    def _left(self, until: float) -> float:
        """Return the seconds until then, or until the deadline if that is earlier."""
        now = time.monotonic()
        if now >= self._deadline:
            raise NetbootError(f"{self._what}: timeout: not fetched in time")
        return min(until, self._deadline) - now

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except TimeoutError:
            raise
        except OSError as error:
            reason = error.strerror
            if error.errno == errno.ECONNREFUSED:
                reason = "no TFTP server listens there"
            raise NetbootError(f"{self._what}: {reason}") from error
