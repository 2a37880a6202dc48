"""``vmcloner report``."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vmcloner_core.cli.base import DIFFERS, Table
from vmcloner_core.cli.usage import say
from vmcloner_core.errors import InvalidRequest, UsageError, shown
from vmcloner_core.reports import (
    CloneTimes,
    Condition,
    Difference,
    Phase,
    Report,
    compared,
    phases,
    report_of,
)
from vmcloner_core.reports.model import quantile
from vmcloner_core.units import counted, format_seconds, format_size

KEYS = ("phase", "clones", "failed", "min", "p50", "p95", "max", "slowest")
CLONE_KEYS = (
    "name",
    "host",
    "status",
    "ready",
    "held",
    "held_seconds",
    "failed",
    "phases",
    "error",
    "memory",
)
_CLONE_SHORT = ("name", "status", "ready", "held", "held_seconds", "memory", "error")
DIFFERENCE_KEYS = (
    "phase",
    *(f"{figure}_{what}" for figure in ("p50", "p95", "max") for what in ("1", "2", "ratio")),
)
_DIFFERENCE_SHORT = DIFFERENCE_KEYS[:7]
_TOLD = 3
"""Slow clones that are told of below the table."""
_LONGEST = 200
"""Characters of an error."""


class ReportTable(Table):
    """What commands that show a report have in common."""

    short: Sequence[str] = KEYS
    _report: Report

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        parser.add_argument(
            "--clones",
            action="store_true",
            help="A line for each clone: when it was ready, and the phase that took longest "
            "until then.",
        )
        parser.add_argument(
            "--html", type=Path, metavar="FILE", help="Write it with pictures, as one HTML file."
        )
        parser.add_argument(
            "--junit", type=Path, metavar="FILE", help="Write it as JUnit XML, for a CI server."
        )
        parser.add_argument(
            "--fail-if",
            action="append",
            default=[],
            type=_condition,
            metavar="CONDITION",
            help="Exit with 12 if it is so: 'p95 ready > 30s', 'failed > 0', and with something "
            "to compare 'p95 ready > 1.2x'; can be repeated.",
        )
        return parser

    def shown_report(
        self, report: Report, parsed_args: argparse.Namespace
    ) -> tuple[Sequence[str], list[Any]]:
        """Write the files that are asked for; returns columns and rows."""
        self._report = report
        if parsed_args.junit is not None:
            from vmcloner_core.reports.junit import junit

            _write(parsed_args.junit, junit(report))
        if parsed_args.html is not None:
            from vmcloner_core.reports.page import page

            _write(parsed_args.html, page(report).encode())
        if parsed_args.clones:
            self.short = _CLONE_SHORT
            size = format_size if self.for_people(parsed_args) else int
            return CLONE_KEYS, [_clone_row(clone, size) for clone in report.clones]
        return KEYS, [_row(row) for row in phases(report)]

    def run(self, parsed_args: argparse.Namespace) -> int:
        """Show it; returns the exit code, which cliff doesn't take from the output."""
        self._verdict = 0
        return super().run(parsed_args) or self._verdict

    def produce_output(self, parsed_args: argparse.Namespace, column_names: Any, data: Any) -> int:
        """Print the rows; for people also what the report is about, and the slowest clones."""
        super().produce_output(parsed_args, column_names, data)
        if self.for_people(parsed_args) and not parsed_args.columns:
            for line in self.remarks(parsed_args):
                self.app.stdout.write(f"{shown(line, len(line))}\n")
        self._verdict = self.judged(parsed_args)
        return 0

    def remarks(self, parsed_args: argparse.Namespace) -> list[str]:
        """Return the lines below the table."""
        report = self._report
        lines = [about(report), *_memory(report)]
        if not parsed_args.clones:
            lines += [f"slowest: {_slow(clone)}" for clone in report.slowest(_TOLD)]
            lines += [
                f"{clone.name} failed in {clone.failed}: {shown(clone.error or '', _LONGEST)}"
                for clone in report.failures[:_TOLD]
            ]
        return lines

    def judged(self, parsed_args: argparse.Namespace, before: Report | None = None) -> int:
        """Say which conditions a report meets; returns the exit code."""
        said = [condition.met(self._report, before) for condition in parsed_args.fail_if]
        for text in filter(None, said):
            say(text)
        return DIFFERS if any(said) else 0


class ReportCommand(ReportTable):
    """Show where the time of a run went, in seconds: each phase, of all clones.

    "queued" is the time in which clones waited for a step to begin. "output" (the first line of a
    console), "ip", "ssh", "agent" and the like count from the clone's start, "ready" from the
    begin. Of a fleet: how its clones came to be, until they were ready. Of a benchmark: both of its
    runs. Of the last 200 runs.
    """

    example = "vmcloner report web --html report.html"
    columns = tuple(dict.fromkeys((*KEYS, *CLONE_KEYS, *DIFFERENCE_KEYS)))
    _before: Report | None = None

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        which = parser.add_mutually_exclusive_group()
        which.add_argument(
            "of", nargs="?", metavar="RUN|FLEET", help="A run, or a fleet (default the last run)."
        )
        which.add_argument(
            "--last", action="store_true", help="The last run, which is the default."
        )
        which.add_argument(
            "--compare",
            nargs=2,
            metavar="RUN|FLEET",
            help="Compare the second with the first; --html, --junit and --clones are of "
            "the second.",
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Sequence[str], list[Any]]:
        """Return columns and rows."""
        if parsed_args.compare is None:
            if any(condition.relative for condition in parsed_args.fail_if):
                raise UsageError("a factor needs something to compare", hint="--compare RUN1 RUN2")
            return self.shown_report(report_of(self.engine.events, parsed_args.of), parsed_args)
        self._before = report_of(self.engine.events, parsed_args.compare[0])
        after = report_of(self.engine.events, parsed_args.compare[1])
        shown_report = self.shown_report(after, parsed_args)
        if parsed_args.clones:
            return shown_report
        self.short = _DIFFERENCE_SHORT
        return DIFFERENCE_KEYS, [_difference_row(each) for each in compared(self._before, after)]

    def remarks(self, parsed_args: argparse.Namespace) -> list[str]:
        """Return the lines below the table."""
        if self._before is None:
            return super().remarks(parsed_args)
        return [f"1: {about(self._before)}", f"2: {about(self._report)}"]

    def judged(self, parsed_args: argparse.Namespace, before: Report | None = None) -> int:
        """Say which conditions a report meets; returns the exit code."""
        return super().judged(parsed_args, before or self._before)


def _write(file: Path, data: bytes) -> None:
    try:
        file.write_bytes(data)
    except OSError as error:
        raise InvalidRequest(f"can't write {file}: {error.strerror}") from error


def _condition(text: str) -> Condition:
    try:
        return Condition.parse(text)
    except InvalidRequest as error:
        raise argparse.ArgumentTypeError(f"{error.message}; use {error.hint}") from None


def about(report: Report) -> str:
    """Return one line on what a report is about."""
    words = [counted(len(report.clones), "clone")]
    if report.failures:
        words.append(f"{len(report.failures)} failed")
    if not report.finished:
        words.append("not finished")
    of = f" of {report.template}" if report.template is not None else ""
    took = format_seconds(report.seconds)
    return f"{report.name}: {', '.join(report.actions)}{of}, {', '.join(words)}, {took}"


def _slow(clone: CloneTimes) -> str:
    held = clone.held
    why = f", {format_seconds(held.seconds)} of it {held.phase}" if held is not None else ""
    return f"{clone.name} ready after {format_seconds(clone.ready or 0.0)}{why}"


def _row(row: Phase) -> tuple[Any, ...]:
    return tuple(getattr(row, key) for key in KEYS)


def _memory(report: Report) -> list[str]:
    """Return a line on the memory that clones took, if that is known."""
    taken = sorted(clone.memory for clone in report.clones if clone.memory is not None)
    if not taken:
        return []
    half, most = format_size(int(quantile(taken, 0.5))), format_size(taken[-1])
    each = f"p50 {half}, max {most}, what they share by its share"
    return [f"memory: {counted(len(taken), 'clone')} took {format_size(sum(taken))}: {each}"]


def _clone_row(clone: CloneTimes, size: Callable[[int], object]) -> tuple[Any, ...]:
    held = clone.held
    return (
        clone.name,
        clone.host or None,
        clone.status,
        _rounded(clone.ready),
        held.phase if held is not None else None,
        _rounded(held.seconds) if held is not None else None,
        clone.failed,
        {phase: _rounded(seconds) for phase, seconds in clone.phases.items()},
        clone.error,
        None if clone.memory is None else size(clone.memory),
    )


def _difference_row(each: Difference) -> tuple[Any, ...]:
    values: list[Any] = [each.phase]
    for figure in ("p50", "p95", "max"):
        values += [*each.figures(figure), each.ratio(figure)]
    return tuple(values)


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)
