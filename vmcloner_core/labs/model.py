"""Labs as values: the tables of a lab's file, and what differs between it and a host."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import attrs

from vmcloner_core.errors import InvalidRequest, VmclonerError
from vmcloner_core.model import (
    NEVER,
    CloneMode,
    NetworkRequest,
    Script,
    Values,
    check_ttl,
    network_key,
)
from vmcloner_core.names import check_lab
from vmcloner_core.placing import Placing, Where
from vmcloner_core.plan import Readiness, RunResult, Sizes
from vmcloner_core.request import MAX_CLONES, CreateRequest
from vmcloner_core.units import Size, parse_duration


def _count(_instance: object, _attribute: object, value: int) -> None:
    if not 0 <= value <= MAX_CLONES:
        raise ValueError(f"'count' must be 0 to {MAX_CLONES}, not {value}")


@attrs.frozen(kw_only=True)
class LabNetwork:
    """A network that is made for the lab, as by ``host prepare network``: ``[networks.NAME]``.

    ``count``: addresses for guests. ``subnet``: IPv4, None for any free one. ``bridge``: a bridge
    on the host instead of a network of libvirt's.
    """

    count: int = attrs.field(default=250, validator=attrs.validators.ge(1))
    subnet: str | None = None
    bridge: bool = False
    hypervisor: str | None = None

    def request(
        self, name: str, lab: str | None = None, *, dry_run: bool = False
    ) -> NetworkRequest:
        """Return the request for it."""
        return NetworkRequest(
            name=name,
            count=self.count,
            subnet=self.subnet,
            bridge=self.bridge,
            dry_run=dry_run,
            lab=lab,
        )

    def key(self, name: str) -> str:
        """Return its :attr:`Network.key`."""
        return network_key("bridge" if self.bridge else "network", name)


@attrs.frozen(kw_only=True)
class LabImage:
    """A template's image that must be there before clones are made: ``[images.TEMPLATE]``.

    With ``options`` it is built as by ``image build``, which also writes the template: ``builder``
    and ``extends`` say by what, and what else the template has. Without, the template's own image
    is built, or with ``pull`` downloaded.
    """

    builder: str = "debian"
    extends: str = "debian-12-built"
    options: Mapping[str, Any] = attrs.field(factory=dict)
    pull: bool = False


@attrs.frozen(kw_only=True)
class LabFleet:
    """A fleet of the lab: ``[fleets.NAME]``.

    :param count: clones in all. :param start: start them, and wait until they are ready.
    :param ready: what ready means, None for what the template says. :param timeout: seconds.
    :param after: fleets that must be ready, with their scripts run, before this one is started.
    :param network: of the first card, instead of the template's: a network of the file, or another
        of the host's.
    :param storage, hypervisor: None for the defaults in the settings. :param full: full copies.
    :param warm: fork new clones, as ``create --warm``. :param identical: they stay exact copies of
        their parent.
    :param hosts: of several hosts, those that get new clones, like ``@lab``; None for all.
    :param place: how new clones are distributed over them. :param per_host: at most so many clones
        of the fleet on each.
    :param ttl: for how long new clones are leased, as ``--ttl``; None for what the settings say.
    :param owner: whose new clones are, None for the user who applies the lab.
    :param values: of all clones. :param clones: of some, by clone or index.
    :param values_file: the same as a file, see ``create --values``.
    :param run: scripts for the guests' shells, relative to the lab's file. :param playbook: an
        Ansible playbook. Each is run once on each clone, the scripts first.
    """

    template: str
    count: int = attrs.field(default=1, validator=_count)
    start: bool = True
    ready: str | None = None
    timeout: float | None = None
    after: tuple[str, ...] = ()
    network: str | None = None
    storage: str | None = None
    hypervisor: str | None = None
    full: bool = False
    warm: bool = False
    identical: bool = False
    hosts: str | None = None
    place: Literal["spread", "pack"] = "spread"
    per_host: int | None = None
    ttl: str | None = None
    owner: str | None = None
    memory: Size | None = None
    vcpus: int | None = None
    disk_size: Size | None = None
    values: Mapping[str, str | int] = attrs.field(factory=dict)
    clones: Mapping[str, Mapping[str, str | int]] = attrs.field(factory=dict)
    values_file: Path | None = None
    run: tuple[str, ...] = ()
    playbook: str | None = None
    scripts: tuple[Script, ...] = attrs.field(default=(), metadata={"key": False})
    own: Mapping[int, Values] = attrs.field(factory=dict, metadata={"key": False})

    @property
    def sizes(self) -> Sizes:
        """The sizes of its clones, where they aren't the template's."""
        return Sizes(memory=self.memory, vcpus=self.vcpus, disk=self.disk_size)

    @property
    def readiness(self) -> Readiness | None:
        """What to wait for, None for what the template says."""
        if self.ready is None:
            return None
        return Readiness.parse(self.ready, timeout=self.timeout)

    @property
    def where(self) -> Where:
        """Where new clones go; its hosts are as in the file: node sets and groups.

        :raises InvalidRequest: ``per_host`` is out of range.
        """
        hosts = () if self.hosts is None else (self.hosts,)
        return Where(hosts=hosts, how=Placing(self.place), each=self.per_host)

    @property
    def lease(self) -> int | str | None:
        """For how long new clones are leased: seconds, ``never``, or None for the settings'."""
        ttl = self.ttl if self.ttl in (None, NEVER) else parse_duration(self.ttl)
        check_ttl(ttl)
        return ttl

    def given(self, index: int) -> Values:
        """Return the values that the file gives a clone."""
        return {**self.sizes.values, **self.values, **self.own.get(index, {})}


@attrs.frozen(kw_only=True)
class Lab:
    """A lab. ``name`` is on the labels of all that it makes.

    :param file: where it was read from. :param lines: the line of each key in it.
    """

    name: str
    description: str = ""
    networks: Mapping[str, LabNetwork] = attrs.field(factory=dict)
    images: Mapping[str, LabImage] = attrs.field(factory=dict)
    fleets: Mapping[str, LabFleet] = attrs.field(factory=dict)
    file: Path = attrs.field(default=Path("lab.toml"), metadata={"key": False})
    lines: Mapping[str, int] = attrs.field(
        factory=dict, repr=False, eq=False, metadata={"key": False}
    )

    def where(self, key: str) -> str:
        """Return the place of a key, as the begin of a message: file, line and key."""
        return place(self.file, self.lines, key)

    def located(self, error: VmclonerError, key: str) -> VmclonerError:
        """Return an error of the same class that names the place of a key first."""
        own = VmclonerError.__module__
        kind = next(cls for cls in type(error).__mro__ if cls.__module__ == own)
        located: VmclonerError = kind(f"{self.where(key)}: {error.message}", hint=error.hint)
        located.__cause__ = error
        return located

    def order(self) -> tuple[str, ...]:
        """Return the fleets in the order of :meth:`levels`."""
        return tuple(name for level in self.levels() for name in level)

    def levels(self) -> tuple[tuple[str, ...], ...]:
        """Return the fleets in the order in which they are made: each after what it needs.

        Those of one level don't need each other.

        :raises InvalidRequest: they need each other in a circle; names it.
        """
        left = {name: set(fleet.after) for name, fleet in self.fleets.items()}
        levels: list[tuple[str, ...]] = []
        while left:
            level = tuple(name for name, after in left.items() if not after & left.keys())
            if not level:
                raise self._circle(left)
            levels.append(level)
            left = {name: after for name, after in left.items() if name not in level}
        return tuple(levels)

    def _circle(self, left: Mapping[str, set[str]]) -> VmclonerError:
        path = [next(iter(left))]
        while path[-1] not in path[:-1]:
            path.append(next(name for name in self.fleets[path[-1]].after if name in left))
        circle = path[path.index(path[-1]) :]
        error = InvalidRequest(
            f"a circle: {' after '.join(circle)}", hint="remove one of these from its after"
        )
        return self.located(error, f"fleets.{circle[0]}.after")

    def network_of(self, fleet: LabFleet) -> str | None:
        """Return the network of a fleet's first cards as :attr:`Network.key`, None if not given."""
        if fleet.network is None or fleet.network not in self.networks:
            return fleet.network
        return self.networks[fleet.network].key(fleet.network)

    def request(
        self, name: str, new: tuple[int, ...] = (), others: tuple[int, ...] = ()
    ) -> CreateRequest:
        """Return the request for a fleet.

        :param new: the indices of the clones that will be made or completed: they get values.
        :param others: those of clones that will only be started.
        """
        fleet = self.fleets[name]
        forks = fleet.warm and bool(new)
        return CreateRequest(
            fleet=name,
            template=fleet.template,
            indices=(*new, *others),
            others=False,
            hypervisor=fleet.hypervisor,
            storage=fleet.storage,
            mode=CloneMode.FULL if fleet.full else None,
            start=fleet.start,
            warm=forks,
            identical=forks and fleet.identical,
            values={index: own for index in new if (own := fleet.given(index))},
            network=self.network_of(fleet),
            lab=check_lab(self.name),
            ttl=fleet.lease,
            owner=fleet.owner,
            where=fleet.where,
        )


def place(file: Path, lines: Mapping[str, int], key: str) -> str:
    """Return file, line and key; the line of the table, if the key itself isn't there."""
    known = key
    while known and known not in lines:
        known = known.rpartition(".")[0]
    line = f":{lines[known]}" if known else ""
    return f"{file}{line}: {key}" if key else f"{file}{line}"


Action = Literal[
    "build", "pull", "make", "change", "create", "complete", "start", "resize", "provision",
    "replace", "remove",
]  # fmt: skip
Kind = Literal["image", "network", "clone"]


@attrs.frozen(kw_only=True)
class Change:
    """Something that differs between a lab's file and the host, and what would be done about it.

    :param name: of the image's template, network or clone. :param fleet: the clone's.
    :param why: in a few words. :param option: without which it is only shown; empty if it is done
        by every ``apply``.
    """

    action: Action
    kind: Kind
    name: str
    fleet: str = ""
    why: str = ""
    option: Literal["", "--prune", "--recreate", "--provision"] = ""


@attrs.frozen(kw_only=True)
class LabResult:
    """What an ``apply`` did.

    :param changes: what it did, or with ``dry_run`` would do. :param left: what it would do with
        options that it wasn't given.
    :param results: those of its runs, in order.
    """

    changes: tuple[Change, ...]
    left: tuple[Change, ...] = ()
    results: tuple[RunResult, ...] = ()
