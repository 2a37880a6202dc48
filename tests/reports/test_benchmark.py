"""A benchmark leaves nothing behind, whatever fails; of a killed one, gc removes what is left."""

import json
import secrets
import threading
import time

import pytest

from vmcloner_core.benchmark_marks import PREFIX
from vmcloner_core.cancelling import Cancellation, ending_with
from vmcloner_core.errors import HostCommandError
from vmcloner_core.plan import Readiness


def marks(lab):
    folder = lab.engine.host.benchmarks
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def known_fleet(monkeypatch, token="0"):
    """Have the fleet of benchmarks called PREFIX0."""
    random = secrets.token_hex
    monkeypatch.setattr("secrets.token_hex", lambda n: token if n == 4 else random(n))


def test_a_benchmark(lab, run, tmp_path):
    lab.engine.create("web", "t1", count=1)
    before = set((tmp_path / "state").rglob("*")) - set((tmp_path / "state/runs").rglob("*"))
    code, out, _ = run("benchmark", "-t", "t1", "-n", "3", "-f", "json")
    assert code == 0
    rows = {row["phase"]: row for row in json.loads(out)}
    assert list(rows)[:4] == ["queued", "storage", "define", "start"]
    assert list(rows)[-1] == "ready"
    assert {"undefine", "remove"} <= rows.keys()
    assert {row["clones"] for name, row in rows.items() if name != "output"} == {3}
    assert [clone.name for clone in lab.engine.list()] == ["web-1"]
    after = set((tmp_path / "state").rglob("*")) - set((tmp_path / "state/runs").rglob("*"))
    assert {path for path in after - before if path.is_file()} == set()
    assert marks(lab) == []
    assert json.loads(run("report", "--last", "-f", "json")[1])[-1]["clones"] == 3


def test_benchmarks_are_compared_by_name(lab, run, monkeypatch):
    """And by the runs that the summary names."""
    with monkeypatch.context() as patch:
        known_fleet(patch)
        out = run("benchmark", "-t", "t1", "-n", "2", "--fail-if", "failed > 0")[1]
        *_, about, runs = [
            line for line in out.splitlines() if not line.startswith(("slowest", "memory"))
        ]
    assert about.startswith(f"{PREFIX}0: create, delete of t1, 2 clones")
    with monkeypatch.context() as patch:
        known_fleet(patch, "1")
        rows = json.loads(run("benchmark", "-t", "t1", "-n", "2", "-f", "json")[1])
    assert json.loads(run("report", f"{PREFIX}1", "-f", "json")[1]) == rows
    create, delete = runs.removeprefix("runs: ").split(", ")
    assert f"{create}: create of t1" in run("report", create)[1]
    assert f"{delete}: delete" in run("report", delete)[1]
    compare = ("report", "--compare", f"{PREFIX}0", f"{PREFIX}1")
    assert run(*compare, "--fail-if", "p95 ready > 10000x")[0] == 0
    assert run(*compare, "--fail-if", "p95 remove < 10000x")[0] == 12


def test_a_benchmark_whose_create_has_no_log(lab, run, monkeypatch, tmp_path):
    """It was the 201st: what is left is no benchmark."""
    known_fleet(monkeypatch)
    assert run("benchmark", "-t", "t1")[0] == 0
    (create,) = (plan.run for plan in lab.engine.events(plans=True) if plan.values["template"])
    (tmp_path / f"state/runs/{create}.jsonl").unlink()
    assert run("report", f"{PREFIX}0")[0] == 4


def test_clones_that_fail_are_deleted(lab, run, monkeypatch):
    known_fleet(monkeypatch)
    lab.pool.fail[f"{PREFIX}0-2"] = HostCommandError("full")
    code, out, err = run("benchmark", "-t", "t1", "-n", "3", "--clones", "-f", "json")
    assert code == 10
    assert [clone["status"] for clone in json.loads(out)] == ["ready", "failed", "ready"]
    assert "1 of 3 clones failed" in err
    rows = json.loads(run("report", f"{PREFIX}0", "--clones", "-f", "json")[1])
    assert rows == json.loads(out)
    assert lab.engine.list() == ()
    assert marks(lab) == []


def test_a_benchmark_that_cannot_begin(lab, run):
    assert run("benchmark", "-t", "none")[0] == 4
    assert run("benchmark", "-t", "t1", "-n", "0")[0] == 3
    assert run("benchmark", "-t", "t1", "--fail-if", "p95 ready > 2x")[0] == 2
    assert marks(lab) == []


def test_a_run_that_breaks_off_leaves_nothing(lab, monkeypatch):
    inner = lab.engine.run

    def run(request, **options):
        if request.action == "create":
            inner(request, **options)
            raise KeyboardInterrupt
        return inner(request, **options)

    monkeypatch.setattr(lab.engine, "run", run)
    with pytest.raises(KeyboardInterrupt):
        lab.engine.benchmark("t1", count=2)
    assert lab.engine.list() == ()
    assert marks(lab) == []


def test_the_first_error_is_told(lab, monkeypatch, caplog):
    """Also if the clones can't be deleted then; gc finds them."""
    inner = lab.engine.run

    def run(request, **options):
        if request.action == "create":
            inner(request, **options)
            raise HostCommandError("first")
        raise HostCommandError("second")

    monkeypatch.setattr(lab.engine, "run", run)
    with pytest.raises(HostCommandError, match="first"):
        lab.engine.benchmark("t1", count=1)
    (fleet,) = marks(lab)
    assert f"fleet {fleet} may be left: vmcloner gc removes it" in caplog.text
    monkeypatch.setattr(lab.engine, "run", inner)
    lab.engine.gc()
    assert lab.engine.list() == ()


def test_a_benchmark_that_is_ended_leaves_nothing(lab):
    """By its caller: what ends the create doesn't end the delete."""
    ending = Cancellation()

    def end():
        while not any(lab.machines.states().values()):
            time.sleep(0.01)
        ending.cancel()

    thread = threading.Thread(target=end)
    thread.start()
    with ending_with(ending):
        benchmark = lab.engine.benchmark(
            "t1", count=2, wait=Readiness.parse("console:never", timeout=60)
        )
    thread.join()
    assert benchmark.created.interrupted
    assert benchmark.deleted.ok
    assert lab.engine.list() == ()
    assert marks(lab) == []


def test_what_cannot_be_deleted_is_gcs(lab, run, monkeypatch):
    known_fleet(monkeypatch)
    inner = lab.machines.undefine
    monkeypatch.setattr(
        lab.machines,
        "undefine",
        lambda names: (_ for _ in ()).throw(HostCommandError("not now")),
    )
    code, _, err = run("benchmark", "-t", "t1", "-n", "2")
    assert code == 10
    assert "vmcloner gc" in err
    assert marks(lab) == [f"{PREFIX}0"]
    monkeypatch.setattr(lab.machines, "undefine", inner)
    assert run("gc", "--yes")[0] == 0
    assert lab.engine.list() == ()
    assert marks(lab) == []


def test_gc_removes_what_a_killed_benchmark_left(lab, run):
    """And nothing of one that runs, nor of fleets with such a name."""
    fleets = [f"{PREFIX}{n}a" for n in range(3)]
    for fleet in fleets:
        lab.engine.create(fleet, "t1", count=2, start=True)
    for fleet in fleets[:2]:
        lab.engine._host.benchmarks.mark(fleet)
    lab.engine._host.benchmarks.mark(f"{PREFIX}gone")
    with lab.engine._held([f"benchmark/{fleets[1]}"]):
        found = json.loads(run("gc", "--dry-run", "-f", "json")[1])
        assert {row["why"] for row in found if row["kind"] == "domain"} == {
            "its benchmark was killed"
        }
        assert {row["name"] for row in found if row["kind"] == "domain"} == {
            f"{fleets[0]}-1",
            f"{fleets[0]}-2",
        }
        assert run("gc", "--yes")[0] == 0
        assert {clone.fleet for clone in lab.engine.list()} == set(fleets[1:])
        assert marks(lab) == [fleets[1]]
    assert run("gc", "--yes")[0] == 0
    assert {clone.fleet for clone in lab.engine.list()} == {fleets[2]}
    assert marks(lab) == []
    assert not lab.engine.host.benchmarks.exists()
