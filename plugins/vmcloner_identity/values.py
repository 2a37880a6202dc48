"""Placeholders for a template's identity texts: the clone's values and its identity."""

from __future__ import annotations

from vmcloner_core.drivers import IdentityRequest
from vmcloner_core.placeholders import clone_values


def identity_values(request: IdentityRequest) -> dict[str, object]:
    """Return the placeholder values of a clone; per-clone values never override its identity."""
    identity = request.identity
    cards = identity.interfaces
    return {
        **clone_values(request.labels, request.nics, request.values),
        "hostname": identity.hostname,
        "machine_id": identity.machine_id,
        "uuid": str(identity.uuid),
        "generation": str(identity.generation),
        "user": identity.user,
        "authorized_keys": list(identity.authorized_keys),
        "host_key": request.host_key,
        "host_key_public": request.host_key_public,
        "interfaces": [{"mac": card.mac, "address": card.address} for card in cards],
        "address": next((card.address for card in cards if card.address), ""),
        "gateway": identity.gateway or "",
        "nameservers": list(identity.nameservers),
    }
