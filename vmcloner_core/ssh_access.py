"""How clones are reached by ssh: address, user, key, and the host keys that prove who they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from vmcloner_core.errors import NotFound, VmclonerError, WrongState
from vmcloner_core.model import Access, Clone, Labels, Outcome, State, Template


def access(template: Template, labels: Labels, address: str, known_hosts: Path | None) -> Access:
    """Return how a clone is reached at an address.

    :param known_hosts: the file with its host keys, None where there is none.
    :raises WrongState: no host keys are kept for it, so nothing would prove that it is it.
    :raises NotFound: the key file that its template names is gone.
    """
    if known_hosts is None:
        raise WrongState(
            f"{labels.clone} has no host keys of its own here",
            hint=f"give template {labels.template} an identity, and make the clone anew",
        )
    key = template.ssh.key
    if key is not None and not key.is_file():
        raise NotFound(
            f"template {template.name}: ssh.key: {key} doesn't exist",
            hint="a private key file; without ssh.key your own keys and agent are used",
        )
    return Access(
        name=labels.clone,
        address=address,
        user=template.ssh.user,
        port=template.ssh.port,
        known_hosts=known_hosts,
        key=key,
    )


def reach(clone: Clone, access: Callable[[Labels, str], Access]) -> Outcome[Access]:
    """Return how a clone is reached as it is now, or why it can't be."""
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
                hint = 'cards of kind = "network" or "bridge" get one that is'
            raise WrongState(f"{clone.name}: {said}", hint=hint)
        return Outcome(key=clone.name, value=access(clone.labels, clone.ip))
    except VmclonerError as error:
        return Outcome(key=clone.name, error=error)
