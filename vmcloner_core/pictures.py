"""Pictures of guests' screens: PPM, as hypervisors give it, to PNG.

https://netpbm.sourceforge.net/doc/ppm.html and https://www.w3.org/TR/png-3/
"""

from __future__ import annotations

import re
import struct
import zlib

from vmcloner_core.errors import HostCommandError

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HEADER = re.compile(rb"P6\s+(?:#[^\n]*\n\s*)*(\d{1,5})\s+(\d{1,5})\s+255\s")


def png(picture: bytes) -> bytes:
    """Return a picture as PNG; one that is PNG already stays as it is.

    :raises HostCommandError: it is neither that nor a whole PPM with 8 bits for each colour.
    """
    if picture.startswith(_SIGNATURE):
        return picture
    header = _HEADER.match(picture)
    if header is None:
        raise HostCommandError("the hypervisor's picture is neither PPM nor PNG")
    width, height = int(header[1]), int(header[2])
    row, start = 3 * width, header.end()
    if not width or not height or len(picture) - start < row * height:
        raise HostCommandError(f"the hypervisor's picture of {width}x{height} is not whole")
    packed = zlib.compressobj()
    lines = []
    for at in range(start, start + row * height, row):
        lines.append(packed.compress(b"\0" + picture[at : at + row]))  # no filter
    data = b"".join([*lines, packed.flush()])
    size = struct.pack("!2I5B", width, height, 8, 2, 0, 0, 0)  # 8 bits, RGB
    return _SIGNATURE + _chunk(b"IHDR", size) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack("!I", len(data)) + kind + data + struct.pack("!I", zlib.crc32(kind + data))
