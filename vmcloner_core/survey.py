"""What is on a host, put together: volumes and domains by their labels, as clones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vmcloner_core.errors import NotFound, did_you_mean
from vmcloner_core.model import Clone, Domain, Labels, State, Volume
from vmcloner_core.names import Target, fold


def merge(
    host: str, volumes: Iterable[Volume], domains: Iterable[Domain], seeds: Iterable[Labels] = ()
) -> tuple[Clone, ...]:
    """Return one clone for each (fleet, index) that has a part, sorted by these.

    :param seeds: labels of the identities that are kept. One of which nothing else is left is a
        clone too: that is how it gets deleted, or completed.
    """
    disks: dict[tuple[str, int], list[Volume]] = {}
    for volume in volumes:
        disks.setdefault((volume.labels.fleet, volume.labels.index), []).append(volume)
    machines = {(d.labels.fleet, d.labels.index): d for d in domains}
    seeded = {(labels.fleet, labels.index): labels for labels in seeds}
    return tuple(
        _clone(
            host,
            tuple(sorted(disks.get(key, ()), key=lambda volume: volume.disk)),
            machines.get(key),
            seeded.get(key),
        )
        for key in sorted(disks.keys() | machines.keys() | seeded.keys())
    )


def _clone(
    host: str, volumes: tuple[Volume, ...], domain: Domain | None, seed: Labels | None
) -> Clone:
    state = State.ALLOCATED
    if domain is not None:
        state = domain.state if volumes else State.ORPHAN
    owners = [domain.labels if domain else None, *(v.labels for v in volumes), seed]
    return Clone(
        labels=next(labels for labels in owners if labels is not None),
        state=state,
        host=host,
        volumes=volumes,
        domain=domain,
        seeded=seed is not None,
    )


def select(clones: Sequence[Clone], targets: Sequence[Target]) -> tuple[Clone, ...]:
    """Return the clones that targets name, in the clones' order; all of them for no targets.

    :raises NotFound: a fleet has no clones, or a clone that is named doesn't exist.
    """
    if not targets:
        return tuple(clones)
    fleets = sorted({clone.fleet for clone in clones})
    for target in targets:
        if target.fleet not in fleets:
            raise NotFound(f"no fleet {target.fleet!r}", hint=did_you_mean(target.fleet, fleets))
        here = {clone.index for clone in clones if clone.fleet == target.fleet}
        missing = [i for i in target.indices or () if i not in here]
        if missing:
            names = fold([f"{target.fleet}-{index}" for index in missing])
            raise NotFound(f"no clone {names}", hint=f"vmcloner list {target.fleet}")
    return tuple(c for c in clones if any(t.matches(c.fleet, c.index) for t in targets))
