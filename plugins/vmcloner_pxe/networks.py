"""Which bridge a clone's network card is on."""

from __future__ import annotations

from lxml import etree

from vmcloner_core.errors import HostCommandError, InvalidRequest
from vmcloner_core.model import NicSpec, Template
from vmcloner_core.process import CommandRunner

_URIS = {"kvm": "qemu:///system", "xen": "xen:///system"}
_TIMEOUT = 30.0


def check_cards(template: Template, provider: str) -> None:
    """Check that a template's first card is one that can be booted from.

    :raises InvalidRequest: it has none, or one of user mode.
    """
    first = template.nics[0] if template.nics else None
    if first is None or first.source is None:
        raise InvalidRequest(
            f"template {template.name}: boot = {provider!r} needs a network card on a bridge or in"
            " a network",
            hint='[[nics]] kind = "bridge" source = "br0"',
        )


def bridge_of(card: NicSpec, hypervisor: str, runner: CommandRunner) -> str:
    """Return the name of the bridge that a card is on.

    :raises InvalidRequest: it is on none, or its network has none of this host's.
    :raises HostCommandError: libvirt doesn't know the network.
    """
    if card.source is None:
        raise InvalidRequest("a card of user mode is on no bridge")
    if card.kind == "bridge":
        return card.source
    argv = ["virsh", "--readonly", "--connect", _URIS.get(hypervisor, _URIS["kvm"])]
    described = runner.run([*argv, "net-dumpxml", "--", card.source], timeout=_TIMEOUT).stdout
    parser = etree.XMLParser(resolve_entities=False, no_network=True)
    try:
        bridge = etree.fromstring(described, parser).find("bridge")
    except etree.XMLSyntaxError as error:
        raise HostCommandError(f"network {card.source}: libvirt's answer is no XML") from error
    name = None if bridge is None else bridge.get("name")
    if not name:
        raise InvalidRequest(f"network {card.source} has no bridge on this host")
    return str(name)
