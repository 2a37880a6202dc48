"""``vmcloner list``."""

from __future__ import annotations

import argparse
import io
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from vmcloner_core.birth import owner
from vmcloner_core.cli.base import Table, add_targets, note
from vmcloner_core.cli.formats import PlainTable
from vmcloner_core.cli.usage import say
from vmcloner_core.errors import PartialFailure, UsageError, VmclonerError, shown
from vmcloner_core.lease_calls import LeaseState
from vmcloner_core.model import Clone, State
from vmcloner_core.survey import Survey
from vmcloner_core.units import counted, format_age

KEYS = (
    "name", "fleet", "index", "state", "template", "hypervisor",
    "storage", "host", "mac", "ip", "created", "volumes", "reason", "problem",
)  # fmt: skip
"""What programs get; stable."""
SHORT = ("name", "state", "ip", "template", "age", "problem")
"""What people get: it fits 80 columns."""
LEASE_KEYS = ("owner", "expires")
"""What programs get after these. ``expires`` is null for clones without a lease."""
_REST = (*(key for key in KEYS if key not in SHORT), *LEASE_KEYS, "snapshots")
ALL = (*SHORT[:-1], *_REST, "problem")
FLEET_KEYS = ("fleet", "template", "clones", *(state.value for state in State))
INTERVAL = 2.0
"""Seconds between two looks of ``--watch``."""

_PROBLEMS = {
    State.ALLOCATED: "unfinished: run its create again",
    State.ORPHAN: "its disk is gone: run its create again",
    State.CRASHED: "crashed",
    State.UNKNOWN: "its hypervisor can't be read",
}


def row(clone: Clone) -> tuple[Any, ...]:
    """Return a clone as values of :data:`KEYS`."""
    labels = clone.labels
    return (
        clone.name,
        clone.fleet,
        clone.index,
        clone.state.value,
        clone.template,
        labels.hypervisor,
        labels.storage,
        clone.host,
        clone.mac,
        clone.ip,
        labels.created,
        [volume.name for volume in clone.volumes],
        clone.reason,
        problem(clone),
    )


def problem(clone: Clone) -> str | None:
    """Return what is wrong with a clone, in a few words; None if nothing is."""
    if not clone.ours:
        return "belongs to another state folder"
    words = (_PROBLEMS.get(clone.state), clone.reason)
    return ": ".join(word for word in words if word) or None


def left_words(seconds: float | None) -> str | None:
    """Return the time that is left of a lease for people."""
    if seconds is None:
        return None
    return f"{format_age(seconds)}" if seconds > 0 else f"expired {format_age(-seconds)} ago"


def _is_wanted(clone: Clone, lease: LeaseState | None, parsed_args: argparse.Namespace) -> bool:
    """Tell whether a clone is of the owner that is asked for, and expired if that is."""
    name = parsed_args.owner
    if name is not None and clone.labels.owner != (owner() if name == "me" else name):
        return False
    left = lease.left if lease is not None else None
    return not parsed_args.expired or (left is not None and left <= 0)


def age(clone: Clone, now: datetime) -> str | None:
    """Return how long ago a clone was created, None if its label has no valid time."""
    try:
        created = datetime.fromisoformat(clone.labels.created)
        return format_age((now - created).total_seconds())
    except (ValueError, TypeError):  # not a time, or one without a zone
        return None


class List(Table):
    """List clones.

    Shows their states, addresses and ages, and what is wrong with them. --wide shows everything;
    -f json, yaml, csv and value always have everything.
    """

    example = "vmcloner list web-[1-10] --state running"
    columns = tuple(dict.fromkeys((*KEYS, *SHORT, *LEASE_KEYS, "snapshots", *FLEET_KEYS)))
    short: Sequence[str] = SHORT
    _watched = False

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        add_targets(parser, everything=False)
        parser.add_argument(
            "--state",
            action="append",
            choices=[state.value for state in State],
            metavar="STATE",
            help=f"Only clones in this state, one of {', '.join(s.value for s in State)}; "
            "can be repeated.",
        )
        parser.add_argument(
            "--owner", metavar="NAME", help="Only clones of this user; me: your own."
        )
        parser.add_argument(
            "--expired", action="store_true", help="Only clones whose leases have ended."
        )
        parser.add_argument(
            "--fleets", action="store_true", help="A line for each fleet: how many in each state."
        )
        parser.add_argument(
            "--others",
            action="store_true",
            help="Also clones of other state folders, which targets and other formats than table "
            "always include.",
        )
        parser.add_argument(
            "--watch",
            action="store_true",
            help=f"Show it again every {INTERVAL:.0f} s until Ctrl-C; needs a terminal.",
        )
        return parser

    def run(self, parsed_args: argparse.Namespace) -> int:
        """List once, or until the user presses Ctrl-C."""
        if not parsed_args.watch:
            return super().run(parsed_args)
        return self.guarded(lambda: self._watch(parsed_args))

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Sequence[str], list[Any]]:
        """Return columns and rows of what could be read."""
        self._found = self.engine.survey(*parsed_args.targets)
        wanted = parsed_args.state or [state.value for state in State]
        clones = self._found.clones
        self._hidden = 0
        if self.for_people(parsed_args) and not (parsed_args.others or parsed_args.targets):
            clones = tuple(clone for clone in clones if clone.ours)
            self._hidden = len(self._found.clones) - len(clones)
        seen = [clone for clone in clones if clone.state.value in wanted]
        leases = self._leases(seen, parsed_args)
        self._clones = [c for c in seen if _is_wanted(c, leases.get(c.name), parsed_args)]
        self.nothing = _nothing(self._found, len(clones), parsed_args)
        if parsed_args.fleets:
            return self._of_fleets()
        programs = not (self.for_people(parsed_args) or parsed_args.columns)
        more = ("snapshots",) if parsed_args.wide else ()
        columns = (*KEYS, *LEASE_KEYS, *more) if programs else ALL
        now = datetime.now(UTC)
        rows = []
        for clone in self._clones:
            values = dict(zip(KEYS, row(clone), strict=True))
            lease = leases[clone.name].lease if clone.name in leases else None
            values["age"] = age(clone, now)
            values |= {"owner": clone.labels.owner, "expires": lease and lease.expires}
            values["snapshots"] = len(clone.snapshots)
            rows.append(tuple(values[name] for name in columns))
        return columns, rows

    def _leases(
        self, clones: Sequence[Clone], parsed_args: argparse.Namespace
    ) -> dict[str, LeaseState]:
        """Return clones' leases, by name, if they are wanted: they are in as many files."""
        brief = self.for_people(parsed_args) and not parsed_args.wide
        shown = "expires" in parsed_args.columns if brief else not parsed_args.fleets
        if not (shown or parsed_args.expired):
            return {}
        return {state.clone.name: state for state in self.engine.leases(clones)}

    def _of_fleets(self) -> tuple[Sequence[str], list[Any]]:
        """Return columns and rows of fleets; people don't see states that no clone is in."""
        fleets: dict[str, list[Clone]] = {}
        for clone in self._clones:
            fleets.setdefault(clone.fleet, []).append(clone)
        there = {"fleet", "template", "clones", *(clone.state.value for clone in self._clones)}
        self.short = tuple(name for name in FLEET_KEYS if name in there)
        rows = []
        for fleet, clones in fleets.items():
            counts = Counter(clone.state.value for clone in clones)
            templates = ", ".join(dict.fromkeys(clone.template for clone in clones))
            values = {"fleet": fleet, "template": templates, "clones": len(clones)}
            rows.append(tuple(values.get(name, counts[name]) for name in FLEET_KEYS))
        return FLEET_KEYS, rows

    def produce_output(self, parsed_args: argparse.Namespace, column_names: Any, data: Any) -> int:
        """Print the rows and a line of totals, then what could not be read.

        :raises PartialFailure: something couldn't.
        """
        super().produce_output(parsed_args, column_names, data)
        self._tell_others()
        if self._clones and self.for_people(parsed_args) and not parsed_args.columns:
            self.app.stdout.write(f"{totals(self._clones)}\n")
        unseen = self._found.unseen
        for each in unseen[:-1]:
            self._remark(f"{each} ({each.hint})", quiet=False)
        if unseen:
            raise PartialFailure(str(unseen[-1]), hint=unseen[-1].hint)
        return 0

    def _tell_others(self) -> None:
        if self._hidden:
            count = counted(self._hidden, "clone")
            self._remark(f"{count} of other state folders not shown (vmcloner list --others)")
        elif self._found.others is not None:
            self._remark(self._found.others)

    def _remark(self, text: str, *, quiet: bool = True) -> None:
        """Tell something beside the table; while the list is watched, below it on the screen.

        :param quiet: whether ``--quiet`` keeps it back.
        """
        if self._watched:
            self.app.stdout.write(f"{shown(text)}\n")
        elif quiet:
            note(self.app, text)
        else:
            say(text)

    def _watch(self, parsed_args: argparse.Namespace) -> int:
        """List again and again on the terminal; returns 0 when the user presses Ctrl-C.

        :raises UsageError: the output isn't a terminal, or not a table.
        """
        if not sys.stdout.isatty() or not self.for_people(parsed_args):
            raise UsageError("--watch needs a terminal, and no other format than table")
        self.formatter, self._watched = PlainTable(), True
        self.app.stdout.write("\033[2J")
        try:
            while True:
                self.app.stdout.write(frame(self._drawn(parsed_args)))
                self.app.stdout.flush()
                time.sleep(INTERVAL)
        except KeyboardInterrupt:
            return 0

    def _drawn(self, parsed_args: argparse.Namespace) -> list[str]:
        """Return the lines of a list as it is now."""
        screen, self.app.stdout = self.app.stdout, io.StringIO()
        try:
            columns, rows = self.take_action(parsed_args)
            if not rows and self.nothing:
                self._tell_others()
                return [self.nothing, *self.app.stdout.getvalue().splitlines()]
            self.produce_output(parsed_args, columns, rows)
        except VmclonerError as error:  # it may be over at the next look
            self.app.stdout.write(f"{shown(str(error))}\n")
        finally:
            drawn, self.app.stdout = self.app.stdout, screen
        return drawn.getvalue().splitlines()


def frame(text: Sequence[str]) -> str:
    """Return what draws lines over the terminal's contents, the last of them if it is full."""
    size = shutil.get_terminal_size()
    room = size.lines - 1
    if len(text) > room:
        hidden = len(text) - room + 1
        text = [*text[: room - 2], f"… {counted(hidden, 'more line')}", text[-1]]
    lines = "".join(f"{line[: size.columns]}\033[K\n" for line in text)
    return f"\033[H{lines}\033[J"


def totals(clones: Iterable[Clone]) -> str:
    """Return one line: how many clones there are, in which states, and how many have a problem."""
    clones = list(clones)
    fleets = len({clone.fleet for clone in clones})
    states = Counter(clone.state for clone in clones)
    counts = ", ".join(f"{states[state]} {state.value}" for state in State if states[state])
    troubled = sum(problem(clone) is not None for clone in clones)
    more = f"; {troubled} with a problem" if troubled else ""
    return f"{counted(len(clones), 'clone')} in {counted(fleets, 'fleet')}: {counts}{more}"


def _nothing(found: Survey, clones: int, parsed_args: argparse.Namespace) -> str:
    """Return the sentence for a list without clones; none if that may not be so.

    :param clones: how many there are, in whatever states.
    """
    if found.unseen:
        return ""
    if clones:
        words = [" or ".join(parsed_args.state or ()), "expired" if parsed_args.expired else ""]
        asked = " and ".join(filter(None, words)) or "here"
        whose = f" of {parsed_args.owner}" if parsed_args.owner is not None else ""
        return f"no clone{whose} is {asked} ({counted(clones, 'clone')}: vmcloner list)"
    return "there are no clones yet (vmcloner create web -t tiny -n 3 --start --wait)"
