"""PXELINUX's own part: where configurations lie, and what SYSAPPEND adds."""

import uuid
from ipaddress import IPv4Address

from vmcloner_pxe.pxelinux import search_names, unknown_bits


def test_searches_in_the_order_of_the_manual():
    machine = uuid.UUID("B8945908-D6A6-41A9-611D-74A6AB80B83D")
    names = search_names("AA:00:86:E2:35:72", IPv4Address("134.226.53.114"), machine)
    assert names[0] == "pxelinux.cfg/b8945908-d6a6-41a9-611d-74a6ab80b83d"
    assert names[1] == "pxelinux.cfg/01-aa-00-86-e2-35-72"
    assert names[2:10] == tuple(f"pxelinux.cfg/{'86E23572'[:n]}" for n in range(8, 0, -1))
    assert names[10:] == ("pxelinux.cfg/default",)


def test_bits_of_sysappend_that_nothing_is_appended_for():
    assert (unknown_bits(7), unknown_bits(0x3FFFF)) == (0, 0x3FFF8)
