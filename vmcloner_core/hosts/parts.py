"""Which part of a request each host carries out: pure functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

import attrs

from vmcloner_core.errors import BackendError, InvalidRequest, NotFound, shown
from vmcloner_core.hosts import merging
from vmcloner_core.hosts.beside import Found
from vmcloner_core.model import Clone, State
from vmcloner_core.names import MAX_INDEX, Target, clone_name, fold, parse_targets, split_clone
from vmcloner_core.placing import Room, place
from vmcloner_core.plan import ALL, OnFailure, Plan
from vmcloner_core.request import CreateRequest, Request, TargetRequest
from vmcloner_core.survey import Survey, absent


def new_indices(
    request: CreateRequest, there: Mapping[int, str], highest: int, lost: bool
) -> list[int]:
    """Return the indices that a fleet lacks: the lowest free ones, or those after the highest.

    A host that is left out may have clones up to the size that is asked for, and up to the highest
    index that was ever given: these names are not given again.

    :param there: the host of each that exists. :param highest: the index that hosts know of.
    :param lost: whether some hosts could not be asked
        and are left out.
    """
    top = max(there, default=0)
    if lost:
        top = max(top, request.count or 0, highest)
    wanted = request.add if request.add is not None else max(0, (request.count or 1) - len(there))
    if request.add is not None or lost:
        if top + wanted > MAX_INDEX:
            raise InvalidRequest(f"clone index out of range: {top + wanted}")
        return list(range(top + 1, top + wanted + 1))
    from vmcloner_core.planner import lowest_free

    return lowest_free(there, wanted)


def of_create(
    request: CreateRequest,
    found: Mapping[str, Found],
    memory: int,
    *,
    lost: bool,
) -> dict[str, CreateRequest]:
    """Return what each host is asked for: its existing clones of the fleet, and its new ones.

    :param found: what each host has. :param memory: bytes that a new clone needs; 0 if it isn't
        started. :param lost: see :func:`new_indices`.
    :raises NotEnoughResources: the new clones do not fit.
    """
    there = {
        clone.index: host
        for host, each in found.items()
        for clone in each.survey.clones
        if clone.fleet == request.fleet
    }
    where = request.where
    rooms = [
        Room(
            host=host,
            memory=each.room,
            clones=each.clones,
        )
        for host, each in found.items()
        if where.allows(host)
    ]
    mine = {host: sum(owner == host for owner in there.values()) for host in found}
    highest = max(each.highest for each in found.values())
    placed = place(
        [i for i in request.indices if i not in there]
        if request.indices is not None
        else new_indices(request, there, highest, lost),
        rooms,
        need=memory,
        how=where.how,
        each=where.each,
        there=mine,
    )
    parts = {}
    for host in found:
        here = {index for index, owner in there.items() if owner == host}
        new = placed.get(host, ())
        named = here.intersection(request.indices or ())
        if new or named or (here and request.others):
            parts[host] = _part(request, (*new, *sorted(named)), here | set(new))
    _check_values(request, set(there).union(*placed.values()))
    return parts


def without(found: Found, gone: Collection[str]) -> Found:
    """Return what a host has once clones of some names are deleted."""
    clones = found.survey.clones
    freed = sum(
        clone.domain.memory
        for clone in clones
        if clone.name in gone and clone.domain is not None and clone.state is State.RUNNING
    )
    left = tuple(clone for clone in clones if clone.name not in gone)
    return attrs.evolve(
        found,
        survey=attrs.evolve(found.survey, clones=left),
        clones=found.clones - len(clones) + len(left),
        room=found.room + freed,
    )


def _check_named_once(targets: Sequence[Target], found: Mapping[str, Survey]) -> None:
    """Check that what is deleted by its own name, not by its fleet's, is on one host.

    :raises Conflict: one is on two.
    """
    single = [target for target in targets if target.indices is not None]
    clones = (
        attrs.evolve(clone, host=host)
        for host, each in found.items()
        for clone in each.clones
        if _names(single, clone)
    )
    merging.check_once(tuple(clones))


def of_plan(host: str, request: Request, found: Survey, plan: Plan, *, held: bool = True) -> Plan:
    """Return a host's plan for its part of a request, if it has only what was asked for.

    A broken or hostile host could name clones of others, which would count as done.

    :param found: what the host has. :param held: whether that can't have changed since.
    :raises BackendError: it has something else.
    """
    names = [*(clone.name for clone in plan.clones), *plan.existing]
    there = {clone.name: (clone.fleet, clone.index) for clone in found.clones}
    if isinstance(request, CreateRequest):
        asked = {name for name, (fleet, _) in there.items() if fleet == request.fleet}
        asked |= {clone_name(request.fleet, index) for index in request.indices or ()}
        fleets = {request.fleet}
    elif request.everything:
        asked, fleets = set(there), {fleet for fleet, _ in there.values()}
    else:
        targets = parse_targets(request.targets)
        asked = {name for name, at in there.items() if any(t.matches(*at) for t in targets)}
        fleets = {target.fleet for target in targets}
    if not held:
        asked |= {name for name in names if (split_clone(name) or ("",))[0] in fleets}
    strange = sorted(set(names) - asked) or [n for n, count in Counter(names).items() if count > 1]
    if strange:
        raise BackendError(
            f"host {host!r}: its plan has {shown(strange[0])}, which it was not asked for",
            hint=f"--without {host} leaves it out",
        )
    if plan.action != request.action:
        raise BackendError(f"host {host!r}: its plan is to {shown(plan.action)}")
    return plan


def too_many(request: CreateRequest, found: Mapping[str, Survey]) -> tuple[str, ...]:
    """Return a warning if a fleet is larger than requested, on all hosts together."""
    from vmcloner_core.planner import more_than_asked

    clones = [clone for each in found.values() for clone in each.clones]
    fleet = {clone.index: clone for clone in clones if clone.fleet == request.fleet}
    return more_than_asked(request, fleet)


def _part(request: CreateRequest, new: tuple[int, ...], all_here: set[int]) -> CreateRequest:
    values = {index: own for index, own in request.values.items() if index in all_here}
    return attrs.evolve(
        request,
        count=None,
        add=None,
        indices=new,
        values=values,
        min_ready=ALL,
        on_failure=OnFailure.KEEP,  # the controller rolls back, on all hosts
    )


def _check_values(request: CreateRequest, indices: set[int]) -> None:
    beyond = sorted(set(request.values) - indices)
    if beyond:
        names = fold([f"{request.fleet}-{index}" for index in beyond])
        raise InvalidRequest(f"values are given for {names}, outside the fleet")


def of_targets(
    request: TargetRequest, found: Mapping[str, Survey]
) -> tuple[dict[str, TargetRequest], NotFound | None]:
    """Return what each host is asked for: by the names of its own clones.

    :returns: the parts, and an error that names what isn't there.
    :raises NotFound: nothing that is named is there, and the action needs it.
    :raises Conflict: a clone that is to be deleted by its name is on two hosts.
    """
    from vmcloner_core.steps import ACTIONS, TargetAction

    action = ACTIONS[request.action]
    leaves = action.leaves if isinstance(action, TargetAction) else ()
    if request.everything:  # each host's engine leaves alone what is not its own, or not held
        every = dict.fromkeys(found, attrs.evolve(request, count=None))
        return _at_work(leaves, every, found), None
    targets = parse_targets(request.targets)
    if request.action == "delete":
        _check_named_once(targets, found)
    clones = tuple(clone for each in found.values() for clone in each.clones)
    error = absent(clones, targets)
    for each in found.values() if error is not None else ():
        each.check_complete(f"{request.action} {' '.join(request.targets)}")
    lenient = isinstance(action, TargetAction) and action.missing_ok
    if error is not None and not lenient:
        raise error
    parts: dict[str, TargetRequest] = {}
    for host, each in found.items():
        mine = _of_host(targets, each)
        if mine:
            parts[host] = attrs.evolve(request, targets=mine, missing_ok=True, count=None)
    if error is not None and request.missing_ok:
        error = None
    if error is not None and not parts:
        raise error
    return _at_work(leaves, parts, found), error


def _at_work(
    leaves: Collection[State], parts: dict[str, TargetRequest], found: Mapping[str, Survey]
) -> dict[str, TargetRequest]:
    """Return the parts without the hosts that have only clones in states that an action leaves.

    A host would take them for all that is meant. All are returned if no other host has any.
    """
    resting: set[str] = set()
    busy: set[str] = set()
    for host, part in parts.items():
        targets = parse_targets(part.targets)
        named = [target for target in targets if target.indices is not None]
        for clone in found[host].clones:
            meant = clone.ours and not clone.making
            if meant if part.everything else _names(targets, clone):
                rests = clone.state in leaves and not _names(named, clone)
                (resting if rests else busy).add(host)
    idle = resting - busy if busy else set()
    return {host: part for host, part in parts.items() if host not in idle}


def _names(targets: Sequence[Target], clone: Clone) -> bool:
    return any(target.matches(clone.fleet, clone.index) for target in targets)


def _of_host(targets: Sequence[Target], found: Survey) -> tuple[str, ...]:
    """Return those targets that name clones of a host; what is named by fleet stays so.

    Some actions leave clones that are not named by index.
    """
    words = []
    for target in targets:
        names = [clone.name for clone in found.clones if target.matches(clone.fleet, clone.index)]
        if names:
            words.append(target.fleet if target.indices is None else fold(names))
    return tuple(words)


def at_most(request: TargetRequest, plans: Mapping[str, Plan]) -> dict[str, TargetRequest]:
    """Return the parts of a request for at most ``count`` clones, of those that it would change."""
    from vmcloner_core.steps import ACTIONS, TargetAction

    assert request.count is not None  # noqa: S101
    action = ACTIONS[request.action]
    changing = sorted(
        (clone.labels.fleet, clone.labels.index, host)
        for host, plan in plans.items()
        for clone in plan.clones
        if action.name == "wait" or clone.steps != ("wait",)
    )
    first = isinstance(action, TargetAction) and action.lowest_first
    taken = changing[: request.count] if first else changing[-request.count :]
    names: dict[str, list[str]] = {}
    for fleet, index, host in taken:
        names.setdefault(host, []).append(f"{fleet}-{index}")
    return {
        host: attrs.evolve(
            request, targets=(fold(mine),), everything=False, missing_ok=True, count=None
        )
        for host, mine in names.items()
    }


def same_macs(plans: Mapping[str, Plan], found: Mapping[str, Survey]) -> dict[str, frozenset[str]]:
    """Return the MAC addresses that each host's new clones must not have: others have them."""
    owners: dict[str, set[str]] = {}
    for host, each in found.items():
        used = {mac for c in each.clones if c.domain is not None for mac in c.domain.macs}
        for mac in used | each.foreign_macs:
            owners.setdefault(mac, set()).add(host)
    avoid: dict[str, set[str]] = {}
    for host, plan in plans.items():
        for mac in _new_macs(plan):
            if owners.setdefault(mac, {host}) != {host}:
                avoid.setdefault(host, set()).add(mac)
    return {host: frozenset(macs) for host, macs in avoid.items()}


def _new_macs(plan: Plan) -> Sequence[str]:
    return [
        mac
        for clone in plan.clones
        if "define" in clone.steps and clone.spec is not None
        for mac in clone.spec.macs
    ]
