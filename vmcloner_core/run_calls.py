"""The calls that change clones, for whatever carries requests out: one host, or many."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from vmcloner_core.model import SnapshotAim
from vmcloner_core.plan import Plan, RunResult
from vmcloner_core.request import CreateRequest, Request, TargetRequest
from vmcloner_core.results import check_result


class RunCalls(ABC):
    """A call for each action; all of them are :meth:`run` with a request."""

    @abstractmethod
    def run(
        self, request: Request, *, on_plan: Callable[[Plan], None] = lambda _plan: None
    ) -> RunResult:
        """Carry a request out; see :meth:`Engine.run`."""

    def create(self, fleet: str, template: str, **options: Any) -> RunResult:
        """Make a fleet; ``options`` are the fields of :class:`CreateRequest`.

        :raises PartialFailure: some clones failed; the error says which, and why.
        """
        return check_result(self.run(CreateRequest(fleet=fleet, template=template, **options)))

    def start(self, *targets: str, **options: Any) -> RunResult:
        """Start clones; ``options`` here and below are the fields of :class:`TargetRequest`."""
        return self._target("start", targets, options)

    def stop(self, *targets: str, **options: Any) -> RunResult:
        """Shut clones down, or with ``kill=True`` stop them at once."""
        return self._target("stop", targets, options)

    def restart(self, *targets: str, **options: Any) -> RunResult:
        """Stop clones and start them again."""
        return self._target("restart", targets, options)

    def pause(self, *targets: str, **options: Any) -> RunResult:
        """Pause running clones; :meth:`resume` and :meth:`start` continue them."""
        return self._target("pause", targets, options)

    def resume(self, *targets: str, **options: Any) -> RunResult:
        """Continue paused clones, and set their clocks where they have guest agents."""
        return self._target("resume", targets, options)

    def save(self, *targets: str, **options: Any) -> RunResult:
        """Save clones' memory and stop them; :meth:`restore` and :meth:`start` continue them."""
        return self._target("save", targets, options)

    def restore(self, *targets: str, **options: Any) -> RunResult:
        """Continue saved clones, and set their clocks where they have guest agents."""
        return self._target("restore", targets, options)

    def set(self, *targets: str, **options: Any) -> RunResult:
        """Change clones' sizes: ``sizes=Sizes(memory=2 * 1024**3)``."""
        return self._target("set", targets, options)

    def reset(self, *targets: str, **options: Any) -> RunResult:
        """Reset clones' disks to their template; running clones are started again."""
        return self._target("reset", targets, options)

    def delete(self, *targets: str, **options: Any) -> RunResult:
        """Stop and remove clones with everything that belongs to them; missing ones are fine."""
        return self._target("delete", targets, options)

    def wait(self, *targets: str, **options: Any) -> RunResult:
        """Wait until clones are ready: ``wait=Readiness.parse("console:login:")``."""
        return self._target("wait", targets, options)

    def create_snapshot(self, *targets: str, name: str, memory: bool = False) -> RunResult:
        """Take a snapshot of each clone; one that is there is left.

        :param memory: with the memory of running clones; else they must be stopped, or have guest
            agents that freeze their disks.
        :raises Conflict: a clone has another snapshot of that name.
        """
        return self._snapshot("create", targets, SnapshotAim(name=name, memory=memory))

    def revert_snapshot(
        self, *targets: str, name: str, force: bool = False, start: bool = False
    ) -> RunResult:
        """Make clones what they were at their snapshots; with memory, they continue from there.

        :param force: stop those that run; else that is refused.
        :param start: start those whose snapshots have no memory.
        :raises NotFound: a clone has no such snapshot; nothing was changed.
        """
        return self._snapshot("revert", targets, SnapshotAim(name=name, force=force), start=start)

    def delete_snapshot(self, *targets: str, name: str) -> RunResult:
        """Remove a snapshot of each clone; those without one of that name are fine."""
        return self._snapshot("delete", targets, SnapshotAim(name=name))

    def _snapshot(
        self, action: str, targets: Sequence[str], aim: SnapshotAim, **options: Any
    ) -> RunResult:
        return self._target(f"snapshot-{action}", targets, {"snapshot": aim, **options})

    def _target(self, action: str, targets: Sequence[str], options: dict[str, Any]) -> RunResult:
        return check_result(
            self.run(TargetRequest(action=action, targets=tuple(targets), **options))
        )
