"""The rules for names of fleets, clones, templates and snapshots.

A fleet's name is a DNS label (RFC 1123, lower case). Its clones are ``FLEET-1`` … ``FLEET-N``
and are DNS labels too, because each is a host name. So a fleet's name must not end in ``-NUMBER``:
``web-1`` is always a clone, and ``web-0`` and ``web-01`` are invalid.
"""

from __future__ import annotations

import bisect
import functools
import math
import re
from collections.abc import Sequence

import attrs

from vmcloner_core.errors import InvalidRequest

MAX_LABEL = 63
"""Characters of a DNS label, RFC 1035 section 2.3.4."""
MAX_INDEX = 999_999
MAX_NAMED = 100_000
"""Clones that one command may name one by one."""
MAX_SNAPSHOT = 32
"""Characters of a snapshot's name: beside a clone's it has to fit into names of devices."""
XEN_HOST = frozenset({"domain-0", "0", "00000000-0000-0000-0000-000000000000"})
"""How Xen's tools refer to the domain that is the host itself: name, id, UUID."""
MAX_WORD = 4096
"""Characters of one target."""
_RANGE = r"[0-9]+(?:-[0-9]+(?:/[0-9]+)?)?"
_NODE = rf"[a-z0-9-]*(?:\[{_RANGE}(?:,{_RANGE})*\][a-z0-9-]*)*"
_NODE_SET = re.compile(rf"(?!$){_NODE}(?:,{_NODE})*")
_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?")
_TEMPLATE = re.compile(r"[a-z0-9](?:[a-z0-9._-]*[a-z0-9])?")
_SNAPSHOT = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")
_OWNER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@+\\-]{0,63}")
_CLONE = re.compile(r"(?P<fleet>.+)-(?P<index>[1-9][0-9]{0,5})")
_NUMBERED = re.compile(r"-[0-9]+$")
_VOLUME = re.compile(r"(?P<clone>.+)-disk(?P<disk>0|[1-9][0-9]?)")


def _printable(text: object) -> str:
    """Return ``text`` quoted, short and without control characters, for a message."""
    shown = repr(text)
    return shown if len(shown) <= 80 else f"{shown[:76]}…'"


def check_fleet(name: str) -> str:
    """Return ``name`` if it can name a fleet.

    :raises InvalidRequest: it is not a DNS label, or it ends in ``-NUMBER``.
    """
    if not isinstance(name, str) or not _LABEL.fullmatch(name) or len(name) > MAX_LABEL - 2:
        raise InvalidRequest(
            f"not a fleet name: {_printable(name)}",
            hint=f"lower-case letters, digits, inner hyphens; at most {MAX_LABEL - 2} characters",
        )
    if name in XEN_HOST:
        raise InvalidRequest(f"not a fleet name: {_printable(name)} is the host itself, under Xen")
    if _NUMBERED.search(name):
        raise InvalidRequest(
            f"not a fleet name: {_printable(name)} looks like a clone",
            hint="a fleet's name may not end in -NUMBER; its clones are numbered 1, 2, 3 …",
        )
    return name


def check_template(name: str) -> str:
    """Return ``name`` if it can name a template (like a fleet; inner ``.`` and ``_`` are allowed).

    :raises InvalidRequest: it cannot.
    """
    ok = isinstance(name, str) and _TEMPLATE.fullmatch(name) and len(name) <= MAX_LABEL
    if not ok or ".." in name:
        raise InvalidRequest(
            f"not a template name: {_printable(name)}",
            hint="lower-case letters, digits and inner . _ -, at most 63 characters",
        )
    return name


def check_lab(name: str) -> str:
    """Return ``name`` if it can name a lab: a DNS label.

    :raises InvalidRequest: it cannot.
    """
    if not isinstance(name, str) or not _LABEL.fullmatch(name) or len(name) > MAX_LABEL:
        raise InvalidRequest(
            f"not a lab's name: {_printable(name)}",
            hint=f"lower-case letters, digits, inner hyphens; at most {MAX_LABEL} characters",
        )
    return name


def check_owner(name: str) -> str:
    """Return ``name`` if it can name the owner of clones, as a user's name does.

    :raises InvalidRequest: it cannot.
    """
    if not isinstance(name, str) or not _OWNER.fullmatch(name):
        raise InvalidRequest(
            f"not an owner's name: {_printable(name)}",
            hint="letters, digits and inner . _ - @ + \\, at most 64 characters",
        )
    return name


def check_snapshot(name: str) -> str:
    """Return ``name`` if it can name a snapshot.

    :raises InvalidRequest: it cannot.
    """
    ok = isinstance(name, str) and _SNAPSHOT.fullmatch(name) and len(name) <= MAX_SNAPSHOT
    if not ok or ".." in name:
        raise InvalidRequest(
            f"not a snapshot name: {_printable(name)}",
            hint=f"letters, digits and inner . _ -, at most {MAX_SNAPSHOT} characters",
        )
    return name


def snapshot_volume(volume: str, snapshot: str) -> str:
    """Return the name that a volume's snapshot has in a pool; no volume has such a name."""
    return f"{volume}.{snapshot}"


@functools.lru_cache(maxsize=4096)  # a run asks for the same names again and again
def clone_name(fleet: str, index: int) -> str:
    """Return the name of a fleet's clone, ``FLEET-INDEX``.

    :raises InvalidRequest: the index is out of range, or the name too long for a DNS label.
    """
    check_fleet(fleet)
    if not 1 <= index <= MAX_INDEX:
        raise InvalidRequest(f"clone index out of range: {index}", hint=f"1 to {MAX_INDEX}")
    name = f"{fleet}-{index}"
    if len(name) > MAX_LABEL:
        raise InvalidRequest(
            f"name too long with its index: {name!r} has {len(name)} characters",
            hint=f"a host name has at most {MAX_LABEL}: shorten the fleet's name",
        )
    return name


def split_clone(name: str) -> tuple[str, int] | None:
    """Return (fleet, index) of a clone's name, or None if it is not a clone's name."""
    match = _CLONE.fullmatch(name)
    if match is None or not _LABEL.fullmatch(match["fleet"]) or len(name) > MAX_LABEL:
        return None
    return match["fleet"], int(match["index"])


def volume_name(clone: str, disk: int) -> str:
    """Return the name of a clone's volume, ``CLONE-diskN``; disk 0 is the template's image."""
    return f"{clone}-disk{disk}"


def split_volume(name: str) -> tuple[str, int] | None:
    """Return (clone name, disk number) of a volume's name, or None if it is not a volume's name."""
    match = _VOLUME.fullmatch(name)
    if match is None or split_clone(match["clone"]) is None:
        return None
    return match["clone"], int(match["disk"])


@attrs.frozen(kw_only=True)
class Target:
    """The target of a command: a whole fleet, or some of its clones.

    ``indices`` is None for the whole fleet, otherwise ascending and without duplicates.
    """

    fleet: str
    indices: tuple[int, ...] | None = None

    def matches(self, fleet: str, index: int) -> bool:
        """Return whether a clone belongs to this target."""
        if fleet != self.fleet or self.indices is None:
            return fleet == self.fleet
        place = bisect.bisect_left(self.indices, index)
        return self.indices[place : place + 1] == (index,)


def parse_targets(words: Sequence[str]) -> tuple[Target, ...]:
    """Parse targets: ``web``, ``web-3``, ``web-[1-10,15]``, ``web-[1-3],db-2``.

    The notation is ClusterShell's NodeSet. Groups (``@``), operators (``!``, ``^``, ``&``) and
    wildcards are refused. The result keeps the order; clones of the same
    fleet are merged into one target.

    :raises InvalidRequest: a word can't be parsed, or together they name more than
        :data:`MAX_NAMED` clones.
    """
    if sum(map(_count, words)) > MAX_NAMED:
        raise InvalidRequest(
            f"more than {MAX_NAMED} clones named one by one",
            hint="name the fleet (web), which is all of its clones",
        )
    fleets: dict[str, set[int] | None] = {}
    for word in words:
        for name in _expand(word):
            parts = split_clone(name)
            if parts is None:
                fleets[check_fleet(name)] = None
                continue
            fleet, index = parts
            known = fleets.setdefault(check_fleet(fleet), set())
            if known is not None:
                known.add(index)
    return tuple(
        Target(fleet=fleet, indices=None if found is None else tuple(sorted(found)))
        for fleet, found in fleets.items()
    )


def _count(word: str) -> int:
    """Return an upper bound for the number of names in a node set, without expanding it."""
    if len(word) > MAX_WORD or not _NODE_SET.fullmatch(word):
        return 1  # _expand() refuses it
    nodes = re.split(r",(?![^\[]*\])", word)
    groups = r"([0-9]*)\[([^\]]*)\]?([0-9]*)"
    return sum(math.prod(_size(*found) for found in re.findall(groups, node)) for node in nodes)


def _size(before: str, group: str, after: str) -> int:
    """Return an upper bound for the count of numbers in ``1-10,15``.

    :param before, after: digits beside the brackets: ``1[7-10]`` means 17 to 110.
    """
    ranges = re.findall(r"([0-9]+)(?:-([0-9]+))?", group)

    def number(digits: str) -> int:
        return int(f"{before}{digits}{after}")

    return sum(max(1, number(high or low) - number(low) + 1) for low, high in ranges)


def _expand(word: str) -> list[str]:
    if re.fullmatch(r"[a-z0-9-]+", word):
        return [word]
    hint = "write a fleet (web), a clone (web-3) or a node set (web-[1-10,15])"
    if len(word) > MAX_WORD or not _NODE_SET.fullmatch(word):
        raise InvalidRequest(f"not a target: {_printable(word)}", hint=hint)
    from ClusterShell.NodeSet import NodeSet, NodeSetException

    try:
        # No resolver: ignore the groups in the host's ClusterShell configuration.
        names = [str(node) for node in NodeSet(word, resolver=False)]
    except (NodeSetException, ValueError) as error:
        raise InvalidRequest(f"not a target: {_printable(word)}: {error}", hint=hint) from error
    return names


def fold(names: Sequence[str]) -> str:
    """Return clone names as one folded node set, ``web-[1-10,15]``, for a message."""
    from ClusterShell.NodeSet import NodeSet

    return str(NodeSet.fromlist(list(names), resolver=False)) if names else ""
