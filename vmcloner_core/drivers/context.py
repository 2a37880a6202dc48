"""What every driver is constructed with, and how its methods may be called."""

from __future__ import annotations

import attrs

from vmcloner_core.model import Host
from vmcloner_core.process import CommandRunner


@attrs.frozen(kw_only=True)
class Lane:
    """How the pipeline may call one method: members per call, and calls at once."""

    batch: int = attrs.field(default=1, validator=attrs.validators.ge(1))
    concurrency: int = attrs.field(default=1, validator=attrs.validators.ge(1))


@attrs.frozen(kw_only=True)
class DriverContext:
    """What every driver is constructed with.

    :param name: the backend's name in the settings and in labels (a pool's: ``fast``).
    :param runner: runs commands on that host.
    """

    host: Host
    name: str
    runner: CommandRunner
