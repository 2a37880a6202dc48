"""Surveys, plans and results of several hosts as one: pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import attrs

from vmcloner_core.errors import BackendError, Conflict, Interrupted, NotFound, VmclonerError, shown
from vmcloner_core.hosts.carrier import Unreachable
from vmcloner_core.model import Clone
from vmcloner_core.names import fold
from vmcloner_core.plan import CloneResult, Plan, Quota, RunResult, Waiting
from vmcloner_core.survey import Survey, Unseen


def survey(found: Mapping[str, Survey], lost: Mapping[str, VmclonerError]) -> Survey:
    """Return what is on several hosts.

    :param lost: the hosts that could not be asked, and why.
    """
    clones = [
        attrs.evolve(clone, host=host) for host, each in found.items() for clone in each.clones
    ]
    unseen = [
        attrs.evolve(missed, host=host) for host, each in found.items() for missed in each.unseen
    ]
    unseen += [Unseen(host=h, kind="host", name=h, error=error) for h, error in lost.items()]
    return Survey(
        clones=tuple(sorted(clones, key=lambda c: (c.fleet, c.index, c.host))),
        foreign_names=frozenset().union(*(each.foreign_names for each in found.values())),
        foreign_macs=frozenset().union(*(each.foreign_macs for each in found.values())),
        unseen=tuple(unseen),
    )


def by_host(clones: Iterable[Clone]) -> dict[str, list[str]]:
    """Return the names of clones, by their hosts."""
    found: dict[str, list[str]] = {}
    for clone in clones:
        found.setdefault(clone.host, []).append(clone.name)
    return found


def twice(clones: tuple[Clone, ...]) -> dict[str, tuple[str, ...]]:
    """Return the clones that more than one host has, with these hosts."""
    hosts: dict[str, list[str]] = {}
    for clone in clones:
        hosts.setdefault(clone.name, []).append(clone.host)
    return {name: tuple(there) for name, there in hosts.items() if len(there) > 1}


def check_once(clones: tuple[Clone, ...]) -> None:
    """Check that no two hosts have a clone of the same name.

    :raises Conflict: they have; names one, and the way out.
    :raises WrongState: one of them is being moved.
    """
    from vmcloner_core.planner import check_still

    check_still(clones)
    for name, hosts in twice(clones).items():
        raise Conflict(
            f"{name} is on hosts {' and '.join(hosts)}",
            hint=f"look at both, then on the one of them: vmcloner --host HOST delete {name}",
        )


def plan(
    plans: Mapping[str, Plan], *, run: str, quota: Quota, missing: NotFound | None = None
) -> Plan:
    """Return the plans of several hosts as one; there is at least one.

    :param quota: how many of all clones must get ready.
    """
    first = next(iter(plans.values()))
    clones = [clone for each in plans.values() for clone in each.clones]
    return attrs.evolve(
        first,
        run=run,
        host=fold(list(plans)) if len(plans) > 1 else next(iter(plans)),
        clones=tuple(sorted(clones, key=lambda c: (c.labels.fleet, c.labels.index))),
        existing=tuple(name for each in plans.values() for name in each.existing),
        import_image=any(each.import_image for each in plans.values()),
        missing=missing,
        min_ready=quota,
        space=sum(each.space for each in plans.values()),
        memory=sum(each.memory for each in plans.values()),
        warnings=tuple(
            f"host {host}: {warning}" for host, each in plans.items() for warning in each.warnings
        ),
    )


def result(
    whole: Plan,
    plans: Mapping[str, Plan],
    found: Mapping[str, RunResult | VmclonerError],
    seconds: float,
) -> RunResult:
    """Return the results of several hosts as one.

    The clones of a host that failed as a whole, or was lost, have failed by its error.
    """
    results: list[CloneResult] = []
    for host, mine in plans.items():
        answer = found[host]
        if isinstance(answer, VmclonerError):
            # A lost host may have made them: a roll-back must not say that nothing is left.
            lost = isinstance(answer, Unreachable)
            results += [CloneResult(name=c.name, error=answer, created=lost) for c in mine.clones]
        else:
            results += _asked(host, mine, answer)
    order = {clone.name: place for place, clone in enumerate(whole.clones)}
    done = [each for each in found.values() if isinstance(each, RunResult)]
    errors = [each for each in found.values() if isinstance(each, VmclonerError)]
    errors += [each.error for each in done if each.error is not None]
    return RunResult(
        plan=whole,
        results=tuple(sorted(results, key=lambda each: order.get(each.name, 0))),
        seconds=seconds,
        interrupted=any(each.interrupted for each in done)
        or any(isinstance(error, Interrupted) for error in errors),
        error=errors[0] if errors and not results else None,
    )


def _asked(host: str, plan: Plan, answer: RunResult) -> list[CloneResult]:
    """Return a host's results, of the clones of its plan; one that has none has failed."""
    found = {each.name: each for each in answer.results}
    missing = BackendError(f"host {host!r} gave no result for it")
    return [
        found.get(clone.name) or CloneResult(name=clone.name, error=missing, created=True)
        for clone in plan.clones
    ]


def waiting(told: Mapping[str, Waiting]) -> Waiting:
    """Return what the clones of several hosts are doing; there is at least one host."""
    phases: dict[str, int] = {}
    for each in told.values():
        for phase, count in each.phases.items():
            phases[shown(phase)] = phases.get(shown(phase), 0) + count
    return attrs.evolve(max(told.values(), key=lambda each: each.seconds), phases=phases)
