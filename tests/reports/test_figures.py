"""The pictures of docs/figures: drawn of the figures beside them, for light and dark."""

import json
import re

import pytest
from lxml import etree

from benchmarks import pictures
from tests.reports.browser import needs_chromium, shown

FIGURES = json.loads(pictures.FIGURES.read_text())
DRAWN = pictures.pictures(FIGURES)


def contents(text: str) -> list[tuple[str, str]]:
    """Return the bars with their lengths and the texts, each with its class.

    What else is in a picture depends on matplotlib's version.
    """
    found = []
    for element in etree.fromstring(text).iter(f"{pictures.SVG}path", f"{pictures.SVG}text"):
        numbers = [float(n) for n in re.findall(r"[\d.]+", element.get("d", ""))]
        size = f"{max(numbers[::2]) - min(numbers[::2]):.0f}" if numbers else element.text
        found.append((element.get("class"), size))
    return found


def test_the_pictures_are_of_the_figures():
    """After another ``make bench``, all of what it wrote is committed."""
    assert DRAWN.keys() == {path.name for path in pictures.FOLDER.glob("*.svg")}
    for name, text in DRAWN.items():
        assert contents((pictures.FOLDER / name).read_text()) == contents(text), name


def test_each_figure_is_in_a_picture():
    drawn = [text for svg in DRAWN.values() for _, text in contents(svg)]
    rows = [row for row in FIGURES["rows"] if row["section"] in pictures.SECTIONS]
    assert {row["section"] for row in rows} == {*pictures.SECTIONS}
    for row in rows:
        assert row["work"] in drawn
        assert row["way"] in drawn


def test_other_figures_make_another_picture():
    rows = [dict(row) for row in FIGURES["rows"] if row["section"] == "create"]
    rows[0]["seconds"] *= 2
    assert contents(pictures.draw(rows)) != contents(DRAWN["create.svg"])


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (2500.0, "2500 s (2000x)"),
        (5.52, "5.5 s (4.4x)"),
        (1.25, "1.2 s (1.0x)"),
        (0.2595, "260 ms (0.21x)"),
        (0.000046, "0.046 ms (0.000037x)"),
    ],
)
def test_times(seconds, shown):
    assert pictures.told({"seconds": seconds}, {"seconds": 1.25}) == shown


@pytest.mark.parametrize("name", DRAWN)
def test_a_picture_is_small_and_loads_nothing(name):
    text = (pictures.FOLDER / name).read_text()
    assert len(text) < 20_000
    assert "url(" not in text
    for element in etree.fromstring(text).iter():
        assert not [key for key in element.attrib if key.endswith("href")]
        assert element.tag.removeprefix(pictures.SVG) in {
            "svg",
            "defs",
            "style",
            "g",
            "path",
            "text",
        }
    page = (pictures.FOLDER.parent / "figures.md").read_text()
    assert f"(figures/{name})" in page


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_a_browser(tmp_path, scheme):
    """As in README: an image that follows the scheme."""
    page = tmp_path / "page.html"
    page.write_text(f'<img src="file://{pictures.FOLDER}/create.svg">')
    seen = shown(page, scheme, "900,400", tmp_path)
    colours = {colour: count for count, colour in seen.getcolors(2**24)}
    panel, ours = {
        "light": ((0xF6, 0xF7, 0xF9), (0x2F, 0x6F, 0xB5)),
        "dark": ((0x1C, 0x22, 0x29), (0x5A, 0x9A, 0xE0)),
    }[scheme]
    assert colours.get(panel, 0) > 50_000
    assert colours.get(ours, 0) > 50  # beside a loop of virt-clone our bars are short
