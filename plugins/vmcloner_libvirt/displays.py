"""The screens of running guests: where to see them, and pictures of them."""

from __future__ import annotations

import contextlib
from typing import Any

from vmcloner_core.drivers import DisplayInterface
from vmcloner_core.errors import HostCommandError, WrongState
from vmcloner_libvirt import operations
from vmcloner_libvirt.binding import libvirt
from vmcloner_libvirt.connection import Connections
from vmcloner_libvirt.metadata import parse

MAX_PICTURE = 64 * 1024**2
"""Most bytes of a picture: the guest chooses the size of its screen."""
_CHUNK = 256 * 1024


class Displays(DisplayInterface):
    """The screens of one host's guests. Thread-safe."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    def address(self, name: str) -> str:
        """See :meth:`DisplayInterface.address`."""

        def look(connection: Any) -> str:
            root = parse(operations.running(connection, name).XMLDesc(0))
            for graphics in root.iterfind("devices/graphics"):
                kind, port = graphics.get("type"), graphics.get("port", "-1")
                if kind in ("vnc", "spice") and port.isdecimal():
                    return f"{kind}://{graphics.get('listen') or '127.0.0.1'}:{port}"
            raise _has_none(name)

        return self._connections.call(look, about=name)

    def picture(self, name: str) -> bytes:
        """See :meth:`DisplayInterface.picture`."""

        def take(connection: Any) -> bytes:
            domain = operations.running(connection, name)
            if parse(domain.XMLDesc(0)).find("devices/video") is None:
                raise _has_none(name)
            stream = connection.newStream()
            domain.screenshot(stream, 0)
            data = bytearray()
            try:
                while part := stream.recv(_CHUNK):
                    data += part
                    if len(data) > MAX_PICTURE:
                        raise HostCommandError(f"{name}: its screen has more than {MAX_PICTURE} B")
                stream.finish()
            except BaseException:
                with contextlib.suppress(libvirt().libvirtError):
                    stream.abort()
                raise
            return bytes(data)

        return self._connections.call(take, about=name)


def _has_none(name: str) -> WrongState:
    return WrongState(
        f"{name} has no screen",
        hint='set graphics = "vnc" in [domain] of its template, and create the clone again; or '
        f"vmcloner console {name}",
    )
