"""Our labels in a domain's ``<metadata>``, and other values in domain XML.

libvirt keeps one element per namespace there and ignores its content:
https://libvirt.org/formatdomain.html#general-metadata
"""

from __future__ import annotations

import re
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

from lxml import etree

from vmcloner_core.errors import InvalidRequest
from vmcloner_core.model import Labels, network_key
from vmcloner_libvirt.binding import libvirt
from vmcloner_libvirt.errors import is_code

NAMESPACE = "https://vmcloner.github.io/ns/labels/1"
_TAG = f"{{{NAMESPACE}}}clone"
_XEN_HOST = str(uuid.UUID(int=0))
RBD = Path("/dev/rbd")
"""Where Ceph's udev rules put the images that a kernel opens: what an image is known by."""
_UNSAFE = re.compile(r"[^\x20-\x24\x26-\x7e]")


def parse(text: str) -> Any:
    """Return the root element of untrusted XML: no entities, no network, bounded.

    :raises InvalidRequest: it isn't well-formed; names the line.
    """
    parser = etree.XMLParser(
        resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False
    )
    try:
        return etree.fromstring(text.encode(), parser)
    except (etree.XMLSyntaxError, UnicodeEncodeError) as error:
        raise InvalidRequest(f"not well-formed XML: {error}") from error


def add_labels(root: Any, labels: Labels) -> None:
    """Put a clone's labels into its domain's XML, replacing any there."""
    metadata = root.find("metadata")
    if metadata is None:
        metadata = etree.SubElement(root, "metadata")
    for element in metadata.findall(_TAG):
        metadata.remove(element)
    values = {key: _quote(value) for key, value in labels.to_mapping().items()}
    etree.SubElement(metadata, _TAG, values, nsmap={"vmcloner": NAMESPACE})


def labels_in(root: Any) -> Labels | None:
    """Return the labels in a domain's XML, or None where there are none.

    A domain whose name isn't its labels' clone is a copy or was renamed. Domain-0 has none,
    whatever its metadata.
    """
    element = root.find(f"metadata/{_TAG}")
    if element is None or root.get("id") == "0" or root.findtext("uuid") == _XEN_HOST:
        return None
    return _read(element)


def labels_of(domain: Any) -> Labels | None:
    """Return a domain's labels by a call that fetches nothing else.

    None where the domain isn't one of ours: without labels, or with those of another name.

    :raises libvirt.libvirtError: the domain or the connection is gone.
    """
    module = libvirt()
    if domain.ID() == 0 or domain.UUIDString() == _XEN_HOST:  # QEMU's ids begin at 1
        return None
    try:
        text = domain.metadata(module.VIR_DOMAIN_METADATA_ELEMENT, NAMESPACE)
    except module.libvirtError as error:
        if is_code(error, "VIR_ERR_NO_DOMAIN_METADATA"):
            return None
        raise
    labels = _read(parse(text))
    return labels if labels is not None and labels.clone == domain.name() else None


def _read(element: Any) -> Labels | None:
    try:
        values = {key: _unquote(value) for key, value in element.attrib.items()}
    except UnicodeDecodeError:
        return None  # vmcloner writes no such labels
    return Labels.from_mapping(values)


def _quote(value: str) -> str:
    """Return ``value`` quoted: XML can't contain control characters."""
    return _UNSAFE.sub(
        lambda match: "".join(f"%{b:02X}" for b in match[0].encode("utf-8", "surrogatepass")), value
    )


def _unquote(value: str) -> str:
    return unquote_to_bytes(value).decode("utf-8", "surrogatepass")


def macs(root: Any) -> tuple[str, ...]:
    """Return the MAC addresses in a domain's XML, in lower case."""
    return tuple(e.get("address", "").lower() for e in root.iterfind("devices/interface/mac"))


def networks_of(root: Any) -> tuple[str, ...]:
    """Return the network of each card with a MAC address, as :attr:`Network.key`."""
    cards = (e for e in root.iterfind("devices/interface") if e.find("mac") is not None)
    return tuple(_network_of(card.get("type", ""), card.find("source")) for card in cards)


def _network_of(kind: str, source: Any) -> str:
    if source is None or kind not in ("network", "bridge"):
        return ""
    name = source.get(kind)
    return network_key(kind, name) if name else ""


def nvram(root: Any) -> Path | None:
    """Return the file with a domain's firmware variables, None where its definition names none."""
    element = root.find("os/nvram")
    if element is None:
        return None
    source = element.find("source")
    path = source.get("file") if source is not None else (element.text or "").strip()
    return Path(path) if path else None


def path_of(source: Any) -> Path | None:
    """Return the file or device of an element ``source``, None if there is none (an empty CD)."""
    if source is None:
        return None
    if source.get("protocol") == "rbd":
        return RBD / str(source.get("name", ""))
    path = source.get("file") or source.get("dev")
    return Path(path) if path else None


def sources(root: Any) -> tuple[Path, ...]:
    """Return the files and devices behind all of a domain's drives, with CDs and seeds."""
    found = map(path_of, root.iterfind("devices/disk/source"))
    return tuple(path for path in found if path is not None)


def disks(root: Any) -> tuple[Path, ...]:
    """Return the files and devices of a domain's disks.

    Without CDs, floppies and read-only disks (a seed).
    """
    found = (
        path_of(disk.find("source"))
        for disk in root.iterfind("devices/disk")
        if disk.get("device", "disk") == "disk" and disk.find("readonly") is None
    )
    return tuple(path for path in found if path is not None)
