"""Scripts and playbooks that are run once on each clone of a fleet."""

from __future__ import annotations

import hashlib
from pathlib import Path

import attrs


@attrs.frozen(kw_only=True)
class Script:
    """A script for the guest's shell, or an Ansible playbook on this host.

    :param name: by which a clone's record remembers that it has run.
    :param content: the script, or the playbook's file. :param playbook: its place; None for a
        script.
    """

    name: str
    content: bytes = attrs.field(repr=False)
    playbook: Path | None = None

    @property
    def digest(self) -> str:
        """What changes whenever its file does; files that a playbook includes don't count."""
        return hashlib.sha256(self.content).hexdigest()
