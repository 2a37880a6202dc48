"""``vmcloner benchmark``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from vmcloner_core.benchmark_calls import check_benchmark
from vmcloner_core.cli.base import (
    add_boot_jobs,
    add_origin,
    add_readiness,
    add_sizes,
    note,
    sizes,
    waiting,
)
from vmcloner_core.cli.report import ReportTable
from vmcloner_core.errors import UsageError
from vmcloner_core.model import CloneMode
from vmcloner_core.plan import Plan


class BenchmarkCommand(ReportTable):
    """Make clones, wait until they are ready, delete them, and report what took how long.

    Nothing of them stays, whatever fails; if the command is killed, gc removes them. The
    template's image stays in the pool: run it twice to measure without the import.
    """

    example = "vmcloner benchmark -t tiny -n 20 --html benchmark.html"

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        add_origin(parser)
        parser.add_argument(
            "-n", "--count", type=int, default=1, metavar="N", help="Clones to make (default 1)."
        )
        parser.add_argument(
            "-j", "--jobs", type=int, metavar="N", help="At most N calls to a backend at once."
        )
        add_readiness(parser)
        add_boot_jobs(parser)
        add_sizes(parser)
        parser.set_defaults(wait=True)
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Sequence[str], list[Any]]:
        """Measure; returns columns and rows."""
        if any(condition.relative for condition in parsed_args.fail_if):
            raise UsageError(
                "a factor needs something to compare",
                hint="vmcloner report --compare BENCHMARK1 BENCHMARK2",
            )

        def begin(plan: Plan) -> None:
            for warning in plan.warnings:
                note(self.app, warning)

        self._benchmark = self.engine.benchmark(
            parsed_args.template,
            on_plan=begin,
            count=parsed_args.count,
            hypervisor=parsed_args.hypervisor,
            storage=parsed_args.storage,
            mode=CloneMode.FULL if parsed_args.full else None,
            jobs=parsed_args.jobs,
            sizes=sizes(parsed_args),
            **waiting(parsed_args),
        )
        return self.shown_report(self._benchmark.report, parsed_args)

    def remarks(self, parsed_args: argparse.Namespace) -> list[str]:
        """Return the lines below the table, also the runs: their logs stay."""
        runs = ", ".join(self._benchmark.report.runs)
        return [*super().remarks(parsed_args), f"runs: {runs}"]

    def produce_output(self, parsed_args: argparse.Namespace, column_names: Any, data: Any) -> int:
        """Print the report.

        :raises VmclonerError: clones failed, or are left.
        """
        super().produce_output(parsed_args, column_names, data)
        check_benchmark(self._benchmark)
        return 0
