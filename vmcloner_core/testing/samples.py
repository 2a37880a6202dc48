"""Sample values for tests and benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vmcloner_core.drivers import DriverContext
from vmcloner_core.model import Host, Labels, Nic, NicSpec, Volume
from vmcloner_core.names import volume_name
from vmcloner_core.process import LocalRunner


def make_context(folder: Path, name: str = "test") -> DriverContext:
    """Return a context for a driver on this host.

    :param folder: for vmcloner's state. :param name: the backend's in the settings.
    """
    host = Host(name="local", state=folder / "state")
    return DriverContext(host=host, name=name, runner=LocalRunner())


def make_labels(fleet: str = "web", index: int = 1, **changes: Any) -> Labels:
    """Return labels of a clone; ``changes`` override fields.

    :raises InvalidRequest: a name is invalid.
    """
    values = {
        "template": "tiny",
        "run": "20260101T000000-abcdef",
        "owner": "tester",
        "created": "2026-01-01T00:00:00Z",
        "storage": "pool",
        "hypervisor": "kvm",
    }
    return Labels(fleet=fleet, index=index, **(values | changes))


def make_nic(index: int = 1) -> Nic:
    """Return the network card of the clone with an index."""
    return Nic(spec=NicSpec(), mac=f"52:54:00:00:00:{index:02x}")


def make_volume(labels: Labels, path: Path, size: int) -> Volume:
    """Return a clone's first disk, a raw file that need not exist."""
    return Volume(
        name=volume_name(labels.clone, 0), pool=labels.storage, labels=labels, path=path, size=size
    )
