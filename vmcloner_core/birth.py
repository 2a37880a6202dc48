"""What all clones of one run have in common: who makes them, when, in which run."""

from __future__ import annotations

import getpass
import os
import secrets
from datetime import UTC, datetime
from typing import Self

import attrs


@attrs.frozen(kw_only=True)
class Birth:
    """Who makes clones, when, in which run. Times are UTC, ISO 8601, in seconds.

    :param run: a name that sorts by time, and that no other run has.
    """

    run: str
    owner: str
    created: str
    expires: str | None = None

    @classmethod
    def now(cls) -> Self:
        """Return the birth of clones that are made now by who runs this process."""
        time = datetime.now(UTC)
        return cls(
            run=time.strftime("%Y%m%dT%H%M%S-") + secrets.token_hex(3),
            owner=owner(),
            created=time.isoformat(timespec="seconds").replace("+00:00", "Z"),
        )


def owner() -> str:
    """Return who is asking: the user behind sudo where there is one."""
    try:
        return os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):  # a user id without an entry in passwd(5)
        return str(os.getuid())
