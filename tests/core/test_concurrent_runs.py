"""Runs of one engine at the same time, and the end of some of them."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.pauses import LONG, halted, meeting
from vmcloner_core.cancelling import Cancellation, ending_with
from vmcloner_core.errors import Interrupted
from vmcloner_core.hooks import hookimpl
from vmcloner_core.plan import StepStatus


def test_runs_of_different_fleets_go_on_at_the_same_time(lab, monkeypatch):
    meeting(monkeypatch, lab.pool, 2)
    with ThreadPoolExecutor() as threads:
        runs = [threads.submit(lab.engine.create, name, "t1", count=1) for name in ("web", "db")]
        assert all(run.result(LONG).ok for run in runs)
    assert {clone.name for clone in lab.engine.list()} == {"web-1", "db-1"}


def test_a_second_run_of_a_fleet_waits_for_the_first(lab, monkeypatch, caplog):
    inside, go_on = halted(monkeypatch, lab.pool)
    with ThreadPoolExecutor() as threads:
        first = threads.submit(lab.engine.create, "web", "t1", count=2)
        assert inside.wait(LONG)
        second = threads.submit(lab.engine.create, "web", "t1", count=2)
        while "waiting for another run on fleet/web" not in caplog.text:
            assert not second.done()
        go_on.set()
        assert len(first.result(LONG).plan.clones) == 2
        assert second.result(LONG).plan.existing == ("web-1", "web-2")


def test_each_run_has_its_own_events_in_its_log(lab, monkeypatch):
    meeting(monkeypatch, lab.pool, 2)
    with ThreadPoolExecutor() as threads:
        runs = [threads.submit(lab.engine.create, name, "t1", count=1) for name in ("web", "db")]
        results = [run.result(LONG) for run in runs]
    for result in results:
        text = (lab.engine.host.runs / f"{result.plan.run}.jsonl").read_text()
        events = [json.loads(line) for line in text.splitlines()]
        assert {event["run"] for event in events} == {result.plan.run}
        assert [e["event"] for e in events if e["event"] != "step"] == ["plan", "result"]
        clones = {event["clone"] for event in events if event["event"] == "step"}
        assert clones - {"t1"} == {clone.name for clone in result.plan.clones}


def at(engine, clone, call):
    """Make a call as soon as a clone's volume is there."""

    class Watcher:
        @hookimpl
        def vmcloner_step_changed(self, event):
            if event.clone == clone and event.status is StepStatus.DONE:
                call()

    return engine.plugins.watch(Watcher())


def test_a_cancellation_ends_the_calls_of_its_block_and_no_others(lab, monkeypatch):
    meeting(monkeypatch, lab.pool, 2)
    ending = Cancellation()
    at(lab.engine, "web-1", ending.cancel)

    def web():
        with ending_with(ending):
            lab.engine.create("web", "t1", count=1, start=True)

    with ThreadPoolExecutor() as threads:
        cancelled = threads.submit(web)
        other = threads.submit(lab.engine.create, "db", "t1", count=1, start=True)
        with pytest.raises(Interrupted):
            cancelled.result(LONG)
        assert other.result(LONG).ok
    assert lab.engine.create("web", "t1", count=1, start=True).ok


def test_cancel_ends_all_runs(lab, monkeypatch):
    meeting(monkeypatch, lab.pool, 2)
    at(lab.engine, "web-1", lab.engine.cancel)
    with ThreadPoolExecutor() as threads:
        runs = [
            threads.submit(lab.engine.create, name, "t1", count=1, start=True)
            for name in ("web", "db")
        ]
        ends = [run.exception(LONG) for run in runs]
    assert isinstance(ends[0], Interrupted)
    assert isinstance(ends[1], Interrupted) or ends[1] is None  # it may have been finished


def test_the_roll_back_of_a_cancelled_create_is_not_cancelled(lab):
    ending = Cancellation()
    at(lab.engine, "web-1", ending.cancel)
    with ending_with(ending), pytest.raises(Interrupted):
        lab.engine.create("web", "t1", count=1, start=True, on_failure="rollback")
    assert lab.engine.list() == ()
    assert ending.asked
