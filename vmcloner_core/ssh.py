"""OpenSSH options for reaching a clone: strict host key checking, no questions.

Keywords and quoting: ssh_config(5). Host keys are looked up by the clone's name (``HostKeyAlias``),
so it does not matter if another machine had the same address before.
"""

from __future__ import annotations

from collections.abc import Iterable

from vmcloner_core.errors import InvalidRequest
from vmcloner_core.model import Access


def options(access: Access) -> dict[str, str]:
    """Return ssh_config keywords with quoted values for one clone."""
    values = {
        "HostName": access.address,
        "Port": str(access.port),
        "User": access.user,
        "HostKeyAlias": access.name,
        "UserKnownHostsFile": _path(str(access.known_hosts)),
        "GlobalKnownHostsFile": "none",
        "StrictHostKeyChecking": "yes",
        "CheckHostIP": "no",
        "UpdateHostKeys": "no",
    }
    if access.key is not None:
        values |= {"IdentityFile": _path(str(access.key)), "IdentitiesOnly": "yes"}
    return values


def identities(access: Access) -> list[str]:
    """Return the quoted values of ``IdentityFile`` for :attr:`Access.keys`, one keyword each."""
    return [] if access.key is not None else [_path(str(key)) for key in access.keys]


def _path(text: str) -> str:
    """Return a path quoted for ssh: tokens begin with %, arguments end at a space.

    :raises InvalidRequest: it contains a variable reference, which ssh cannot escape.
    """
    if "${" in text:
        raise InvalidRequest(f"ssh cannot use the path {text!r}: it would expand ${{…}}")
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"'


def command(access: Access, *words: str, **more: str) -> list[str]:
    """Return the ssh argv for one clone; the user's and the system's configuration are not used.

    :param words: the command, joined with spaces by ssh and interpreted by the guest's shell.
    :param more: additional keywords: ``BatchMode="yes"``.
    """
    pairs = {**options(access), **more}
    settings = [f"{key}={value}" for key, value in pairs.items()]
    settings += [f"IdentityFile={value}" for value in identities(access)]
    flags = [flag for setting in settings for flag in ("-o", setting)]
    return ["ssh", "-F", "none", *flags, "--", access.name, *words]


def config(accesses: Iterable[Access]) -> str:
    """Return an ssh_config with which ``ssh CLONE`` reaches each clone."""
    blocks = []
    for access in accesses:
        lines = [f"    {key} {value}" for key, value in options(access).items()]
        lines += [f"    IdentityFile {value}" for value in identities(access)]
        blocks.append("\n".join([f"Host {access.name}", *lines, ""]))
    return "\n".join(blocks)
