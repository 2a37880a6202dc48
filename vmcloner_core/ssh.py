"""OpenSSH's options for reaching a clone: strict on the host keys it was born with, no questions.

Keywords and quoting: ssh_config(5). A clone is called by its name (``HostKeyAlias``), so that an
address which was another machine's yesterday proves nothing today.
"""

from __future__ import annotations

from collections.abc import Iterable

from vmcloner_core.errors import InvalidRequest
from vmcloner_core.model import Access


def options(access: Access) -> dict[str, str]:
    """Return ssh_config's keywords and values, quoted, for one clone."""
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


def _path(text: str) -> str:
    """Return a path as ssh reads it: tokens begin with %, arguments end at a space.

    :raises InvalidRequest: it holds the name of a variable, which ssh has no escape for.
    """
    if "${" in text:
        raise InvalidRequest(f"ssh can't be told of {text!r}: it would fill in ${{…}}")
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"'


def command(access: Access, *words: str, **more: str) -> list[str]:
    """Return the argv of ssh to one clone; the user's and the system's configuration are left out.

    :param words: the command, joined with spaces by ssh and read by the guest's shell.
    :param more: further keywords: ``BatchMode="yes"``.
    """
    pairs = {**options(access), **more}
    flags = [flag for key, value in pairs.items() for flag in ("-o", f"{key}={value}")]
    return ["ssh", "-F", "none", *flags, "--", access.name, *words]


def config(accesses: Iterable[Access]) -> str:
    """Return an ssh_config by which ``ssh CLONE`` reaches each clone."""
    blocks = []
    for access in accesses:
        lines = [f"    {key} {value}" for key, value in options(access).items()]
        blocks.append("\n".join([f"Host {access.name}", *lines, ""]))
    return "\n".join(blocks)
