"""The parts of ``make test``: each marker belongs to one, and how they are run together."""

import contextlib
import itertools
import os
import re
import shutil
import signal
import subprocess
import time
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
    groups = [variable(name).split(" or ") for name in ("REAL", "ELSEWHERE")]
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
        "test-real": ["($(REAL)) and not ($(ELSEWHERE))"],
        "test-units": ["not ($(REAL) or $(ELSEWHERE))"],
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
def test_a_part_shows_its_output_and_how_it_ended(checkout, recipe, code, end):
    done = subprocess.run(
        [checkout("it", recipe) / "part", "it"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (code, "")
    lines = done.stdout.splitlines()
    assert lines[:4] == [
        "it: begins; its output is in build/it.log until it ends", "", "===== it =====", "x"
    ]  # fmt: skip
    assert without_times(lines[-1:]) == [f"it: {end}"]


def test_all_parts_run_and_one_that_fails_fails_all(checkout):
    checkout("bad", "false")
    argv = [checkout("good", "echo '= 3 passed in 0.1s ='") / "parts", "1", "bad", "good"]
    for _ in range(2):  # nothing is left of an earlier run
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 2
        assert without_times(done.stdout.splitlines()[-3:]) == [
            "", "bad: failed with 2 after TIME", "good: passed after TIME: 3 passed in 0.1s "
        ]  # fmt: skip


@pytest.mark.parametrize(("number", "whole"), [(signal.SIGTERM, False), (signal.SIGINT, True)])
def test_what_ends_a_run_ends_its_parts(checkout, tmp_path, number, whole):
    """Ctrl-C reaches all processes, what a CI server or a user sends only the first."""
    argv = [checkout("it", "echo $$$$ >draft; mv draft pid; exec sleep 300") / "parts", "1", "it"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, process_group=0) as process:
        wait_until((tmp_path / "pid").exists, 30)
        work = int((tmp_path / "pid").read_text())
        try:
            os.killpg(process.pid, number) if whole else process.send_signal(number)
            said, _ = process.communicate(timeout=30)
            assert not Path(f"/proc/{work}").exists()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(work, signal.SIGKILL)
    assert process.returncode != 0
    assert re.search(r"^it: failed with \d+ after", said, re.MULTILINE)


@pytest.fixture
def checkout(tmp_path):
    """Return a function that gives a target to a checkout, and returns the folder of programs."""
    there = tmp_path / "contrib/setup"
    there.mkdir(parents=True)
    for name in ("common.sh", "part", "parts"):
        shutil.copy(ROOT / "contrib/setup" / name, there)
    makefile = tmp_path / "Makefile"
    makefile.write_text("SHELL := /bin/bash\npart-%:\n\t@contrib/setup/part $*\n")

    def add(target: str, recipe: str) -> Path:
        makefile.write_text(f"{makefile.read_text()}{target}:\n\t@{recipe}\n")
        return there

    return add


def without_times(lines):
    return [re.sub("[0-9]+ min [0-9]+ s", "TIME", line) for line in lines]


def wait_until(condition, seconds):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)
