"""What mitogen calls beside a host. Its calls come one after another, so each gets a thread."""

from __future__ import annotations

import logging
import threading
from typing import Any

from vmcloner_core.hosts.carrier import answer

EVENT, ANSWER = "e", "a"
"""The first character of what is sent back: an event, or the answer, which is the last."""


def call(sender: Any, name: str, text: str, config: str | None) -> None:
    """Begin a call; its events and its answer go to ``sender`` (mitogen's), as text."""
    # mitogen logs at the controller what is logged here; steps are told as events.
    logging.getLogger().setLevel(logging.WARNING)

    def work() -> None:
        said = answer(config, name, text, lambda event: sender.send(EVENT + event))
        sender.send(ANSWER + said)

    threading.Thread(target=work, name=name, daemon=True).start()
