"""Reports are computed from logs: also of killed runs, of several runs, and of damaged ones."""

import json

import pytest
from lxml import etree

from tests.reports.runs import Log, events_of
from vmcloner_core.errors import HostCommandError, InvalidRequest, NotFound
from vmcloner_core.reports import Condition, compared, phases, report_of, report_of_runs
from vmcloner_core.reports.junit import junit


def figures(report):
    return {row.phase: row for row in phases(report)}


def test_the_phases_of_a_clone(tmp_path):
    log = Log(clones=["web-1"])
    log.made("web-1")
    log.result()
    (clone,) = report_of(events_of(tmp_path), log.write(tmp_path)).clones
    assert [(s.phase, s.begin, s.end) for s in clone.spans] == [
        ("queued", 0, 1),
        ("storage", 1, 2),
        ("define", 2, 2.5),
        ("queued", 2.5, 3),
        ("start", 3, 4),
        ("output", 4, 5),
        ("ip", 5, 7),
        ("ssh", 7, 10),
    ]
    assert clone.phases == {
        "queued": 1.5,
        "storage": 1,
        "define": 0.5,
        "start": 1,
        "output": 1,
        "ip": 3,
        "ssh": 6,
    }
    assert (clone.ready, clone.status, clone.held.phase) == (10, "ready", "ssh")


def test_all_clones_wait_for_the_import(tmp_path):
    log = Log(clones=["web-1", "web-2"])
    log.step("tiny", "import", 1, 4)
    log.step("web-1", "clone", 5, 6)
    log.result()
    first, second = report_of(events_of(tmp_path), log.write(tmp_path)).clones
    assert [(s.phase, s.begin, s.end) for s in first.spans] == [
        ("queued", 0, 1),
        ("import", 1, 4),
        ("queued", 4, 5),
        ("storage", 5, 6),
    ]
    assert first.phases["import"] == second.phases["import"] == 3
    assert (first.ready, second.ready) == (6, None)


def test_figures_of_many(tmp_path):
    names = [f"web-{n}" for n in range(1, 101)]
    log = Log(clones=names)
    for n, name in enumerate(names, 1):
        log.step(name, "clone", 0, n / 10)
    log.result()
    report = report_of(events_of(tmp_path), log.write(tmp_path))
    row = figures(report)["storage"]
    assert (row.clones, row.min, row.p50, row.p95, row.max) == (100, 0.1, 5.0, 9.5, 10.0)
    assert row.slowest == "web-100"
    assert [clone.name for clone in report.slowest(2)] == ["web-100", "web-99"]
    assert [clone.name for clone in report.clones] == names


def test_a_failure(tmp_path):
    log = Log(clones=["web-1", "web-2"])
    log.made("web-1")
    log.step("web-2", "clone", 0, 1)
    log.step("web-2", "wait", 2, 9, "web-2 wasn't ready", seen=[("output", 3)], log="a\nb")
    log.result()
    report = report_of(events_of(tmp_path), log.write(tmp_path))
    (clone,) = report.failures
    assert (clone.failed, clone.error, clone.log) == ("wait", "web-2 wasn't ready", "a\nb")
    assert (clone.spans[-1].phase, clone.spans[-1].begin, clone.spans[-1].end) == ("wait", 3, 9)
    assert clone.ready is None
    rows = figures(report)
    assert (rows["wait"].clones, rows["wait"].failed, rows["wait"].max) == (0, 1, None)
    assert (rows["ready"].clones, rows["ready"].failed) == (1, 1)


def test_a_run_that_was_killed(tmp_path):
    log = Log(clones=["web-1", "web-2"])
    log.made("web-1")
    log.step("web-2", "clone", 0, 1)
    log.step("web-2", "start", 2, 9)
    log.lines.pop()
    log.sample(8)
    report = report_of(events_of(tmp_path), log.write(tmp_path))
    assert not report.finished
    first, second = report.clones
    assert first.status == "ready"
    assert (second.status, second.spans[-1].phase, second.spans[-1].end) == (
        "unfinished",
        "start",
        10,
    )


def test_a_killed_run_that_waits_for_nothing(tmp_path):
    """Which step is the last isn't known: a clone that did some may not be ready."""
    log = Log(clones=["web-1"])
    log.step("web-1", "clone", 0, 1)
    report = report_of(events_of(tmp_path), log.write(tmp_path))
    assert [clone.status for clone in report.clones] == ["unfinished"]
    assert figures(report)["storage"].clones == 1
    log.result()
    log.write(tmp_path)
    assert report_of(events_of(tmp_path)).clones[0].ready == 1


def test_a_run_that_failed_as_a_whole(tmp_path):
    """Its import did: all its clones failed then, although none of them has an event."""
    log = Log(clones=["web-1", "web-2"])
    log.step("tiny", "import", 1, 4, "no such image")
    log.result(["web-1", "web-2"], "no such image")
    report = report_of(events_of(tmp_path), log.write(tmp_path))
    assert [(c.status, c.failed, c.error) for c in report.clones] == [
        ("failed", "import", "no such image"),
        ("failed", "import", "no such image"),
    ]
    assert (figures(report)["import"].clones, figures(report)["import"].failed) == (0, 2)
    assert Condition.parse("failed > 0").met(report)
    suite = etree.fromstring(junit(report)).find("testsuite")
    assert (suite.get("failures"), suite.get("errors")) == ("2", "0")
    assert suite[0].find("failure").get("message") == "no such image"


def test_clones_that_a_run_did_not_finish(tmp_path):
    """They failed with it, whatever they were in; those with errors of their own keep them."""
    names = [f"web-{n}" for n in range(1, 5)]
    log = Log(clones=names)
    log.step("web-1", "clone", 0, 1)
    log.step("web-2", "clone", 0, 1)
    log.step("web-2", "start", 2, 9)
    log.lines.pop()
    log.step("web-3", "clone", 0, 1, "full")
    log.made("web-4")
    log.result(names[:3], "the pool is gone", interrupted=False)
    report = report_of(events_of(tmp_path), log.write(tmp_path))
    assert [(c.status, c.failed, c.error) for c in report.clones] == [
        ("failed", "queued", "the pool is gone"),
        ("failed", "start", "the pool is gone"),
        ("failed", "storage", "full"),
        ("ready", None, None),
    ]


def test_what_came_to_be_before_a_run_that_was_stopped(tmp_path):
    """The clones of a fleet that are started again don't fail with that run."""
    made = Log(1, clones=["web-1"])
    made.step("web-1", "clone", 0, 1)
    made.step("web-1", "start", 1, 2)
    made.result()
    again = Log(2, "start", ["web-1"])
    again.step("web-1", "start", 0, 1, "stopped by the user")
    again.result(["web-1"], interrupted=True)
    made.write(tmp_path)
    again.write(tmp_path)
    assert report_of(events_of(tmp_path), "web").clones[0].ready == 2
    assert report_of(events_of(tmp_path)).failures


def test_a_fleet_is_without_what_was_rolled_back(tmp_path):
    """The run's own report has it. What was there before is kept, as the roll-back keeps it."""
    made = Log(1, clones=["web-1"])
    made.step("web-1", "clone", 0, 1)
    made.result()
    made.write(tmp_path)
    failed = Log(2, clones=[f"web-{n}" for n in range(1, 6)])
    failed.step("web-1", "start", 0, 1)
    for name in ("web-2", "web-3"):
        failed.step(name, "clone", 0, 5)
    for name in ("web-3", "web-4", "web-5"):
        failed.step(name, "define", 5, 9, "full")
    failed.step("web-2", "remove", 9, 10)
    rolled_back = ["web-1", "web-2", "web-3"]
    failed.result(["web-3", "web-4", "web-5"], rolled_back=rolled_back, left=["web-5"])
    run = failed.write(tmp_path)
    found = report_of(events_of(tmp_path), "web").clones
    assert [clone.name for clone in found] == ["web-1", "web-5"]
    assert len(report_of(events_of(tmp_path), run).clones) == 5


def test_the_last_run_is_the_default(tmp_path):
    for number, action in ((1, "create"), (2, "delete")):
        log = Log(number, action, ["web-1"])
        log.step("web-1", "undefine", 0, 1)
        log.write(tmp_path)
    assert report_of(events_of(tmp_path)).actions == ("delete",)


def test_a_fleet_joins_its_runs(tmp_path):
    """From the run that made each clone until it was first ready; without the time between."""
    gone = Log(1, clones=["web-1"])
    gone.made("web-1")
    gone.write(tmp_path)
    Log(2, "delete", ["web-1"]).write(tmp_path)
    made = Log(3, clones=["web-1", "web-2", "db-1"])
    for name in ("web-1", "web-2", "db-1"):
        made.step(name, "clone", 1, 2)
        made.step(name, "define", 2, 3)
    made.result()
    made.write(tmp_path)
    started = Log(4, "start", ["web-1", "web-2"], time="2026-11-30T00:00:00.000+00:00")
    started.step("web-1", "start", 0, 1)
    started.step("web-1", "wait", 1, 6, seen=[("ssh", 6)])
    started.step("web-2", "start", 0, 2)
    started.result()
    started.write(tmp_path)
    again = Log(5, "start", ["web-1", "web-2"], time="2026-12-01T00:00:00.000+00:00")
    for name in ("web-1", "web-2"):
        again.step(name, "start", 0, 99)
    again.write(tmp_path)
    report = report_of(events_of(tmp_path), "web")
    assert [clone.name for clone in report.clones] == ["web-1", "web-2"]
    first, second = report.clones
    assert (first.ready, first.phases["ssh"], first.phases["queued"]) == (9, 5, 1)
    assert second.phases["start"] == 2
    assert report.begun == "2026-11-29T14:53:22.000+00:00"


def test_what_failed_and_was_tried_again(tmp_path):
    log = Log(1, clones=["web-1"])
    log.step("web-1", "clone", 0, 1)
    log.step("web-1", "define", 1, 2, "no")
    log.write(tmp_path)
    log = Log(2, clones=["web-1"])
    log.step("web-1", "define", 1, 2)
    log.result()
    log.write(tmp_path)
    (clone,) = report_of(events_of(tmp_path), "web").clones
    assert (clone.status, clone.ready) == ("ready", 4)


def test_runs_one_after_another(tmp_path):
    """What a benchmark reports: a clone is ready before it is deleted."""
    log = Log(1, clones=["web-1", "web-2"])
    log.made("web-1")
    log.step("web-2", "clone", 0, 1, "full")
    log.result()
    gone = Log(2, "delete", ["web-1", "web-2"])
    for name in ("web-1", "web-2"):
        gone.step(name, "undefine", 1, 2)
    gone.result()
    runs = [log.write(tmp_path), gone.write(tmp_path)]
    report = report_of_runs(events_of(tmp_path), runs, "it")
    first, second = report.clones
    assert (report.name, report.seconds, report.runs) == ("it", 12, tuple(runs))
    assert (first.ready, first.phases["undefine"], first.spans[-1].end) == (10, 1, 12)
    assert (second.error, second.ready) == ("full", None)


def test_what_held_a_clone_was_before_it_was_ready(tmp_path):
    """Also if its run began after others of the report."""
    runs = [Log(1, clones=["web-1"]), Log(2, clones=["web-2"])]
    for number, log in enumerate(runs, 1):
        log.made(f"web-{number}", 0.1)
        log.result()
    gone = Log(3, "delete", ["web-1", "web-2"])
    for name in ("web-1", "web-2"):
        gone.step(name, "destroy", 0, 60)
    gone.result()
    report = report_of_runs(events_of(tmp_path), [log.write(tmp_path) for log in (*runs, gone)])
    for clone in report.clones:
        assert clone.phases["destroy"] == 60
        assert (clone.ready, clone.held.phase) == (pytest.approx(10.1), "ssh")


def test_logs_of_earlier_versions_and_damaged_ones(tmp_path):
    """What isn't there is left out; nothing of a log is believed to be of some type."""
    log = Log(clones=["web-1", 7, None, "not a clone\x1b[31m"])
    log.step("web-1", "wait", 1, 3)
    log.step("stranger-1", "clone", 0, 1)
    log.add("step", clone="web-1", step="define", status="done", at=4.0, seconds=0.5, error=None)
    log.add("step", clone="web-1", step=None, status="done", at="x", seconds=[], error={})
    log.add("step", clone=["web-1"], step="start", status="failed", at=-1, seconds=-1, error=3)
    log.add("step", clone="web-1")
    log.add("seen", clone="web-1", what=1, at=1e400, text=None)
    log.add("sample", at=1, cpu="all", memory_used=None, memory_total=0)
    log.add("sample", at=1, cpu=1, clones={"web-1": "much", "stranger-1": 5})
    log.add("sample", at=1, cpu=1, clones=["web-1"])
    log.add("later", at=5)
    path = tmp_path / f"{log.write(tmp_path)}.jsonl"
    path.write_text(path.read_text() + '{"event": "step"\n[]\n')
    report = report_of(events_of(tmp_path))
    phases = report.clones[-1].phases
    assert (phases["wait"], phases["define"]) == (2, 0.5)
    assert not report.samples
    assert {clone.memory for clone in report.clones} == {None}
    assert {clone.name for clone in report.clones} == {"web-1", "not a clone\x1b[31m"}


def test_samples_of_a_large_host(tmp_path):
    """2 TiB of memory, and a pool of 3 PiB; what no host has is left out."""
    log = Log(clones=["web-1"])
    log.sample(1, pool=3 * 2**50, memory=2**41)
    log.sample(2, memory=2**63)
    log.sample(1e12)
    first, last = report_of(events_of(tmp_path), log.write(tmp_path)).samples
    assert (first.at, last.at) == (1, 2)
    assert (first.memory_total, first.pool_used) == (2**41, 3 * 2**50)


def test_what_has_no_log(tmp_path):
    with pytest.raises(NotFound, match="no log of any run"):
        report_of(events_of(tmp_path / "none"))
    Log(clones=["web-1"]).write(tmp_path)
    with pytest.raises(NotFound, match="'wen'") as caught:
        report_of(events_of(tmp_path), "wen")
    assert "web" in caught.value.hint
    Log(2, "delete", ["web-1"]).write(tmp_path)
    with pytest.raises(NotFound, match="came to be"):
        report_of(events_of(tmp_path), "web")


# --- conditions ---------------------------------------------------------------------------------


@pytest.fixture
def two(tmp_path):
    """A run, and one in which all takes twice as long and a clone fails."""
    reports = []
    for number, factor in ((1, 1), (2, 2)):
        log = Log(number, clones=["web-1", "web-2"])
        log.step("web-1", "clone", 0, factor)
        log.step("web-2", "clone", 0, factor, "full" if factor > 1 else None)
        log.result()
        reports.append(report_of(events_of(tmp_path), log.write(tmp_path)))
    return reports


@pytest.mark.parametrize(
    ("text", "met"),
    [
        ("p95 ready > 1.2x", True),
        ("p95 ready > 2x", False),
        ("p95 ready >= 2x", True),
        ("max storage > 1.5s", True),
        (" min   storage<1s ", False),
        ("p50 storage < 3s", True),
        ("failed > 0", True),
        ("failed > 1", False),
        ("p95 ssh > 10s", True),
    ],
)
def test_conditions(two, text, met):
    before, after = two
    said = Condition.parse(text).met(after, before)
    assert bool(said) == met
    if text == "p95 ready > 1.2x":
        assert said == f"p95 ready > 1.2x: 2 s of {after.name}, limit 1.2 s"


def test_a_gate_counts_what_is_unfinished(tmp_path):
    names = [f"web-{n}" for n in range(1, 11)]
    log = Log(clones=names)
    log.made("web-1")
    log.step("web-2", "clone", 0, 1, "full")
    report = report_of(events_of(tmp_path), log.write(tmp_path))
    said = Condition.parse("failed > 0").met(report)
    assert said == f"failed > 0: 9 of {report.name}, 8 of them unfinished, limit 0"
    assert Condition.parse("failed > 9").met(report) is None


@pytest.mark.parametrize(
    "text",
    ["", "p95 ready", "p95 ready > 1", "p99 ready > 1s", "ready > 1s", "failed > 1s",
     "p95 ready > 1e9x", "p95 ready > -1s", "__import__('os') > 1s", "p95 ready == 1s"],
)  # fmt: skip
def test_what_is_no_condition(text):
    with pytest.raises(InvalidRequest, match="not a condition"):
        Condition.parse(text)


def test_a_factor_needs_a_base(two):
    before, after = two
    with pytest.raises(InvalidRequest, match="--compare"):
        Condition.parse("p95 ready > 1.2x").met(after)
    with pytest.raises(InvalidRequest, match=f"ssh in {before.name}"):
        Condition.parse("p95 ssh > 1.2x").met(after, before)


def test_a_comparison(two):
    storage, ready = compared(*two)
    assert (storage.phase, ready.phase) == ("storage", "ready")
    assert storage.figures("p50") == (1, 2)
    assert storage.ratio("p50") == 2


# --- JUnit --------------------------------------------------------------------------------------


def test_junit(tmp_path):
    log = Log(clones=["web-1", "web-2", "web-3"])
    log.made("web-1")
    error = "web-2 <isn't>\x00 ready & \ud800]]>"
    log.step("web-2", "wait", 2, 9, error, log="\x1b[31mpanic\x07\n</system-out><x/>\ufffe")
    report = report_of(events_of(tmp_path), log.write(tmp_path))
    suite = etree.fromstring(junit(report)).find("testsuite")
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("3", "1", "1")
    first, second, third = suite
    assert (first.get("name"), first.get("time"), len(first)) == ("web-1", "10.000", 0)
    assert second.find("failure").get("message") == "web-2 <isn't>\\x00 ready & \\ud800]]>"
    assert second.find("system-out").text == "\\x1b[31mpanic\\x07\n</system-out><x/>\\ufffe"
    assert third.find("error") is not None


# --- the command --------------------------------------------------------------------------------


def test_the_command(lab, run):
    lab.engine.create("web", "t1", count=3, ready=True)
    code, out, err = run("report", "web")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert all(len(line) <= 80 for line in lines[:-5])
    phases = [line.split()[0] for line in lines[:8]]
    assert phases == [
        "phase",
        "queued",
        "import",
        "storage",
        "define",
        "start",
        "output",
        "console",
    ]
    assert "web: create of t1, 3 clones" in out
    rows = json.loads(run("report", "--last", "-f", "json")[1])
    assert list(rows[0]) == ["phase", "clones", "failed", "min", "p50", "p95", "max", "slowest"]
    assert rows[-1]["phase"] == "ready"
    clones = json.loads(run("report", "--clones", "-f", "json")[1])
    assert [clone["name"] for clone in clones] == ["web-1", "web-2", "web-3"]
    assert list(clones[0]) == [
        "name", "host", "status", "ready", "held", "held_seconds", "failed", "phases", "error",
        "memory",
    ]  # fmt: skip
    assert {clone["memory"] for clone in clones} == {128 * 1024**2}
    assert "memory: 3 clones took 384 MiB: p50 128 MiB, max 128 MiB" in out
    lab.engine.create("db", "t1", start=True)  # nobody waits, so nobody asks
    clones = json.loads(run("report", "db", "--clones", "-f", "json")[1])
    assert [clone["memory"] for clone in clones] == [None]
    lab.engine.delete("db")
    assert clones[0]["phases"]["start"] >= 0
    assert run("report", "cache")[0] == 4
    assert run("report", "web", "-f", "csv")[1].startswith('"phase"')


def test_a_gate(lab, run, tmp_path):
    runs = tmp_path / "state" / "runs"
    for number, end in ((1, 1), (2, 2)):
        log = Log(number, clones=["web-1"])
        log.step("web-1", "clone", 0, end)
        log.result()
        log.write(runs)
    first, second = (path.stem for path in sorted(runs.iterdir()))
    compare = ("report", "--compare", first, second, "-f", "json")
    code, out, err = run(*compare, "--fail-if", "p95 ready > 1.2x")
    assert code == 12
    assert err == f"vmcloner: p95 ready > 1.2x: 2 s of {second}, limit 1.2 s\n"
    row = {"phase": "storage"}
    for figure in ("p50", "p95", "max"):
        row |= {f"{figure}_1": 1, f"{figure}_2": 2, f"{figure}_ratio": 2}
    assert json.loads(out)[0] == row
    assert run(*compare, "--fail-if", "p95 ready > 3x")[0] == 0
    assert run("report", first, "--fail-if", "max storage > 1s")[0] == 0
    assert run("report", second, "--fail-if", "max storage > 1s")[0] == 12
    assert run("report", first, "--fail-if", "p95 ready > 3x")[0] == 2
    assert run("report", first, "--fail-if", "slow")[0] == 2
    assert run("report", first, "--compare", first, second)[0] == 2


def test_a_gate_for_a_create_that_cannot_import(lab, run, tmp_path, monkeypatch):
    def broken(*_args):
        raise HostCommandError("the pool is broken")

    monkeypatch.setattr(lab.pool, "import_image", broken)
    assert run("create", "web", "-t", "t1", "-n", "2")[0] == 9
    xml = tmp_path / "r.xml"
    code, _, err = run("report", "--fail-if", "failed > 0", "--junit", str(xml))
    assert (code, "failed > 0: 2 of " in err) == (12, True)
    suite = etree.parse(xml).getroot()[0]
    assert (suite.get("failures"), suite.get("errors")) == ("2", "0")
    assert "the pool is broken" in suite[0].find("failure").get("message")


def test_a_fleet_that_was_rolled_back_and_made_again(lab, run):
    lab.pool.fail["web-2"] = HostCommandError("full")
    assert run("create", "web", "-t", "t1", "-n", "3", "--on-failure", "rollback")[0] == 10
    assert run("report", "web")[0] == 4
    assert run("create", "web", "-t", "t1")[0] == 0
    rows = json.loads(run("report", "web", "--clones", "-f", "json")[1])
    assert [(row["name"], row["status"]) for row in rows] == [("web-1", "ready")]


def test_the_files(lab, run, tmp_path):
    lab.engine.create("web", "t1", count=2)
    xml, html = tmp_path / "r.xml", tmp_path / "r.html"
    assert run("report", "--junit", str(xml), "--html", str(html))[0] == 0
    assert etree.parse(xml).getroot()[0].get("tests") == "2"
    assert "web-2" in html.read_text()
    code, _, err = run("report", "--junit", str(tmp_path / "none" / "r.xml"))
    assert (code, "can't write" in err) == (3, True)
