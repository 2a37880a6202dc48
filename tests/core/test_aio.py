"""The engine's calls as coroutines."""

import asyncio
import inspect
import json
from datetime import UTC

import pytest

from tests.pauses import LONG, halted, meeting
from vmcloner_core import Engine
from vmcloner_core.aio import AsyncEngine
from vmcloner_core.errors import NotFound, PartialFailure
from vmcloner_core.event_stream import as_json
from vmcloner_core.plan import PlanReady, RunFinished, StepEvent
from vmcloner_core.testing.reference import BootPlugin, HypervisorPlugin, StoragePlugin

# What isn't a call, or can't be one: hold() keeps locks for a block of its thread.
APART = {"open", "close", "cancel", "hold", "use_pool"}


def run(lab, main):
    async def whole():
        engine = AsyncEngine(lab.engine, threads=4)
        try:
            return await asyncio.wait_for(main(engine), LONG)
        finally:
            await engine.close()

    return asyncio.run(whole())


def test_every_call_of_the_engine_is_there():
    calls = {
        name
        for name, each in inspect.getmembers(Engine, inspect.isfunction)
        if not name.startswith("_")
    }
    assert calls - APART == {
        name
        for name, each in inspect.getmembers(AsyncEngine, inspect.isfunction)
        if not name.startswith("_") and name not in ("close", "cancel", "watching")
    }
    for name in calls - APART:
        made, call = getattr(AsyncEngine, name), getattr(Engine, name)
        assert inspect.iscoroutinefunction(made) or inspect.isasyncgenfunction(made), name
        assert made.__doc__ == call.__doc__


def test_calls_and_their_errors(lab):
    async def main(engine):
        result = await engine.create("web", "t1", count=2)
        assert [clone.name for clone in await engine.list("web")] == ["web-1", "web-2"]
        with pytest.raises(NotFound):
            await engine.show("web-9")
        lab.pool.fail["db-1"] = "full"
        with pytest.raises(PartialFailure):
            await engine.create("db", "t1", count=1)
        checks = [check async for check in engine.check_host()]
        assert {check.backend for check in checks} >= {"reference"}
        return result

    assert run(lab, main).ok


def test_runs_go_on_at_the_same_time(lab, monkeypatch):
    meeting(monkeypatch, lab.pool, 2)

    async def main(engine):
        await asyncio.gather(*(engine.create(name, "t1", count=1) for name in ("web", "db")))

    run(lab, main)
    assert {clone.name for clone in lab.engine.list()} == {"db-1", "web-1"}


def test_a_cancelled_task_ends_its_run_cleanly(lab, monkeypatch):
    inside, go_on = halted(monkeypatch, lab.pool)

    async def main(engine):
        making = asyncio.create_task(
            engine.create("web", "t1", count=2, start=True, on_failure="rollback")
        )
        await asyncio.to_thread(inside.wait, LONG)
        making.cancel()
        await asyncio.sleep(0)
        assert not making.done()  # its call to the driver is finished first
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await making
        assert await engine.list() == ()
        assert (await engine.create("db", "t1", count=1)).ok

    run(lab, main)


def logged(lab, run):
    """Return what the log of a run says."""
    text = (lab.folder / "state/runs" / f"{run}.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_events_as_they_come(lab):
    async def main(engine):
        seen = []
        async with engine.watching() as events:
            making = asyncio.create_task(engine.create("web", "t1", count=2))
            async for event in events:
                seen.append(event)
                if isinstance(event, RunFinished):
                    break
            await making
        return seen

    events = run(lab, main)
    begin, *_, end = events
    assert isinstance(begin, PlanReady)
    assert [clone.name for clone in begin.plan.clones] == ["web-1", "web-2"]
    assert {e.clone for e in events if isinstance(e, StepEvent)} == {"t1", "web-1", "web-2"}
    assert {(e.schema, e.run) for e in events} == {(1, begin.plan.run)}
    assert {e.time.tzinfo for e in events} == {UTC}
    assert [result.name for result in end.result.results] == ["web-1", "web-2"]
    told = [as_json(event) for event in events]
    assert [{**e, "time": ""} for e in told] == [{**e, "time": ""} for e in logged(lab, begin.run)]


def test_a_stream_ends_with_its_task(lab):
    async def main(engine):
        async def follow():
            async for _event in engine.events(follow=True):
                pass

        following = asyncio.create_task(follow())
        await engine.create("web", "t1", count=1)
        following.cancel()
        with pytest.raises(asyncio.CancelledError):
            await following

    run(lab, main)


def test_it_opens_and_closes_an_engine(lab):
    async def main():
        plugins = [StoragePlugin(), HypervisorPlugin(), BootPlugin()]
        async with AsyncEngine.open(plugins=plugins) as engine:
            return await engine.create("web", "t1", count=1)

    assert asyncio.run(main()).ok
