"""The example of a service: an engine behind HTTP, by asyncio."""

import asyncio
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from aiohttp.test_utils import TestClient, TestServer

from tests.pauses import LONG, halted
from vmcloner_core.aio import AsyncEngine

TOP = Path(__file__).parents[2]
EXAMPLE = TOP / "contrib/examples/service"


@pytest.fixture(scope="module")
def service():
    spec = importlib.util.spec_from_file_location("example_service", EXAMPLE / "service.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def asked(lab, service):
    """Return a function that runs a coroutine with a client of the service."""

    def ask(main):
        async def whole():
            engine = AsyncEngine(lab.engine)
            # This server cancels the handlers of requests that are broken off, as main() does.
            async with TestClient(TestServer(service.application(engine))) as client:
                return await asyncio.wait_for(main(client), LONG)

        return asyncio.run(whole())

    return ask


def test_a_fleet_is_made_told_and_deleted(asked):
    async def main(client):
        wanted = {"template": "t1", "count": 2, "start": True}
        first = await (await client.put("/fleets/ci", json=wanted)).json()
        again = await (await client.put("/fleets/ci", json=wanted)).json()
        told = await (await client.get("/fleets/ci")).json()
        gone = await (await client.delete("/fleets/ci")).json()
        none = await (await client.delete("/fleets/ci")).json()
        return first, again, told, gone, none

    first, again, told, gone, none = asked(main)
    assert [clone["name"] for clone in first] == ["ci-1", "ci-2"]
    assert {clone["state"] for clone in first} == {"running"}
    assert first == again == told
    assert (gone, none) == ({"deleted": ["ci-1", "ci-2"]}, {"deleted": []})


def test_errors_are_answers(asked, lab):
    lab.pool.fail["bad-2"] = "full"

    async def main(client):
        answers = [
            await client.get("/fleets/none"),
            await client.put("/fleets/ci", json={"template": "gone"}),
            await client.put("/fleets/ci", json={"tempalte": "t1"}),
            await client.put("/fleets/ci", data=b"no JSON"),
            await client.put("/fleets/BAD", json={"template": "t1"}),
            await client.put("/fleets/bad", json={"template": "t1", "count": 2}),
        ]
        return [(answer.status, await answer.text()) for answer in answers]

    answers = asked(main)
    assert [status for status, _ in answers] == [404, 404, 400, 400, 409, 500]
    assert json.loads(answers[-1][1])["failed"].keys() == {"bad-2"}


def test_events_come_while_a_fleet_is_made(asked):
    async def main(client):
        events = []
        async with client.get("/events") as stream:
            making = asyncio.create_task(client.put("/fleets/ci", json={"template": "t1"}))
            async for line in stream.content:
                events.append(json.loads(line))
                if events[-1]["event"] == "result":
                    break
            await making
        return events

    events = asked(main)
    assert [e["event"] for e in events if e["event"] != "step"] == ["plan", "result"]


def test_a_request_that_is_broken_off_ends_its_run(asked, lab, monkeypatch):
    inside, go_on = halted(monkeypatch, lab.pool)
    wanted = {"template": "t1", "count": 2, "start": True, "on_failure": "rollback"}

    async def main(client):
        making = asyncio.create_task(client.put("/fleets/ci", json=wanted))
        await asyncio.to_thread(inside.wait, LONG)
        making.cancel()
        with pytest.raises(asyncio.CancelledError):
            await making
        while not lab.engine._calls[0].asked:
            await asyncio.sleep(0.01)
        go_on.set()
        while lab.engine._calls:
            await asyncio.sleep(0.01)

    asked(main)
    assert lab.engine.list() == ()


@pytest.mark.parametrize(
    "command",
    [("mypy", "--strict", EXAMPLE / "service.py"), ("basedpyright", "-p", EXAMPLE)],
    ids=lambda words: words[0],
)
def test_its_types_are_checked_strictly(command):
    """The engine's types are enough for who uses it."""
    program = Path(sys.executable).with_name(command[0])
    done = subprocess.run(
        [program, *command[1:]], cwd=TOP, capture_output=True, text=True, check=False, timeout=250
    )
    assert done.returncode == 0, done.stdout


def test_the_types_are_really_checked(tmp_path):
    """A mistake in the use of the engine is found."""
    wrong = (EXAMPLE / "service.py").read_text().replace("clone.ip}", "clone.address}")
    assert "clone.address" in wrong
    (tmp_path / "service.py").write_text(wrong)
    config = json.loads((EXAMPLE / "pyrightconfig.json").read_text())
    for key in ("extraPaths", "venvPath"):
        given = config[key]
        made = [str((EXAMPLE / path).resolve()) for path in given] if isinstance(given, list) else (
            str((EXAMPLE / given).resolve())
        )  # fmt: skip
        config[key] = made
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(config))
    program = Path(sys.executable).with_name("basedpyright")
    done = subprocess.run(
        [program, "-p", "."], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=250
    )
    assert done.returncode == 1
    assert "address" in done.stdout
