"""What every driver is made with, and how its methods may be called."""

from __future__ import annotations

import attrs

from vmcloner_core.model import Host
from vmcloner_core.process import CommandRunner


@attrs.frozen(kw_only=True)
class Lane:
    """How the executor may call one method: members a call, and calls at once."""

    batch: int = attrs.field(default=1, validator=attrs.validators.ge(1))
    concurrency: int = attrs.field(default=1, validator=attrs.validators.ge(1))


@attrs.frozen(kw_only=True)
class DriverContext:
    """What every driver is made with.

    :param name: the backend's name in the settings (a pool's: ``fast``), which labels carry.
    :param runner: runs commands on that host.
    """

    host: Host
    name: str
    runner: CommandRunner
