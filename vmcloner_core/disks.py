"""A template's disks, as requests to a pool."""

from __future__ import annotations

import struct
import uuid
from collections.abc import Collection

from vmcloner_core.errors import InvalidRequest
from vmcloner_core.model import CloneMode, CloneRequest, Labels, Origin, Template
from vmcloner_core.names import volume_name

_UUID_SPACE = uuid.UUID("0b0e5a0c-7d0f-5c5f-9f39-60d1f4d2a9b7")
_PAGE = 4096
_MIN_PAGES = 10  # what mkswap(8) and the kernel ask for
_SWAP_LABEL = b"swap"


def disk_requests(
    template: Template,
    labels: Labels,
    origin: Origin | None,
    mode: CloneMode,
    disks: Collection[int] | None = None,
    size: int | None = None,
) -> tuple[CloneRequest, ...]:
    """Return the requests for a clone's volumes, in the disks' order.

    :param origin: the template's image; without one, the first disk is left out.
    :param disks: the numbers of those to make, None for all.
    :param size: bytes of the first, None for the template's.
    """
    requests = []
    if origin is not None:
        requests.append(
            CloneRequest(labels=labels, origin=origin, mode=mode, size=size or template.disk_size)
        )
    for number, spec in enumerate(template.blanks, start=1):
        swap = spec.content == "swap"
        head = swap_header(spec.size, volume_name(labels.clone, number)) if swap else b""
        requests.append(
            CloneRequest(labels=labels, disk=number, mode=mode, size=spec.size, head=head)
        )
    return tuple(r for r in requests if disks is None or r.disk in disks)


def disk_numbers(template: Template) -> range:
    """Return the numbers of a template's disks."""
    return range(1 + len(template.blanks))


def swap_header(size: int, name: str) -> bytes:
    """Return the first page of a swap area, as mkswap(8) writes it.

    ``union swap_header`` in the kernel's include/linux/swap.h, version 1, for pages of 4 KiB.

    :param size: bytes of the area. :param name: what its UUID is derived from.
    :raises InvalidRequest: too small for a swap area.
    """
    pages = size // _PAGE
    if pages < _MIN_PAGES:
        raise InvalidRequest(
            f"{name}: {size} bytes are too few for swap", hint=f"at least {_MIN_PAGES * _PAGE}"
        )
    last_page = min(pages - 1, 2**32 - 1)
    identity = uuid.uuid5(_UUID_SPACE, name).bytes
    info = struct.pack("=1024xIII16s16s", 1, last_page, 0, identity, _SWAP_LABEL)
    return info.ljust(_PAGE - 10, b"\0") + b"SWAPSPACE2"
