"""Keys of Ceph users, as libvirt's secrets: QEMU gets a key from its daemon, not from a file.

The daemon keeps such a secret in memory and tells it to nobody. So it is set again at each start.
Its usage, which is in the definitions of the domains, says whose key it is and in which file.
"""

from __future__ import annotations

import base64
import binascii
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from lxml import etree

from vmcloner_core.errors import InvalidRequest
from vmcloner_core.model import NetworkSource
from vmcloner_core.trusted_files import read_file
from vmcloner_libvirt.metadata import parse

_PREFIX = "vmcloner client."
_NAMESPACE = uuid.UUID("0c9be2c5-7b2f-4f0e-9a5c-5a7d1c3f52d6")
_MAX_KEYRING = 65536


def usage(source: NetworkSource) -> str:
    """Return the usage of the secret with a user's key."""
    return f"{_PREFIX}{source.user} {quote(str(source.key), safe='')}"  # libvirt takes no slashes


def provide(connection: Any, xml: str) -> None:
    """Give libvirt the keys that a domain's disks need. Idempotent.

    :param xml: the domain's definition.
    :raises InvalidRequest: a key can't be read.
    """
    if _PREFIX not in xml:
        return
    found = parse(xml).iterfind("devices/disk/source/auth/secret[@type='ceph'][@usage]")
    for each in sorted({secret.get("usage") for secret in found}):
        if each.startswith(_PREFIX):
            user, _, file = each.removeprefix(_PREFIX).partition(" ")
            key = key_in(Path(unquote(file)), user)
            connection.secretDefineXML(_definition(each)).setValue(key)


def _definition(of: str) -> str:
    root = etree.Element("secret", ephemeral="yes", private="yes")
    etree.SubElement(root, "uuid").text = str(uuid.uuid5(_NAMESPACE, of))
    etree.SubElement(root, "description").text = "set by vmcloner at each start of a clone"
    etree.SubElement(etree.SubElement(root, "usage", type="ceph"), "name").text = of
    return str(etree.tostring(root, encoding="unicode"))


def key_in(file: Path, user: str) -> bytes:
    """Return the key in a file: a keyring with a section of the user, or the key alone.

    :raises InvalidRequest: it has none, or other users could have written it.
    """
    text = read_file(file, trusted=True, limit=_MAX_KEYRING).decode(errors="replace")
    if "[" in text:
        import configparser

        keyring = configparser.ConfigParser(strict=False, interpolation=None)
        try:
            keyring.read_string(text, source=str(file))
        except configparser.Error:
            text = ""  # the parser's message has the line, which may be the key
        else:
            text = keyring.get(f"client.{user}", "key", fallback="")
    try:
        key = base64.b64decode(text.strip(), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not key:
        raise InvalidRequest(
            f"{file}: has no key of client.{user}", hint=f"ceph auth get client.{user} -o {file}"
        ) from None
    return key
