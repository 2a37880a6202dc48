"""Tell a run's log and observers of it: once that it begins, once that it has ended."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from vmcloner_core.errors import Interrupted, VmclonerError, said
from vmcloner_core.plan import Plan, RunResult
from vmcloner_core.plugins import PluginHost
from vmcloner_core.runlog import RunLog


def reported(
    plan: Plan,
    log: RunLog,
    plugins: PluginHost,
    carry_out: Callable[[], RunResult],
    so_far: Callable[[VmclonerError], RunResult],
) -> RunResult:
    """Carry a plan out; observers get one ``plan_ready`` and one ``run_finished``.

    :param log: watches the run, and is closed.
    :param so_far: returns the result of a run that an error ended early.
    :raises VmclonerError: what ``carry_out`` raises.
    """
    with contextlib.ExitStack() as stack:
        stack.callback(log.close)
        stack.callback(plugins.watch(log))
        try:
            plugins.plan_ready(plan)
            result = carry_out()
        except BaseException as error:
            plugins.run_finished(so_far(_ending(error)))
            raise
        plugins.run_finished(result)
    return result


def _ending(error: BaseException) -> VmclonerError:
    """Return what ended a run as an error of ours."""
    if isinstance(error, VmclonerError):
        return error
    if isinstance(error, KeyboardInterrupt):
        return Interrupted("stopped by the user")
    return VmclonerError(said(error))
