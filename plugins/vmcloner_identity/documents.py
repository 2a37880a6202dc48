"""The documents that cloud-init reads. A YAML writer keeps every name a string."""

from __future__ import annotations

import email
import ipaddress
from collections.abc import Iterator
from typing import Any

import yaml

from vmcloner_core.errors import InvalidRequest
from vmcloner_core.model import Identity

_KINDS = {
    "#cloud-config-archive": "text/cloud-config-archive",
    "#cloud-config-jsonp": "text/cloud-config-jsonp",
    "#cloud-config": "text/cloud-config",
    "#!": "text/x-shellscript",
    "#include": "text/x-include-url",  # and #include-once
    "#cloud-boothook": "text/cloud-boothook",
    "#part-handler": "text/part-handler",
    "## template: jinja": "text/jinja2",
}
"""How user-data begins: case and leading white space are ignored; longer marks come before their
prefixes.

https://docs.cloud-init.io/en/latest/explanation/format.html
"""
_GUESSED = {"text/plain", "text/x-not-multipart", "text/x-shellscript"}
"""Types of MIME parts that cloud-init detects by their beginning, as it does without MIME."""
_BY_TYPE_ONLY = {f"text/x-shellscript-per-{when}" for when in ("boot", "instance", "once")}
_PACKED = {f"application/{name}" for name in ("gzip", "gzip-compressed", "gzipped", "x-compress",
           "x-compressed", "x-gunzip", "x-gzip", "x-gzip-compressed")}  # fmt: skip
"""Types of MIME parts that are decompressed before they are examined."""
_MIME_WITHIN = 4096
"""Bytes from the start in which cloud-init looks for ``MIME-Version:``."""
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    """Quotes every string: YAML 1.1 and 1.2 differ in which plain scalars are numbers."""


def _quoted(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"')


_Dumper.add_representer(str, _quoted)


def _dump(document: dict[str, Any], head: str = "") -> bytes:
    text: str = yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)
    return (head + text).encode()


def meta_data(identity: Identity) -> bytes:
    """Return the meta-data. A new generation of a clone is a new instance."""
    return _dump(
        {"instance-id": str(identity.generation), "local-hostname": identity.hostname},
    )


def network_config(identity: Identity) -> bytes:
    """Return the network configuration: version 2, as in netplan; cards are matched by MAC.

    https://docs.cloud-init.io/en/latest/reference/network-config-format-v2.html
    """
    cards: dict[str, dict[str, Any]] = {}
    for number, interface in enumerate(identity.interfaces):
        # Without set-name, the renderer for systemd-networkd uses the key as a name.
        card: dict[str, Any] = {
            "match": {"macaddress": interface.mac},
            "set-name": f"eth{number}",
        }
        if interface.address is None:
            card["dhcp4"] = True
            if identity.nameservers:
                card["dhcp4-overrides"] = {"use-dns": False}  # the template's in place of these
        else:
            card["addresses"] = [interface.address]
            card |= gateway(identity.gateway, interface.address)
        if identity.nameservers:
            card["nameservers"] = {"addresses": list(identity.nameservers)}
        cards[f"eth{number}"] = card
    return _dump({"version": 2, "ethernets": cards})


def gateway(wanted: str | None, address: str) -> dict[str, str]:
    """Return the default route through a card if the gateway is on its network."""
    if wanted is None or ipaddress.ip_address(wanted) not in ipaddress.ip_network(address, False):
        return {}
    return {"gateway6" if ":" in wanted else "gateway4": wanted}


def vendor_data(identity: Identity, host_key: str, host_key_public: str) -> bytes:
    """Return the vendor-data: names, host key, authorized keys, machine-id."""
    name, _, domain = identity.hostname.partition(".")
    keys = list(identity.authorized_keys)
    user: dict[str, Any] = {"name": identity.user, "ssh_authorized_keys": keys}
    early = []
    if identity.user != "root":
        user |= {"lock_passwd": True, "sudo": "ALL=(ALL) NOPASSWD:ALL"}
        # The image may have no bash: new users get it where there is one, else useradd's default.
        # bootcmd runs before users are made.
        early.append(["sh", "-c", 'bash=$(command -v bash) && useradd -D -s "$bash" || true'])
    wanted = identity.machine_id
    document = {
        "hostname": name,
        **({"fqdn": identity.hostname} if domain else {}),
        "preserve_hostname": False,
        "manage_etc_hosts": "localhost",
        "disable_root": identity.user != "root",
        "users": [user],
        "ssh_deletekeys": True,
        "ssh_keys": {"ed25519_private": host_key, "ed25519_public": f"{host_key_public}\n"},
        # systemd uses the domain's UUID, unless the image was booted before and has its own.
        "bootcmd": [
            [
                "sh",
                "-c",
                f'[ "$(cat /etc/machine-id)" = {wanted} ] || echo {wanted} >/etc/machine-id',
            ],
            *early,
        ],
    }
    return _dump(document, "#cloud-config\n")


def check_user_data(content: bytes, what: str) -> None:
    """Check that cloud-init will recognize user-data.

    :raises InvalidRequest: it would not, and would only report that in a log in the guest.
    """
    if content.startswith(b"\x1f\x8b"):  # gzip; its contents are examined in the guest
        return
    parts = list(_parts(content, what))
    known = {kind for kind, _ in parts} & {*_KINDS.values(), *_BY_TYPE_ONLY, *_PACKED}
    if parts and not known:
        raise InvalidRequest(
            f"{what}: not a format that cloud-init recognizes",
            hint="begin with #cloud-config, #! or MIME headers (MIME-Version: 1.0)",
        )
    for kind, part in parts:
        if kind == "text/cloud-config":
            check_mapping(part, what)


def _parts(content: bytes, what: str) -> Iterator[tuple[str, bytes]]:
    """Yield the type and content of each part of user-data."""
    if b"mime-version:" not in content[:_MIME_WITHIN].lower():
        yield _kind(content, "text/x-not-multipart"), content
        return
    try:
        for part in email.message_from_string(content.decode()).walk():
            if part.get_content_maintype() != "multipart":
                payload = part.get_payload(decode=True)  # None if it contains other parts
                data = payload if isinstance(payload, bytes) else b""
                yield _kind(data, part.get_content_type()), data
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{what}: a MIME message that is not UTF-8") from error
    except RecursionError as error:
        raise InvalidRequest(f"{what}: a MIME message that is nested too deeply") from error


def _kind(content: bytes, named: str) -> str:
    """Return the type of a part, by its beginning if its headers do not determine it."""
    if named not in _GUESSED:
        return named
    text = content.decode(errors="replace").lstrip().lower()
    return next((kind for mark, kind in _KINDS.items() if text.startswith(mark)), named)


def check_mapping(content: bytes, what: str) -> None:
    """Check that a document is a YAML mapping.

    :raises InvalidRequest: it is not; the message says where.
    """
    try:
        document = yaml.load(content, Loader=_LOADER)  # noqa: S506 - a safe loader
    except (
        *(yaml.YAMLError, ValueError, RecursionError),
        *(AttributeError, LookupError, TypeError),  # of a tag whose value isn't of its kind
    ) as error:
        reason = " ".join(str(error).split())[:200]
        raise InvalidRequest(f"{what}: not YAML: {reason}") from error
    if document is not None and not isinstance(document, dict):
        raise InvalidRequest(f"{what}: must be a mapping, not {type(document).__name__}")
