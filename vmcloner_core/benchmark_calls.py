"""What an engine does to measure itself: a part of the engine's API. See docs/reports.md.

A benchmark's fleet has a mark in the state folder, a file of its name, and as long as the benchmark
runs, it holds the fleet's lock ``benchmark/FLEET``. A mark whose lock nobody holds is of a
benchmark that was killed: ``gc`` deletes its clones.
"""

from __future__ import annotations

import logging
import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import attrs

from vmcloner_core.benchmark_marks import PREFIX
from vmcloner_core.cancelling import Cancellation, ending_with
from vmcloner_core.errors import NotFound, VmclonerError
from vmcloner_core.local_host import LocalHost
from vmcloner_core.plan import Plan, RunResult
from vmcloner_core.request import CreateRequest, Request, TargetRequest

if TYPE_CHECKING:
    from vmcloner_core.reports import Report
    from vmcloner_core.run_events import RunEvent

log = logging.getLogger(__name__)


@attrs.frozen(kw_only=True)
class Benchmark:
    """What a benchmark did.

    :param report: on both of its runs. :param created, deleted: their results.
    """

    report: Report
    created: RunResult
    deleted: RunResult


class BenchmarkCalls(ABC):
    """The calls of :class:`~vmcloner_core.Engine` that measure it."""

    @property
    @abstractmethod
    def _host(self) -> LocalHost:
        """The host that the engine works on."""

    @abstractmethod
    def _held(self, names: Sequence[str]) -> AbstractContextManager[object]:
        """Hold locks; see :meth:`LocalHost.hold`."""

    @abstractmethod
    def run(
        self, request: Request, *, on_plan: Callable[[Plan], None] = lambda _plan: None
    ) -> RunResult:
        """Carry a request out; see :meth:`Engine.run`."""

    @abstractmethod
    def events(
        self, *, run: str | None = None, follow: bool = False, plans: bool = False
    ) -> Iterator[RunEvent]:
        """Yield the events of runs; see :meth:`Engine.events`."""

    def benchmark(
        self,
        template: str,
        /,
        *,
        on_plan: Callable[[Plan], None] = lambda _plan: None,
        **options: Any,
    ) -> Benchmark:
        """Make a fleet, wait until it is ready, delete it; returns what that took.

        Clones that fail are in the report and in the results, not raised. Whatever happens, the
        fleet is deleted; if this process is killed, the next :meth:`gc` deletes it. The template's
        image stays in the pool, as after any create.

        :param on_plan: called with the plan before anything is changed; may raise to stop.
        :param options: the fields of :class:`CreateRequest`, but for its fleet.
        :raises NotFound: the logs of the runs could not be written, or are gone.
        :raises VmclonerError: the fleet can't be made at all.
        """
        from vmcloner_core.reports import report_of_runs

        fleet = f"{PREFIX}{secrets.token_hex(4)}"
        request = CreateRequest(fleet=fleet, template=template, **{"ready": True, **options})
        with self._held([f"benchmark/{fleet}"]):
            self._host.benchmarks.mark(fleet)
            try:
                created = self.run(request, on_plan=on_plan)
            except BaseException:
                self._undo(fleet)
                raise
            deleted = self._benchmarked(fleet)
        runs = [result.plan.run for result in (created, deleted)]
        report = report_of_runs(self.events, runs, fleet)
        return Benchmark(report=report, created=created, deleted=deleted)

    def _undo(self, fleet: str) -> None:
        """Delete the fleet of a benchmark that an error ended, which is told afterwards."""
        try:
            left = not self._benchmarked(fleet).ok
        except NotFound:  # nothing was made
            return
        except VmclonerError as error:
            log.warning("%s", error)
            left = True
        if left:
            log.warning("fleet %s may be left: vmcloner gc removes it", fleet)

    def _benchmarked(self, fleet: str) -> RunResult:
        """Delete a benchmark's fleet, and its mark if nothing of it is left.

        :raises NotFound: there is none.
        """
        delete = TargetRequest(action="delete", targets=(fleet,))
        try:
            with ending_with(Cancellation()):  # what ended the create doesn't end this
                deleted = self.run(delete)
        except NotFound:
            self._host.benchmarks.forget([fleet])
            raise
        if deleted.ok:
            self._host.benchmarks.forget([fleet])
        return deleted


def check_benchmark(benchmark: Benchmark) -> None:
    """Check that all clones of a benchmark got ready and were deleted.

    :raises VmclonerError: what :func:`check_result` raises; what is left is named first.
    """
    from vmcloner_core.results import check_result

    left = [result.name for result in benchmark.deleted.failures]
    try:
        check_result(benchmark.deleted)
    except VmclonerError as error:
        error.hint = "vmcloner gc removes what is left" if left else error.hint
        raise
    check_result(benchmark.created)
