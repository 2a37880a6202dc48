"""Progress on a terminal: one bar for each step of a run, with bytes for long ones."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.progress import Progress as Bars
from rich.text import Text

from vmcloner_core.cli.account import Account
from vmcloner_core.cli.lines import QUIET, Follower
from vmcloner_core.errors import Interrupted
from vmcloner_core.hooks import hookimpl
from vmcloner_core.plan import Plan, ProgressEvent, RunResult, StepEvent, StepStatus
from vmcloner_core.units import format_size


class _Bars(Bars):
    """Bars with a line below."""

    def __init__(self, account: Account, *columns: ProgressColumn, console: Console) -> None:
        self._account = account
        super().__init__(*columns, console=console, transient=True)

    def get_renderables(self) -> Iterable[RenderableType]:
        """Return what is drawn."""
        yield from super().get_renderables()
        if self._account.elapsed > QUIET:
            yield Text(self._account.line(), no_wrap=True, overflow="ellipsis", style="dim")


class Progress(Follower):
    """An observer that draws to standard error. Very short runs show nothing."""

    def __init__(self) -> None:
        super().__init__()
        self._bars: Bars | None = None
        self._bytes: Bars | None = None
        self._tasks: dict[str, TaskID] = {}
        self._failed: dict[str, int] = {}
        self._import: TaskID | None = None
        self._console = Console(stderr=True)

    @hookimpl
    def vmcloner_plan_ready(self, plan: Plan) -> None:
        """Draw a bar for each step."""
        self._stop()
        self._account.begin(plan)
        bars = _Bars(
            self._account,
            TextColumn("{task.description:10}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("[red]{task.fields[failed]}"),
            TextColumn("{task.fields[copied]}"),
            TimeElapsedColumn(),
            console=self._console,
        )
        for step in plan.steps:
            total = sum(step in clone.steps for clone in plan.clones)
            self._tasks[step] = bars.add_task(step, total=total, failed="", copied="")
        self._bars = bars
        if not plan.import_image:
            bars.start()

    @hookimpl
    def vmcloner_step_changed(self, event: StepEvent) -> None:
        """Advance a step's bar."""
        self._account.step(event)
        if event.step in ("import", "pull", "send"):
            self._imported(event)
            return
        if event.status is StepStatus.STARTED or self._bars is None:
            return
        if event.step not in self._tasks:  # a roll-back's
            self._tasks[event.step] = self._bars.add_task(
                event.step, total=None, failed="", copied=""
            )
        task = self._tasks[event.step]
        if event.status is StepStatus.FAILED and not isinstance(event.error, Interrupted):
            self._failed[event.step] = self._failed.get(event.step, 0) + 1
            self._bars.update(task, failed=f"{self._failed[event.step]} failed")
        self._bars.advance(task)

    def _imported(self, event: StepEvent) -> None:
        if event.status is StepStatus.STARTED:
            self._bytes = Bars(
                TextColumn("{task.description}"),
                BarColumn(),
                DownloadColumn(binary_units=True),
                TimeElapsedColumn(),
                console=self._console,
                transient=True,
            )
            what = self._account.line() or f"{event.step} {event.clone}"
            self._import = self._bytes.add_task(what, total=None)
            self._bytes.start()
            return
        if self._bytes is not None:
            self._bytes.stop()
            self._bytes = None
        if self._bars is not None and event.status is not StepStatus.FAILED:
            self._bars.start()

    @hookimpl
    def vmcloner_progress(self, event: ProgressEvent) -> None:
        """Advance the bar of an import, or show beside the clones' bar how much is copied."""
        clones = self._tasks.get("clone")
        if event.what == "copy":
            if self._bars is not None and clones is not None:
                copied = f"{format_size(event.done)} of {format_size(event.total)}"
                self._bars.update(clones, copied=copied)
        elif self._bytes is not None and self._import is not None:
            self._bytes.update(self._import, completed=event.done, total=event.total or None)

    @hookimpl
    def vmcloner_run_finished(self, result: RunResult) -> None:  # noqa: ARG002 - the hook's name
        """Remove the bars; the summary follows."""
        self._stop()

    def _tell(self, text: str) -> None:
        self._console.print(f"vmcloner: {text}", markup=False, highlight=False)

    def _stop(self) -> None:
        for bars in (self._bars, self._bytes):
            if bars is not None:
                bars.stop()
        self._bars = self._bytes = None
        self._tasks.clear()
        self._failed.clear()
