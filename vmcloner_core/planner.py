"""Make plans: pure functions of a request and of what the host was found to hold."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import attrs

from vmcloner_core.disks import disk_numbers
from vmcloner_core.errors import Conflict, InvalidRequest, NotEnoughResources, NotFound
from vmcloner_core.identities import Record, check_record, resolve
from vmcloner_core.model import (
    Capacity,
    Clone,
    CloneMode,
    CloneRequest,
    Copying,
    HostResources,
    Labels,
    Network,
    Nic,
    NicSpec,
    Origin,
    State,
    Template,
    clone_mac,
    clone_uuid,
)
from vmcloner_core.names import MAX_INDEX, Target, clone_name, fold, parse_targets
from vmcloner_core.placeholders import clone_values, fill
from vmcloner_core.plan import Action, ClonePlan, Plan, Readiness, Step
from vmcloner_core.preflight import check_memory, check_networks, check_space
from vmcloner_core.request import CreateRequest, TargetRequest
from vmcloner_core.survey import select
from vmcloner_core.values_file import check_value, sizes

MAX_MAC_ATTEMPTS = 1000


@attrs.frozen(kw_only=True)
class Birth:
    """What all clones of one run have in common: who makes them, when, in which run."""

    run: str
    owner: str
    created: str
    expires: str | None = None


@attrs.frozen(kw_only=True)
class Facts:
    """What a create needs to know of the host.

    :param mode: as asked for, or the pool's own.
    :param clones: every clone of the host.
    :param records: what is kept of the clones' identities, by the clones' names.
    :param foreign_names, foreign_macs: of domains that aren't ours.
    :param origin: the template's image in the pool, None while it isn't imported.
    :param need: bytes that so many volumes like the one requested take.
    :param seeds: whether the template's identity provider makes seeds.
    :param authorized_keys: public keys that may log in to the clones.
    :param lets_in: whether the identity provider brings them in by itself.
    :param networks: the host's, None where the hypervisor can't tell.
    :param mac: a policy's address for (labels, card, attempt), or None for the default.
    :param mac_prefix: the hypervisor's, for the default.
    :param boot: the template's boot provider where it is asked at each start, else None.
    """

    host: str
    hypervisor: str
    storage: str
    mode: CloneMode
    clones: tuple[Clone, ...]
    records: Mapping[str, Record] = attrs.field(factory=dict)
    foreign_names: frozenset[str] = frozenset()
    foreign_macs: frozenset[str] = frozenset()
    origin: Origin | None = None
    capacity: Capacity
    resources: HostResources
    memory_overcommit: float = 1.0
    need: Callable[[CloneRequest, int], int]
    seeds: bool = False
    authorized_keys: tuple[str, ...] = ()
    lets_in: bool = False
    networks: tuple[Network, ...] | None = None
    mac: Callable[[Labels, int, int], str | None] = lambda _labels, _nic, _attempt: None
    mac_prefix: str = "52:54:00"
    boot: str | None = None


def plan_create(request: CreateRequest, template: Template, facts: Facts, birth: Birth) -> Plan:
    """Return the plan that brings a fleet to its size.

    :raises Conflict: a name is taken by a domain that isn't ours, or by another template's clone.
    :raises NotEnoughResources: space or memory; says how many would fit.
    :raises InvalidRequest: a name would be too long, or the disk smaller than its image.
    """
    wait = request.wait
    if wait is None and request.ready:
        wait = Readiness.parse(template.ready, timeout=request.timeout)
    start = request.start or wait is not None
    check_wait(wait, template)
    fleet = {c.index: c for c in facts.clones if c.fleet == request.fleet}
    _check_fleet(fleet.values(), template.name)
    indices = sorted([*fleet, *_new_indices(request, fleet)])
    clones, existing, macs = [], [], _used_macs(facts)
    for index in indices:
        found = fleet.get(index)
        disks = _missing_disks(found, template)
        lost = facts.seeds and found is not None and _lost_identity(found)
        steps = _create_steps(found, disks, lost=lost, start=start, wait=wait is not None)
        if not steps:
            existing.append(clone_name(request.fleet, index))
            continue
        labels = _labels(request.fleet, index, template.name, facts, birth)
        if disks and found is not None:
            _check_pool(found, facts.storage)
        own = request.values.get(index, {})
        clones.append(_clone_plan(labels, found, steps, disks, template, facts, macs, wait, own))
    born = {clone.labels.index for clone in clones if Step.DEFINE in clone.steps}
    warnings = _check_values(request, indices, born, facts.records)
    warnings += _more_than_asked(request, fleet)
    _check_foreign([clone.name for clone in clones if Step.DEFINE in clone.steps], facts)
    _check_addresses(request.fleet, template, clones, facts.records)
    if facts.networks is not None and clones:
        static = frozenset().union(*(r.identity.static_macs for r in facts.records.values()))
        check_networks(template, clones, facts.networks, facts.clones, static)
    plan = Plan(
        action=Action.CREATE,
        run=birth.run,
        host=facts.host,
        clones=tuple(clones),
        existing=tuple(existing),
        template=template,
        hypervisor=facts.hypervisor,
        storage=facts.storage,
        mode=facts.mode,
        import_image=facts.origin is None and any(0 in c.disks for c in clones),
        copying=Copying(bandwidth=request.bandwidth, verify=request.verify),
        on_failure=request.on_failure,
        min_ready=request.min_ready,
        jobs=request.jobs,
        warnings=warnings,
    )
    return _with_needs(plan, facts)


def check_wait(wait: Readiness | None, template: Template) -> None:
    """Check that what is waited for can come: an address, for one, has to be found first.

    :raises InvalidRequest: it can't.
    """
    more = template.domain.xml is not None or bool(template.domain.devices)  # may have other cards
    found = more or any(spec.network for spec in template.nics)
    if wait is not None and wait.kind in ("ip", "port", "ssh") and not found:
        raise InvalidRequest(
            f"template {template.name} has no card on a network, so there would be no address of "
            f"its clones to wait for ({wait})",
            hint='give it one of kind = "network" or "bridge", or wait for console:REGEX',
        )


def _check_fleet(clones: Iterable[Clone], template: str) -> None:
    for clone in clones:
        if clone.template != template:
            raise Conflict(
                f"fleet {clone.fleet!r} is made of template {clone.template!r}, not {template!r}",
                hint="choose another fleet name, or delete this one first",
            )


def _new_indices(request: CreateRequest, fleet: Mapping[int, Clone]) -> list[int]:
    """Return the indices to make: the lowest that are free, or those after the highest."""
    if request.add is not None:
        top = max(fleet, default=0)
        if top + request.add > MAX_INDEX:
            raise InvalidRequest(f"clone index out of range: {top + request.add}")
        return list(range(top + 1, top + request.add + 1))
    wanted = max(0, (request.count or 1) - len(fleet))
    new: list[int] = []
    index = 1
    while len(new) < wanted:
        if index not in fleet:
            new.append(index)
        index += 1
    return new


def _more_than_asked(request: CreateRequest, fleet: Mapping[int, Clone]) -> tuple[str, ...]:
    """Return the warning that a fleet is larger than asked, where it is."""
    count, there = request.count, len(fleet)
    if count is None or there <= count:
        return ()
    way = f"vmcloner delete {request.fleet} -c {there - count}"
    return (f"{request.fleet} has {there} clones already, and create takes none away ({way})",)


def _check_values(
    request: CreateRequest,
    indices: Collection[int],
    born: Collection[int],
    records: Mapping[str, Record],
) -> tuple[str, ...]:
    """Check that the values that are given are some clone's, and would change none that is there.

    :param indices: of the clones that there will be. :param born: of those that are given values.
    :returns: the warning that some can't be compared with those that a clone was born with.
    """
    there = set(indices)
    beyond = [
        clone_name(request.fleet, n) for n, own in request.values.items() if own and n not in there
    ]
    if beyond:
        raise InvalidRequest(
            f"values are given for {fold(beyond)}, and there won't be such a clone",
            hint=f"the fleet will be {fold([clone_name(request.fleet, n) for n in indices])}",
        )
    changed: dict[str, list[str]] = {}
    unknown = []
    for index in sorted(request.values.keys() - born):
        name, own = clone_name(request.fleet, index), request.values[index]
        kept = records[name].values if name in records else None
        if kept is None and own:
            unknown.append(name)
        elif kept is not None:
            keys = [key for key, value in own.items() if str(kept.get(key)) != str(value)]
            changed |= {name: keys} if keys else {}
    if changed:
        keys = sorted({key for keys in changed.values() for key in keys})
        raise Conflict(
            f"{fold(list(changed))} has other values already: {', '.join(keys)}",
            hint="a clone has those that it was made with: delete it first, or leave them out",
        )
    if not unknown:
        return ()
    return (f"{fold(unknown)} is there already, and keeps the values that it was made with",)


def _missing_disks(found: Clone | None, template: Template) -> tuple[int, ...]:
    """Return the numbers of the disks that a clone doesn't have yet."""
    wanted = disk_numbers(template)
    if found is None:
        return tuple(wanted)
    if found.domain is not None:
        # It was defined with so many: what the template has got since is for other clones.
        wanted = wanted[: max(1, len(found.domain.disks))]
    there = {volume.disk for volume in found.volumes if volume.complete}
    return tuple(number for number in wanted if number not in there)


def _check_pool(found: Clone, pool: str) -> None:
    """Check that what a clone lacks would be made in the pool that it lies in."""
    if found.volumes and found.labels.storage != pool:
        raise Conflict(
            f"clone {found.name} lacks a disk, and lies in pool {found.labels.storage!r}, "
            f"not {pool!r}",
            hint=f"--storage {found.labels.storage}",
        )


def _lost_identity(found: Clone) -> bool:
    """Tell whether a clone needs an identity again: it had one that somebody removed.

    While it runs it is who it was, and keeps what it has read.
    """
    domain = found.domain
    stopped = domain is not None and domain.state in (State.STOPPED, State.CRASHED)
    return stopped and not found.seeded


def _create_steps(
    found: Clone | None, disks: Sequence[int], *, lost: bool, start: bool, wait: bool
) -> tuple[Step, ...]:
    """Return what a clone still needs; nothing where it is as asked.

    :param lost: its identity has to be made again, which is part of defining it.
    """
    steps: list[Step] = []
    if disks:
        steps.append(Step.CLONE)
    if found is None or found.state is State.ALLOCATED or lost:
        steps.append(Step.DEFINE)
    if start and (found is None or found.state is not State.RUNNING):
        steps.append(Step.START)
    if wait:
        steps.append(Step.WAIT)
    return tuple(steps)


def _labels(fleet: str, index: int, template: str, facts: Facts, birth: Birth) -> Labels:
    return Labels(
        fleet=fleet,
        index=index,
        template=template,
        run=birth.run,
        owner=birth.owner,
        created=birth.created,
        expires=birth.expires,
        storage=facts.storage,
        hypervisor=facts.hypervisor,
        boot=facts.boot,
    )


def _clone_plan(
    labels: Labels,
    found: Clone | None,
    steps: tuple[Step, ...],
    disks: tuple[int, ...],
    template: Template,
    facts: Facts,
    macs: set[str],
    wait: Readiness | None,
    own: Mapping[str, str | int],
) -> ClonePlan:
    nics: tuple[Nic, ...] = ()
    run = labels.run
    if Step.DEFINE in steps and (found is None or found.domain is None):
        nics = tuple(
            Nic(spec=spec, mac=_free_mac(labels, number, facts, macs))
            for number, spec in enumerate(template.nics)
        )
        run = run if found is None else found.labels.run
    if found is not None:
        # What is there keeps its birth: the rest of the clone is made with the same labels.
        labels = found.labels
        nics = nics or _nics(found, template)
    clone = clone_uuid(facts.host, labels.fleet, labels.index, labels.template)
    if Step.DEFINE in steps or labels.clone not in facts.records:
        values = own_values(template, labels, nics) | dict(own)
    else:
        values = dict(facts.records[labels.clone].values)
    memory, vcpus = sizes(values)
    identity = None
    if facts.seeds and Step.DEFINE in steps:
        # An identity that is made again has another host key: of this run, the guest will take it.
        born = attrs.evolve(labels, run=run)
        identity = resolve(template, born, nics, clone, values, facts.authorized_keys)
        check_record(Record(labels=labels, identity=identity, values=values))
    return ClonePlan(
        labels=labels,
        steps=steps,
        state=found.state if found is not None else None,
        disks=disks,
        uuid=clone,
        nics=nics,
        identity=identity,
        values=values,
        memory=memory,
        vcpus=vcpus,
        volumes=found.volumes if found is not None else (),
        wait=filled(wait, labels, nics, values),
        template=template,
    )


def _nics(clone: Clone, template: Template | None) -> tuple[Nic, ...]:
    """Return the network cards of a clone that is there; of what kind, its template says."""
    macs = clone.domain.macs if clone.domain is not None else ()
    specs = template.nics if template is not None else (NicSpec(),) * len(macs)
    return tuple(Nic(spec=s, mac=m) for s, m in zip(specs, macs, strict=False))


def own_values(template: Template, labels: Labels, nics: tuple[Nic, ...]) -> dict[str, str | int]:
    """Return a clone's own values: the template's, each with its placeholders filled in.

    :raises InvalidRequest: one of them can't be.
    """
    where = f"template {template.name}: values"
    known = clone_values(labels, nics)
    filled = {
        key: fill(value, known, what=f"{where}.{key}") if isinstance(value, str) else value
        for key, value in template.values.items()
    }
    return {key: check_value(key, value, where) for key, value in filled.items()}


def filled(
    wait: Readiness | None,
    labels: Labels,
    nics: tuple[Nic, ...],
    values: Mapping[str, str | int],
) -> Readiness | None:
    """Return what a clone is waited for, with its own values filled in.

    :raises InvalidRequest: one isn't known, or the whole is no regular expression then.
    """
    if wait is None or not wait.placeholders:
        return wait
    argument = fill(wait.argument, clone_values(labels, nics, values), what="ready")
    return Readiness.parse(f"{wait.kind}:{argument}", timeout=wait.timeout)


def _used_macs(facts: Facts) -> set[str]:
    ours = {mac for c in facts.clones if c.domain is not None for mac in c.domain.macs}
    return ours | facts.foreign_macs


def _free_mac(labels: Labels, nic: int, facts: Facts, used: set[str]) -> str:
    for attempt in range(MAX_MAC_ATTEMPTS):
        mac = facts.mac(labels, nic, attempt) or clone_mac(
            facts.mac_prefix, facts.host, labels.fleet, labels.index, nic, attempt
        )
        if mac not in used:
            used.add(mac)
            return mac
    raise NotEnoughResources(
        f"no free MAC address for {labels.clone} after {MAX_MAC_ATTEMPTS} tries"
    )


def _check_addresses(
    fleet: str, template: Template, plans: Sequence[ClonePlan], records: Mapping[str, Record]
) -> None:
    """Check that no two clones of a fleet would have one address on the same network."""
    there = {name: r.identity for name, r in records.items() if r.labels.fleet == fleet}
    new = {plan.name: plan.identity for plan in plans if plan.identity is not None}
    # In user mode each guest is alone on a network of its own.
    shared = {number for number, nic in enumerate(template.nics) if nic.kind != "user"}
    holders: dict[tuple[int, str], str] = {}
    for name, identity in {**there, **new}.items():
        for number, card in enumerate(identity.interfaces):
            if card.address is None or number not in shared:
                continue
            address = card.address.partition("/")[0]
            holder = holders.setdefault((number, address), name)
            if holder != name and {holder, name} & new.keys():
                raise InvalidRequest(
                    f"{holder} and {name} would both have the address {address}",
                    hint="like 192.0.2.{{ 10 + index }}/24, or an address for each by --values",
                )


def _check_foreign(names: Sequence[str], facts: Facts) -> None:
    taken = [name for name in names if name in facts.foreign_names]
    if taken:
        raise Conflict(
            f"domain {fold(taken)} exists and isn't vmcloner's",
            hint="choose another fleet name; it is left as it is",
        )


def _with_needs(plan: Plan, facts: Facts) -> Plan:
    """Return the plan with the space and memory that it takes, checked against what is there."""
    template = plan.template
    assert template is not None  # noqa: S101 - a create's plan has one
    space = check_space(plan, facts.origin, facts.need, facts.capacity)
    starts = [c.memory or template.memory for c in plan.clones if Step.START in c.steps]
    check_memory(starts, facts.resources, facts.memory_overcommit)
    making = any(clone.disks for clone in plan.clones)
    return attrs.evolve(
        plan,
        space=space,
        memory=sum(starts),
        warnings=(
            *plan.warnings,
            *(f"pool {plan.storage}: {w}" for w in facts.capacity.warnings if making),
            *_lockout(plan, facts),
        ),
    )


def _lockout(plan: Plan, facts: Facts) -> tuple[str, ...]:
    """Return the warning that nobody will get into the clones, where that is no wish."""
    template = plan.template
    if template is None or not facts.lets_in or template.identity.authorized_keys is not None:
        return ()
    if facts.authorized_keys or not any(Step.DEFINE in clone.steps for clone in plan.clones):
        return ()
    return (
        "no public key of yours, ~/.ssh/id_*.pub, is there to let you in: make one by ssh-keygen, "
        f"or set identity.authorized_keys in template {template.name}",
    )


# --- existing clones ----------------------------------------------------------------------------


def plan_targets(
    request: TargetRequest,
    clones: Sequence[Clone],
    *,
    run: str,
    host: str,
    template: Callable[[str], Template],
    records: Mapping[str, Record],
) -> Plan:
    """Return the plan of a start, stop, restart, reset, delete or wait.

    :param records: what is kept of the clones' identities, by the clones' names.
    :param template: returns the template of that name; asked only where it is needed.
    :raises NotFound: a target names nothing, but for DELETE, where what is gone is as asked; or a
        template is gone that says what a clone is made of or boots, or what it is waited for.
    """
    targets = parse_targets(request.targets)
    if request.action is Action.DELETE:
        chosen = tuple(c for c in clones if not targets or _named(c, targets))
    else:
        chosen = select(clones, targets)
    routes = [(clone, _target_steps(request, clone)) for clone in chosen]
    work = [(clone, steps) for clone, steps in routes if steps]
    existing = tuple(clone.name for clone, steps in routes if not steps)
    if request.count is not None:
        # "up to N": starts fill a fleet from below, stops and deletes empty it from above
        work = work[: request.count] if _fills(request.action) else work[-request.count :]
    return Plan(
        action=request.action,
        run=run,
        host=host,
        clones=tuple(
            _target_plan(request, clone, steps, template, records.get(clone.name))
            for clone, steps in work
        ),
        existing=existing,
        shutdown_timeout=request.shutdown_timeout,
        min_ready=request.min_ready,
        jobs=request.jobs,
    )


def _fills(action: Action) -> bool:
    return action in (Action.START, Action.RESTART, Action.RESET, Action.WAIT)


def _named(clone: Clone, targets: Sequence[Target]) -> bool:
    return any(target.matches(clone.fleet, clone.index) for target in targets)


def _target_plan(
    request: TargetRequest,
    clone: Clone,
    steps: tuple[Step, ...],
    template: Callable[[str], Template],
    record: Record | None,
) -> ClonePlan:
    wait = _wait(request, clone, template)
    plan = ClonePlan(
        labels=clone.labels, steps=steps, state=clone.state, volumes=clone.volumes, wait=wait
    )
    asked = clone.labels.boot is not None and bool({Step.START, Step.WAIT} & set(steps))
    named = wait is not None and wait.placeholders
    if not asked and not named and Step.RESET not in steps:
        return plan
    made_of = _made_of(clone, steps, template)
    nics = _nics(clone, made_of)
    values: Mapping[str, str | int] = record.values if record is not None else {}
    if record is None and made_of is not None:
        values = own_values(made_of, clone.labels, nics)
    plan = attrs.evolve(plan, wait=filled(wait, clone.labels, nics, values))
    if made_of is not None and Step.RESET in steps:
        plan = attrs.evolve(plan, template=made_of, disks=_own_disks(clone, made_of))
    if made_of is None or not asked:
        return plan
    uuid = clone.domain.uuid if clone.domain is not None else None
    return attrs.evolve(plan, template=made_of, nics=nics, uuid=uuid, values=values)


def _made_of(
    clone: Clone, steps: Sequence[Step], template: Callable[[str], Template]
) -> Template | None:
    """Return the template of a clone; None where it is gone, and is no more than a help.

    :raises NotFound: it is gone, and says what the clone is made of, or boots at this start.
    """
    try:
        return template(clone.template)
    except NotFound as error:
        boots = clone.labels.boot is not None and Step.START in steps
        if not boots and Step.RESET not in steps:
            return None  # nothing but a guest that reboots would need it
        what = "is made of" if Step.RESET in steps else "boots"
        raise NotFound(
            f"{clone.name}: what it {what} is up to template {clone.template!r}, which is gone",
            hint=f"put its file back, or vmcloner delete {clone.name}",
        ) from error


def _own_disks(clone: Clone, template: Template) -> tuple[int, ...]:
    """Return the numbers of a clone's disks, lost ones too, as far as its template has them."""
    there = {volume.disk for volume in clone.volumes}
    defined = len(clone.domain.disks) if clone.domain is not None else 1
    return tuple(n for n in disk_numbers(template) if n in there or n < defined)


def _wait(
    request: TargetRequest, clone: Clone, template: Callable[[str], Template]
) -> Readiness | None:
    if request.wait is not None or not request.ready:
        return request.wait
    return Readiness.parse(template(clone.template).ready, timeout=request.timeout)


_ACTIVE = (State.RUNNING, State.PAUSED, State.CRASHED)


def _target_steps(request: TargetRequest, clone: Clone) -> tuple[Step, ...]:
    """Return what the action has to do with a clone; nothing where it is as asked."""
    active = clone.domain is not None and clone.domain.state in _ACTIVE
    stop = Step.DESTROY if request.kill else Step.SHUTDOWN
    wait = (Step.WAIT,) if request.wait is not None or request.ready else ()
    match request.action:
        case Action.START:
            return (Step.START, *wait) if clone.state is not State.RUNNING else wait
        case Action.STOP:
            return (stop,) if active else ()
        case Action.RESTART:
            return (*((stop,) if active else ()), Step.START, *wait)
        case Action.RESET:
            start = active or request.start or bool(wait)
            return (
                *((Step.DESTROY,) if active else ()),
                Step.RESET,
                *((Step.START,) if start else ()),
                *wait,
            )
        case Action.DELETE:
            return (
                *((Step.DESTROY,) if active else ()),
                *((Step.UNDEFINE,) if clone.domain is not None else ()),
                *((Step.REMOVE,) if clone.volumes or clone.seeded else ()),
            )
        case _:
            return wait
