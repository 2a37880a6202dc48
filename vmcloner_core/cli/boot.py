"""``vmcloner boot``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vmcloner_core.cli.base import Table, add_targets
from vmcloner_core.errors import PartialFailure
from vmcloner_core.units import counted

if TYPE_CHECKING:
    from vmcloner_core.booting import Preview

COLUMNS = (
    "name", "provider", "boots", "kernel", "initrd", "cmdline", "source", "running", "error",
)  # fmt: skip


class BootResolve(Table):
    """Show what clones would boot if they were started now; change nothing.

    Reads disks, and asks boot servers without keeping a lease. Of a running clone it shows what it
    was started from, or its definition if that isn't known. Kernel and initrd are named by their
    origin: a file on the host, on the clone's disk or on a server.
    """

    example = "vmcloner boot resolve web-1"
    nothing = "there are no clones to boot"

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        add_targets(parser, everything=False)
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Sequence[str], list[Any]]:
        """Ask; returns columns and rows."""
        self._previews = self.engine.boots(*parsed_args.targets)
        rows = [_row(preview) for preview in self._previews]
        if parsed_args.formatter != "table":
            return COLUMNS, rows
        # Command lines are long: on a screen each value has a line of its own.
        return ("name", "what", "value"), [line for row in rows for line in _lines(row)]

    def produce_output(self, parsed_args: argparse.Namespace, column_names: Any, data: Any) -> int:
        """Print the rows.

        :raises PartialFailure: some clones would not boot.
        """
        super().produce_output(parsed_args, column_names, data)
        failures = [(p.name, p.error) for p in self._previews if p.error is not None]
        if failures:
            total = len(self._previews)
            message = f"boot resolve: {len(failures)} of {counted(total, 'clone')} would not boot"
            raise PartialFailure(message, failures=failures)
        return 0


def _lines(row: tuple[object, ...]) -> list[tuple[object, ...]]:
    """Return a clone's values, each with its column's name; the clone's name only at the first."""
    values = [(what, v) for what, v in zip(COLUMNS[1:], row[1:], strict=True) if v]
    return [(row[0] if number == 0 else "", *pair) for number, pair in enumerate(values)]


def _row(preview: Preview) -> tuple[object, ...]:
    boot = preview.boot
    if boot is None:
        error = str(preview.error)
        return (preview.name, preview.provider, *[None] * 5, preview.running, error)
    kernel, *initrds = boot.origins or (boot.kernel and str(boot.kernel), boot.initrd)
    return (
        preview.name,
        preview.provider,
        "kernel" if kernel else str(boot.bootloader or ",".join(boot.devices)),
        kernel,
        ", ".join(str(initrd) for initrd in initrds if initrd) or None,
        boot.cmdline,
        boot.source or None,
        preview.running,
        None,
    )
