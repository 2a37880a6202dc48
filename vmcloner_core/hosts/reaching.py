"""How the controller reaches guests behind a host: by ssh, through the host's ssh."""

from __future__ import annotations

import contextlib
import ipaddress
import re
from pathlib import Path

from vmcloner_core.errors import BackendError, VmclonerError
from vmcloner_core.hosts.calls import Reached
from vmcloner_core.model import Access, Outcome
from vmcloner_core.names import split_clone
from vmcloner_core.ssh_access import private_keys
from vmcloner_core.trusted_files import make_folder, replacing

MAX_KNOWN_HOSTS = 16 * 1024
_KEY = r"(ssh|ecdsa)-[a-z0-9-]{1,40} [A-Za-z0-9+/]{40,4096}={0,3}( [ -~]{0,200})?"


def access(reached: Reached, jump: str | None, folder: Path) -> Outcome[Access]:
    """Return how to reach a clone from here.

    :param reached: how its host reaches it. :param jump: where ssh finds that host; None for this
        machine.
    :param folder: where the clone's host keys are kept; ssh reads them from a file.
    """
    try:
        if reached.error is not None:
            raise reached.error
        if reached.access is None or split_clone(reached.name) is None:
            raise BackendError(f"host behind {jump}: a wrong answer")
        _check(reached.name, reached.access)
        file = _kept(reached.name, reached.known_hosts, folder)
        return Outcome(
            key=reached.name,
            value=Access(
                name=reached.name,
                address=reached.access.address,
                user=reached.access.user,
                port=reached.access.port,
                known_hosts=file,
                keys=private_keys(),
                jump=jump,
            ),
        )
    except VmclonerError as error:
        return Outcome(key=reached.name, error=error)


def _check(name: str, access: Access) -> None:
    """Check what a host says of a clone: ssh gives the address to a shell, for the jump.

    :raises BackendError: it is no plain address, user and port.
    """
    try:
        plain = re.fullmatch("[0-9A-Fa-f.:]{2,45}", access.address)  # no zone: that may be any text
        ipaddress.ip_address(access.address)
    except ValueError:
        plain = None
    user = re.fullmatch("[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}", access.user)
    if plain is None or user is None or not 0 < access.port < 2**16:
        raise BackendError(f"{name}: its host gives no plain address, user and port for it")


def _kept(name: str, text: str, folder: Path) -> Path:
    """Write a clone's known host keys; returns the file.

    :raises BackendError: the text has more than keys of this clone.
    """
    lines = text.removesuffix("\n").split("\n") if text else []
    if len(text) > MAX_KNOWN_HOSTS or not all(
        re.fullmatch(f"{re.escape(name)} {_KEY}", line) for line in lines
    ):
        raise BackendError(f"{name}: its host gives no plain host keys for it")
    file = folder / name
    with contextlib.suppress(OSError, ValueError):
        if file.read_text(encoding="ascii") == text:
            return file
    try:
        make_folder(folder)
        with replacing(file, 0o600, lasting=False) as stream:
            stream.write(text.encode("ascii"))
    except OSError as error:
        raise BackendError(f"can't write {file}: {error.strerror}") from error
    return file
