"""Plan what is done to clones that exist: a pure function of a request and of what was found."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import attrs

from vmcloner_core.clone_spec import clone_spec
from vmcloner_core.disks import disk_numbers
from vmcloner_core.errors import InvalidRequest, NotFound
from vmcloner_core.model import Clone, CloneSpec, Nic, NicSpec, Template, clone_uuid
from vmcloner_core.names import parse_targets
from vmcloner_core.placeholders import clone_values
from vmcloner_core.plan import ALL, ClonePlan, Plan, Readiness
from vmcloner_core.planner import check_ours, filled, filled_in
from vmcloner_core.records import Record
from vmcloner_core.request import TargetRequest
from vmcloner_core.steps import ACTIONS, TargetAction
from vmcloner_core.steps.action import active
from vmcloner_core.survey import Survey


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
    """Return the plan of an action on clones that exist.

    :param seed: what UUIDs of the host's clones are made from.
    :param template: returns the template of that name; asked only where it is needed.
    :param record: returns the record of the clone of that name; asked only where it is needed.
    :raises NotFound: a target names nothing, unless that is as asked; or a template is gone that
        says what a clone is made of or boots, or what it is waited for.
    :raises BackendError: a clone is, or may be, on a backend that could not be read.
    """
    action = ACTIONS[request.action]
    if not isinstance(action, TargetAction):
        raise InvalidRequest(f"{request.action} is not done to clones that exist")
    chosen = _chosen(request, action, found)
    routes = [(clone, _steps(request, action, clone, record)) for clone in chosen]
    work = [(clone, steps) for clone, steps in routes if steps]
    existing = tuple(clone.name for clone, steps in routes if not steps)
    if request.count is not None:
        # "up to N": starts fill a fleet from below, stops and deletes empty it from above
        work = work[: request.count] if action.lowest_first else work[-request.count :]
    found.check_seen(request.action, [clone.labels for clone, _ in work])
    context = _Context(request=request, template=template, record=record, seed=seed)
    clones = tuple(context.plan(clone, steps) for clone, steps in work)
    return Plan(
        action=request.action,
        run=run,
        host=host,
        clones=clones,
        order=action.order,
        existing=existing,
        shutdown_timeout=request.shutdown_timeout,
        min_ready=request.min_ready if any("wait" in c.steps for c in clones) else ALL,
        jobs=request.jobs,
    )


def _chosen(request: TargetRequest, action: TargetAction, found: Survey) -> tuple[Clone, ...]:
    """Return the clones that a request names."""
    targets = parse_targets(request.targets)
    if request.everything:
        found.check_complete(f"{request.action} --all")
        return tuple(clone for clone in found.clones if clone.ours)
    if not action.missing_ok:
        selected = found.select(targets)
        check_ours(selected)
        return selected
    named = tuple(c for c in found.clones if any(t.matches(c.fleet, c.index) for t in targets))
    check_ours(named)
    for target in targets:
        indices = {clone.index for clone in named if clone.fleet == target.fleet}
        if not indices or not indices.issuperset(target.indices or ()):
            # What is gone is as asked, but what could not be read may not be gone.
            found.check_complete(f"{request.action} {target.fleet}")
    return named


def _steps(
    request: TargetRequest,
    action: TargetAction,
    clone: Clone,
    record: Callable[[str], Record | None],
) -> tuple[str, ...]:
    """Return what has to be done to a clone, and what a run that was cut off has left to do."""
    if action.restarts and not request.start and not active(clone):
        kept = record(clone.name)
        if kept is not None and kept.restart:
            request = attrs.evolve(request, start=True)
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
        """Return the plan of one clone that needs these steps."""
        wait = self._wait(clone)
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
            disks=_own_disks(clone, spec.template) if spec and "reset" in steps else (),
            volumes=clone.volumes,
            wait=wait,
            spec=spec,
        )

    def _wait(self, clone: Clone) -> Readiness:
        request = self._request
        if request.wait is not None or not request.ready:
            return request.wait or Readiness()
        return Readiness.parse(self._template(clone.template).ready, timeout=request.timeout)

    def _made_of(self, clone: Clone, steps: Sequence[str]) -> Template | None:
        """Return the template of a clone; None where it is gone, and is no more than a help.

        :raises NotFound: it is gone, and says what the clone is made of, or boots at this start.
        """
        try:
            return self._template(clone.template)
        except NotFound as error:
            boots = clone.labels.boot is not None and "start" in steps
            if not boots and "reset" not in steps:
                return None  # nothing but a guest that reboots would need it
            what = "is made of" if "reset" in steps else "boots"
            raise NotFound(
                f"{clone.name}: what it {what} is up to template {clone.template!r}, which is gone",
                hint=f"put its file back, or vmcloner delete {clone.name}",
            ) from error


def found_spec(
    clone: Clone, template: Template, record: Record | None, seed: str, macs: Sequence[str] = ()
) -> CloneSpec:
    """Return what a clone that exists is: by its domain, else its record, else its names.

    :param macs: its addresses, where neither tells.
    """
    domain, labels = clone.domain, clone.labels
    if domain is not None:
        known, macs = domain.uuid, domain.macs
    elif record is not None:
        known, macs = record.uuid, record.macs
    else:
        known = clone_uuid(seed, labels.fleet, labels.index, labels.template)
    values = record.values if record is not None else None
    return clone_spec(template, labels, known, macs, values)


def _bare_values(clone: Clone, record: Record | None) -> Mapping[str, object]:
    """Return what placeholders stand for in a clone whose template is gone."""
    macs = clone.domain.macs if clone.domain is not None else ()
    nics = tuple(Nic(spec=NicSpec(), mac=mac) for mac in macs)
    return clone_values(clone.labels, nics, record.values if record is not None else {})


def _own_disks(clone: Clone, template: Template) -> tuple[int, ...]:
    """Return the numbers of a clone's disks, lost ones too, as far as its template has them."""
    there = {volume.disk for volume in clone.volumes}
    defined = len(clone.domain.disks) if clone.domain is not None else 1
    return tuple(n for n in disk_numbers(template) if n in there or n < defined)
