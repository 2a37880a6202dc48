"""Carry out a plan: import, pipeline, roll-back, and events for observers."""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence

import attrs

from vmcloner_core.errors import Interrupted, VmclonerError
from vmcloner_core.local_host import LocalHost
from vmcloner_core.model import Capacity
from vmcloner_core.outcomes import asked
from vmcloner_core.pipeline import Pipeline, Work
from vmcloner_core.plan import OnFailure, Plan, ProgressEvent, RunResult, Seen, Waiting
from vmcloner_core.plugins import PluginHost
from vmcloner_core.preflight import check_space
from vmcloner_core.reporting import reported
from vmcloner_core.sampling import Sampler
from vmcloner_core.steps import Run, routed, undoing

log = logging.getLogger(__name__)


class PlannedRun:
    """One run of a plan. Used once.

    :param cancelled: once set, calls in progress are finished and no new ones begin.
    """

    def __init__(
        self, plan: Plan, host: LocalHost, plugins: PluginHost, cancelled: threading.Event
    ) -> None:
        self._plan = plan
        self._host = host
        self._plugins = plugins
        self._cancelled = cancelled
        self._started = time.monotonic()
        self._works = [Work(plan=clone, volumes=clone.volumes) for clone in plan.clones]
        self._run = Run(plan, host, cancelled.is_set, self._copied, self._waiting, self._seen)

    def __call__(self) -> RunResult:
        """Carry the plan out; a clone's failure is in the result.

        Once observers got ``plan_ready``, they get exactly one ``run_finished``, whatever happens.

        :raises VmclonerError: the whole run failed, for example its import.
        """
        log = self._host.run_log(self._plan.run)
        return reported(self._plan, log, self._plugins, self._carried_out, self._result)

    def _carried_out(self) -> RunResult:
        plan = self._plan
        told = self._plugins.host_sampled
        with Sampler(plan.run, self._started, self._pool(), told) as sampler:
            if plan.import_image:
                self._import()
            elif plan.template is not None:
                self._host.build_kernel(plan.template, self._cancelled.is_set)
            routed(self._run, self._works)
            self._pipe(self._works)
            if taken := self._taken():
                sampler.tell_memory(taken)
        result = self._result()
        if plan.on_failure is OnFailure.ROLLBACK and not result.enough:
            left, undone = self._rolled_back()
            result = attrs.evolve(self._result(), left=left, rolled_back=undone)
        return result

    def _pool(self) -> Callable[[], Capacity] | None:
        """Return what tells the capacity of the run's pool, None if it has several or none."""
        pools = {clone.labels.storage for clone in self._plan.clones}
        if len(pools) != 1:
            return None
        (pool,) = pools
        return lambda: self._capacity(pool)

    def _capacity(self, pool: str) -> Capacity:
        ask = self._host.drivers.ask
        return ask("storage", pool, "capacity", lambda driver: driver.capacity(), Capacity)

    def _taken(self) -> Mapping[str, int]:
        """Return the bytes of memory that the clones take that the run has waited for.

        Best effort: nothing of the run depends on it.
        """
        ready: dict[str, list[str]] = {}
        for work in self._works:
            if work.error is None and "wait" in work.plan.steps:
                ready.setdefault(work.plan.labels.hypervisor, []).append(work.name)
        taken: dict[str, int] = {}
        for name, clones in ready.items():
            try:
                statistics = self._host.drivers.hypervisor(name).statistics
                if statistics is not None:
                    backend = self._host.drivers.backend("hypervisor", name, "statistics.shares")
                    taken |= asked(backend, functools.partial(statistics.shares, clones))
            except VmclonerError as error:
                log.debug("no memory of clones: %s", error)
        return taken

    def _import(self) -> None:
        """Import the template's image, and check that the clones fit in the space left."""
        plan = self._plan
        assert plan.template is not None and plan.storage is not None  # noqa: S101, PT018
        pool = self._host.drivers.storage(plan.storage)
        cancelled = self._cancelled.is_set
        origin = self._host.import_image(
            plan.template, pool, plan.run, self._started, cancelled, plan.copying
        )
        check_space(plan, origin, pool.need, self._capacity(plan.storage))

    def _result(self, ended: VmclonerError | None = None) -> RunResult:
        """Return the run's result so far.

        :param ended: what ended it early.
        """
        results = tuple(work.result(ended) for work in self._works)
        return RunResult(
            plan=self._plan,
            results=results,
            seconds=time.monotonic() - self._started,
            interrupted=any(isinstance(result.error, Interrupted) for result in results),
            error=ended,
        )

    def _pipe(self, works: Sequence[Work]) -> None:
        run, plugins = self._plan.run, self._plugins
        Pipeline(
            run,
            plugins.step_changed,
            self._cancelled,
            self._started,
            ready=lambda name: plugins.clone_ready(run, name),
            stopping=lambda calls: plugins.run_stopping(run, calls),
        )(works)

    def _rolled_back(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Undo what a failed create made; returns (left, undone) names."""
        works = [work for work in map(undoing, self._works) if work is not None]
        self._cancelled.clear()
        routed(self._run, works)
        self._pipe(works)
        left = tuple(work.name for work in works if work.error is not None)
        return left, tuple(work.name for work in works if work.error is None)

    def _waiting(self, waiting: Waiting) -> None:
        self._plugins.waiting(self._plan.run, waiting)

    def _seen(self, clone: str, what: str, text: str) -> None:
        at = time.monotonic() - self._started
        self._plugins.clone_seen(Seen(run=self._plan.run, clone=clone, what=what, at=at, text=text))

    def _copied(self, done: int, total: int) -> None:
        self._plugins.progress(
            ProgressEvent(run=self._plan.run, what="copy", done=done, total=total)
        )
