"""A clone's identity: what distinguishes it from other clones. Each plan computes the same one."""

from __future__ import annotations

import hashlib
import uuid
from pathlib import Path

import attrs

from vmcloner_core.model.domain import check_mac


@attrs.frozen(kw_only=True)
class Interface:
    """Configuration of a card in the guest. ``address`` with prefix length; None for DHCP."""

    mac: str
    address: str | None = None


@attrs.frozen(kw_only=True)
class Identity:
    """A clone's identity, decided before any part of it exists. Each plan computes the same one.

    :param machine_id: 32 hexadecimal digits, systemd's ``/etc/machine-id``.
    :param generation: a new one each time that the clone is recreated.
    :param user: the account that ``authorized_keys`` authorize.
    """

    hostname: str
    machine_id: str
    generation: uuid.UUID
    uuid: uuid.UUID
    interfaces: tuple[Interface, ...] = ()
    gateway: str | None = None
    nameservers: tuple[str, ...] = ()
    user: str = "root"
    authorized_keys: tuple[str, ...] = ()

    @property
    def static_macs(self) -> frozenset[str]:
        """The MAC addresses of the cards with static addresses."""
        return frozenset(card.mac for card in self.interfaces if card.address is not None)

    @property
    def address(self) -> str | None:
        """The first static address, without prefix length; None with DHCP."""
        static = (card.address for card in self.interfaces if card.address is not None)
        return next((address.partition("/")[0] for address in static), None)


@attrs.frozen(kw_only=True)
class Seed:
    """How an identity reaches the guest: an image that it reads, kernel arguments."""

    image: Path | None = None
    cmdline: str = ""


_UUID_SPACE = uuid.UUID("5c7c0f3e-6f0a-5a52-9d7e-0d6a1b8a7f11")


def clone_uuid(host: str, fleet: str, index: int, template: str) -> uuid.UUID:
    """Return the UUID of a clone's domain, which depends only on the arguments."""
    return uuid.uuid5(_UUID_SPACE, f"{host}/{fleet}/{index}/{template}")


def clone_generation(clone: uuid.UUID, run: str) -> uuid.UUID:
    """Return the VM generation id: a different run creates a new machine of the same name."""
    return uuid.uuid5(clone, run)


def clone_mac(prefix: str, host: str, fleet: str, index: int, nic: int, attempt: int = 0) -> str:
    """Return a stable MAC address for a clone's card.

    24 bits collide at a few thousand clones, so callers that know the addresses in use increment
    ``attempt`` until they find a free one.

    :param prefix: the first three octets, ``52:54:00`` (QEMU) or ``00:16:3e`` (Xen).
    """
    digest = hashlib.sha256(f"{host}/{fleet}/{index}/{nic}/{attempt}".encode()).digest()
    return check_mac(f"{prefix}:{digest[0]:02x}:{digest[1]:02x}:{digest[2]:02x}")
