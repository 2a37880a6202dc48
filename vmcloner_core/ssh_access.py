"""How to reach clones by ssh: address, user, key, and the host keys that identify them."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from vmcloner_core import own_key, remote, user_folders
from vmcloner_core.errors import NotFound, VmclonerError, WrongState
from vmcloner_core.model import (
    FORWARDED_PORT,
    Access,
    Clone,
    Labels,
    Outcome,
    State,
    Template,
)
from vmcloner_core.plan import check_timeout
from vmcloner_core.request import check_jobs


def access(
    template: Template,
    labels: Labels,
    address: str,
    known_hosts: Path | None,
    authorized: Collection[str],
) -> Access:
    """Return how to reach a clone at an address.

    :param authorized: the public keys that its identity authorizes.
    :param known_hosts: the file with its host key, None if there is none.
    :raises WrongState: it has no known host key, so it couldn't be authenticated.
    :raises NotFound: the key file that its template names doesn't exist.
    """
    if known_hosts is None:
        raise WrongState(
            f"{labels.clone} has no known host key",
            hint=f"give template {labels.template} an identity, and create the clone again"
            if labels.warm is None
            else "it is an exact copy of another guest: create it again without --identical",
        )
    key = template.ssh.key
    if key is not None and not os.path.isfile(key):  # noqa: PTH113 - raises nothing
        raise NotFound(
            f"template {template.name}: ssh.key: {key} doesn't exist",
            hint="name a private key file, or remove ssh.key to use your own keys and agent",
        )
    return Access(
        name=labels.clone,
        address=address,
        user=template.ssh.user,
        port=port_at(template, address, template.ssh.port),
        known_hosts=known_hosts,
        key=key,
        keys=_keys(authorized) if key is None else (),
        refusal=_refusal(template, labels, authorized) if key is None else "",
    )


def _refusal(template: Template, labels: Labels, authorized: Collection[str]) -> str:
    """Return what to do if a clone refuses the user's keys; empty if it lets one of them in."""
    if not authorized:
        return ""
    mine = [own_key.public_key() or "", *map(_public, user_folders.public_keys())]
    if {_bare(line) for line in mine} & {_bare(line) for line in authorized}:
        return ""
    return (
        f"it lets in the keys of {labels.owner}, who made it: give one of these, vmcloner ssh "
        f"{labels.clone} -i KEY; or name yours in identity.authorized_keys of template "
        f"{template.name}, and create it again"
    )


def _public(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _bare(line: str) -> tuple[str, ...]:
    """Return a public key's type and key, without options and comment."""
    words = line.split()
    at = next((n for n, word in enumerate(words) if word.startswith("AAAA")), 0)
    return tuple(words[max(0, at - 1) : at + 1])


def _keys(authorized: Collection[str]) -> tuple[Path, ...]:
    """Return the private keys to try: if vmcloner's own is authorized, this and the user's others.

    ssh finds the others itself only if none is given.
    """
    if not authorized or own_key.public_key() not in authorized:
        return ()
    return private_keys()


def private_keys() -> tuple[Path, ...]:
    """Return the files with this user's private keys that are there, vmcloner's own first."""
    files = [own_key.key_file(), *(file.with_suffix("") for file in user_folders.public_keys())]
    return tuple(file for file in files if os.path.isfile(file))  # noqa: PTH113 - raises nothing


def port_at(template: Template, address: str, port: int) -> int:
    """Return the port at which a clone's port is reached at this address.

    :raises WrongState: it is reached by the loopback network, where another port is forwarded.
    """
    forwarded = {nic.forward for nic in template.nics} - {None}
    if not (forwarded and ipaddress.ip_address(address).is_loopback):
        return port
    if port not in forwarded:
        raise WrongState(
            f"port {port} is not forwarded to the clones of template {template.name}",
            hint=f"set forward = {port} in [[nics]], and create the clone again",
        )
    return FORWARDED_PORT


def reach(clone: Clone, access: Callable[[Labels, str], Access]) -> Outcome[Access]:
    """Return how to reach a clone as it is now, or why it can't be reached."""
    try:
        if clone.state is not State.RUNNING and not clone.ours:
            raise WrongState(
                f"{clone.name} belongs to another state folder",
                hint="--config FILE with the settings that it was made with",
            )
        if clone.state is not State.RUNNING:
            raise WrongState(
                f"{clone.name} is {clone.state.value}",
                hint=f"vmcloner start {clone.name} --wait",
            )
        if clone.ip is None:
            if clone.domain is None or any(clone.domain.networks):
                said, hint = "no address is known yet", f"vmcloner wait {clone.name} --for ip"
            else:
                said = "no address is known"
                hint = 'in [[nics]]: kind = "network" or "bridge", or with "user" forward = 22'
            raise WrongState(f"{clone.name}: {said}", hint=hint)
        return Outcome(key=clone.name, value=access(clone.labels, clone.ip))
    except VmclonerError as error:
        return Outcome(key=clone.name, error=error)


def execute(
    outcomes: Sequence[Outcome[Access]], command: str, *, timeout: float, jobs: int
) -> tuple[remote.Answer, ...]:
    """Run a command on the clones that can be reached; the others' answers say why they can't.

    :raises InvalidRequest: the command is too long, or a number is out of range.
    """
    check_jobs(jobs)
    check_timeout(timeout)
    accesses = [outcome.unwrap() for outcome in outcomes if outcome.ok]
    ran = {a.name: a for a in remote.run(accesses, command, timeout=timeout, jobs=jobs)}
    return tuple(ran.get(o.key) or remote.Answer(name=o.key, error=o.error) for o in outcomes)
