"""Inventories for Ansible: a file for its plugin ``yaml``, and the output of an inventory script.

The formats: "How to build your inventory" and "Developing dynamic inventory" in its documentation.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Sequence

from vmcloner_core import ssh
from vmcloner_core.model import Access, Labels

_OWN = ("HostName", "Port", "User", "IdentityFile")
"""Options for which Ansible has its own variables."""


def inventory(clones: Sequence[tuple[Labels, Access]]) -> dict[str, object]:
    """Return the inventory: a group for each fleet, with a name valid in Ansible (``my_fleet``)."""
    groups: dict[str, dict[str, object]] = {}
    for labels, access in clones:
        groups.setdefault(_group(labels.fleet), {})[access.name] = variables(labels, access)
    return {"all": {"children": {name: {"hosts": hosts} for name, hosts in groups.items()}}}


def script(clones: Sequence[tuple[Labels, Access]]) -> dict[str, object]:
    """Return what an inventory script prints for ``--list``, with the variables of all hosts."""
    groups: dict[str, list[str]] = {}
    for labels, access in clones:
        groups.setdefault(_group(labels.fleet), []).append(access.name)
    return {
        "_meta": {
            "hostvars": {access.name: variables(labels, access) for labels, access in clones}
        },
        "all": {"children": [*groups, "ungrouped"]},
        **{name: {"hosts": names} for name, names in groups.items()},
    }


def _group(fleet: str) -> str:
    name = fleet.replace("-", "_")
    reserved = name in ("all", "ungrouped") or re.match("[0-9]", name)
    return f"fleet_{name}" if reserved else name


def variables(labels: Labels, access: Access) -> dict[str, object]:
    """Return the variables of one host."""
    return {
        **connection(access),
        "vmcloner_fleet": labels.fleet,
        "vmcloner_index": labels.index,
        "vmcloner_template": labels.template,
    }


def connection(access: Access) -> dict[str, object]:
    """Return those variables of a host that say how it is reached."""
    options = [
        f"-o {shlex.quote(f'{key}={value}')}"
        for key, value in ssh.options(access).items()
        if key not in _OWN
    ]
    options += [f"-o {shlex.quote(f'IdentityFile={file}')}" for file in ssh.identities(access)]
    values: dict[str, object] = {
        "ansible_host": access.address,
        "ansible_port": access.port,
        "ansible_user": access.user,
        "ansible_ssh_common_args": " ".join(["-F none", *options]),
    }
    if access.jump is not None:
        # Ansible keeps connections open by address, and two hosts' guests may have the same one.
        to = f"{access.jump} {access.name} {access.user} {access.address} {access.port}"
        own = hashlib.sha256(to.encode()).hexdigest()[:16]
        values["ansible_control_path"] = f"%(directory)s/vmcloner-{own}"
    if access.key is not None:
        values["ansible_ssh_private_key_file"] = str(access.key)
    return values
