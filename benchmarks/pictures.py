"""Draw the figures of ``make bench`` for the documentation: see README.md beside this file.

A picture is for light and for dark: its style sheet chooses, so one file serves README and site.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from lxml import etree
from matplotlib import rc_context
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

FOLDER = Path(__file__).parents[1] / "docs" / "figures"
FIGURES = FOLDER / "bench.json"
WIDTH, ROW, HEAD, SIDE, RIGHT = 7.6, 0.27, 0.36, 2.9, 0.35
"""Inches: of a picture, of a bar's row, of the line above a group, beside the bars."""
SECTIONS = ("create", "clone", "reset", "list")
"""Not ``start``: on a busy machine it measures how boots are admitted."""
TEXT, SOFT, OURS, OTHERS, PANEL = "#010203", "#010204", "#010205", "#010206", "#010207"
"""Each stands for a class of the style sheet."""
STYLE = """
.text { fill: #1d2329 } .soft { fill: #5b6570 } .panel { fill: #f6f7f9 }
.ours { fill: #2f6fb5 } .others { fill: #b3bcc6 }
@media (prefers-color-scheme: dark) {
.text { fill: #e4e8ec } .soft { fill: #9aa5b1 } .panel { fill: #1c2229 }
.ours { fill: #5a9ae0 } .others { fill: #55606c }
}
text { font-family: system-ui, sans-serif }
"""
SVG = "{http://www.w3.org/2000/svg}"
CLASSES = {TEXT: "text", SOFT: "soft", OURS: "ours", OTHERS: "others", PANEL: "panel"}

Row = Mapping[str, Any]


def draw(rows: Sequence[Row]) -> str:
    """Return a picture of a section: a group of bars for each work, each on a scale of its own."""
    groups = [(work, list(found)) for work, found in groupby(rows, lambda row: row["work"])]
    height = sum(HEAD + ROW * len(found) for _, found in groups) + 0.2
    settings = {"svg.fonttype": "none", "svg.hashsalt": "", "font.size": 9.5,
                "text.parse_math": False, "text.color": TEXT}  # fmt: skip
    with rc_context(settings):
        figure = Figure(figsize=(WIDTH, height), facecolor=PANEL)
        top = height - 0.05
        for work, found in groups:
            figure.text(0.15 / WIDTH, (top - HEAD / 2) / height, work, va="center", weight="bold")
            top -= HEAD + ROW * len(found)
            area = (SIDE / WIDTH, top / height, (WIDTH - SIDE - RIGHT) / WIDTH,
                    ROW * len(found) / height)  # fmt: skip
            _bars(figure.add_axes(area), found)
        stream = io.BytesIO()
        FigureCanvasSVG(figure).print_svg(stream, metadata={"Date": None, "Creator": None})
    return _styled(stream.getvalue())


def _bars(axes: Any, rows: Sequence[Row]) -> None:
    longest = max(row["seconds"] for row in rows)
    axes.set_axis_off()
    axes.set_xlim(0, longest * 1.45)  # room for the text beside the longest
    axes.set_ylim(len(rows) - 0.5, -0.5)
    for at, row in enumerate(rows):
        colour = OURS if is_ours(row["way"]) else OTHERS
        axes.barh(at, row["seconds"], height=0.62, color=colour)
        axes.text(-longest * 0.03, at, row["way"], ha="right", va="center")
        axes.text(row["seconds"] + longest * 0.02, at, told(row, rows[0]), va="center", color=SOFT)


def is_ours(way: str) -> bool:
    """Tell whether a way of doing it is vmcloner's."""
    return way.startswith(("vmcloner", "Engine"))


def told(row: Row, first: Row) -> str:
    """Return what stands beside a bar: its time, and how many times the first one's that is."""
    seconds = row["seconds"]
    shown = _number(seconds) + " s" if seconds >= 1 else _number(seconds * 1000) + " ms"
    return f"{shown} ({_number(seconds / first['seconds'])}x)"


def _number(value: float) -> str:
    """Return a number with two figures, or all before the point: more mean nothing."""
    return f"{value:.{max(0, 1 - math.floor(math.log10(value)))}f}"


def _styled(drawn: bytes) -> str:
    """Return matplotlib's SVG with classes instead of colours, and without what is empty."""
    root = etree.fromstring(drawn, etree.XMLParser(resolve_entities=False, no_network=True))
    for element in root.findall(f"{SVG}metadata"):
        root.remove(element)
    for element in list(root.iter(f"{SVG}g", f"{SVG}path", f"{SVG}text")):
        style = element.attrib.pop("style", "")
        element.attrib.pop("id", None)
        element.attrib.pop("clip-path", None)
        colour = re.search(r"fill: (#\w+)", style)
        if element.tag == f"{SVG}text":
            element.set("style", re.sub(r"(fill|font-family): [^;]*;? ?", "", style).strip("; "))
        if element.tag != f"{SVG}g" and (name := CLASSES.get(colour[1] if colour else TEXT)):
            element.set("class", name)
    for element in list(root.iter(f"{SVG}style")):
        element.text = STYLE
    for element in list(root.iter(f"{SVG}clipPath")):
        element.getparent().remove(element)
    etree.indent(root, "")
    return etree.tostring(root, encoding="unicode") + "\n"


def pictures(figures: Mapping[str, Any]) -> dict[str, str]:
    """Return the text of each picture by its file's name."""
    sections = groupby(figures["rows"], lambda row: row["section"])
    return {f"{name}.svg": draw(list(rows)) for name, rows in sections if name in SECTIONS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("figures", nargs="?", type=Path, default=FIGURES)
    options = parser.parse_args()
    for name, text in pictures(json.loads(options.figures.read_text())).items():
        (options.figures.parent / name).write_text(text)
        print(options.figures.parent / name)


if __name__ == "__main__":
    main()
