"""The way to guests with user-mode cards: a port of the loopback network, by QEMU's hostfwd_add.

libvirt's XML has no such port for QEMU's own user-mode network. The domain's metadata says which
card's guest port is forwarded; QEMU is told when somebody asks for the guest's address, so it does
not matter who started the guest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import attrs
from lxml import etree

from vmcloner_core.errors import HostCommandError
from vmcloner_core.model import FORWARDED_PORT, Nic, forwarded_address

NAMESPACE = "https://vmcloner.github.io/ns/forward/1"
_TAG = f"{{{NAMESPACE}}}card"


@attrs.frozen(kw_only=True)
class Forward:
    """A card whose guest port is forwarded.

    :param run: of the domain: another at each start. :param netdev: QEMU's id of the card's
        network. :param port: of the guest.
    """

    run: str
    mac: str
    netdev: str
    port: int

    @property
    def address(self) -> str:
        """Where it listens, on :data:`FORWARDED_PORT`."""
        return forwarded_address(self.mac)


def describe(root: Any, nics: Sequence[Nic]) -> None:
    """Write into a domain's metadata which card's port is forwarded: of the first that asks."""
    metadata = root.find("metadata")
    for nic in nics:
        if nic.spec.forward is not None:
            values = {"mac": nic.mac, "port": str(nic.spec.forward)}
            etree.SubElement(metadata, _TAG, values, nsmap={"forward": NAMESPACE})
            return


def described(root: Any) -> Iterator[Forward]:
    """Yield what is to be forwarded to a running domain, from its XML."""
    element = root.find(f"metadata/{_TAG}")
    port = "" if element is None else element.get("port", "")
    if not (port.isascii() and port.isdecimal() and 0 < int(port[:6]) < 65536):
        return
    for card in root.iterfind("devices/interface[@type='user']"):
        mac, alias = card.find("mac"), card.find("alias")
        if mac is not None and alias is not None and mac.get("address") == element.get("mac"):
            yield Forward(
                run=f"{root.findtext('uuid')} {root.get('id')}",
                mac=mac.get("address"),
                netdev=f"host{alias.get('name')}",
                port=int(port),
            )


def ensure(connection: Any, name: str, forward: Forward) -> None:
    """Have QEMU forward the port, unless it does already. Idempotent.

    :raises HostCommandError: it can't, for example because the port is in use.
    """
    domain = connection.lookupByName(name)
    if f" {forward.address} " in _monitor(domain, "info usernet"):
        return
    rule = f"tcp:{forward.address}:{FORWARDED_PORT}-:{forward.port}"
    answer = _monitor(domain, f"hostfwd_add {forward.netdev} {rule}").strip()
    if answer and f" {forward.address} " not in _monitor(domain, "info usernet"):
        raise HostCommandError(
            f"{name}: QEMU can't forward {forward.address}:{FORWARDED_PORT}: {answer[:200]}",
            hint="is the port in use? ss -ltn",
        )


def _monitor(domain: Any, command: str) -> str:
    import libvirt_qemu

    flag = libvirt_qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP
    return str(libvirt_qemu.qemuMonitorCommand(domain, command, flag))
