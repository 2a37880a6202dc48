"""Which host gets which of a fleet's new clones: pure functions."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence

import attrs

from vmcloner_core.errors import InvalidRequest, NotEnoughResources
from vmcloner_core.units import counted, format_size


class Placing(enum.Enum):
    """How new clones are distributed: evenly, or on as few hosts as can carry them."""

    SPREAD = "spread"
    PACK = "pack"


@attrs.frozen(kw_only=True)
class Where:
    """Where new clones go.

    :param hosts: these hosts only; empty for all. :param each: at most this many of the fleet's
        clones on each host.
    """

    hosts: tuple[str, ...] = ()
    how: Placing = Placing.SPREAD
    each: int | None = None

    def __attrs_post_init__(self) -> None:
        if self.each is not None and self.each < 1:
            raise InvalidRequest(f"clones per host must be at least 1, not {self.each}")

    def allows(self, host: str) -> bool:
        """Return whether a host may get new clones."""
        return not self.hosts or host in self.hosts


ANYWHERE = Where()


@attrs.frozen(kw_only=True)
class Room:
    """What a host has for new clones.

    :param memory: bytes that guests may use. :param clones: how many it has already.
    """

    host: str
    memory: int
    clones: int = 0


def place(
    indices: Sequence[int],
    rooms: Sequence[Room],
    *,
    need: int,
    how: Placing = Placing.SPREAD,
    each: int | None = None,
    there: Mapping[str, int] | None = None,
) -> dict[str, tuple[int, ...]]:
    """Return the indices that each host makes.

    ``SPREAD`` gives the next clone to the host with the fewest clones of the fleet, then with the
    fewest of all, then with the most memory left; ``PACK`` to the first, by name, that has room.

    :param need: bytes of memory of one clone; 0 for clones that are not started.
    :param each: at most this many of the fleet's clones for each host.
    :param there: how many clones of the fleet each host has already; they count for ``each``.
    :raises NotEnoughResources: not all of them fit; says how many would.
    """
    left = {room.host: room.memory for room in rooms}
    counts = {room.host: (there or {}).get(room.host, 0) for room in rooms}
    loads = {room.host: room.clones for room in rooms}
    placed: dict[str, list[int]] = {}

    def fits(host: str) -> bool:
        return left[host] >= need and (each is None or counts[host] < each)

    for done, index in enumerate(indices):
        able = sorted(filter(fits, left))
        if not able:
            raise _too_many(len(indices), done, need, rooms, each)
        if how is Placing.PACK:
            host = able[0]
        else:
            host = min(able, key=lambda name: (counts[name], loads[name], -left[name], name))
        placed.setdefault(host, []).append(index)
        left[host] -= need
        counts[host] += 1
        loads[host] += 1
    return {host: tuple(mine) for host, mine in sorted(placed.items())}


def _too_many(
    wanted: int, fit: int, need: int, rooms: Sequence[Room], each: int | None
) -> NotEnoughResources:
    limit = f", at most {each} on each" if each is not None else ""
    return NotEnoughResources(
        f"{counted(len(rooms), 'host')} can take {fit} of {counted(wanted, 'new clone')} with "
        f"{format_size(need)} of memory each{limit}",
        hint=f"make {fit}, or name more hosts" if fit else "name more hosts",
    )
