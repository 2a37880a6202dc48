"""Actions and their steps, one module for each kind. A new one is a module here and a line below.

An :class:`Action` is what a command does; a :class:`Step` is one part of it, done by one driver.
Plans, events and results refer to both by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs

from vmcloner_core.errors import Conflict, Interrupted
from vmcloner_core.local_host import LocalHost
from vmcloner_core.pipeline import Stage, Work
from vmcloner_core.plan import Plan
from vmcloner_core.steps.action import Action, TargetAction
from vmcloner_core.steps.change import GrowDisk, Resize, Set
from vmcloner_core.steps.check import CheckUse, Renew
from vmcloner_core.steps.create import CloneDisks, Create, Define
from vmcloner_core.steps.delete import Delete, Remove, Undefine
from vmcloner_core.steps.memory import (
    DiscardMemory,
    Pause,
    PauseDomain,
    Restore,
    RestoreMemory,
    Resume,
    ResumeDomain,
    Save,
    SaveMemory,
)
from vmcloner_core.steps.power import (
    Destroy,
    Restart,
    Shutdown,
    Start,
    StartDomain,
    Stop,
    Wait,
    WaitUntilReady,
)
from vmcloner_core.steps.provision import Provision, RunScripts
from vmcloner_core.steps.reset import Reset, ResetDisks
from vmcloner_core.steps.snapshots import (
    CommitSnapshot,
    CreateSnapshot,
    DeleteSnapshot,
    DropSnapshot,
    GoOn,
    KeepMachine,
    NoteSnapshot,
    PutBack,
    Quiesce,
    RevertDisks,
    RevertSnapshot,
    SnapshotDisks,
    VerifySnapshot,
)
from vmcloner_core.steps.step import Run, Step

__all__ = [
    "ACTIONS",
    "STEPS",
    "Action",
    "Run",
    "Step",
    "TargetAction",
    "check_backends",
    "routed",
    "undoing",
]

ACTIONS: dict[str, Action] = {
    action.name: action
    for action in (
        Create(),
        Start(),
        Stop(),
        Restart(),
        Pause(),
        Resume(),
        Save(),
        Restore(),
        Set(),
        Reset(),
        Delete(),
        Wait(),
        Provision(),
        CreateSnapshot(),
        RevertSnapshot(),
        DeleteSnapshot(),
    )
}
STEPS: dict[str, Step[Any]] = {
    step.name: step
    for step in (
        CheckUse(),
        Renew(),
        CloneDisks(),
        Define(),
        StartDomain(),
        ResumeDomain(),
        RestoreMemory(),
        PauseDomain(),
        SaveMemory(),
        DiscardMemory(),
        GrowDisk(),
        Resize(),
        WaitUntilReady(),
        RunScripts(),
        Shutdown(),
        Destroy(),
        ResetDisks(),
        Undefine(),
        Remove(),
        NoteSnapshot(),
        Quiesce(),
        KeepMachine(),
        SnapshotDisks(),
        GoOn(),
        CommitSnapshot(),
        VerifySnapshot(),
        RevertDisks(),
        PutBack(),
        DropSnapshot(),
    )
}
_UNDOING = Delete.order
"""The order in which steps are undone."""


def check_backends(host: LocalHost, plan: Plan) -> None:
    """Check that all backends with parts of a plan's clones are set up.

    :raises NotFound, InvalidRequest: one isn't, and its parts would be left behind.
    """
    for labels in {(c.labels.storage, c.labels.hypervisor): c.labels for c in plan.clones}.values():
        host.drivers.storage(labels.storage)
        host.drivers.hypervisor(labels.hypervisor)


def routed(run: Run, works: Sequence[Work]) -> None:
    """Give works their routes; works with the same step and driver share a stage."""
    stages: dict[tuple[str, object], Stage] = {}
    for work in works:
        route = []
        for name in work.plan.steps:
            driver = STEPS[name].driver(run.host, work.plan.labels)
            if (name, driver) not in stages:
                stages[name, driver] = STEPS[name].stage(run, driver)
            route.append(stages[name, driver])
        work.route = tuple(route)


def undoing(work: Work) -> Work | None:
    """Return the work that undoes a run's changes to a clone; None if there are none.

    What existed before the run is kept.
    """
    touched = set(work.made)
    if work.failed_step is not None and not isinstance(work.error, Conflict | Interrupted):
        touched.add(work.failed_step)
    undo = {name for step in touched for name in STEPS[step].undo}
    if work.own:  # a step that failed for one disk may have made another
        undo.add(Remove.name)
    steps = tuple(name for name in _UNDOING if name in undo and STEPS[name].undoes(work))
    if not steps:
        return None
    return Work(
        plan=attrs.evolve(work.plan, steps=steps),
        volumes=work.own,
        forget=work.plan.state is None,
    )
