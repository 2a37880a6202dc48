"""A host's links, addresses, routes and neighbours, by ip(8)."""

from __future__ import annotations

import json
from typing import Any

from vmcloner_core.process import CommandRunner


def show(runner: CommandRunner, *words: str) -> list[dict[str, Any]]:
    """Return the output of ``ip -j WORDS``.

    :raises HostCommandError: it fails. :raises ValueError: its output isn't JSON.
    """
    said: list[dict[str, Any]] = json.loads(runner.run(["ip", "-j", *words]).stdout or b"[]")
    return [entry for entry in said if entry]  # ip prints {} for entries that it filters out
