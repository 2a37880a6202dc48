"""Which host gets which of a fleet's new clones: pure functions."""

from __future__ import annotations

import enum
import heapq
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
    :param replace_lost: make clones anew, under new indices, for those of hosts that can't be
        reached: they are taken to be gone for good.
    :param barred: hosts that get none.
    """

    hosts: tuple[str, ...] = ()
    how: Placing = Placing.SPREAD
    each: int | None = None
    replace_lost: bool = False
    barred: frozenset[str] = frozenset()

    def __attrs_post_init__(self) -> None:
        if self.each is not None and self.each < 1:
            raise InvalidRequest(f"clones per host must be at least 1, not {self.each}")

    def allows(self, host: str) -> bool:
        """Return whether a host may get new clones."""
        return host not in self.barred and (not self.hosts or host in self.hosts)


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
    order = [_Place.of(room, how, (there or {}).get(room.host, 0)) for room in rooms]
    heapq.heapify(order)
    placed: dict[str, list[int]] = {}
    for done, index in enumerate(indices):
        while order and not order[0].fits(need, each):
            heapq.heappop(order)  # it will not have more room for the clones to come
        if not order:
            raise _too_many(len(indices), done, need, rooms, each)
        best = order[0]
        placed.setdefault(best.host, []).append(index)
        heapq.heapreplace(order, best.after(need))
    return {host: tuple(mine) for host, mine in sorted(placed.items())}


@attrs.frozen(order=True)
class _Place:
    """A host in the order in which it is chosen.

    :param key: its own clones of the fleet, all of its clones, and the memory left, negative;
        nothing if the name alone decides. :param own, left: the first and the last of these.
    """

    key: tuple[int, ...]
    host: str
    own: int
    load: int
    left: int

    @classmethod
    def of(cls, room: Room, how: Placing, own: int) -> _Place:
        """Return the place of a host; ``own`` are its clones of the fleet."""
        place = cls((), room.host, own, room.clones, room.memory)
        return place if how is Placing.PACK else place.spread()

    def spread(self) -> _Place:
        """Return it with the key by which clones are spread."""
        return attrs.evolve(self, key=(self.own, self.load, -self.left))

    def fits(self, need: int, each: int | None) -> bool:
        """Tell whether one more clone fits."""
        return self.left >= need and (each is None or self.own < each)

    def after(self, need: int) -> _Place:
        """Return it with one clone more."""
        more = attrs.evolve(self, own=self.own + 1, load=self.load + 1, left=self.left - need)
        return more.spread() if self.key else more


def _too_many(
    wanted: int, fit: int, need: int, rooms: Sequence[Room], each: int | None
) -> NotEnoughResources:
    limit = f", at most {each} on each" if each is not None else ""
    return NotEnoughResources(
        f"{counted(len(rooms), 'host')} can take {fit} of {counted(wanted, 'new clone')} with "
        f"{format_size(need)} of memory each{limit}",
        hint=f"make {fit}, or name more hosts" if fit else "name more hosts",
    )
