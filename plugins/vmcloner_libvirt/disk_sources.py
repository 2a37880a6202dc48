"""Where domains' disks are: the element ``source`` of their definitions, as volumes give them."""

from __future__ import annotations

from typing import Any

from lxml import etree

from vmcloner_core.errors import InvalidRequest
from vmcloner_core.model import NetworkSource, Volume
from vmcloner_libvirt import secrets


def source_of(volume: Volume) -> Any:
    """Return the element for a volume.

    :raises InvalidRequest: libvirt can't name it.
    """
    if volume.network is not None:
        if volume.network.name.count("/") > 1:  # QEMU has an option for it, libvirt 9 doesn't
            raise InvalidRequest(
                f"pool {volume.pool}: libvirt reaches no images in a namespace of a Ceph pool",
                hint="use a pool of its own, without namespace",
            )
        return _of_network(volume.network)
    return etree.Element("source", {"dev" if volume.kind == "block" else "file": str(volume.path)})


def _of_network(given: NetworkSource) -> Any:
    source = etree.Element("source", protocol=given.protocol, name=given.name)
    for host in given.hosts:
        address, port = _host(host)
        etree.SubElement(source, "host", name=address, port=port)
    if given.config is not None:
        etree.SubElement(source, "config", file=str(given.config))
    auth = etree.SubElement(source, "auth", username=given.user)
    known = {"uuid": given.secret} if given.secret else {"usage": secrets.usage(given)}
    etree.SubElement(auth, "secret", type="ceph", **known)
    return source


def _host(text: str) -> tuple[str, str]:
    """Return a monitor's address and port; an IPv6 address is in brackets."""
    address, found, port = text.rpartition(":")
    if not found or "]" in port:
        address, port = text, "6789"
    return address.strip("[]"), port
