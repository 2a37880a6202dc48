"""A benchmark on a real host leaves nothing; of one that was killed, gc removes the rest."""

import json
import time

import attrs
import pytest

pytestmark = pytest.mark.libvirt
WORDS = ("benchmark", "-t", "plain", "-n", "2")


def fleets(site):
    folder = site.folder / "state" / "benchmarks"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


@pytest.mark.timeout(300)
def test_a_benchmark_leaves_nothing(site):
    page = site.folder / "report.html"
    rows = json.loads(site.run(*WORDS, "--for", "running", "--html", str(page), "-f", "json"))
    figures = {row["phase"]: row for row in rows}
    assert figures["ready"]["clones"] == figures["start"]["clones"] == 2
    assert figures["start"]["min"] > 0
    assert "<svg" in page.read_text()
    assert fleets(site) == []
    assert attrs.evolve(site, prefix=figures["ready"]["slowest"].rpartition("-")[0]).remains() == []


@pytest.mark.parametrize("running", [False, True])
@pytest.mark.timeout(300)
def test_gc_removes_what_a_killed_benchmark_left(site, running):
    with site.popen(*WORDS, "--for", "console:never", "--boot-jobs", "2") as benchmark:
        while not fleets(site) or (running and not booted(site)):
            assert benchmark.poll() is None, benchmark.stderr.read()
            time.sleep(0.05)
        benchmark.kill()
    (fleet,) = fleets(site)
    site.run("gc", "--yes")
    assert fleets(site) == []
    assert attrs.evolve(site, prefix=fleet).remains() == []


def booted(site):
    """Tell whether a clone of the benchmark runs."""
    rows = json.loads(site.run("list", "-f", "json"))
    mine = [row for row in rows if row["fleet"] in fleets(site)]
    return any(row["state"] == "running" for row in mine)
