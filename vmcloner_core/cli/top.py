"""``vmcloner top``."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import select
import sys
import termios
import time
import tty
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import attrs

from vmcloner_core.cli.base import Table, add_targets
from vmcloner_core.cli.formats import PlainTable
from vmcloner_core.cli.listing import frame
from vmcloner_core.errors import UsageError, VmclonerError, shown
from vmcloner_core.model import State, Statistics, Usage
from vmcloner_core.units import counted, format_size

KEYS = tuple(field.name for field in attrs.fields(Usage))
SHORT = ("name", "state", "cpu %", "memory", "read/s", "written/s", "in/s", "out/s")
"""What people get: it fits 80 columns."""
INTERVAL = 2.0
_SORTS = {
    "name": ("name",),
    "state": ("state",),
    "cpu": ("cpu",),
    "memory": ("memory",),
    "disk": ("disk_read", "disk_written"),
    "network": ("net_received", "net_sent"),
}
_LONGEST = 24
"""Characters of a name that fit."""


class Top(Table):
    """Show what clones use: processor, memory, disks and network.

    On a terminal the table is shown again every few seconds, until q or Ctrl-C. In other formats,
    and where the output is no terminal, it is printed once, after a look of one second. cpu is in
    percent of one processor; rates are bytes per second, in and out as the guest sees it.
    """

    example = "vmcloner top web --sort cpu"
    columns = tuple(dict.fromkeys((*KEYS, *SHORT)))

    def get_parser(self, prog_name: str) -> argparse.ArgumentParser:
        """Return the parser."""
        parser = super().get_parser(prog_name)
        add_targets(parser, everything=False)
        parser.add_argument(
            "--sort",
            choices=_SORTS,
            default="cpu",
            help="What the first lines have most of (default cpu).",
        )
        parser.add_argument(
            "--interval",
            type=_seconds,
            metavar="S",
            help=f"Seconds between two looks (default {INTERVAL:.0f}; 1 where it is shown once).",
        )
        parser.add_argument("--once", action="store_true", help="Print it once.")
        return parser

    def run(self, parsed_args: argparse.Namespace) -> int:
        """Show it once, or until the user quits."""
        live = sys.stdout.isatty() and sys.stdin.isatty() and self.for_people(parsed_args)
        if parsed_args.once or not live:
            return super().run(parsed_args)
        return self.guarded(lambda: self._watch(parsed_args))

    def take_action(self, parsed_args: argparse.Namespace) -> tuple[Sequence[str], list[Any]]:
        """Return columns and rows."""
        seconds = parsed_args.interval or 1.0
        usage = self.engine.usage(*parsed_args.targets, seconds=seconds)
        return self._table(parsed_args, usage)

    def _table(
        self, parsed_args: argparse.Namespace, usage: Sequence[Usage]
    ) -> tuple[Sequence[str], list[Any]]:
        self.nothing = "there are no clones (vmcloner list)"
        ordered = sorted(usage, key=lambda u: _place(u, parsed_args.sort))
        if self.for_people(parsed_args) and not set(parsed_args.columns) & set(KEYS[2:]):
            return SHORT, [_row(each) for each in ordered]
        return KEYS, [tuple(getattr(each, key) for key in KEYS) for each in ordered]

    def _watch(self, parsed_args: argparse.Namespace) -> int:
        """Show it again and again; returns 0 when the user presses q or Ctrl-C."""
        interval = parsed_args.interval or INTERVAL
        before: Mapping[str, Statistics | None] = {}
        with contextlib.suppress(KeyboardInterrupt), _screen(self.app.stdout):
            while True:
                wait = interval if before else min(interval, 1.0)
                try:
                    read = self.engine.statistics(*parsed_args.targets)
                    usage = [
                        Usage.between(clone.name, clone.state.value, before.get(clone.name), now)
                        for clone, now in read
                    ]
                    before = {clone.name: now for clone, now in read}
                    lines = self._drawn(parsed_args, usage)
                except UsageError:
                    raise
                except VmclonerError as error:  # it may be over at the next look
                    lines = [shown(str(error))]
                self.app.stdout.write(frame(lines))
                self.app.stdout.flush()
                if _quits(wait):
                    break
        return 0

    def _drawn(self, parsed_args: argparse.Namespace, usage: Sequence[Usage]) -> list[str]:
        columns, rows = self._table(parsed_args, usage)
        self.check_columns(parsed_args, columns)
        self.formatter = PlainTable()
        screen, self.app.stdout = self.app.stdout, io.StringIO()
        try:
            self.produce_output(parsed_args, columns, rows)
        finally:
            drawn, self.app.stdout = self.app.stdout, screen
        return [*(drawn.getvalue().splitlines() if rows else [self.nothing]), _totals(usage)]


def _seconds(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0.1 <= (seconds := float(text)) <= 3600:
            return seconds
    raise argparse.ArgumentTypeError(f"not 0.1 to 3600 seconds: {text!r}")


def _place(usage: Usage, sort: str) -> tuple[object, ...]:
    """Return where a clone is in the table: the most first, the unknown last, then by name."""
    keys = _SORTS[sort]
    by_name = _natural(usage.name)
    if keys in (("name",), ("state",)):
        return (usage.state if sort == "state" else "", by_name)
    values = [value for key in keys if (value := getattr(usage, key)) is not None]
    return (-sum(values) if values else 1, by_name)


def _natural(name: str) -> tuple[str, int]:
    fleet, _, index = name.rpartition("-")
    return fleet, int(index) if index.isdecimal() else 0


def _row(usage: Usage) -> tuple[object, ...]:
    name = usage.name
    return (
        name if len(name) <= _LONGEST else f"{name[:8]}…{name[9 - _LONGEST :]}",
        usage.state,
        None if usage.cpu is None else f"{usage.cpu:.0f}",
        _short(usage.memory),
        *(
            _short(getattr(usage, key))
            for key in ("disk_read", "disk_written", "net_received", "net_sent")
        ),
    )


def _short(size: int | None) -> str | None:
    """Return a size in seven characters at most."""
    if size is None:
        return None
    value, units = float(size), ["B", "K", "M", "G", "T"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{value:.1f}{units[0]}" if value < 10 and units[0] != "B" else f"{value:.0f}{units[0]}"


def _totals(usage: Sequence[Usage]) -> str:
    running = sum(each.state == State.RUNNING.value for each in usage)
    cpu = sum(each.cpu or 0 for each in usage)
    memory = sum(each.memory or 0 for each in usage)
    now = f"{datetime.now().astimezone():%H:%M:%S}"
    return (
        f"{now}  {counted(len(usage), 'clone')}, {running} running, {cpu:.0f} % cpu, "
        f"{format_size(memory)} of memory; q quits"
    )


@contextlib.contextmanager
def _screen(stream: Any) -> Iterator[None]:
    """Use the terminal's other screen, without echo; keys are read at once."""
    before = termios.tcgetattr(sys.stdin.fileno())
    tty.setcbreak(sys.stdin.fileno())
    stream.write("\033[?1049h\033[?25l\033[2J")
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin.fileno(), termios.TCSADRAIN, before)
        stream.write("\033[?25h\033[?1049l")
        stream.flush()


def _quits(seconds: float) -> bool:
    """Wait; tell whether the user pressed q, or the terminal is gone."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if select.select([sys.stdin], [], [], left)[0]:
            key = os.read(sys.stdin.fileno(), 1)
            if key in (b"q", b"Q", b"\x04", b""):
                return True
    return False
