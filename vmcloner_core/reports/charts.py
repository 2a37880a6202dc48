"""The pictures of a report, drawn by matplotlib as SVG for a page.

Colours are the page's: each one here stands for a variable of its style sheet, so that the same
picture is for light and dark. Texts in pictures are only clones' names and numbers.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from lxml import etree
from matplotlib import rc_context
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vmcloner_core.errors import shown
from vmcloner_core.reports.model import QUEUED, WAIT, CloneTimes, HostSample, Report, Span
from vmcloner_core.units import counted, format_seconds

WIDTH = 10.0
"""Inches of a picture at its natural size."""
ROW = 0.17
"""Inches of a clone's row."""
HEIGHT = 1.3
"""Inches of a line's picture."""
TOLD = 5
"""Lines of a console at the mark of a failure; the page has the others."""
MAX_ROWS = 2000
"""Clones in a timeline; of more, those that failed and the slowest are drawn."""
FAILED = "failed"
_GIB = 1024**3
_SVG = "{http://www.w3.org/2000/svg}"
_TEXT, _GRID = "#010203", "#010204"
_VARIABLES = {_TEXT: "var(--text)", _GRID: "var(--grid)"}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 8.5,
    "text.parse_math": False,  # a name is no formula
    "text.color": _TEXT,
    "axes.labelcolor": _TEXT,
    "axes.edgecolor": _GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": _GRID,
    "ytick.color": _GRID,
    "xtick.labelcolor": _TEXT,
    "ytick.labelcolor": _TEXT,
    "grid.color": _GRID,
    "grid.linewidth": 0.5,
    "axes.axisbelow": True,
}


def phases_of(clones: Iterable[CloneTimes]) -> tuple[str, ...]:
    """Return the phases of spans in the order in which clones go through them."""
    names = dict.fromkeys(span.phase for clone in clones for span in clone.spans)
    first = [name for name in (QUEUED,) if name in names]
    last = [name for name in (WAIT,) if name in names]
    return (*first, *(name for name in names if name not in (QUEUED, WAIT)), *last)


def timeline(report: Report, classes: Mapping[str, str]) -> str:
    """Return a row for each clone, with its phases one after another.

    :param classes: the phases' classes in the style sheet.
    """
    clones = drawn(report)
    titles: dict[str, list[str]] = {}

    def draw(figure: Figure) -> None:
        axes = figure.add_axes(_area(figure, left=1.5, right=0.2, top=0.3, bottom=0.5))
        for phase, name in classes.items():
            bars = [(n, s) for n, c in enumerate(clones) for s in c.spans if s.phase == phase]
            boxes = PolyCollection([_box(row, span) for row, span in bars], linewidth=0)
            boxes.set_gid(name)
            axes.add_collection(boxes, autolim=False)
            titles[name] = [
                f"{clones[row].name}: {phase} {format_seconds(span.seconds)}, "
                f"from {format_seconds(span.begin)}"
                for row, span in bars
            ]
        _mark_failed(axes, clones, titles)
        axes.set_yticks(range(len(clones)), [_name(clone) for clone in clones])
        axes.tick_params(axis="y", length=0)
        axes.set_xlim(0, report.seconds or 1)
        axes.set_ylim(len(clones) - 0.4, -0.6)
        axes.tick_params(axis="x", top=True, labeltop=True)
        axes.grid(axis="x")
        axes.set_xlabel("seconds")

    return _svg("timeline", 0.9 + ROW * max(1, len(clones)), draw, titles)


def drawn(report: Report) -> tuple[CloneTimes, ...]:
    """Return the clones that are in the timeline."""
    if len(report.clones) <= MAX_ROWS:
        return report.clones
    wanted = {clone.name for clone in report.failures[:MAX_ROWS]}
    wanted |= {clone.name for clone in report.slowest(MAX_ROWS - len(wanted))}
    return tuple(clone for clone in report.clones if clone.name in wanted)


def _mark_failed(axes: Any, clones: Sequence[CloneTimes], titles: dict[str, list[str]]) -> None:
    failed = [(n, clone) for n, clone in enumerate(clones) if clone.error is not None]
    ends = [clone.spans[-1].end if clone.spans else 0.0 for _, clone in failed]
    (marks,) = axes.plot(ends, [row for row, _ in failed], "X", markersize=6, clip_on=False)
    marks.set_gid(FAILED)
    titles[FAILED] = [
        "\n".join([f"{c.name} failed in {c.failed}: {c.error}", *c.log.split("\n")[-TOLD:]])
        for _, c in failed
    ]


def _box(row: int, span: Span) -> list[tuple[float, float]]:
    """Return the corners of a span in a row."""
    top, bottom = row - 0.4, row + 0.4
    return [(span.begin, top), (span.end, top), (span.end, bottom), (span.begin, bottom)]


def _name(clone: CloneTimes) -> str:
    name = clone.name if len(clone.name) <= 24 else f"{clone.name[:12]}…{clone.name[-11:]}"
    return shown(name)


def distribution(report: Report) -> str:
    """Return how many clones took how long to get ready."""
    values = sorted(clone.ready for clone in report.clones if clone.ready is not None)
    titles: dict[str, list[str]] = {"line": []}

    def draw(figure: Figure) -> None:
        axes = figure.add_axes(_area(figure, left=0.6, right=0.6, top=0.15, bottom=0.5))
        counts, edges, _ = axes.hist(values, bins=min(40, max(5, len(values))), histtype="bar")
        for bar in axes.patches:
            bar.set_gid("bar")
        titles["bar"] = [
            f"{counted(int(count), 'clone')} ready after {low:.1f} to {high:.1f} s"
            for count, low, high in zip(counts, edges, edges[1:], strict=False)
        ]
        axes.set_xlabel("seconds until ready")
        axes.set_ylabel("clones")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(axis="y")
        share = axes.twinx()
        steps = [100 * (n + 1) / len(values) for n in range(len(values))]
        (line,) = share.plot(values, steps, drawstyle="steps-post", linewidth=1.2)
        line.set_gid("line")
        share.set_ylim(0, 105)
        share.set_ylabel("% of those that got ready")

    return _svg("distribution", 2.4, draw, titles)


def host(report: Report) -> str:
    """Return the host's processors, memory and pool over the run."""
    hosts: dict[str, list[HostSample]] = {}
    for sample in report.samples:
        hosts.setdefault(sample.host, []).append(sample)
    series: list[tuple[str, Callable[[HostSample], float | None], float | None]] = [
        ("processors, %", lambda s: s.cpu, 100.0),
        ("memory, GiB", lambda s: s.memory_used / _GIB, _most(report, "memory_total")),
    ]
    pool = _most(report, "pool_total")
    if pool is not None:
        series.append(
            ("pool, GiB", lambda s: None if s.pool_used is None else s.pool_used / _GIB, pool)
        )
    titles: dict[str, list[str]] = {}

    def draw(figure: Figure) -> None:
        for place, (label, value, top) in enumerate(series):
            below = HEIGHT * (len(series) - place - 1) + 0.5
            above = HEIGHT * place + 0.15
            axes = figure.add_axes(_area(figure, left=0.75, right=0.2, top=above, bottom=below))
            for name, samples in hosts.items():
                found = [(s.at, v) for s in samples if (v := value(s)) is not None]
                if not found:
                    continue
                (line,) = axes.plot(*zip(*found, strict=True), linewidth=1.2, marker=".")
                line.set_gid("line")
                titles.setdefault("line", []).append(f"{name} {label}".strip())
            axes.set_xlim(0, report.seconds or 1)
            axes.set_ylim(0, top)
            axes.set_ylabel(label)
            axes.grid(axis="both")
        axes.set_xlabel("seconds")

    return _svg("host", HEIGHT * len(series) + 0.25, draw, titles)


def _most(report: Report, what: str) -> float | None:
    values = [value for s in report.samples if (value := getattr(s, what))]
    return max(values) / _GIB if values else None


def _area(
    figure: Figure, *, left: float, right: float, top: float, bottom: float
) -> tuple[float, float, float, float]:
    """Return what is left of a figure within margins in inches, as shares of it."""
    width, height = figure.get_size_inches()
    return (
        left / width,
        bottom / height,
        (width - left - right) / width,
        (height - top - bottom) / height,
    )


def _svg(
    name: str, height: float, draw: Callable[[Figure], None], titles: Mapping[str, Sequence[str]]
) -> str:
    """Return a drawing as the element ``svg``.

    :param titles: the titles of what is drawn with an id, in order; the id becomes a class.
    """
    with rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(WIDTH, height), facecolor="none")
        canvas = FigureCanvasSVG(figure)
        draw(figure)
        for axes in figure.axes:
            axes.set_facecolor("none")
        stream = io.BytesIO()
        canvas.print_svg(stream, metadata={"Date": None, "Creator": None})  # type: ignore[no-untyped-call]
    parser = etree.XMLParser(resolve_entities=False, no_network=True, huge_tree=True)
    root = etree.fromstring(stream.getvalue(), parser)
    rest = {name: iter(texts) for name, texts in titles.items()}
    for element in root.iter(f"{_SVG}g"):
        own = element.attrib.pop("id", "")
        if own in rest:
            _styled(element, own, rest[own])
    for element in root.findall(f"{_SVG}metadata"):
        root.remove(element)
    root.set("class", name)
    root.set("role", "img")
    root.set("aria-label", name)
    text: str = etree.tostring(root, encoding="unicode")
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    return text


def _styled(element: Any, name: str, titles: Iterator[str]) -> None:
    """Give an element its class instead of its colours, and what is drawn in it its titles."""
    element.set("class", name)
    for drawn in element.iter(f"{_SVG}path", f"{_SVG}use"):
        drawn.attrib.pop("clip-path", None)
        drawn.attrib.pop("style", None)
        if drawn.getparent().tag != f"{_SVG}defs" and (title := next(titles, None)) is not None:
            etree.SubElement(drawn, f"{_SVG}title").text = "\n".join(map(shown, title.split("\n")))
