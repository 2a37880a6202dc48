"""``vmcloner host prepare lvm``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vmcloner_core.cli.base import Table, note
from vmcloner_core.process import LocalRunner
from vmcloner_core.units import format_size, parse_size
from vmcloner_lvm.prepare import AREA, Ground, Task, carry_out, plan
from vmcloner_lvm.settings import LvmThinSettings

COLUMNS = ("task", "status", "command")


class PrepareLvm(Table):
    """Make an LVM thin pool for clones: physical volume, volume group, pool, its growth.

    Existing parts are not changed. A device that holds data (a file system, a partition, a volume
    group) is refused and never overwritten.
    """

    example = "vmcloner host prepare lvm --device /dev/sdb --vg VG01 --thinpool p1 --dry-run"

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        default = LvmThinSettings()
        parser.add_argument(
            "--device",
            type=Path,
            metavar="DEV",
            help="An empty disk for the volume group.",
        )
        parser.add_argument(
            "--vg", default=default.vg, help=f"Volume group (default {default.vg})."
        )
        parser.add_argument(
            "--thinpool",
            default=default.thinpool,
            metavar="POOL",
            help=f"Thin pool in the group (default {default.thinpool}).",
        )
        parser.add_argument(
            "--size", metavar="SIZE", help="Size of the pool (default: 80 %% of the free space)."
        )
        parser.add_argument(
            "--metadatasize",
            default=format_size(AREA).replace(" ", ""),
            metavar="SIZE",
            help="Metadata area of a new disk (default %(default)s: for 10,000 clones).",
        )
        parser.add_argument(
            "--dry-run", action="store_true", help="Show what would change; change nothing."
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Sequence[str], list[Any]]:
        """Plan, and carry out unless it is a dry run; returns columns and rows."""
        ground = Ground(
            vg=parsed_args.vg,
            thinpool=parsed_args.thinpool,
            device=parsed_args.device,
            size=parse_size(parsed_args.size) if parsed_args.size else None,
            area=parse_size(parsed_args.metadatasize),
        )
        runner = LocalRunner()
        tasks = plan(ground, runner)
        if not parsed_args.dry_run:
            carry_out(tasks, runner)
            note(self.app, _settings(ground))
        return COLUMNS, [_row(task, dry=parsed_args.dry_run) for task in tasks]


def _row(task: Task, *, dry: bool) -> tuple[str, str, str]:
    status = "already done" if task.done else "to do" if dry else "done"
    return task.what, status, "" if task.done else " ".join(task.argv)


def _settings(ground: Ground) -> str:
    return (
        "to use it, set: [hosts.local.storage.lvm-thin] "
        f'vg = "{ground.vg}", thinpool = "{ground.thinpool}"'
    )
