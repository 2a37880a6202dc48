"""A report as one HTML file, which loads nothing and has no script."""

from __future__ import annotations

import functools

import attrs
import jinja2

from vmcloner_core.errors import BackendError, shown
from vmcloner_core.reports.model import CloneTimes, Report, phases
from vmcloner_core.units import counted, format_seconds

MAX_FAILURES = 200
"""Failures that are told one by one."""
SLOWEST = 10
COLOURS = {
    "queued": ("#b4bac2", "#565d66"),
    "import": ("#8a7f5c", "#a89b74"),
    "storage": ("#2f6fb5", "#5a9ae0"),
    "define": ("#7fb8e6", "#9fd0f5"),
    "start": ("#1f8f6b", "#3fb98f"),
    "output": ("#e0a526", "#d9a940"),
    "ip": ("#c277ad", "#cf8cbc"),
    "port": ("#8d6cc2", "#a98ade"),
    "ssh": ("#d2632a", "#e07f4b"),
    "cloud-init": ("#8d6cc2", "#a98ade"),
    "agent": ("#5f7f2f", "#8fb350"),
    "console": ("#4b8f9c", "#62b3c2"),
    "wait": ("#d9c6a5", "#6d6350"),
}
"""The colours of phases on a light and on a dark page."""
_OTHERS = (("#7a6f9b", "#9a8fc0"), ("#9c5a5a", "#c27f7f"), ("#5a8f5a", "#7fb87f"))


@attrs.frozen
class _Key:
    """A phase in the timeline: its class in the style sheet, and its colours."""

    phase: str
    name: str
    light: str
    dark: str


def page(report: Report) -> str:
    """Return a report as an HTML document.

    :raises BackendError: the library that draws isn't installed.
    """
    try:
        from vmcloner_core.reports import charts
    except ImportError as error:
        raise BackendError(
            f"an HTML report needs matplotlib: {error.msg}",
            hint="pip install 'vmcloner[report]'",
        ) from error
    keys = _keys(charts.phases_of(report.clones))
    left_out = len(report.clones) - len(charts.drawn(report))
    return _template().render(
        report=report,
        phases=phases(report),
        keys=keys,
        slowest=report.slowest(SLOWEST),
        failures=report.failures[:MAX_FAILURES],
        left_out=left_out,
        timeline=charts.timeline(report, {key.phase: key.name for key in keys}),
        distribution=charts.distribution(report) if report.slowest(1) else "",
        host=charts.host(report) if len(report.samples) > 1 else "",
    )


def _keys(names: tuple[str, ...]) -> tuple[_Key, ...]:
    """Return the timeline's phases with classes that no text of a log is in."""
    others = [name for name in names if name not in COLOURS]
    colours = COLOURS | {name: _OTHERS[n % len(_OTHERS)] for n, name in enumerate(others)}
    return tuple(_Key(name, f"phase{n}", *colours[name]) for n, name in enumerate(names))


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("vmcloner_core.reports", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "shown": shown,
        "seconds": lambda value: "" if value is None else f"{value:.2f}",
        "taken": format_seconds,
        "counted": counted,
        "held": _held,
        "lines": lambda text: [shown(line) for line in text.split("\n")],
    }
    return environment.get_template("report.html.j2")


def _held(clone: CloneTimes) -> str:
    held = clone.held
    return f"{held.phase}, {format_seconds(held.seconds)}" if held is not None else ""
