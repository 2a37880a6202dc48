"""Work out clones' identities by a template's rules, when a run is planned. Stores nothing."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from vmcloner_core import user_folders
from vmcloner_core.errors import InvalidRequest
from vmcloner_core.model import CloneSpec, Identity, Interface, Template, clone_generation
from vmcloner_core.placeholders import clone_values, fill
from vmcloner_core.trusted_files import read_file

T = TypeVar("T")
MAX_KEYS = 65536
"""Bytes of a file of public keys."""
_HOSTNAME = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9-]{1,63}(?<!-))*")
_MACHINE_ID = re.compile(r"[0-9a-f]{32}")
_KEY_TYPES = ("ssh-", "ecdsa-sha2-", "sk-ssh-", "sk-ecdsa-sha2-")


def resolve(clone: CloneSpec, keys: Sequence[str], run: str) -> Identity:
    """Return a clone's identity by its template's ``[identity]``.

    The clone's own values ``hostname``, ``machine_id`` and ``address`` override the template's.

    :param keys: the public keys that may log in, from :func:`authorized_keys`.
    :param run: the run that makes this identity; each run gives another generation.
    :raises InvalidRequest: names the template's key, the clone and the reason.
    """
    template, labels, nics, values = clone.template, clone.labels, clone.nics, clone.values
    spec = template.identity
    known = clone_values(labels, nics, values)

    def text(key: str, value: str) -> str:
        return fill(value, known, what=f"template {template.name}: identity.{key}")

    def refuse(key: str, reason: str) -> InvalidRequest:
        return InvalidRequest(f"{labels.clone}: identity.{key}: {reason}")

    def checked(key: str, value: str, check: Callable[[str], T]) -> T:
        try:
            return check(value)
        except ValueError as error:
            raise refuse(key, str(error)) from error

    hostname = str(values.get("hostname") or text("hostname", spec.hostname))
    if not _HOSTNAME.fullmatch(hostname) or len(hostname) > 253:
        raise refuse("hostname", f"{hostname[:80]!r} is not a host name")
    machine_id = str(
        values.get("machine_id")
        or (text("machine_id", spec.machine_id) if spec.machine_id else clone.uuid.hex)
    )
    if not _MACHINE_ID.fullmatch(machine_id) or machine_id == "0" * 32:
        raise refuse("machine_id", f"{machine_id[:80]!r} is not 32 hexadecimal digits")
    if len(spec.addresses) > len(nics):
        raise refuse("addresses", f"{len(spec.addresses)} for {len(nics)} network cards")
    addresses = [text("addresses", address) for address in spec.addresses]
    if "address" in values and nics:
        addresses[:1] = [str(values["address"])]
    addresses += ["dhcp"] * (len(nics) - len(addresses))
    return Identity(
        hostname=hostname,
        machine_id=machine_id,
        uuid=clone.uuid,
        generation=clone_generation(clone.uuid, run),
        interfaces=tuple(
            Interface(mac=nic.mac, address=checked("addresses", address, _address))
            for nic, address in zip(nics, addresses, strict=True)
        ),
        gateway=checked("gateway", text("gateway", spec.gateway), _ip) if spec.gateway else None,
        nameservers=tuple(
            checked("nameservers", text("nameservers", server), _ip) for server in spec.nameservers
        ),
        user=template.ssh.user,
        authorized_keys=tuple(keys),
    )


def _address(text: str) -> str | None:
    if text == "dhcp":
        return None
    if "/" not in text:
        raise ValueError(f"{text!r} has no prefix length (like 192.0.2.7/24)")
    interface = ipaddress.ip_interface(text)
    network = interface.network
    if network.num_addresses > 2 and interface.ip in (network[0], network[-1]):
        raise ValueError(f"{text} is not a host address in {network}")
    return str(interface)


def _ip(text: str) -> str:
    return str(ipaddress.ip_address(text))


def authorized_keys(template: Template) -> tuple[str, ...]:
    """Return the public keys that may log in to a template's clones.

    :raises InvalidRequest: one isn't a public key, or its file can't be read.
    """
    given = template.identity.authorized_keys
    where = f"template {template.name}: identity.authorized_keys"
    if given is None:
        files = user_folders.public_keys()
        found = [key for file in files for key in _keys_of(file, where)]
    else:
        found = []
        for item in given:
            if item.startswith(("/", "~")):
                found += _keys_of(user_folders.expanded(item), where)
            else:
                found.append(check_key(item, f"{where}: {item[:40]!r}"))
    return tuple(dict.fromkeys(found))


def _keys_of(path: Path, where: str) -> list[str]:
    """Return the keys in a file. Errors name its lines, never what is in them: it may be secret."""
    try:
        text = read_file(path, trusted=False, limit=MAX_KEYS).decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{where}: {path}: not a text file") from error
    except InvalidRequest as error:
        raise InvalidRequest(f"{where}: {error.message}") from error
    lines = ((n, line.strip()) for n, line in enumerate(text.splitlines(), start=1))
    return [
        check_key(line, f"{where}: {path}, line {number}")
        for number, line in lines
        if line and not line.startswith("#")
    ]


def check_key(line: str, where: str) -> str:
    """Return a public key in OpenSSH's format (``TYPE BASE64 COMMENT``, sshd(8)), checked.

    :param where: what is checked, for the message, which says nothing of the line itself.
    :raises InvalidRequest: it isn't one; says why.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_ssh_public_key

    if "PRIVATE KEY" in line:
        raise InvalidRequest(f"{where}: that is a private key", hint="give the .pub file beside it")
    if not line.isprintable() or not line.startswith(_KEY_TYPES):
        raise InvalidRequest(f"{where}: not a public key", hint="like: ssh-ed25519 AAAA… user@host")
    if line.startswith("sk-"):  # of a hardware token: the library doesn't read this type
        return line
    try:
        load_ssh_public_key(line.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InvalidRequest(f"{where}: not a public key: {error}") from error
    return line
