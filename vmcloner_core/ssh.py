"""OpenSSH options for reaching a clone: strict host key checking, no questions.

Keywords and quoting: ssh_config(5). Host keys are looked up by the clone's name (``HostKeyAlias``),
so it does not matter if another machine had the same address before.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from vmcloner_core.errors import InvalidRequest, UsageError
from vmcloner_core.model import Access

_VALUED = "BbcDEeFIiJLlmOoPpQRSWw"
"""The options of ssh(1) that have a value, in the same word or in the next one."""
_PORT = re.compile("[0-9]{1,5}")
LOGIN = (20.0, 120.0)
"""Fewest and most seconds that a login of :func:`unattended` may take."""


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
    if access.jump is not None:
        # Not ProxyJump: the way to the host is by the user's own configuration of ssh. The
        # settings have checked that the destination has no character that a shell interprets.
        values["ProxyCommand"] = f"ssh -o BatchMode=yes -W [%h]:%p -- {access.jump}"
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


def command(access: Access, *words: str, own: Sequence[str] = (), **more: str) -> list[str]:
    """Return the ssh argv for one clone; the user's and the system's configuration are not used.

    :param words: the command, joined with spaces by ssh and interpreted by the guest's shell.
    :param own: options of ssh(1) that the user gave. They go first: ssh takes the first value.
    :param more: additional keywords: ``BatchMode="yes"``.
    """
    pairs = {**options(access), **more}
    settings = [f"{key}={value}" for key, value in pairs.items()]
    settings += [f"IdentityFile={value}" for value in identities(access)]
    flags = [flag for setting in settings for flag in ("-o", setting)]
    return ["ssh", "-F", "none", *own, *flags, "--", access.name, *words]


def unattended(timeout: float) -> dict[str, str]:
    """Return the keywords for a program that nobody watches, and that may take so many seconds.

    The login may take a sixth of that, within :data:`LOGIN`: a guest on a busy host answers late,
    and one that is gone isn't waited for to the end.
    """
    fewest, most = LOGIN
    return {
        "BatchMode": "yes",
        "ConnectTimeout": f"{min(max(fewest, timeout / 6), most):.0f}",
        "ServerAliveInterval": "15",
        "LogLevel": "ERROR",
    }


def next_step(access: Access, said: str) -> str | None:
    """Return what to do about what ssh said, None if only ssh's manual knows."""
    return access.refusal or None if "Permission denied" in said else None


def split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the options of ssh(1) at the beginning of some words, and the command after them.

    ``--`` ends the options. :raises UsageError: the last option lacks its value.
    """
    at = 0
    while at < len(words) and words[at].startswith("-") and words[at] not in ("-", "--"):
        letters = words[at][1:]
        first = next((n for n, letter in enumerate(letters) if letter in _VALUED), None)
        at += 1
        if first is not None and first == len(letters) - 1:
            at += 1
            if at > len(words):
                raise UsageError(f"ssh's option -{letters[first]} needs a value", hint="man ssh")
    rest = list(words[at:])
    return list(words[:at]), rest[1:] if rest[:1] == ["--"] else rest


def forwarding(text: str) -> tuple[str, str, str]:
    """Return (argument of ``ssh -L``, where it listens, where it leads) for one forwarding.

    :param text: ``PORT``, ``PORT:PORT`` or ``PORT:HOST:PORT``: on this host, then as the clone
        sees it. ``ADDRESS:`` before that listens on another address than the loopback's.
    :raises UsageError: it is none of these.
    """
    parts = re.findall(r"\[[0-9A-Fa-f:.]+\]|[^:\[\]]+", text)
    if ":".join(parts) != text or not 1 <= len(parts) <= 4:
        raise _not_a_forwarding(text)
    if len(parts) == 1:
        parts *= 2
    address = parts.pop(0) if len(parts) == 4 or not _PORT.fullmatch(parts[0]) else None
    if len(parts) == 2:
        parts.insert(1, "localhost")
    if len(parts) != 3 or not all(_is_port(parts[n]) for n in (0, 2)):
        raise _not_a_forwarding(text)
    argument = ":".join(parts if address is None else [address, *parts])
    return argument, f"{address or 'localhost'}:{parts[0]}", ":".join(parts[1:])


def _is_port(text: str) -> bool:
    return _PORT.fullmatch(text) is not None and 0 < int(text) < 65536


def _not_a_forwarding(text: str) -> UsageError:
    return UsageError(
        f"not a forwarding: {text!r}",
        hint="like 8080:80, or 8080:db.internal:5432; ports are 1 to 65535",
    )


def config(accesses: Iterable[Access]) -> str:
    """Return an ssh_config with which ``ssh CLONE`` reaches each clone."""
    blocks = []
    for access in accesses:
        lines = [f"    {key} {value}" for key, value in options(access).items()]
        lines += [f"    IdentityFile {value}" for value in identities(access)]
        blocks.append("\n".join([f"Host {access.name}", *lines, ""]))
    return "\n".join(blocks)
