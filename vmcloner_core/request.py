"""What a user asks of the engine, as checked values: the inputs of a plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs

from vmcloner_core.birth import Birth
from vmcloner_core.choices import choice
from vmcloner_core.errors import InvalidRequest
from vmcloner_core.model import (
    CloneMode,
    Copying,
    NicSpec,
    Script,
    SnapshotAim,
    Template,
    check_ttl,
)
from vmcloner_core.names import (
    MAX_INDEX,
    check_fleet,
    check_lab,
    check_owner,
    check_template,
    clone_name,
)
from vmcloner_core.placing import ANYWHERE, Where
from vmcloner_core.plan import (
    ALL,
    MAX_JOBS,
    NO_SIZES,
    OnFailure,
    Quota,
    Readiness,
    Sizes,
    check_boot_jobs,
    check_identical,
    check_timeout,
)

MAX_CLONES = 10_000
"""Clones in one request; more is taken for a typing error."""


def _mode(value: CloneMode | str | None) -> CloneMode | None:
    return None if value is None else choice(CloneMode, "mode", value)


def _on_failure(value: OnFailure | str) -> OnFailure:
    return choice(OnFailure, "on_failure", value)


def _positive(_instance: object, attribute: attrs.Attribute[int | None], value: int | None) -> None:
    if value is not None and not 1 <= value <= MAX_CLONES:
        raise InvalidRequest(
            f"{attribute.name} must be 1 to {MAX_CLONES}, not {value}",
            hint="split a larger fleet into several" if value > MAX_CLONES else None,
        )


def check_aim(what: str, targets: Sequence[str], *, everything: bool) -> None:
    """Check that a command has targets or ``--all``.

    :raises InvalidRequest: it has neither, or both.
    """
    if bool(targets) == everything:
        both = "takes targets or --all, not both"
        raise InvalidRequest(
            f"{what} {both if everything else 'needs a target'}",
            hint="name a fleet (web), a clone (web-3) or a node set, or use --all",
        )


def check_jobs(value: int) -> None:
    """Check a number of concurrent jobs.

    :raises InvalidRequest: it is out of range.
    """
    if not 1 <= value <= MAX_JOBS:
        raise InvalidRequest(f"jobs must be 1 to {MAX_JOBS}, not {value}")


def _jobs(_instance: object, _attribute: object, value: int | None) -> None:
    if value is not None:
        check_jobs(value)


def _boot_jobs(_instance: object, _attribute: object, value: int | str | None) -> None:
    if value is not None:
        check_boot_jobs(value)


def _seconds(_instance: object, _attribute: object, value: float | None) -> None:
    if value is not None:
        check_timeout(value)


def _lab(_instance: object, _attribute: object, value: str) -> None:
    check_lab(value)


def _ttl(_instance: object, _attribute: object, value: int | str | None) -> None:
    check_ttl(value)


def _owner(_instance: object, _attribute: object, value: str) -> None:
    check_owner(value)


@attrs.frozen(kw_only=True)
class CreateRequest:
    """Ask for a fleet of ``count`` clones in all, or for ``add`` more than there are.

    :param count: the fleet's total size; missing clones are made. 1 if neither is given.
    :param add: clones to make with indices after the highest existing one.
    :param hypervisor: name of a hypervisor backend, None for the settings' default.
    :param storage: name of a storage pool, None for the settings' default.
    :param mode: None for linked clones, or full ones in a pool without linked ones.
    :param start: start them. :param wait: wait for this after starting (implies ``start``).
    :param ready: wait for the template's readiness (implies ``start``).
    :param timeout: seconds to wait for each clone, None for :class:`Readiness`'s default.
    :param min_ready: how many of them must get ready for the run to succeed.
    :param values: clones' own values by index, as :func:`~vmcloner_core.values_file.read_values`
        returns them: ``memory``, ``vcpus``, ``hostname``, ``machine_id`` and ``address`` override
        the template's, any others are for placeholders.
    :param jobs: upper bound for concurrent calls of each driver.
    :param boot_jobs: how many guests may boot at once, or ``auto``; None for what the settings say.
    :param bandwidth: bytes per second at most for an import and for copies, None for no limit.
    :param verify: read copies back and compare checksums, in pools that can.
    :param sizes: memory, processors and first disk of all of its clones, instead of the template's.
    :param indices: the new clones' indices, if a controller of many hosts chose them: these are
        made instead of ``count`` or ``add``, beside the clones that are there.
    :param others: whether clones that are there are completed and started although ``indices``
        doesn't name them.
    :param avoid: MAC addresses that clones of other hosts have.
    :param authorized_keys: public keys that may log in, in addition to the template's.
    :param where: which of many hosts make the new clones; not for a single one.
    :param birth: who makes them, when and in which run; None for this process's user, now.
    :param network: the network of their first cards, as :attr:`Network.key`, instead of the
        template's.
    :param lab: name of the lab that the fleet is part of, None for none or as the fleet has it.
    :param ttl: seconds that new clones are leased for, ``never`` for no end; None for what the
        settings say. Existing clones keep their leases.
    :param owner: whose new clones are; None for this process's user. Existing ones keep theirs.
    :param warm: fork new clones from the template's warm origin, which is made if there is none.
    :param identical: forks stay who their parent was: they have its name, keys and all else but
        its cards. With ``warm`` only.
    :param origin: the key of the warm origin, if the caller has found or made it.
    :param parent: make the clone that a warm origin is made from: like its forks, but not started.
    """

    fleet: str
    template: str
    count: int | None = attrs.field(default=None, validator=_positive)
    add: int | None = attrs.field(default=None, validator=_positive)
    hypervisor: str | None = None
    storage: str | None = None
    mode: CloneMode | None = attrs.field(default=None, converter=_mode)
    start: bool = False
    ready: bool = False
    wait: Readiness | None = None
    timeout: float | None = attrs.field(default=None, validator=_seconds)
    min_ready: Quota = ALL
    on_failure: OnFailure = attrs.field(default=OnFailure.KEEP, converter=_on_failure)
    values: Mapping[int, Mapping[str, str | int]] = attrs.field(factory=dict)
    jobs: int | None = attrs.field(default=None, validator=_jobs)
    boot_jobs: int | str | None = attrs.field(default=None, validator=_boot_jobs)
    bandwidth: int | None = None
    verify: bool = False
    sizes: Sizes = NO_SIZES
    indices: tuple[int, ...] | None = None
    others: bool = True
    avoid: frozenset[str] = frozenset()
    authorized_keys: tuple[str, ...] = ()
    birth: Birth | None = None
    where: Where = ANYWHERE
    network: str | None = None
    lab: str | None = attrs.field(default=None, validator=attrs.validators.optional(_lab))
    ttl: int | str | None = attrs.field(default=None, validator=_ttl)
    owner: str | None = attrs.field(default=None, validator=attrs.validators.optional(_owner))
    warm: bool = False
    identical: bool = False
    origin: str | None = None
    parent: bool = False

    def __attrs_post_init__(self) -> None:
        check_fleet(self.fleet)
        for index in self.indices or ():
            clone_name(self.fleet, index)
        Copying(bandwidth=self.bandwidth)
        check_template(self.template)
        if self.count is not None and self.add is not None:
            raise InvalidRequest("count and add exclude each other")
        check_identical(identical=self.identical, warm=self.warm or self.parent)
        clone_name(self.fleet, min(self.count or self.add or 1, MAX_INDEX))

    @property
    def action(self) -> str:
        """Name of the action."""
        return "create"

    def shaped(self, template: Template) -> Template:
        """Return a template with the network that the request asks for."""
        if self.network is None:
            return template
        bridge = self.network.startswith("bridge:")
        name = self.network.removeprefix("bridge:")
        first, *others = template.nics or (NicSpec(),)
        card = attrs.evolve(
            first, kind="bridge" if bridge else "network", source=name, forward=None
        )
        return attrs.evolve(template, nics=(card, *others))


@attrs.frozen(kw_only=True)
class TargetRequest:
    """Ask for an action on existing clones.

    :param action: its name: start, stop, restart, pause, resume, save, restore, reset, delete,
        wait, provision, snapshot-create, snapshot-revert or snapshot-delete.
    :param targets: fleets, clones and node sets, as for
        :func:`vmcloner_core.names.parse_targets`; empty only with ``everything``.
    :param everything: all clones on the host.
    :param count: at most this many of the clones that the action would change: a start takes the
        lowest indices, a stop or delete the highest.
    :param start: start all of them afterwards, also stopped ones (reset); waiting implies it.
    :param kill: stop at once instead of asking the guests to shut down.
    :param shutdown_timeout: seconds for the guests to shut down.
    :param wait: what to wait for (start, restart, reset, wait).
    :param ready: wait for the readiness of each clone's template; ``timeout`` in seconds, None for
        :class:`Readiness`'s default.
    :param min_ready: how many of them must get ready for the run to succeed.
    :param missing_ok: whether a delete succeeds although a target names no clone. If it doesn't,
        the others are deleted all the same.
    :param boot_jobs: how many guests may boot at once, or ``auto``; None for what the settings say.
    :param sizes: new memory, processors and disk size (set).
    :param snapshot: the snapshot (snapshot-create, snapshot-revert, snapshot-delete).
    :param run: the name of the run, None for a new one.
    :param scripts: what to run, each once on each clone (provision).
    :param changed_scripts: run those again that have changed since they ran.
    :param lab: the lab that all of them must be part of; None if it doesn't matter.
    """

    action: str
    targets: tuple[str, ...] = ()
    everything: bool = False
    count: int | None = attrs.field(default=None, validator=_positive)
    start: bool = False
    kill: bool = False
    shutdown_timeout: float = 60.0
    wait: Readiness | None = None
    ready: bool = False
    timeout: float | None = attrs.field(default=None, validator=_seconds)
    min_ready: Quota = ALL
    missing_ok: bool = True
    jobs: int | None = attrs.field(default=None, validator=_jobs)
    boot_jobs: int | str | None = attrs.field(default=None, validator=_boot_jobs)
    sizes: Sizes = NO_SIZES
    snapshot: SnapshotAim | None = None
    run: str | None = None
    scripts: tuple[Script, ...] = ()
    changed_scripts: bool = False
    lab: str | None = None

    def __attrs_post_init__(self) -> None:
        if self.action.startswith("snapshot-") != (self.snapshot is not None):
            raise InvalidRequest(f"{self.action}: needs a snapshot's name, and nothing else does")
        if (self.action == "set") != (self.sizes != NO_SIZES):
            raise InvalidRequest(
                f"{self.action}: nothing to change"
                if self.action == "set"
                else f"{self.action} changes no sizes",
                hint="give memory, vcpus or a disk size",
            )
        check_aim(self.action, self.targets, everything=self.everything)
        if not 0 <= self.shutdown_timeout <= 86_400:
            raise InvalidRequest(f"shutdown timeout out of range: {self.shutdown_timeout:g} s")


Request = CreateRequest | TargetRequest
