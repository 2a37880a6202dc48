"""What mitogen calls beside a host. Its calls come one after another, so each gets a thread."""

from __future__ import annotations

import logging
import threading
from typing import Any

from vmcloner_core.hosts.carrier import answer

EVENT, ANSWER, BEAT = "e", "a", "b"
"""The first character of what is sent back: an event, the answer, which is the last, or a sign of
life."""
EVERY = 5.0
"""Seconds between signs of life: sshd answers ssh also where Python hangs."""


def call(sender: Any, name: str, text: str, config: str | None) -> None:
    """Begin a call; its events and its answer go to ``sender`` (mitogen's), as text."""
    # mitogen logs at the controller what is logged here; steps are told as events.
    logging.getLogger().setLevel(logging.WARNING)

    done = threading.Event()

    def beat() -> None:
        while not done.wait(EVERY):
            sender.send(BEAT)

    def work() -> None:
        said = answer(config, name, text, lambda event: sender.send(EVENT + event))
        done.set()
        sender.send(ANSWER + said)

    for target in (work, beat):
        threading.Thread(target=target, name=name, daemon=True).start()
