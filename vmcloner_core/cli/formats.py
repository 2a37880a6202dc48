"""Output formats that cliff lacks; it finds them by the entry points ``cliff.formatter.*``."""

from __future__ import annotations

import argparse
import io
import shutil
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TextIO

from cliff.formatters.base import SingleFormatter
from cliff.formatters.commaseparated import CSVLister
from cliff.formatters.json_format import JSONFormatter
from cliff.formatters.table import TableFormatter

GAP = "  "
NARROWEST = 24
"""Characters that a column keeps of its longest word when a table is fitted to the terminal."""


class CsvRecord(CSVLister, SingleFormatter):
    """One object as CSV: a line of keys, then a line of values."""

    def emit_one(
        self,
        column_names: Sequence[str],
        data: Sequence[Any],
        stdout: TextIO,
        parsed_args: argparse.Namespace,
    ) -> None:
        """Print the object."""
        self.emit_list(column_names, [data], stdout, parsed_args)


class WholeJson(JSONFormatter):
    """The format ``json``, written at once.

    cliff's own writes each word of it, and a system call each where Python is told not to buffer.
    """

    def emit_list(
        self,
        column_names: Sequence[str],
        data: Iterable[Sequence[Any]],
        stdout: TextIO,
        parsed_args: argparse.Namespace,
    ) -> None:
        """Print the rows."""
        text = io.StringIO()
        super().emit_list(column_names, data, text, parsed_args)
        stdout.write(text.getvalue())

    def emit_one(
        self,
        column_names: Sequence[str],
        data: Sequence[Any],
        stdout: TextIO,
        parsed_args: argparse.Namespace,
    ) -> None:
        """Print one record."""
        text = io.StringIO()
        super().emit_one(column_names, data, text, parsed_args)
        stdout.write(text.getvalue())


class PlainTable(TableFormatter):
    """The format ``table``, without rules: a line of column names, then a line for each row.

    On a terminal, long texts are wrapped at words until the table fits; names never are.
    """

    def emit_list(
        self,
        column_names: Sequence[str],
        data: Iterable[Sequence[Any]],
        stdout: TextIO,
        parsed_args: argparse.Namespace,
    ) -> None:
        """Print the rows."""
        rows = [list(row) for row in data]
        stdout.writelines(f"{line}\n" for line in lines(column_names, rows, _width(parsed_args)))

    def emit_one(
        self,
        column_names: Sequence[str],
        data: Sequence[Any],
        stdout: TextIO,
        parsed_args: argparse.Namespace,
    ) -> None:
        """Print the object: a line for each of its keys."""
        pairs = [list(pair) for pair in zip(column_names, data, strict=True)]
        texts = lines(("", ""), pairs, _width(parsed_args))
        stdout.writelines(f"{line}\n" for line in texts if line)


def _width(parsed_args: argparse.Namespace) -> int:
    """Return how wide a table may be, 0 for as wide as it is."""
    if parsed_args.max_width > 0:
        return int(parsed_args.max_width)
    return shutil.get_terminal_size().columns if parsed_args.fit_width else 0


def lines(head: Sequence[str], rows: Sequence[Sequence[Any]], width: int) -> Iterator[str]:
    """Yield a table's lines; cells may have several lines.

    :param width: characters that a line should have at most, 0 for no limit.
    """
    columns = list(zip(*rows, strict=True)) or [()] * len(head)
    cells = [[str(cell).split("\n") for cell in column] for column in columns]
    widths = [
        max(len(name), *(len(line) for cell in column for line in cell), 0)
        for name, column in zip(head, cells, strict=True)
    ]
    if width:
        _fit(widths, [_least(*pair) for pair in zip(head, cells, strict=True)], width)
    right = [bool(column) and all(_is_number(cell) for cell in column) for column in columns]
    yield _joined(head, widths, right)
    for row in zip(*cells, strict=True):
        wrapped = [
            [part for line in cell for part in _wrapped(line, room)]
            for cell, room in zip(row, widths, strict=True)
        ]
        for number in range(max(map(len, wrapped))):
            line = [parts[number] if number < len(parts) else "" for parts in wrapped]
            yield _joined(line, widths, right)


def _fit(widths: list[int], least: Sequence[int], width: int) -> None:
    """Make the widest columns but the first narrower, until a line fits or none can be."""
    excess = sum(widths) + len(GAP) * (len(widths) - 1) - width
    while excess > 0:
        wider = [n for n in range(1, len(widths)) if widths[n] > least[n]]
        if not wider:
            return
        widths[max(wider, key=lambda n: widths[n])] -= 1
        excess -= 1


def _least(name: str, column: Sequence[Sequence[str]]) -> int:
    """Return how narrow a column may get."""
    words = (len(word) for cell in column for line in cell for word in line.split(" "))
    return max(len(name), min(NARROWEST, max(words, default=0)))


def _wrapped(line: str, room: int) -> list[str]:
    if len(line) <= room:
        return [line]
    return textwrap.wrap(line, room, break_on_hyphens=False) or [""]


def _joined(cells: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> str:
    padded = (
        cell.rjust(room) if to_right else cell.ljust(room)
        for cell, room, to_right in zip(cells, widths, right, strict=True)
    )
    return GAP.join(padded).rstrip()


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
