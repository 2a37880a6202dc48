"""Installed entry points: the one place that reads them."""

from __future__ import annotations

from importlib import metadata

from stevedore import NamedExtensionManager


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


def provenance(entry: metadata.EntryPoint) -> tuple[str, str]:
    """Return name and version of the distribution of one of :func:`with_distributions`."""
    return (entry.dist.name, entry.dist.version) if entry.dist else ("unknown", "")
