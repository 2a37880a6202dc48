"""Installed entry points: the one place that reads them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib import metadata

from stevedore import NamedExtensionManager

from vmcloner_core.errors import BackendError

OWN = "vmcloner"
"""The distribution that this is."""
log = logging.getLogger(__name__)


def of_group(group: str) -> tuple[metadata.EntryPoint, ...]:
    """Return the entry points of a group, without importing what they name.

    stevedore keeps them in a file under ``~/.cache``, since :mod:`importlib.metadata` opens the
    files of every installed distribution at each call. It reads them again when a folder of
    ``sys.path``, or an ``entry_points.txt`` in one, has changed. Their ``dist`` is None.
    """
    manager: NamedExtensionManager[object] = NamedExtensionManager(group, names=[])
    return tuple(manager.list_entry_points())


def with_distributions(group: str) -> tuple[metadata.EntryPoint, ...]:
    """Return the entry points of a group with their distributions, bypassing stevedore's file."""
    return tuple(metadata.entry_points(group=group))


def chosen(what: str, group: str, twins: Sequence[metadata.EntryPoint]) -> metadata.EntryPoint:
    """Return the one of several entry points of one name that is used: vmcloner's own.

    The others are refused, with a warning that names their distributions.

    :param what: they are, for the message.
    :raises BackendError: none of them is vmcloner's own; names all distributions.
    """
    same = {(entry.name, entry.value) for entry in twins}
    found = [each for each in with_distributions(group) if (each.name, each.value) in same]
    owners = sorted({provenance(entry)[0] for entry in found})
    own = next((entry for entry in found if provenance(entry)[0] == OWN), None)
    if own is None:
        raise BackendError(
            f"{what} comes from {' and '.join(owners)}", hint="uninstall one of them"
        )
    others = " and ".join(owner for owner in owners if owner != OWN)
    log.warning("%s of %s is refused: %s itself brings one of that name", what, others, OWN)
    return own


def twins(entry: metadata.EntryPoint) -> str:
    """Return why an entry point of :func:`with_distributions` is refused for others of its name.

    Empty if it isn't.
    """
    same = [each for each in with_distributions(entry.group) if each.name == entry.name]
    owners = sorted({provenance(each)[0] for each in same})
    if len(same) < 2 or provenance(entry)[0] == OWN:
        return ""
    return f"comes from {' and '.join(owners)}"


def provenance(entry: metadata.EntryPoint) -> tuple[str, str]:
    """Return name and version of the distribution of one of :func:`with_distributions`."""
    return (entry.dist.name, entry.dist.version) if entry.dist else ("unknown", "")
