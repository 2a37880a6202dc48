"""How to reach clones by ssh: address, user, key, and the host keys that identify them."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from pathlib import Path

from vmcloner_core import own_key
from vmcloner_core.errors import NotFound, VmclonerError, WrongState
from vmcloner_core.model import Access, Clone, Labels, Outcome, State, Template


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
            hint=f"give template {labels.template} an identity, and create the clone again",
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
        port=template.ssh.port,
        known_hosts=known_hosts,
        key=key,
        keys=_keys(authorized) if key is None else (),
    )


def _keys(authorized: Collection[str]) -> tuple[Path, ...]:
    """Return the private keys to try: if vmcloner's own is authorized, this and the user's others.

    ssh finds the others itself only if none is given.
    """
    if not authorized or own_key.public_key() not in authorized:
        return ()
    others = Path("~/.ssh").expanduser().glob("id_*.pub")
    files = [own_key.key_file(), *sorted(file.with_suffix("") for file in others)]
    return tuple(file for file in files if os.path.isfile(file))  # noqa: PTH113 - raises nothing


def reach(clone: Clone, access: Callable[[Labels, str], Access]) -> Outcome[Access]:
    """Return how to reach a clone as it is now, or why it can't be reached."""
    try:
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
                hint = 'only cards of kind = "network" or "bridge" get known addresses'
            raise WrongState(f"{clone.name}: {said}", hint=hint)
        return Outcome(key=clone.name, value=access(clone.labels, clone.ip))
    except VmclonerError as error:
        return Outcome(key=clone.name, error=error)
