"""Which bridge a clone's network card is on."""

from __future__ import annotations

from vmcloner_core.drivers import BootRequest
from vmcloner_core.errors import InvalidRequest, NotFound
from vmcloner_core.model import Template


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


def bridge_of(request: BootRequest) -> str:
    """Return the name of the bridge that a clone's first card is on.

    :raises InvalidRequest: it is on none, or its network has none of this host's.
    :raises NotFound: the hypervisor has no such network.
    """
    card = request.nics[0].spec
    if card.source is None:
        raise InvalidRequest("a card of user mode is on no bridge")
    if card.kind == "bridge":
        return card.source
    networks = {n.name: n for n in request.networks or () if n.kind == "network"}
    if card.source not in networks:
        raise NotFound(f"there is no network {card.source!r}", hint="virsh net-list --all")
    bridge = networks[card.source].bridge
    if bridge is None:
        raise InvalidRequest(f"network {card.source} has no bridge on this host")
    return bridge
