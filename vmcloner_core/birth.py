"""What all clones of one run have in common: owner, time, and run."""

from __future__ import annotations

import os
import pwd
import secrets
from datetime import UTC, datetime
from typing import Self

import attrs

from vmcloner_core.model import Lease


@attrs.frozen(kw_only=True)
class Birth:
    """The owner, time and run of new clones. Times are UTC, ISO 8601, in seconds.

    :param run: a unique name that sorts by time. :param lease: until when they are wanted.
    """

    run: str
    owner: str
    created: str
    lease: Lease | None = None

    @classmethod
    def now(cls) -> Self:
        """Return the birth of clones that this process's user makes now."""
        time = datetime.now(UTC)
        return cls(
            run=time.strftime("%Y%m%dT%H%M%S-") + secrets.token_hex(3),
            owner=owner(),
            created=time.isoformat(timespec="seconds").replace("+00:00", "Z"),
        )


def owner() -> str:
    """Return the current user's name: for root under sudo, that of the user who called sudo."""
    user = os.getuid()
    if user == 0 and (caller := os.environ.get("SUDO_USER")):
        return caller
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:  # a user id without an entry in passwd(5)
        return str(user)
