"""Read xenstore: the id of a domain that libxl is still making.

Protocol: Xen, docs/misc/xenstore.txt and xen/include/public/io/xs_wire.h; paths:
docs/misc/xenstore-paths.pandoc. libvirt knows an id only once the domain is made.
"""

from __future__ import annotations

import contextlib
import os
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import attrs

DEVICE = Path("/dev/xen/xenbus")
POLL = 0.2
_HEADER = struct.Struct("<IIII")  # type, request id, transaction id, length
_DIRECTORY, _READ, _ERROR = 1, 2, 16
_MAX_PAYLOAD = 4096


class Xenstore:
    """Reads xenstore, where the host has one and permits it. Thread-safe."""

    def __init__(self, device: Path = DEVICE) -> None:
        self.device = device

    def domains(self) -> dict[str, int]:
        """Return the ids of all domains by name; empty if xenstore can't be read."""
        try:
            descriptor = os.open(self.device, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return {}
        try:
            listed = _ask(descriptor, _DIRECTORY, "/local/domain") or b""
            ids = [int(word) for word in listed.split(b"\0") if word.isdigit()]
            names = {domid: _ask(descriptor, _READ, f"/local/domain/{domid}/name") for domid in ids}
        except OSError:
            return {}
        finally:
            os.close(descriptor)
        return {name.decode(errors="replace"): domid for domid, name in names.items() if name}

    @contextlib.contextmanager
    def watch(self, name: str) -> Iterator[Seen]:
        """Watch for a new domain of that name."""
        seen = Seen(before=self.domains().get(name))
        ended = threading.Event()

        def look() -> None:
            while seen.domid is None and not ended.wait(POLL):
                domid = self.domains().get(name)
                if domid != seen.before:
                    seen.domid = domid

        thread = threading.Thread(target=look, name="xenstore", daemon=True)
        if self.device.exists():
            thread.start()
        try:
            yield seen
        finally:
            ended.set()
            if thread.ident is not None:
                thread.join(10)


@attrs.define
class Seen:
    """The id of a domain: before, and the new one."""

    before: int | None = None
    domid: int | None = None


def _ask(descriptor: int, request: int, path: str) -> bytes | None:
    """Return xenstore's answer, None if the path doesn't exist."""
    payload = path.encode() + b"\0"
    os.write(descriptor, _HEADER.pack(request, 0, 0, len(payload)) + payload)
    kind, _, _, length = _HEADER.unpack(_exactly(descriptor, _HEADER.size))
    if length > _MAX_PAYLOAD:
        raise OSError(f"an answer of {length} bytes from xenstore")
    answer = _exactly(descriptor, length)
    return None if kind == _ERROR else answer


def _exactly(descriptor: int, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = os.read(descriptor, size - len(data))
        if not part:
            raise OSError("xenstore closed the connection")
        data += part
    return data
