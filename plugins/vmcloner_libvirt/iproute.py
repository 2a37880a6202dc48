"""What ip(8) says of this host's links, addresses, routes and neighbours."""

from __future__ import annotations

import json
from typing import Any

from vmcloner_core.process import CommandRunner


def show(runner: CommandRunner, *words: str) -> list[dict[str, Any]]:
    """Return what ip(8) says to ``words``, an entry for each thing that it shows.

    :raises HostCommandError: it fails. :raises ValueError: what it says isn't JSON.
    """
    said: list[dict[str, Any]] = json.loads(runner.run(["ip", "-j", *words]).stdout or b"[]")
    return [entry for entry in said if entry]  # {} stands for what it filtered out
