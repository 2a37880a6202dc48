"""The releases that are tested, and what is said of them."""

import re
import tomllib

from contrib.packaging import sources, userlands
from contrib.packaging.chroots import RELEASES

VERSION = re.compile(r"Programming Language :: Python :: (3\.\d+)")


def test_the_classifiers_are_the_pythons_that_are_tested():
    project = tomllib.loads((sources.TOP / "pyproject.toml").read_text())["project"]
    said = [match[1] for line in project["classifiers"] if (match := VERSION.fullmatch(line))]
    assert said == sorted(said)
    assert set(said) == {release.python for release in RELEASES.values()}
    assert f">={said[0]}" == project["requires-python"]


def test_the_documentation_names_each_release():
    page = (sources.TOP / "docs/install.md").read_text()
    rows = re.findall(r"^\| (?:Debian|Ubuntu)[^|]*\| (3\.\d+) \|.*\| `(make [^`]*)`", page, re.M)
    tested = {
        release.python: f"make test-userlands ARGS={name}" for name, release in RELEASES.items()
    }
    assert dict(rows) == {**tested, "3.11": "make test"}  # the machine's own
    assert {*userlands.DEFAULT} < RELEASES.keys()
