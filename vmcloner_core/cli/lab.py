"""``vmcloner apply``, ``diff`` and ``lab example``."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vmcloner_core.cli.base import DIFFERS, Base, Table, note, summary
from vmcloner_core.cli.usage import agrees, say
from vmcloner_core.errors import Interrupted, UsageError
from vmcloner_core.labs import Change, read_lab
from vmcloner_core.labs.example import EXAMPLE
from vmcloner_core.names import fold
from vmcloner_core.plan import RunResult
from vmcloner_core.units import counted

COLUMNS = ("action", "kind", "name", "why", "option")
MAX_LINES = 20
"""Failed clones of a run that are listed."""
_PAST = {
    "build": "built",
    "pull": "pulled",
    "make": "made",
    "change": "changed",
    "create": "created",
    "complete": "completed",
    "start": "started",
    "resize": "resized",
    "provision": "provisioned",
    "replace": "replaced",
    "remove": "removed",
}


class _Lab(Table):
    """What commands on a lab's file have in common."""

    columns = COLUMNS

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        parser.add_argument("file", type=Path, metavar="FILE", help="The lab's file (TOML).")
        return parser

    def rows(
        self, changes: Sequence[Change], parsed_args: argparse.Namespace
    ) -> tuple[Sequence[str], list[Any]]:
        """Return columns and rows: one for each thing; for people, clones are folded."""
        groups: dict[tuple[str, ...], list[str]] = {}
        for change in changes:
            alone = "" if self.for_people(parsed_args) and change.kind == "clone" else change.name
            key = (change.action, change.kind, change.why, change.option, change.fleet, alone)
            groups.setdefault(key, []).append(change.name)
        return COLUMNS, [
            (action, kind, fold(names) if kind == "clone" else names[0], why, option or None)
            for (action, kind, why, option, *_), names in groups.items()
        ]


class Diff(_Lab):
    """Show what differs between a lab's file and the host.

    Exit code 0 if nothing does, 12 if something does. The column "option" names the option of
    "apply" that a difference needs; without one, every apply deals with it.
    """

    example = "vmcloner diff lab.toml"

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Sequence[str], list[Any]]:
        """Compare; returns columns and rows."""
        self._changes = self.engine.diff_lab(read_lab(parsed_args.file))
        return self.rows(self._changes, parsed_args)

    def run(self, parsed_args: argparse.Namespace) -> int:
        """Compare; returns the exit code."""
        code = super().run(parsed_args)
        if code:
            return code
        if not self._changes:
            note(self.app, "nothing differs")
        return DIFFERS if self._changes else 0


class Apply(_Lab):
    """Bring the host to what a lab's file says: images, networks, then fleets in their order.

    Makes what is missing and waits until it is ready. What the file doesn't have is removed with
    --prune only, clones that can't be changed to what it says are replaced with --recreate only.
    After an interruption, run the same command again.
    """

    example = "vmcloner apply lab.toml --prune --yes"

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        parser.add_argument(
            "--dry-run", action="store_true", help="Show what would change; change nothing."
        )
        parser.add_argument(
            "--prune",
            action="store_true",
            help="Remove clones and networks of the lab that the file doesn't have (any more).",
        )
        parser.add_argument(
            "--recreate",
            action="store_true",
            help="Delete and make again clones of another or a changed template, pool or value.",
        )
        parser.add_argument(
            "--provision",
            action="store_true",
            help="Run scripts and playbooks again that have changed since they ran.",
        )
        parser.add_argument(
            "-y", "--yes", action="store_true", help="Don't ask before something is removed."
        )
        return parser

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Sequence[str], list[Any]]:
        """Apply; returns columns and rows.

        :raises UsageError: it may remove something, standard input isn't a terminal, and ``--yes``
            isn't given.
        """
        self._dry_run, removes = parsed_args.dry_run, parsed_args.prune or parsed_args.recreate
        asks = removes and not (parsed_args.yes or parsed_args.dry_run)
        if asks and not sys.stdin.isatty():
            raise UsageError("apply needs a terminal to ask for confirmation", hint="or use --yes")

        def begin(todo: Sequence[Change], left: Sequence[Change]) -> None:
            del left
            if asks:
                _confirm(todo)

        def told(result: RunResult) -> None:
            fleets = ", ".join(sorted({c.labels.fleet for c in result.plan.clones}))
            if result.ok and fleets:
                note(self.app, f"{fleets}: {summary(result)}")
            for clone in result.failures[:MAX_LINES]:
                say(str(clone.error))
            if result.failures:
                note(self.app, f"log: {self.engine.host.runs}/{result.plan.run}.jsonl")

        self._result = self.engine.apply_lab(
            read_lab(parsed_args.file),
            prune=parsed_args.prune,
            recreate=parsed_args.recreate,
            provision=parsed_args.provision,
            dry_run=parsed_args.dry_run,
            on_changes=begin,
            on_run=told,
        )
        return self.rows(self._result.changes, parsed_args)

    def produce_output(self, parsed_args: argparse.Namespace, column_names: Any, data: Any) -> int:
        """Print the rows, then a summary, and what is left for lack of an option."""
        super().produce_output(parsed_args, column_names, data)
        result = self._result
        for option in ("--prune", "--recreate", "--provision"):
            left = [change for change in result.left if change.option == option]
            if left:
                note(self.app, f"left without {option}: {_counted(left, future=True)}")
        words = _counted(result.changes, future=self._dry_run)
        note(self.app, words or "nothing to do: the host is as the file says")
        return 0


def _confirm(todo: Sequence[Change]) -> None:
    """Ask before anything is removed or replaced.

    :raises Interrupted: the user said no.
    """
    going = [change for change in todo if change.action in ("remove", "replace")]
    if not going:
        return
    clones = [change.name for change in going if change.kind == "clone"]
    networks = [f"network {change.name}" for change in going if change.kind == "network"]
    words = ", ".join([*([fold(clones)] if clones else []), *networks])
    count = counted(len(clones), "clone")
    if not agrees(f"Delete {count if clones else ''}{', ' if clones else ''}{words}?"):
        raise Interrupted("nothing was changed")


def _counted(changes: Sequence[Change], *, future: bool) -> str:
    """Return how many things of which kind were done, like ``3 clones created``."""
    found = Counter((change.action, change.kind) for change in changes)
    verb = "to be " if future else ""
    return ", ".join(
        f"{counted(number, kind)} {verb}{_PAST[action]}" for (action, kind), number in found.items()
    )


class LabExample(Base):
    """Print a lab's file that works as it is, with what else it may say in comments."""

    example = "vmcloner lab example > lab.toml && vmcloner apply lab.toml"

    def take_action(self, parsed_args: argparse.Namespace) -> None:  # noqa: ARG002
        """Print it."""
        self.app.stdout.write(EXAMPLE)
