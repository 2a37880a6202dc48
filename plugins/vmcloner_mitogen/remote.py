"""What mitogen calls beside a host. Its calls come one after another, so each gets a thread."""

from __future__ import annotations

import functools
import threading
from pathlib import Path
from typing import Any

from vmcloner_core.engine import Engine
from vmcloner_core.hosts.beside import Beside

EVENT, ANSWER = "e", "a"
"""The first character of what is sent back: an event, or the answer, which is the last."""


@functools.cache
def _beside(config: str | None) -> Beside:
    def opened(plugin: object) -> Engine:
        return Engine.open(
            config=Path(config) if config is not None else None, host="local", plugins=[plugin]
        )

    return Beside(opened)


def call(sender: Any, name: str, text: str, config: str | None) -> None:
    """Begin a call; its events and its answer go to ``sender`` (mitogen's), as text."""
    beside = _beside(config)

    def work() -> None:
        answer = beside(name, text, lambda event: sender.send(EVENT + event))
        sender.send(ANSWER + answer)

    threading.Thread(target=work, name=name, daemon=True).start()
