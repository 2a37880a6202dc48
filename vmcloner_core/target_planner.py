"""Plan actions on existing clones: a pure function of a request and of what was found."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import attrs

from vmcloner_core.clone_spec import clone_spec, filled, filled_in
from vmcloner_core.disks import disk_numbers
from vmcloner_core.errors import InvalidRequest, NotFound
from vmcloner_core.model import Clone, CloneSpec, Nic, NicSpec, State, Template
from vmcloner_core.names import fold, parse_targets
from vmcloner_core.placeholders import clone_values
from vmcloner_core.plan import ALL, ClonePlan, Plan, Readiness
from vmcloner_core.planner import check_of_lab, check_ours, check_still
from vmcloner_core.records import Record, known_uuid
from vmcloner_core.request import TargetRequest
from vmcloner_core.steps import ACTIONS, TargetAction
from vmcloner_core.steps.action import active
from vmcloner_core.survey import Survey, absent


def plan_targets(
    request: TargetRequest,
    found: Survey,
    *,
    run: str,
    host: str,
    seed: str,
    template: Callable[[str], Template],
    record: Callable[[str], Record | None],
) -> Plan:
    """Return the plan of an action on existing clones.

    :param seed: the seed of the UUIDs of the host's clones.
    :param template: returns the template of a name; called only for clones whose records don't
        have theirs.
    :param record: returns the record of the clone of a name; called only when needed.
    :raises NotFound: a target names nothing, in an action that needs it; or a template that a
        reset, a boot or a wait needs is gone, and isn't in the clone's record.
    :raises BackendError: a clone is, or may be, on a backend that could not be read.
    """
    action = ACTIONS[request.action]
    if not isinstance(action, TargetAction):
        raise InvalidRequest(f"{request.action} takes no existing clones")
    chosen, missing = _chosen(request, action, found)
    for clone in chosen:
        check_of_lab(clone, request.lab)
    left = _left(request, action, chosen)
    routes = [
        (clone, () if clone in left else _steps(request, action, clone, record)) for clone in chosen
    ]
    work = [(clone, steps) for clone, steps in routes if steps]
    existing = tuple(clone.name for clone, steps in routes if not steps)
    if request.count is not None:
        # Starts take the lowest indices, stops and deletes the highest, of those that change.
        if action.name != "wait":
            work = [(clone, steps) for clone, steps in work if steps != ("wait",)]
        work = work[: request.count] if action.lowest_first else work[-request.count :]
        taken = {clone.name for clone, _ in work}
        existing = tuple(c.name for c, steps in routes if c.name not in taken and _done(steps))
    # What a pool that can't be read has of snapshots isn't known either.
    every = request.snapshot is not None
    unsure = [clone.labels for clone, _ in routes if every or clone.state is State.UNKNOWN]
    found.check_seen(request.action, [*(clone.labels for clone, _ in work), *unsure])
    context = _Context(request=request, template=template, record=record, seed=seed)
    clones = tuple(context.plan(clone, steps) for clone, steps in work)
    return Plan(
        action=request.action,
        run=run,
        host=host,
        clones=clones,
        order=action.order,
        existing=existing,
        missing=missing,
        shutdown_timeout=request.shutdown_timeout,
        sizes=request.sizes,
        scripts=request.scripts,
        changed_scripts=request.changed_scripts,
        snapshot=request.snapshot,
        min_ready=request.min_ready if any("wait" in c.steps for c in clones) else ALL,
        jobs=request.jobs,
        warnings=(
            *((found.others,) if request.everything and found.others else ()),
            *(_moving(found.clones) if request.everything else ()),
            *_continued(clones),
            *_told(left),
        ),
    )


def _continued(clones: Sequence[ClonePlan]) -> tuple[str, ...]:
    """Return a remark if clones continue from saved memory: they don't boot."""
    saved = [
        clone.name for clone in clones if "restore" in clone.steps and clone.state is State.SAVED
    ]
    if not saved:
        return ()
    verb = "continues" if len(saved) == 1 else "continue"
    return (f"{fold(saved)} {verb} from saved memory (vmcloner stop --kill discards it)",)


def _moving(clones: Sequence[Clone]) -> tuple[str, ...]:
    """Return a remark for each clone that is left because it is being moved."""
    return tuple(f"{clone.name} {clone.moving}: left" for clone in clones if clone.moving)


def _left(
    request: TargetRequest, action: TargetAction, chosen: Sequence[Clone]
) -> tuple[Clone, ...]:
    """Return the clones that an action leaves as they are: it is for others of their fleets."""
    named = [target for target in parse_targets(request.targets) if target.indices is not None]
    left = tuple(
        clone
        for clone in chosen
        if clone.state in action.leaves
        and not any(target.matches(clone.fleet, clone.index) for target in named)
    )
    return left if len(left) < len(chosen) else ()


def _told(left: Sequence[Clone]) -> tuple[str, ...]:
    """Return a remark for each state in which clones were left."""
    states = dict.fromkeys(clone.state for clone in left)
    names = {state: [clone.name for clone in left if clone.state is state] for state in states}
    return tuple(
        f"{fold(found)} {'is' if len(found) == 1 else 'are'} {state.value}: left"
        for state, found in names.items()
    )


def _done(steps: Sequence[str]) -> bool:
    """Tell whether a clone is as a request asks for: what it still has to do is wait."""
    return not steps or steps == ("wait",)


def _chosen(
    request: TargetRequest, action: TargetAction, found: Survey
) -> tuple[tuple[Clone, ...], NotFound | None]:
    """Return the clones that a request names, and an error for those that aren't there.

    :raises NotFound: none is there, and the request needs them.
    """
    targets = parse_targets(request.targets)
    if request.everything:
        found.check_complete(f"{request.action} --all")
        still = (c for c in found.clones if c.moving is None and not c.making)
        return tuple(clone for clone in still if clone.ours), None
    if not action.missing_ok:
        selected = found.select(targets)
        check_ours(selected)
        check_still(selected)
        return selected, None
    named = tuple(c for c in found.clones if any(t.matches(c.fleet, c.index) for t in targets))
    check_ours(named)
    check_still(named)
    for target in targets:
        indices = {clone.index for clone in named if clone.fleet == target.fleet}
        if not indices or not indices.issuperset(target.indices or ()):
            # Missing clones are fine, unless they may be on what could not be read.
            found.check_complete(f"{request.action} {target.fleet}")
    error = None if request.missing_ok else absent(found.clones, targets)
    if error is not None:
        hint = f"{error.hint}; --missing-ok if that is fine"
        error = NotFound(error.message, hint=hint)
        if not named:
            raise error
    return named, error


def _steps(
    request: TargetRequest,
    action: TargetAction,
    clone: Clone,
    record: Callable[[str], Record | None],
) -> tuple[str, ...]:
    """Return a clone's steps; what an interrupted run left undone is part of them."""
    if clone.renamed is not None:
        return ("check",)
    if action.restarts and not request.start and not active(clone):
        kept = record(clone.name)
        if kept is not None and kept.restart:
            request = attrs.evolve(request, start=True)
    aim = request.snapshot
    if aim is not None and action.reverts and not aim.force:
        kept = record(clone.name)
        if kept is not None and kept.reverting == aim.name:  # what it does is since a killed revert
            request = attrs.evolve(request, snapshot=attrs.evolve(aim, force=True))
    return action.steps(request, clone)


class _Context:
    """Plans single clones of one request."""

    def __init__(
        self,
        *,
        request: TargetRequest,
        template: Callable[[str], Template],
        record: Callable[[str], Record | None],
        seed: str,
    ) -> None:
        self._request = request
        self._template = template
        self._record = record
        self._seed = seed

    def plan(self, clone: Clone, steps: tuple[str, ...]) -> ClonePlan:
        """Return the plan of one clone with these steps."""
        wait = self._wait(clone, restores="restore" in steps)
        boots = clone.labels.boot is not None and bool({"start", "wait"} & set(steps))
        spec = None
        if boots or wait.placeholders or "reset" in steps:
            made_of = self._made_of(clone, steps)
            record = self._record(clone.name)
            if made_of is not None:
                spec = found_spec(clone, made_of, record, self._seed)
                wait = filled(wait, spec)
            else:
                wait = filled_in(wait, _bare_values(clone, record))
        return ClonePlan(
            labels=clone.labels,
            steps=steps,
            state=clone.state,
            renamed=clone.renamed,
            disks=_own_disks(clone, spec.template) if spec and "reset" in steps else (),
            volumes=clone.volumes,
            domain=clone.domain,
            kept=clone.kept,
            unlabelled=clone.unlabelled,
            wait=wait,
            spec=spec,
        )

    def _wait(self, clone: Clone, *, restores: bool) -> Readiness:
        """Return what to wait for.

        :param restores: it continues from saved memory: then what its template waits for is noted
            if it was so before, even if this request doesn't wait.
        """
        request = self._request
        if request.wait is not None or not (request.ready or restores):
            return request.wait or Readiness()
        try:
            return Readiness.parse(self._kept(clone).readiness, timeout=request.timeout)
        except NotFound:
            if request.ready:
                raise
            return Readiness()

    def _kept(self, clone: Clone) -> Template:
        """Return the template that a clone was made of.

        :raises NotFound: its record doesn't have it, and the template is gone.
        """
        record = self._record(clone.name)
        return (record and record.template()) or self._template(clone.template)

    def _made_of(self, clone: Clone, steps: Sequence[str]) -> Template | None:
        """Return the template of a clone; None if it is gone and not essential.

        :raises NotFound: it is gone, and the clone's reset, or its boot at this start, needs it.
        """
        try:
            return self._kept(clone)
        except NotFound as error:
            boots = clone.labels.boot is not None and "start" in steps
            if not boots and "reset" not in steps:
                return None  # only a guest that reboots would need it
            what = "reset" if "reset" in steps else "start"
            raise NotFound(
                f"{clone.name}: its {what} needs template {clone.template!r}, which is gone",
                hint=f"restore its file, or vmcloner delete {clone.name}",
            ) from error


def found_spec(
    clone: Clone, template: Template, record: Record | None, seed: str, macs: Sequence[str] = ()
) -> CloneSpec:
    """Return an existing clone's specification from its domain, else its record, else its name.

    :param macs: its MAC addresses, for a clone with neither.
    """
    domain, labels = clone.domain, clone.labels
    if domain is not None:
        macs = domain.macs
    elif record is not None:
        macs = record.macs
    known = known_uuid(labels, domain, record, seed)
    values = record.values if record is not None else None
    return clone_spec(template, labels, known, macs, values)


def _bare_values(clone: Clone, record: Record | None) -> Mapping[str, object]:
    """Return the values for placeholders of a clone whose template is gone."""
    macs = clone.domain.macs if clone.domain is not None else ()
    nics = tuple(Nic(spec=NicSpec(), mac=mac) for mac in macs)
    return clone_values(clone.labels, nics, record.values if record is not None else {})


def _own_disks(clone: Clone, template: Template) -> tuple[int, ...]:
    """Return the numbers of a clone's disks, including lost ones, that its template has."""
    there = {volume.disk for volume in clone.volumes}
    defined = len(clone.domain.disks) if clone.domain is not None else 1
    return tuple(n for n in disk_numbers(template) if n in there or n < defined)
