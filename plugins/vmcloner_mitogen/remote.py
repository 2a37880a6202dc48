"""What mitogen calls beside a host. Its calls come one after another, so each gets a thread."""

from __future__ import annotations

import logging
from typing import Any

from vmcloner_core.hosts.carrier import begin


def call(sender: Any, name: str, text: str, config: str | None) -> None:
    """Begin a call; its events and its answer go to ``sender`` (mitogen's), as text."""
    # mitogen logs at the controller what is logged here; steps are told as events.
    logging.getLogger().setLevel(logging.WARNING)
    begin(sender.send, config, name, text)
