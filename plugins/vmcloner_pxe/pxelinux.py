"""What PXELINUX adds to the configuration format: where configurations lie, and what it appends.

The manual: https://wiki.syslinux.org/wiki/index.php?title=PXELINUX.
"""

from __future__ import annotations

import uuid
from ipaddress import IPv4Address

IP, BOOTIF, SYSUUID = 1, 2, 4
"""Bits of SYSAPPEND."""


def search_names(mac: str, address: IPv4Address, machine: uuid.UUID | None) -> tuple[str, ...]:
    """Return the names under which a machine's configuration may lie, the first that counts."""
    hexadecimal = f"{int(address):08X}"
    names = [str(machine)] if machine is not None else []
    names.append(f"01-{mac.lower().replace(':', '-')}")
    names += [hexadecimal[:length] for length in range(8, 0, -1)]
    return tuple(f"pxelinux.cfg/{name}" for name in [*names, "default"])


def unknown_bits(sysappend: int) -> int:
    """Return the bits of SYSAPPEND that nothing is appended for: the machine's DMI strings."""
    return sysappend & ~(IP | BOOTIF | SYSUUID)
