"""Leases: until when clones are wanted."""

from __future__ import annotations

from datetime import UTC, datetime

import attrs

from vmcloner_core.errors import InvalidRequest

MIN_TTL = 1
MAX_TTL = 366 * 86_400
"""Seconds of a lease: a longer one must be a mistake, or no lease is meant."""
NEVER = "never"
"""The word for a clone without a lease, as a ``ttl``."""


def check_ttl(ttl: int | str | None) -> None:
    """Check how long a lease is to last.

    :param ttl: seconds, :data:`NEVER`, or None for the settings' default.
    :raises InvalidRequest: it is out of range.
    """
    if ttl is None or ttl == NEVER:
        return
    if isinstance(ttl, bool) or not isinstance(ttl, int) or not MIN_TTL <= ttl <= MAX_TTL:
        raise InvalidRequest(
            f"ttl out of range: {ttl}{' s' if isinstance(ttl, int) else ''}",
            hint=f"1 s to {MAX_TTL // 86_400} d, or {NEVER} for no lease",
        )


@attrs.frozen(kw_only=True)
class Moment:
    """A time on a host.

    :param wall: what its clock said, in seconds since the epoch. Clocks may be set.
    :param boot: the id of the run of its kernel.
    :param up: seconds since that began, with those in suspension. Nobody can set these.
    """

    wall: float
    boot: str
    up: float

    def since(self, earlier: Moment) -> float:
        """Return the seconds that have passed since another moment, at least 0.

        Clocks are only believed over a reboot: until then nothing that is done to them counts.
        """
        if self.boot == earlier.boot:
            return max(0.0, self.up - earlier.up)
        return max(0.0, self.wall - earlier.wall)


@attrs.frozen(kw_only=True)
class Lease:
    """Until when a clone is wanted: ``ttl`` seconds from ``granted``; 0 for one that was ended."""

    granted: Moment
    ttl: int

    def left(self, now: Moment) -> float:
        """Return the seconds that are left; 0 or less if it has expired."""
        return self.ttl - now.since(self.granted)

    @property
    def expires(self) -> str:
        """When it ends by the host's clock as that was when it was granted: UTC, ISO 8601."""
        end = datetime.fromtimestamp(self.granted.wall + self.ttl, UTC)
        return end.isoformat(timespec="seconds").replace("+00:00", "Z")
