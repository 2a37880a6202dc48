"""What a template's identity texts may name: the clone's values, and who it is."""

from __future__ import annotations

from vmcloner_core.drivers import IdentityRequest
from vmcloner_core.placeholders import clone_values


def identity_values(request: IdentityRequest) -> dict[str, object]:
    """Return the values of a clone; its own can't replace those of its identity."""
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
        "host_key_public": request.host_key_public,
        "interfaces": [{"mac": card.mac, "address": card.address} for card in cards],
        "address": next((card.address for card in cards if card.address), ""),
        "gateway": identity.gateway or "",
        "nameservers": list(identity.nameservers),
    }
