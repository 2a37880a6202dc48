"""What an action is: what a command asks for, and the steps by which it comes about."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import ClassVar

from vmcloner_core.model import Clone, State
from vmcloner_core.request import TargetRequest

ACTIVE = (State.RUNNING, State.PAUSED, State.CRASHED)
"""The states of a domain that has to be stopped before its disks can be changed."""


class Action(ABC):
    """What a run does to its clones. Actions hold nothing: there is one object of each."""

    name: ClassVar[str]
    past: ClassVar[str]
    """What people call a clone that it was done to: ``deleted``."""
    order: ClassVar[tuple[str, ...]]
    """The names of its steps, in the order of the pipeline. A clone goes through those it needs."""
    tells: ClassVar[tuple[str, ...]] = ("wait",)
    """The steps whose past tenses are told beside its own."""
    own_word = True
    """Whether its own past tense is told where those of steps are."""
    lowest_first = True
    """Whether "up to N" takes the lowest indices of the clones, or else the highest."""
    restarts = False
    """Whether it stops clones that ran and starts them again: the same command, cut off in
    between, starts them too."""
    missing_ok = False
    """Whether a target that isn't there is as asked."""

    def words(self, past: Collection[tuple[str, str]]) -> list[str]:
        """Return what was done to clones, for people.

        :param past: (name, past tense) of the steps that all of them went through.
        """
        words = [word for step, word in past if step in self.tells]
        own = [self.past] if self.own_word or not words else []
        return list(dict.fromkeys([*own, *words]))


class TargetAction(Action):
    """An action on clones that exist."""

    @abstractmethod
    def steps(self, request: TargetRequest, clone: Clone) -> tuple[str, ...]:
        """Return what has to be done to a clone; nothing where it is as asked."""


def active(clone: Clone) -> bool:
    """Tell whether a clone's domain has to be stopped before its disks can be changed."""
    return clone.domain is not None and clone.domain.state in ACTIVE


def waits(request: TargetRequest) -> tuple[str, ...]:
    """Return the step that waits, where the request asks for it."""
    return ("wait",) if request.wait is not None or request.ready else ()
