"""Plan a create: a pure function of a request and of what was found on the host."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import attrs

from vmcloner_core.birth import Birth
from vmcloner_core.clone_spec import clone_spec, filled
from vmcloner_core.disks import disk_numbers
from vmcloner_core.errors import Conflict, InvalidRequest, NotEnoughResources, WrongState
from vmcloner_core.identity_rules import resolve
from vmcloner_core.model import (
    Capacity,
    Clone,
    CloneMode,
    CloneRequest,
    CloneSpec,
    Copying,
    HostResources,
    Labels,
    Needs,
    Network,
    Origin,
    State,
    Template,
    Values,
    clone_mac,
)
from vmcloner_core.names import MAX_INDEX, clone_name, fold
from vmcloner_core.plan import ALL, ClonePlan, Plan, Readiness
from vmcloner_core.preflight import check_memory, check_networks, check_space
from vmcloner_core.records import Record, check_record, known_uuid
from vmcloner_core.request import CreateRequest
from vmcloner_core.steps import ACTIONS
from vmcloner_core.units import counted, parse_size
from vmcloner_core.values_file import check_columns

MAX_MAC_ATTEMPTS = 1000
SIZES = ("memory", "vcpus", "disk_size")
"""Values by which a clone differs in size from its template; ``set`` changes them."""


@attrs.frozen(kw_only=True)
class Facts:
    """What a create needs to know of the host.

    :param host: its name. :param seed: the seed of its clones' UUIDs and MAC addresses.
    :param state: the id of its state folder.
    :param mode: as requested, or the pool's default.
    :param clones: every clone on the host.
    :param records: those of the fleet's clones, by name.
    :param static_macs: of all cards on the host with static addresses.
    :param foreign_names, foreign_macs: of domains that aren't ours.
    :param origin: the template's image in the pool, None while it isn't imported.
    :param need: bytes that a number of volumes like the one requested take.
    :param seeds: whether the template's identity provider makes seeds.
    :param authorized_keys: public keys that may log in to the clones.
    :param networks: the host's, None if the hypervisor doesn't know them.
    :param mac: a policy's address for (labels, card, attempt), or None for the default.
    :param mac_prefix: the hypervisor's, for the default.
    :param boot: the template's boot provider if it is asked at each start, else None.
    :param needs: checks that the host can run a clone like the one given.
    :param warm: the key of the warm origin of new clones, if any; ``origin`` is its disk.
    :param copies: the keys of the warm origins whose forks stay who their parent was.
    """

    host: str
    seed: str
    state: str
    hypervisor: str
    storage: str
    mode: CloneMode
    clones: tuple[Clone, ...]
    records: Mapping[str, Record] = attrs.field(factory=dict)
    foreign_names: frozenset[str] = frozenset()
    foreign_macs: frozenset[str] = frozenset()
    static_macs: frozenset[str] = frozenset()
    origin: Origin | None = None
    capacity: Capacity
    resources: HostResources
    memory_overcommit: float = 1.0
    need: Callable[[CloneRequest, int], int]
    seeds: bool = False
    authorized_keys: tuple[str, ...] = ()
    networks: tuple[Network, ...] | None = None
    mac: Callable[[Labels, int, int], str | None] = lambda _labels, _nic, _attempt: None
    mac_prefix: str = "52:54:00"
    boot: str | None = None
    needs: Callable[[CloneSpec], Needs] = lambda _clone: Needs()
    warm: str | None = None
    copies: Collection[str] = frozenset()


def plan_create(request: CreateRequest, template: Template, facts: Facts, birth: Birth) -> Plan:
    """Return the plan that brings a fleet to its size.

    :param birth: what all clones of the run have in common.
    :raises Conflict: a name is taken by a domain that isn't ours, or by another template's clone.
    :raises NotEnoughResources: of space or memory; says how many would fit.
    :raises InvalidRequest: a name would be too long, or the disk smaller than its image.
    """
    wait = _wait(request, template)
    start = request.start or wait is not None
    check_wait(wait, template)
    fleet = {c.index: c for c in facts.clones if c.fleet == request.fleet}
    _check_fleet(fleet.values(), template.name, request)
    indices = sorted([*fleet, *_new_indices(request, fleet)])
    chosen = None if request.others else frozenset(request.indices or ())
    clones, existing, macs = [], [], _used_macs(facts) | request.avoid
    lab = _lab(request, fleet)
    for index in indices:
        found = fleet.get(index)
        if chosen is not None and index not in chosen:
            existing.append(clone_name(request.fleet, index))
            continue
        made_of = _made_of(found, facts.records) or template
        disks = _missing_disks(found, made_of)
        lost = facts.seeds and found is not None and _lost_identity(found, facts)
        steps = _create_steps(found, disks, lost=lost, start=start, wait=wait is not None)
        if not steps:
            existing.append(clone_name(request.fleet, index))
            continue
        labels = _labels(request.fleet, index, template.name, lab, facts, birth)
        if found is not None:
            _check_backends(found, facts)
            if found.domain is None and "define" in steps:
                _check_kind(found, request, facts)
        if "define" in steps:
            made_of = template
        own, wait = _given(request, index), _wait(request, made_of)
        clone = _clone_plan(labels, found, steps, disks, made_of, facts, macs, wait, own)
        if "define" in steps:
            clone = attrs.evolve(clone, spec=attrs.evolve(clone.known(), lease=birth.lease))
        clones.append(clone)
    born = {clone.labels.index for clone in clones if "define" in clone.steps}
    warnings = _check_values(request, template, indices, born, facts.records)
    check_columns(request.values, template)
    warnings += more_than_asked(request, fleet)
    warnings += _without_lease(request, birth, born, facts.records)
    _check_foreign([clone.name for clone in clones if "define" in clone.steps], facts)
    _check_addresses(template, clones, facts.records)
    if facts.networks is not None and clones:
        check_networks(template, clones, facts.networks, facts.clones, facts.static_macs)
    plan = Plan(
        action=request.action,
        run=birth.run,
        host=facts.host,
        clones=tuple(clones),
        order=ACTIONS[request.action].order,
        existing=tuple(existing),
        template=template,
        hypervisor=facts.hypervisor,
        storage=facts.storage,
        mode=facts.mode,
        import_image=facts.origin is None and any(0 in c.disks for c in clones),
        copying=Copying(bandwidth=request.bandwidth, verify=request.verify),
        on_failure=request.on_failure,
        min_ready=request.min_ready if wait is not None else ALL,
        jobs=request.jobs,
        warnings=warnings,
    )
    return _with_needs(plan, facts)


def _wait(request: CreateRequest, template: Template) -> Readiness | None:
    """Return what to wait for after starting a clone of a template, if the request asks for it."""
    if request.wait is not None or not request.ready:
        return request.wait
    return Readiness.parse(template.readiness, timeout=request.timeout)


def _made_of(found: Clone | None, records: Mapping[str, Record]) -> Template | None:
    """Return the template that a clone with a domain was made of, if its record has it."""
    record = records.get(found.name) if found is not None and found.domain is not None else None
    return record.template() if record is not None else None


def check_wait(wait: Readiness | None, template: Template) -> None:
    """Check that clones of a template can become ready: some kinds need an address.

    :raises InvalidRequest: they can't.
    """
    more = template.domain.xml is not None or bool(template.domain.devices)  # may have other cards
    forwarded = any(spec.forward is not None for spec in template.nics)
    if wait is not None and wait.kind == "port" and forwarded:
        raise InvalidRequest(
            f"can't wait for {wait}: template {template.name} has a forwarded port, at which QEMU "
            "accepts connections before the guest does",
            hint="wait for ssh, or console:REGEX",
        )
    found = more or forwarded or any(spec.network for spec in template.nics)
    if wait is not None and wait.kind in ("ip", "port", "ssh") and not found:
        raise InvalidRequest(
            f"can't wait for {wait}: template {template.name} has no network card that gets "
            "an address",
            hint='add a card of kind = "network" or "bridge", or wait for console:REGEX',
        )


def _check_fleet(clones: Iterable[Clone], template: str, request: CreateRequest) -> None:
    """Check that a fleet's clones have the requested template and backends."""
    for clone in clones:
        check_ours([clone])
        check_still([clone])
        if clone.template != template:
            raise Conflict(
                f"fleet {clone.fleet!r} is made from template {clone.template!r}, not {template!r}",
                hint="choose another fleet name, or delete this fleet first",
            )
        check_of_lab(clone, request.lab)
        for what, asked, has in (
            ("hypervisor", request.hypervisor, clone.labels.hypervisor),
            ("storage", request.storage, clone.labels.storage),
        ):
            if asked not in (None, has):
                raise Conflict(
                    f"{clone.name} was made with {what} {has!r}, not {asked!r}",
                    hint=f"--{what} {has}, or choose another fleet name",
                )


def check_of_lab(clone: Clone, lab: str | None) -> None:
    """Check that a clone is part of a lab; None: it doesn't matter.

    :raises Conflict: it isn't.
    """
    if lab not in (None, clone.labels.lab):
        whose = f"lab {clone.labels.lab!r}" if clone.labels.lab else "no lab"
        raise Conflict(
            f"fleet {clone.fleet!r} is part of {whose}, not of lab {lab!r}",
            hint=f"choose another fleet name, or vmcloner delete {clone.fleet} first",
        )


def check_ours(clones: Iterable[Clone]) -> None:
    """Check that clones belong to this state folder.

    :raises Conflict: one belongs to another; such clones are never touched.
    """
    for clone in clones:
        if not clone.ours:
            raise Conflict(
                f"{clone.name} belongs to another state folder (id {clone.labels.state})",
                hint="use the settings that it was made with; if that folder is lost, write the id "
                "into the file id of a new one",
            )


def check_still(clones: Iterable[Clone]) -> None:
    """Check that clones are not being moved to or from another host.

    :raises WrongState: one is.
    """
    for clone in clones:
        if clone.moving is not None:
            to = clone.moving.to or "HOST, with this host's name,"
            raise WrongState(
                f"{clone.name} {clone.moving}", hint=f"vmcloner move {clone.name} {to} finishes it"
            )


def _new_indices(request: CreateRequest, fleet: Mapping[int, Clone]) -> list[int]:
    """Return the indices to make: the lowest free ones, those after the highest, or those given."""
    if request.indices is not None:
        return [index for index in request.indices if index not in fleet]
    if request.add is not None:
        top = max(fleet, default=0)
        if top + request.add > MAX_INDEX:
            raise InvalidRequest(f"clone index out of range: {top + request.add}")
        return list(range(top + 1, top + request.add + 1))
    return lowest_free(fleet, max(0, (request.count or 1) - len(fleet)))


def makes_clones(request: CreateRequest, clones: Iterable[Clone]) -> bool:
    """Tell whether a create makes new clones, by all that there are."""
    return bool(_new_indices(request, {c.index: c for c in clones if c.fleet == request.fleet}))


def lowest_free(there: Collection[int], wanted: int) -> list[int]:
    """Return that many of the lowest indices that are not ``there``."""
    free = (index for index in itertools.count(1) if index not in there)
    return list(itertools.islice(free, wanted))


def more_than_asked(request: CreateRequest, fleet: Mapping[int, Clone]) -> tuple[str, ...]:
    """Return a warning if a fleet is larger than requested."""
    count, there = request.count, len(fleet)
    if count is None or there <= count:
        return ()
    way = f"vmcloner delete {request.fleet} -n {there - count}"
    return (f"{request.fleet} already has {counted(there, 'clone')}; create removes none ({way})",)


def _without_lease(
    request: CreateRequest, birth: Birth, born: Collection[int], records: Mapping[str, Record]
) -> tuple[str, ...]:
    """Return a warning if existing clones have no lease, and the request asks for one."""
    new = {clone_name(request.fleet, index) for index in born}
    names = [n for n, record in records.items() if n not in new and record.lease is None]
    if request.ttl is None or birth.lease is None or not names:
        return ()
    return (f"{fold(names)} was made without a lease (vmcloner lease extend {request.fleet})",)


def _given(request: CreateRequest, index: int) -> Values:
    """Return the values that a request gives a clone: those of all, then its own."""
    return {**request.sizes.values, **request.values.get(index, {})}


def _has(record: Record, template: Template, key: str, value: str | int) -> bool:
    """Tell whether a clone was made with a value, its own or its template's."""
    there = record.values.get(key)
    if key not in SIZES:
        return str(there) == str(value)
    if there is None:
        there = getattr(record.template() or template, key)
    return there is not None and parse_size(there) == parse_size(value)


def _check_values(
    request: CreateRequest,
    template: Template,
    indices: Collection[int],
    born: Collection[int],
    records: Mapping[str, Record],
) -> tuple[str, ...]:
    """Check that given values are for clones of the fleet, and change no existing clone's.

    :param indices: of all clones of the fleet. :param born: of those that are made now.
    :returns: a warning if an existing clone's values aren't known.
    """
    there = set(indices)
    beyond = [
        clone_name(request.fleet, n) for n, own in request.values.items() if own and n not in there
    ]
    if beyond:
        raise InvalidRequest(
            f"values are given for {fold(beyond)}, outside the fleet",
            hint=f"the fleet will be {fold([clone_name(request.fleet, n) for n in indices])}",
        )
    changed: dict[str, list[str]] = {}
    unknown = []
    for index in sorted(there - set(born)):
        name, own = clone_name(request.fleet, index), _given(request, index)
        record = records.get(name)
        if record is None and own:
            unknown.append(name)
        elif record is not None:
            keys = [key for key, value in own.items() if not _has(record, template, key, value)]
            changed |= {name: keys} if keys else {}
    if changed:
        keys = sorted({key for keys in changed.values() for key in keys})
        raise Conflict(
            f"{fold(list(changed))} was made with other values: {', '.join(keys)}",
            hint="vmcloner set changes memory, vcpus and disk sizes; for others, delete the clone "
            "first, or omit them",
        )
    if not unknown:
        return ()
    return (f"{fold(unknown)} already exists and keeps the values that it was made with",)


def _missing_disks(found: Clone | None, template: Template) -> tuple[int, ...]:
    """Return the numbers of the disks that a clone doesn't have yet."""
    wanted = disk_numbers(template)
    if found is None:
        return tuple(wanted)
    if found.domain is not None:
        # It keeps the number of disks that it was defined with, whatever the template has now.
        wanted = wanted[: max(1, len(found.domain.disks))]
    there = {volume.disk for volume in found.volumes if volume.complete}
    return tuple(number for number in wanted if number not in there)


def _check_backends(found: Clone, facts: Facts) -> None:
    """Check that a clone's missing parts would be made by the backends that have the rest."""
    for what, there, has in (
        ("hypervisor", facts.hypervisor, found.labels.hypervisor),
        ("storage", facts.storage, found.labels.storage),
    ):
        if there != has:
            raise Conflict(
                f"{found.name} is incomplete and was made with {what} {has!r}, not {there!r}",
                hint=f"--{what} {has}",
            )


def _check_kind(found: Clone, request: CreateRequest, facts: Facts) -> None:
    """Check that an incomplete clone is completed as what it was begun: its disk is that already.

    :raises Conflict: a copy of its parent would get an identity, or the other way round.
    """
    has = _kind(warm=found.labels.warm is not None, identical=found.labels.warm in facts.copies)
    asked = _kind(warm=request.warm, identical=request.identical)
    if has != asked:
        raise Conflict(
            f"{found.name} is incomplete and was made {has}, not {asked}",
            hint=f"complete it {has}, or vmcloner delete {found.name} first",
        )


def _kind(*, warm: bool, identical: bool) -> str:
    if not warm:
        return "without --warm"
    return "with --warm --identical" if identical else "with --warm"


def _lost_identity(found: Clone, facts: Facts) -> bool:
    """Tell whether a clone needs an identity again: it had one that was removed.

    A running clone doesn't: it keeps the identity that it has read. Nor does one that was made
    without.
    """
    domain, record = found.domain, facts.records.get(found.name)
    if domain is None or domain.state not in (State.STOPPED, State.CRASHED):
        return False
    if record is None:
        return found.labels.warm not in facts.copies
    made_of = record.template()
    return record.identity is None and (made_of is None or made_of.identity.provider != "none")


def _create_steps(
    found: Clone | None, disks: Sequence[int], *, lost: bool, start: bool, wait: bool
) -> tuple[str, ...]:
    """Return the steps that a clone still needs; none if it needs no change.

    :param lost: its identity has to be made again, which is part of defining it.
    """
    if found is not None and found.renamed is not None:
        return ("check",)
    steps: list[str] = []
    domain = found.domain if found is not None else None
    if disks and domain is not None and domain.state is State.SAVED:
        steps.append("renew")  # its memory is that of the disk that is gone
    if disks:
        steps.append("clone")
    if found is None or found.state is State.ALLOCATED or lost:
        steps.append("define")
    if start and (found is None or found.state is not State.RUNNING):
        steps.append("start")
    if wait:
        steps.append("wait")
    return tuple(steps)


def _lab(request: CreateRequest, fleet: Mapping[int, Clone]) -> str | None:
    """Return the lab of a fleet's new clones: a fleet is of one lab, or of none."""
    known = next((clone.labels.lab for clone in fleet.values()), None)
    return request.lab if request.lab is not None else known


def _labels(
    fleet: str, index: int, template: str, lab: str | None, facts: Facts, birth: Birth
) -> Labels:
    return Labels(
        fleet=fleet,
        index=index,
        template=template,
        run=birth.run,
        owner=birth.owner,
        created=birth.created,
        storage=facts.storage,
        hypervisor=facts.hypervisor,
        boot=facts.boot,
        state=facts.state,
        lab=lab,
        warm=facts.warm,
    )


def _clone_plan(
    labels: Labels,
    found: Clone | None,
    steps: tuple[str, ...],
    disks: tuple[int, ...],
    template: Template,
    facts: Facts,
    macs: set[str],
    wait: Readiness | None,
    own: Values,
) -> ClonePlan:
    domain = found.domain if found is not None else None
    kept = facts.records.get(labels.clone)
    defines = "define" in steps
    # An identity that is made again has another host key, so it counts as this run's.
    run = found.labels.run if found is not None and domain is None else labels.run
    if found is not None:
        labels = found.labels  # the new parts get the labels of the existing ones
    known = known_uuid(labels, domain, kept, facts.seed)
    addresses = domain.macs if domain is not None else _macs(labels, template, kept, facts, macs)
    values = kept.values if kept is not None and not defines else None
    spec = clone_spec(template, labels, known, addresses, values)
    if defines:
        before = kept.values if kept is not None and found is not None else {}
        sizes = {key: before[key] for key in SIZES if key in before}
        spec = attrs.evolve(spec, values={**spec.values, **sizes, **own})
        if facts.seeds:
            identity = resolve(spec, facts.authorized_keys, run)
            spec = attrs.evolve(spec, identity=identity)
        check_record(spec)
        if labels.warm is not None and 0 in disks:
            _check_sizes(spec)
    return ClonePlan(
        labels=labels,
        steps=steps,
        state=found.state if found is not None else None,
        renamed=found.renamed if found is not None else None,
        disks=disks,
        volumes=found.volumes if found is not None else (),
        wait=filled(wait, spec) if wait is not None else Readiness(),
        spec=spec,
    )


def _check_sizes(spec: CloneSpec) -> None:
    """Check that a fork is as large as its origin.

    :raises InvalidRequest: it isn't.
    """
    for key in spec.own_sizes:
        raise InvalidRequest(
            f"{spec.name}: a fork has the template's {key}, no other",
            hint=f"a template of its own that extends {spec.template.name}, or leave out --warm",
        )


def _used_macs(facts: Facts) -> set[str]:
    ours = {mac for c in facts.clones if c.domain is not None for mac in c.domain.macs}
    return ours | facts.foreign_macs


def _macs(
    labels: Labels, template: Template, kept: Record | None, facts: Facts, used: set[str]
) -> tuple[str, ...]:
    """Return MAC addresses for a clone's cards: those of its record if they are free."""
    before = dict(enumerate(kept.macs if kept is not None else ()))
    found = []
    for number in range(len(template.nics)):
        mac = before.get(number)
        if mac is None or mac in used:
            mac = _free_mac(labels, number, facts, used)
        used.add(mac)
        found.append(mac)
    return tuple(found)


def _free_mac(labels: Labels, nic: int, facts: Facts, used: set[str]) -> str:
    for attempt in range(MAX_MAC_ATTEMPTS):
        mac = facts.mac(labels, nic, attempt) or clone_mac(
            facts.mac_prefix, facts.seed, labels.fleet, labels.index, nic, attempt
        )
        if mac not in used:
            return mac
    raise NotEnoughResources(
        f"no free MAC address for {labels.clone} after {MAX_MAC_ATTEMPTS} tries"
    )


def _check_addresses(
    template: Template, plans: Sequence[ClonePlan], records: Mapping[str, Record]
) -> None:
    """Check that no two clones of a fleet have the same address on a network."""
    there = {name: r.identity for name, r in records.items() if r.identity is not None}
    specs = [plan.known() for plan in plans]
    new = {spec.name: spec.identity for spec in specs if spec.identity is not None}
    # In user mode each guest has a network of its own.
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
                    hint="use a placeholder, like 192.0.2.{{ 10 + index }}/24, or --values",
                )


def _check_foreign(names: Sequence[str], facts: Facts) -> None:
    taken = [name for name in names if name in facts.foreign_names]
    if taken:
        raise Conflict(
            f"domain {fold(taken)} exists and isn't vmcloner's",
            hint="choose another fleet name",
        )


def _with_needs(plan: Plan, facts: Facts) -> Plan:
    """Return the plan with the space and memory that it needs, once both are available."""
    space = check_space(plan, facts.origin, facts.need, facts.capacity)
    starts = [clone.known().memory for clone in plan.clones if "start" in clone.steps]
    new = [clone.known() for clone in plan.clones if {"define", "start"} & set(clone.steps)]
    needs = facts.needs(new[0]) if new else Needs()
    check_memory(starts, facts.resources, facts.memory_overcommit, needs.page)
    making = any(clone.disks for clone in plan.clones)
    return attrs.evolve(
        plan,
        space=space,
        memory=sum(starts),
        warnings=(
            *plan.warnings,
            *(f"pool {plan.storage}: {w}" for w in facts.capacity.warnings if making),
            *needs.warnings,
        ),
    )
