"""The parts of ``make test``: no test is in none of them."""

import itertools
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

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


@pytest.mark.parametrize(
    ("recipe", "code", "end"),
    [
        ("echo x; echo '= 3 passed in 0.1s ='", 0, "passed after TIME: 3 passed in 0.1s "),
        ("echo x; echo '= 1 failed, 2 passed in 61.00s (0:01:01) ='; false", 1,
         "failed with 2 after TIME: 1 failed, 2 passed in 61.00s (0:01:01) "),
        ("echo x", 0, "passed after TIME"),
    ],
)  # fmt: skip
def test_a_part_shows_its_output_and_how_it_ended(tmp_path, recipe, code, end):
    (tmp_path / "contrib/setup").mkdir(parents=True)
    shutil.copy(ROOT / "contrib/setup/part", tmp_path / "contrib/setup")
    (tmp_path / "Makefile").write_text(f"SHELL := /bin/bash\nit:\n\t@{recipe}\n")
    part = [tmp_path / "contrib/setup/part", "it"]
    done = subprocess.run(part, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (code, "")
    lines = done.stdout.splitlines()
    assert lines[:4] == [
        "it: begins; its output is in build/it.log until it ends", "", "===== it =====", "x"
    ]  # fmt: skip
    assert re.sub("[0-9]+ min [0-9]+ s", "TIME", lines[-1]) == f"it: {end}"
    assert (tmp_path / "build/parts").read_text() == lines[-1] + "\n"
