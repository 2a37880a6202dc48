"""Check that a host has enough addresses, space and memory for a plan. Pure functions."""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from itertools import accumulate

from vmcloner_core.disks import disk_requests
from vmcloner_core.errors import NotEnoughResources, NotFound, WrongState
from vmcloner_core.model import (
    Capacity,
    Clone,
    CloneRequest,
    HostResources,
    Network,
    NicSpec,
    Origin,
    Template,
)
from vmcloner_core.plan import ClonePlan, Plan
from vmcloner_core.units import counted, format_size


def check_networks(
    template: Template,
    plans: Sequence[ClonePlan],
    networks: Sequence[Network],
    clones: Iterable[Clone],
    static: Set[str] = frozenset(),
) -> None:
    """Check that a template's networks exist, and have addresses for all clones.

    :param plans: the clones to make or start. :param clones: every clone on the host.
    :param static: the MAC addresses of cards with static addresses.
    :raises NotFound: a network doesn't exist. :raises WrongState: it isn't running.
    :raises NotEnoughResources: its DHCP has too few addresses; says how many clones would fit.
    """
    known = {network.key: network for network in networks}
    domains = [clone.domain for clone in clones if clone.domain is not None]
    held = {(n, m) for d in domains for n, m in zip(d.networks, d.macs, strict=False) if n}
    for spec in dict.fromkeys(template.nics):
        network = _network(template, spec, known)
        if network is None or network.addresses is None:
            continue
        taken = network.leases | {mac for key, mac in held if key == network.key} - static
        free = network.addresses - len(taken)
        each = [len(_dynamic(plan, network.key) - taken) for plan in plans]
        if sum(each) > free:
            fit = sum(total <= free for total in accumulate(each))
            raise NotEnoughResources(
                f"network {network.key!r} has {network.addresses} addresses for DHCP, "
                f"{max(0, free)} of them free: {sum(each)} are needed",
                hint=f"{counted(fit, 'clone')} would fit; to make a larger one: "
                f"{_prepare(network.kind, '')} --count N",
            )


def _network(template: Template, spec: NicSpec, known: Mapping[str, Network]) -> Network | None:
    """Return a card's network; None if its DHCP isn't known."""
    network = known.get(spec.network)
    if network is None and spec.kind != "network":
        return None
    mend = _prepare(spec.kind, spec.source or "")
    if network is None:
        raise NotFound(
            f"template {template.name!r}: this host has no network {spec.source!r}", hint=mend
        )
    if not network.active:
        raise WrongState(
            f"network {network.key!r} isn't running",
            hint=mend if network.ours else f"virsh net-start {network.name}",
        )
    return network


def _prepare(kind: str, name: str) -> str:
    """Return the command that makes or enlarges a network."""
    words = ["vmcloner host prepare network", "--bridge" if kind == "bridge" else ""]
    return " ".join(filter(None, [*words, f"--name {name}" if name else ""]))


def _dynamic(plan: ClonePlan, network: str) -> set[str]:
    """Return the MAC addresses of a clone to define that use DHCP."""
    if "define" not in plan.steps:
        return set()  # its addresses are already counted
    spec = plan.known()
    static = spec.identity.static_macs if spec.identity is not None else frozenset()
    return {nic.mac for nic in spec.nics if nic.spec.network == network} - static


def check_space(
    plan: Plan,
    origin: Origin | None,
    need: Callable[[CloneRequest, int], int],
    capacity: Capacity,
) -> int:
    """Check that a create's volumes fit in its pool; returns the bytes that they take.

    :param origin: the template's image; without one, first disks aren't counted.
    :param need: the pool's :meth:`~vmcloner_core.drivers.StorageDriver.need`.
    :raises NotEnoughResources: they don't; says what is needed, what is free, how many fit.
    """
    making = [clone for clone in plan.clones if clone.disks]
    if not making or plan.template is None:
        return 0
    sizes = [c.spec.disk_size or 0 for c in making if c.spec is not None and 0 in c.disks]
    labels, largest = making[0].labels, max(sizes, default=0)
    samples = disk_requests(plan.template, labels, origin, plan.mode, None, largest)

    def volumes(clones: int) -> Counter[int]:
        return Counter(disk for clone in making[:clones] for disk in clone.disks)

    def space(clones: int) -> int:
        numbers = volumes(clones)
        return sum(need(r, numbers[r.disk]) for r in samples if numbers[r.disk])

    def full(clones: int) -> bool:
        limit = capacity.volumes_free
        over = limit is not None and volumes(clones).total() > limit
        return over or space(clones) > capacity.free

    count = len(making)
    if not full(count):
        return space(count)
    if space(count) > capacity.free:
        lack = f"need {format_size(space(count))} in pool {plan.storage!r}, "
        lack += f"{format_size(capacity.free)} are free"
    else:
        lack = f"have {counted(volumes(count).total(), 'volume')}, pool {plan.storage!r} has room "
        lack += f"for {capacity.volumes_free} more"
    fit = bisect.bisect_left(range(1, count + 1), True, key=full)
    raise NotEnoughResources(
        f"{counted(count, 'clone')} {lack}", hint=f"{fit} would fit" if fit else "none would fit"
    )


def check_memory(
    sizes: Sequence[int], resources: HostResources, overcommit: float, page: int | None = None
) -> None:
    """Check that there is memory to start guests of these sizes.

    A guest takes its size, and what its hypervisor takes beside it.

    :param overcommit: the factor of the free memory that guests may use, if the host can do that.
    :param page: the size of the huge pages that the guests' own memory is made of, as
        :attr:`Needs.page`. These are set aside: the guests don't take it from the free memory, and
        there is no overcommitting them.
    :raises NotEnoughResources: there isn't; says what is needed, what is free, how many fit.
    """
    if page is not None:
        _check_pages(sizes, resources, page)
        sizes = [0] * len(sizes)
    usable = resources.memory_free
    if not resources.memory_hint:
        usable = int(usable * overcommit)
    more = resources.memory_hint or "limits.memory_overcommit in the settings allows more"
    needs = [size + resources.memory_overhead for size in sizes]
    _check_fit(needs, usable, "memory", more)


def _check_pages(sizes: Sequence[int], resources: HostResources, page: int) -> None:
    page = page or next(iter(resources.pages), 0)
    if not page:
        return  # the hypervisor doesn't know
    needs = [-(-size // page) * page for size in sizes]
    count = sum(needs) // page
    more = f"sysctl vm.nr_hugepages={count}"
    if page != next(iter(resources.pages), page):
        more = f"write {count} to /sys/kernel/mm/hugepages/hugepages-{page // 1024}kB/nr_hugepages"
    what = f"huge pages of {format_size(page)}"
    _check_fit(needs, resources.pages.get(page, 0), what, more)


def _check_fit(needs: Sequence[int], usable: int, what: str, more: str) -> None:
    totals = list(accumulate(needs))
    if not totals or totals[-1] <= usable:
        return
    fit = sum(total <= usable for total in totals)
    raise NotEnoughResources(
        f"starting {counted(len(needs), 'clone')} takes {format_size(totals[-1])} of {what}, "
        f"{format_size(usable)} are available",
        hint=f"{fit} would fit; {more}",
    )
