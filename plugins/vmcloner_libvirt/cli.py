"""``vmcloner host setup``."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Sequence
from typing import Any

from vmcloner_core.cli.base import Table, agreed, note
from vmcloner_core.errors import BackendError
from vmcloner_core.model import NetworkRequest
from vmcloner_core.process import CommandRunner, LocalRunner
from vmcloner_core.units import counted
from vmcloner_libvirt.setting_up import (
    CANT_TELL,
    Step,
    caller,
    carry_out,
    is_answering,
    plan,
)

PREPARE = ("vmcloner", "host", "prepare", "network")
COLUMNS = ("step", "status", "command", "detail")


class HostSetup(Table):
    """Set up this machine for clones on KVM: packages, groups, folders, libvirtd, a network.

    Shows each step and asks before it changes anything. What is done already is left as it is. On
    systems without apt, it says what to install. Exit code 8 if something is left to do by hand.
    """

    example = "vmcloner host setup --dry-run"
    columns = COLUMNS

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        parser.add_argument(
            "--dry-run", action="store_true", help="Show what would change; change nothing."
        )
        parser.add_argument("-y", "--yes", action="store_true", help="Don't ask first.")
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Sequence[str], list[Any]]:
        """Plan, and carry out unless it is a dry run; returns columns and rows.

        :raises BackendError: this user isn't root.
        """
        runner = LocalRunner()
        _ = self.engine.networks  # across several hosts it is refused, with the way out
        first = tuple(plan(self.engine.host, runner, caller()))
        self._steps = (*first, self._network(runner, first))
        to_do = [step for step in self._steps if step.argv]
        if to_do and not parsed_args.dry_run:
            if os.geteuid() != 0:
                raise BackendError(
                    "host setup needs root",
                    hint="sudo vmcloner host setup; --dry-run shows what it would do; without "
                    'root: uri = "qemu:///session" (docs/networks.md)',
                )
            steps = [_described(step) for step in to_do]
            for text in steps if parsed_args.yes else ():
                note(self.app, text)
            question = f"Do {counted(len(to_do), 'step')}?"
            agreed("host setup", question, about=steps, sure=parsed_args.yes)
            for step in to_do:
                note(self.app, f"{step.name} …")
                if step.argv == PREPARE:
                    self.engine.prepare_network(NetworkRequest())
                else:
                    carry_out(step, runner)
        return COLUMNS, [_row(step, dry=parsed_args.dry_run) for step in self._steps]

    def produce_output(self, parsed_args: argparse.Namespace, column_names: Any, data: Any) -> int:
        """Print the rows. :raises BackendError: something is left to do by hand."""
        code = super().produce_output(parsed_args, column_names, data)
        if left := [step for step in self._steps if step.by_hand]:
            names = ", ".join(step.name for step in left)
            raise BackendError(f"to do by hand: {names}", hint=left[0].detail)
        if not parsed_args.dry_run:
            note(self.app, "vmcloner host check says whether all is well")
        elif any(step.unknown for step in self._steps):
            note(self.app, "what is unknown: sudo vmcloner host setup --dry-run")
        return code

    _steps: Sequence[Step] = ()

    def _network(self, runner: CommandRunner, first: Sequence[Step]) -> Step:
        if left := [step.name for step in first if step.by_hand]:
            return Step(name="network", detail=f"after {left[0]}", by_hand=True)
        request = NetworkRequest(dry_run=True)
        if is_answering(runner):
            done = not self.engine.prepare_network(request).steps
            return Step(name="network", detail=request.name, argv=() if done else PREPARE)
        if any(step.name == "libvirtd" and (step.done or step.unknown) for step in first):
            return Step(name="network", detail=CANT_TELL, argv=PREPARE, unknown=True)
        return Step(name="network", argv=PREPARE)


def _row(step: Step, *, dry: bool) -> tuple[str, str, str | None, str | None]:
    status = "already done" if step.done else "to do" if dry else "done"
    status = "unknown" if step.unknown and dry else status
    status = "by hand" if step.by_hand else status
    return step.name, status, shlex.join(step.argv) or None, step.detail or None


def _described(step: Step) -> str:
    return f"{step.name}: {shlex.join(step.argv)}{f' ({step.detail})' if step.detail else ''}"
