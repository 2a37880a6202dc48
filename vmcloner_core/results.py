"""The result of a run as an exception, unless it succeeded."""

from __future__ import annotations

from vmcloner_core.errors import Interrupted, PartialFailure, RollbackIncomplete
from vmcloner_core.names import fold
from vmcloner_core.plan import OnFailure, RunResult
from vmcloner_core.units import counted


def check_result(result: RunResult) -> RunResult:
    """Return the result of a run that succeeded.

    :raises Interrupted: it was stopped. :raises RollbackIncomplete: something was left.
    :raises PartialFailure: too many clones failed; carries each clone's error.
    :raises NotFound: all was done, but something that the user named isn't there.
    """
    action = result.plan.action
    failures = [(r.name, r.error) for r in result.failures if r.error is not None]
    total = len(result.results)
    undone, removal = _rolled_back(result)
    if result.left:
        raise RollbackIncomplete(
            f"{action}: rolled back, but {counted(len(result.left), 'clone')} could not be removed"
            f"{undone}",
            failures=failures,
            hint=f"vmcloner delete {fold(result.left)}",
        )
    if result.interrupted:
        done = total - len(failures)
        partly = sum(bool(r.changed) for r in result.failures if r.name not in result.rolled_back)
        begun = f", {partly} in part" if partly else ""
        raise Interrupted(
            f"{action}: stopped with {done} of {counted(total, 'clone')} done{begun}{undone}",
            hint="; ".join(filter(None, ("run the same command again", removal))),
        )
    if not result.enough:
        raise PartialFailure(
            f"{action}: {len(failures)} of {counted(total, 'clone')} failed{undone}",
            failures=failures,
            hint=removal,
        )
    if result.plan.missing is not None:
        raise result.plan.missing
    return result


def _rolled_back(result: RunResult) -> tuple[str, str | None]:
    """Return what a roll-back did and kept, and the command that removes the latter too."""
    if result.enough or result.plan.on_failure is not OnFailure.ROLLBACK:
        return "", None
    kept = fold(result.kept)
    gone = set(result.rolled_back) - set(result.kept)
    text = f"; {counted(len(gone), 'clone')} rolled back"
    if not kept:
        return text, None
    return (
        f"{text}, kept {kept}: there before this run",
        f"to remove also these: vmcloner delete {kept}",
    )
