"""Compare reports, and judge them by conditions, for CI."""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping

import attrs

from vmcloner_core.errors import InvalidRequest
from vmcloner_core.reports.model import ORDER, READY, Phase, Report, phases

FIGURES = ("min", "p50", "p95", "max")
FAILED = "failed"
_FACTOR = "x"
_COMPARE = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}
_CONDITION = re.compile(
    r"(?:(?P<figure>min|p50|p95|max) +(?P<phase>[a-z][a-z0-9-]{0,40})|(?P<failed>failed))"
    r" *(?P<how>>=|<=|>|<) *(?P<number>[0-9]{1,9}(?:\.[0-9]{1,6})?)(?P<unit>x|s|)"
)
_HINT = "'p95 ready > 1.2x', 'max storage > 30s' or 'failed > 0'"


@attrs.frozen(kw_only=True)
class Difference:
    """A phase in two reports; a ratio is None where one of its figures is missing or 0."""

    phase: str
    before: Phase | None
    after: Phase | None

    def figures(self, name: str) -> tuple[float | None, float | None]:
        """Return a figure before and after, None where nothing was measured."""
        return tuple(None if row is None else getattr(row, name) for row in self._rows)  # type: ignore[return-value]

    def ratio(self, name: str) -> float | None:
        """Return how many times as large a figure is after as before."""
        before, after = self.figures(name)
        return round(after / before, 3) if after is not None and before else None

    @property
    def _rows(self) -> tuple[Phase | None, Phase | None]:
        return self.before, self.after


def compared(before: Report, after: Report) -> tuple[Difference, ...]:
    """Return the phases of two reports side by side, in their order."""
    old, new = ({row.phase: row for row in phases(report)} for report in (before, after))
    known = {name: place for place, name in enumerate(ORDER[:-1])}
    names = sorted(old.keys() | new.keys() - {READY}, key=lambda n: (known.get(n, len(known)), n))
    ordered = [*(name for name in names if name != READY), READY]
    return tuple(Difference(phase=n, before=old.get(n), after=new.get(n)) for n in ordered)


@attrs.frozen(kw_only=True)
class Condition:
    """A condition that a report shouldn't meet: ``p95 ready > 1.2x``.

    :param figure: of :data:`FIGURES`, or ``failed``: the number of clones that failed or
        are unfinished.
    :param relative: whether ``number`` is a factor of another report's figure, not seconds.
    """

    text: str
    figure: str
    phase: str
    how: str
    number: float
    relative: bool

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Parse ``FIGURE PHASE > NUMBER`` with the unit x or s, or ``failed > NUMBER``.

        :raises InvalidRequest: it is neither.
        """
        match = _CONDITION.fullmatch(text.strip())
        failed = match is not None and match["failed"] is not None
        if match is None or match["unit"] not in (("", _FACTOR) if failed else (_FACTOR, "s")):
            raise InvalidRequest(f"not a condition: {text!r}", hint=_HINT)
        return cls(
            text=" ".join(text.split()),
            figure=match["figure"] or FAILED,
            phase=match["phase"] or READY,
            how=match["how"],
            number=float(match["number"]),
            relative=match["unit"] == _FACTOR,
        )

    def met(self, report: Report, before: Report | None = None) -> str | None:
        """Return how a report meets it, in a few words; None if it doesn't.

        A figure that was not measured can't be judged: that counts as met.

        :param before: the report to compare with.
        :raises InvalidRequest: it needs that and has none, or not the figure.
        """
        value, limit = self._value(report), self.number
        if self.relative:
            base = self._value(before) if before is not None else None
            if base is None:
                lacks = "--compare" if before is None else f"{self.phase} in {before.name}"
                raise InvalidRequest(f"{self.text!r} needs {lacks}", hint=_HINT)
            limit *= base
        if value is None:
            return f"{self.text}: no clone of {report.name} completed {self.phase}"
        if not _COMPARE[self.how](value, limit):
            return None
        unit = "" if self.figure == FAILED else " s"
        left = len(report.unfinished) if self.figure == FAILED else 0
        of = f"{report.name}, {left} of them unfinished" if left else report.name
        return f"{self.text}: {value:g}{unit} of {of}, limit {limit:g}{unit}"

    def _value(self, report: Report) -> float | None:
        if self.figure == FAILED:
            return len(report.failures) + len(report.unfinished)
        rows: Mapping[str, Phase] = {row.phase: row for row in phases(report)}
        row = rows.get(self.phase)
        return None if row is None else getattr(row, self.figure)
