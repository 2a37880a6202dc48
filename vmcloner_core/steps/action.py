"""Actions: what commands do, and their steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import ClassVar

from vmcloner_core.model import Clone, State
from vmcloner_core.request import TargetRequest

ACTIVE = (State.RUNNING, State.PAUSED, State.CRASHED)
"""The states of a domain that must be stopped before its disks are changed."""


class Action(ABC):
    """What a run does to its clones. Actions have no state: there is one object of each."""

    name: ClassVar[str]
    past: ClassVar[str]
    """The word for its result in summaries: ``deleted``."""
    order: ClassVar[tuple[str, ...]]
    """The names of its steps, in the order of the pipeline. A clone goes through those it needs."""
    tells: ClassVar[tuple[str, ...]] = ("wait",)
    """The steps whose past tenses the summary mentions too."""
    own_word = True
    """Whether the summary has its own past tense beside those of steps."""
    lowest_first = True
    """Whether "at most N" takes the clones with the lowest indices, or else the highest."""
    restarts = False
    """Whether it stops running clones and starts them again. Repeated after an interruption, it
    starts those that were stopped."""
    reverts = False
    """Whether it reverts clones to snapshots. Repeated after an interruption, it also reverts those
    that have continued meanwhile."""
    leaves: ClassVar[tuple[State, ...]] = ()
    """The states of clones that it leaves as they are if a fleet has others. It fails for clones in
    these states that are named themselves, or if a request is for no others."""
    missing_ok = False
    """Whether a target may be missing."""

    def words(self, past: Collection[tuple[str, str]]) -> list[str]:
        """Return the words for what was done to clones.

        :param past: (name, past tense) of the steps that all of them went through.
        """
        words = [word for step, word in past if step in self.tells]
        own = [self.past] if self.own_word or not words else []
        return list(dict.fromkeys([*own, *words]))


class TargetAction(Action):
    """An action on existing clones."""

    @abstractmethod
    def steps(self, request: TargetRequest, clone: Clone) -> tuple[str, ...]:
        """Return the steps that a clone needs; none if it needs no change."""


def active(clone: Clone) -> bool:
    """Tell whether a clone's domain must be stopped before its disks are changed."""
    return clone.domain is not None and clone.domain.state in ACTIVE


def waits(request: TargetRequest) -> tuple[str, ...]:
    """Return the step ``wait`` if the request asks for it."""
    return ("wait",) if request.wait is not None or request.ready else ()
