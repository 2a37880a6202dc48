"""The parts of ``make test``: no test is in none of them."""

import itertools
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
MAKEFILE = (ROOT / "Makefile").read_text()


def variable(name: str) -> str:
    (value,) = re.findall(rf"^{name} := (.*)$", MAKEFILE, re.MULTILINE)
    return value


def test_every_marker_says_where_a_test_runs():
    pytest_section = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]
    markers = [text.partition(":")[0] for text in pytest_section["ini_options"]["markers"]]
    groups = [variable(name).split(" or ") for name in ("LIBVIRT", "ROOTS", "ELSEWHERE")]
    assert sorted(itertools.chain(*groups)) == sorted(markers)


def test_the_parts_are_all_that_the_targets_of_tests_select():
    selections = {
        target: re.findall(r' -m "([^"]*)"', recipe)
        for target, recipe in re.findall(r"^(\S+):.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)
        if target in variable("PARTS").split()
    }
    assert selections == {
        "lab": [],
        "lint": [],
        "test-lvm": ["(lvm or nfs) and not slow"],
        "test-libvirt": ["($(LIBVIRT)) and not ($(ROOTS) or $(ELSEWHERE))"],
        "test-root": ["($(ROOTS)) and not ($(ELSEWHERE))"],
        "test-units": ["not ($(LIBVIRT) or $(ROOTS) or $(ELSEWHERE))"],
        "test-xen-short": ["xen and not slow"],
    }
