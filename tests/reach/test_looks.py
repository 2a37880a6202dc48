"""``logs``, ``top`` and ``events``: a look at many clones, without changing them."""

import contextlib
import itertools
import json
import os
import re
import time
from pathlib import Path

import attrs
import jsonschema
import pytest

from vmcloner_core import console_lines, run_events, sampling
from vmcloner_core.errors import BackendError
from vmcloner_core.model import Statistics, Usage
from vmcloner_core.plan import Plan
from vmcloner_core.runlog import RunLog

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def fleet(lab):
    lab.engine.create("web", "t1", count=3, start=True)
    for n in (1, 2, 3):
        lab.machines.said[f"web-{n}"] = (
            b"[    1.0] begun\r\n\x1b[1;31mred\x1b[0m\r\nbell\x07\x9b\nlogin: "
        )
    return lab


# --- logs -----------------------------------------------------------------------------------------


def test_logs(fleet, run):
    code, out, err = run("logs", "web-[1-2]")
    assert (code, err) == (0, "")
    lines = [f"web-1: {text}" for text in ("[    1.0] begun", "red", "bell\\x07\ufffd", "login: ")]
    assert out.splitlines() == [*lines, *(line.replace("web-1", "web-2") for line in lines)]


def test_the_last_lines(fleet, run):
    assert run("logs", "--all", "--lines", "1")[1].splitlines() == [
        f"web-{n}: login: " for n in (1, 2, 3)
    ]
    assert run("logs", "web", "--lines", "0")[1] == ""
    assert run("logs", "web", "--lines", "-1")[0] == 2
    assert run("logs", "web", "--since", "soon")[0] == 2
    assert run("logs", "db")[0] == 4


def test_a_console_that_cannot_be_read(fleet, run, monkeypatch):
    read = fleet.machines.consoles.read

    def fails(name, offset, limit):
        if name == "web-2":
            raise BackendError("web-2: no permission")
        return read(name, offset, limit)

    monkeypatch.setattr(fleet.machines.consoles, "read", fails)
    code, out, err = run("logs", "web", "--lines", "1")
    assert (code, out) == (10, "web-1: login: \nweb-3: login: \n")
    assert "web-2: no permission" in err


def test_followed_logs(fleet):
    """What is there first, then what comes; a prompt is shown once its clone is quiet."""
    said = fleet.machines.said
    steps = iter([b"ro", b"ot\nmore\n", b"", b""])

    def wait(_seconds):
        said["web-1"] += next(steps)

    sources = [
        console_lines.Source(name=f"web-{n}", consoles=fleet.machines.consoles) for n in (1, 2)
    ]
    lines = console_lines.read(sources, lines=1, follow=True, wait=wait)
    found = []
    with contextlib.suppress(RuntimeError):  # of a generator in which the steps have ended
        for line in lines:
            found.append((line.clone, line.text))
    assert found == [
        ("web-1", "bell\x07\ufffd"),
        ("web-2", "bell\x07\ufffd"),
        ("web-2", "login: "),
        ("web-1", "login: root"),
        ("web-1", "more"),
    ]


def test_a_restart_begins_anew(fleet):
    """A log is emptied at a start: the new one is shown from its begin."""
    steps = iter([b"new\n"])

    def wait(_seconds):
        fleet.machines.said["web-1"] = next(steps)

    source = console_lines.Source(name="web-1", consoles=fleet.machines.consoles)
    lines = console_lines.read([source], lines=0, follow=True, wait=wait)
    assert [next(lines).text, next(lines).text] == ["login: ", "new"]


def test_endless_lines_come_in_parts(fleet):
    fleet.machines.said["web-1"] = b"x" * (3 * console_lines.MAX_LINE) + b"\nend\n"
    lines = list(fleet.engine.console_lines("web-1"))
    assert max(len(line.text) for line in lines) == console_lines.MAX_LINE
    assert lines[-1].text == "end"


def test_who_says_much_does_not_keep_others_from_being_shown(fleet):
    """A guest may write faster than its lines are shown."""

    class Endless(type(fleet.machines.consoles)):
        def read(self, name, offset, limit):
            if name == "web-1" and offset:
                return b"y\n", offset + 2
            return super().read(name, offset, limit)

    consoles = Endless.__new__(Endless)
    vars(consoles).update(vars(fleet.machines.consoles))
    fleet.machines.said["web-1"] = b""

    def wait(_seconds):
        fleet.machines.said["web-1"] = b"begun\n"
        fleet.machines.said["web-2"] += b"more\n"

    sources = [console_lines.Source(name=f"web-{n}", consoles=consoles) for n in (1, 2)]
    lines = console_lines.read(sources, lines=0, follow=True, wait=wait)
    found = itertools.islice(lines, 200)
    assert ("web-2", "login: more") in [(line.clone, line.text) for line in found]


def test_since(fleet, tmp_path):
    """A silent console has nothing new; a message of the kernel dates what is before it."""
    log = fleet.machines.consoles.log("web-1")
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_bytes(b"")
    fleet.machines.said["web-1"] = b"a\n[   10.0] old\nb\n[   99.5] new\nc\n"
    now = time.time()

    def texts(since, started=now - 100):
        source = console_lines.Source(
            name="web-1", consoles=fleet.machines.consoles, started=started
        )
        return [line.text for line in console_lines.read([source], since=since)]

    assert texts(now - 20) == ["b", "[   99.5] new", "c"]
    assert len(texts(now - 95)) == 5
    assert len(texts(now - 20, started=None)) == 5
    os.utime(log, (now - 50, now - 50))
    assert texts(now - 20) == []


# --- top ------------------------------------------------------------------------------------------

BEFORE = Statistics(at=10.0, cpu=5.0, vcpus=2, memory=2**28, disk_read=0, disk_written=0)


def test_rates():
    now = attrs.evolve(BEFORE, at=12.0, cpu=8.0, disk_read=4096, net_sent=10)
    usage = Usage.between("web-1", "running", BEFORE, now)
    assert (usage.cpu, usage.disk_read, usage.disk_written) == (150.0, 2048, 0)
    assert (usage.memory, usage.vcpus) == (2**28, 2)
    assert (usage.net_sent, usage.net_received) == (None, None)


def test_rates_of_what_was_started_meanwhile():
    """Counters begin anew: a rate would be negative."""
    for before in (attrs.evolve(BEFORE, cpu=9.0), None, attrs.evolve(BEFORE, at=12.0)):
        usage = Usage.between("web-1", "running", before, attrs.evolve(BEFORE, at=12.0))
        assert usage.cpu is None
        assert usage.memory == 2**28


def test_top(fleet, run):
    fleet.engine.stop("web-3", kill=True)
    code, out, _ = run("top", "web", "--interval", "0.1", "-f", "json")
    rows = {row["name"]: row for row in json.loads(out)}
    assert code == 0
    assert set(rows["web-1"]) == {field.name for field in attrs.fields(Usage)}
    assert (rows["web-1"]["cpu"], rows["web-1"]["memory"]) == (100.0, 256 * 1024**2)
    assert (rows["web-3"]["state"], rows["web-3"]["cpu"]) == ("stopped", None)


def test_top_is_sorted_and_fits(fleet, run):
    for n, size in ((1, 2**30), (2, 2**33), (3, 2**20)):
        fleet.machines.used[f"web-{n}"] = attrs.evolve(BEFORE, memory=size)
    out = run("top", "--interval", "0.1", "--sort", "memory")[1]
    assert re.findall(r"^web-\d", out, re.MULTILINE) == ["web-2", "web-1", "web-3"]
    assert max(map(len, out.splitlines())) <= 80
    out = run("top", "--interval", "0.1", "--sort", "name", "-c", "name", "-f", "value")[1]
    assert out.split() == ["web-1", "web-2", "web-3"]


def test_the_longest_row_fits():
    from vmcloner_core.cli import top

    rates = {"disk_read": 2**40, "disk_written": 1023, "net_received": 999, "net_sent": 10000}
    name = f"{'x' * 55}-123456"
    usage = Usage(name=name, state="running", cpu=12800.0, memory=2**50, **rates)
    row = [str(cell) for cell in top._row(usage)]
    widths = [max(len(a), len(b)) for a, b in zip(row, top.SHORT, strict=True)]
    assert sum(widths) + 2 * (len(widths) - 1) <= 80
    assert row[0].endswith("-123456")


def test_wrong_options_of_top(fleet, run):
    assert run("top", "--interval", "0")[0] == 2
    assert run("top", "--sort", "size")[0] == 2
    assert run("top", "db")[0] == 4


# --- events ---------------------------------------------------------------------------------------


def lines_of(out):
    return [json.loads(line) for line in out.splitlines()]


def test_events(fleet, run):
    code, out, _ = run("events")
    events = lines_of(out)
    assert code == 0
    assert [event["event"] for event in events][:: len(events) - 1] == ["plan", "result"]
    assert {event["schema"] for event in events} == {1}
    assert len({event["run"] for event in events}) == 1
    times = [event["time"] for event in events]
    assert times == sorted(times)
    assert events[0]["clones"] == ["web-1", "web-2", "web-3"]


def test_events_of_one_run(fleet, run):
    fleet.engine.delete("web")
    runs = {e.values["action"]: e.run for e in fleet.engine.events() if e.kind == "plan"}
    first, second = runs["create"], runs["delete"]
    events = lines_of(run("events", "--run", second, "--follow")[1])
    assert {event["run"] for event in events} == {second}
    assert events[0]["action"] == "delete"
    for wrong in (f"{first}x", "../secrets", "", "/etc/passwd"):
        assert run("events", "--run", wrong)[0] == 4


def tables():
    """Return the tables of keys that docs/events.md has, by event."""
    page = (DOCS / "events.md").read_text()
    return dict(re.findall(r"^## `(\w+)`\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL))


def documented():
    """Return the keys that are documented, by event."""
    found = tables().items()
    return {name: set(re.findall(r"^\| `(\w+)` ", table, re.MULTILINE)) for name, table in found}


def sometimes(event):
    """Return the keys that are documented as being there only in some events of a kind."""
    return set(re.findall(r"^\| `(\w+)` \| only ", tables()[event], re.MULTILINE))


def test_each_documented_key_is_there(fleet, run, monkeypatch):
    """docs/events.md and its schema list, for each event, all keys and no other."""
    monkeypatch.setattr(sampling, "INTERVAL", 0.02)
    assert run("wait", "web-1", "--for", "console:never", "--timeout", "1")[0] == 10
    assert run("wait", "web-1", "--for", "console:login")[0] == 0
    pages = documented()
    common = pages.pop("every")
    found = {}
    for event in lines_of(run("events")[1]):
        found.setdefault(event["event"], set()).update(event)
    assert found == {name: common | keys for name, keys in pages.items()}
    schema = json.loads((DOCS / "events.schema.json").read_text())
    assert set(schema["required"]) == common
    for name, keys in pages.items():
        assert set(schema["$defs"][name]["properties"]) == keys | {"event"}
        assert set(schema["$defs"][name]["required"]) == keys - sometimes(name)
        assert set(schema["$defs"][name]["properties"]) == keys | {"event"}


def test_events_are_as_the_schema_says(fleet, run, monkeypatch):
    monkeypatch.setattr(sampling, "INTERVAL", 0.02)
    run("wait", "web-1", "--for", "console:never", "--timeout", "1")
    fleet.pool.fail["web-4"] = "full"
    run("create", "web", "-t", "t1", "-n", "4")
    run("delete", "web")
    validator = jsonschema.Draft202012Validator(
        json.loads((DOCS / "events.schema.json").read_text())
    )
    events = lines_of(run("events")[1])
    assert {event.get("status") for event in events} >= {"started", "done", "failed"}
    assert {event["event"] for event in events} == {"plan", "step", "seen", "sample", "result"}
    for event in events:
        validator.validate(event)
    for wrong in ({**events[0], "clones": 1}, {**events[1], "status": "new"}, {"event": "plan"}):
        assert not validator.is_valid(wrong)
    assert validator.is_valid({**events[0], "event": "a later kind"})


def test_what_is_seen_of_clones(fleet, run):
    fleet.machines.said["web-3"] = b""
    words = ("wait", "web-[1,3]", "--for", "console:login", "--timeout", "1")
    assert run(*words)[0] == 10
    seen = [e for e in lines_of(run("events")[1]) if e["event"] == "seen"]
    told = [(e["clone"], e["what"], e["text"]) for e in seen]
    assert told == [
        ("web-1", "output", "[    1.0] begun"),
        ("web-1", "console", ""),
        ("web-3", "log", ""),
    ]
    assert seen[0]["at"] <= seen[1]["at"] < seen[2]["at"]


def test_the_last_lines_of_a_console_are_in_the_log(fleet, run):
    fleet.machines.said["web-1"] = b"".join(b"line %d\r\n\n" % n for n in range(50)) + b"x" * 999
    run("wait", "web-1", "--for", "console:never", "--timeout", "0.5")
    (seen,) = [e for e in lines_of(run("events")[1]) if e.get("what") == "log"]
    assert seen["text"].split("\n") == [*(f"line {n}" for n in range(31, 50)), "x" * 200]


def test_events_on_a_file_descriptor(lab, run):
    read, write = os.pipe()
    with os.fdopen(read) as stream:
        code, _, _ = run("--events-fd", str(write), "create", "web", "-t", "t1", "-n", "2")
        os.close(write)
        events = [json.loads(line) for line in stream]
    assert code == 0
    logged = [event.json() for event in lab.engine.events()]
    without_time = [{k: v for k, v in each.items() if k != "time"} for each in events]
    assert without_time == [{k: v for k, v in each.items() if k != "time"} for each in logged]


def test_a_reader_that_goes_away_does_not_end_the_run(lab, run, caplog):
    read, write = os.pipe()
    os.close(read)
    assert run("--events-fd", str(write), "create", "web", "-t", "t1", "-n", "2")[0] == 0
    os.close(write)
    assert caplog.text.count("no more events") == 1
    assert len(lab.engine.list("web")) == 2


def test_a_descriptor_that_cannot_be_written(lab, run, tmp_path):
    for wrong in ("x", "-1", "99999999999999999999", "987"):
        code, _, err = run("--events-fd", wrong, "list")
        assert code == 2, wrong
        assert "--events-fd" in err
        assert len(err.splitlines()) == 1
    (tmp_path / "file").touch()
    with (tmp_path / "file").open() as only_read:
        code, _, err = run("--events-fd", str(only_read.fileno()), "list")
    assert (code, "for reading only" in err) == (2, True)


def test_followed_events_of_other_processes(tmp_path):
    """Only what comes; half a line is none until its end is there."""
    old = tmp_path / "2026-a.jsonl"
    old.write_text('{"event": "plan", "time": "2026-01-01T00:00:00.000+00:00"}\n{"event": "st')
    new = tmp_path / "2026-b.jsonl"

    def first():
        with old.open("a") as stream:
            stream.write('ep", "at": 1.5, "clone": "web-1"}\n')

    def second():
        new.write_text('{"event": "plan"}\nnonsense\n[]\n{"event": 5}\n{"event": "result", "k"')

    def third():
        with new.open("a") as stream:
            stream.write(": 1}\n")

    steps = itertools.chain([first, second, third])
    events = run_events.read(tmp_path, follow=True, wait=lambda _s: next(steps)())
    step = next(events)
    assert (step.run, step.kind, step.time) == ("2026-a", "step", "2026-01-01T00:00:01.500+00:00")
    assert next(events).json() == {"schema": 1, "run": "2026-b", "time": "", "event": "plan"}
    assert next(events).values == {"k": 1}


def test_followed_events_of_a_log_that_is_cut_off_or_replaced(tmp_path):
    """It is read from its begin again: what is written there is new."""
    log = tmp_path / "2026-a.jsonl"
    log.write_text('{"event": "plan", "n": 1}\n{"event": "ste')
    line = '{"event": "step", "n": %d}\n'

    def replaced():
        log.rename(tmp_path / "2026-a.jsonl.1")
        log.write_text("".join(line % n for n in (4, 5, 6, 7)))

    steps = iter([lambda: log.write_text(line % 2), lambda: log.write_text(""), replaced])
    events = run_events.read(tmp_path, follow=True, wait=lambda _s: next(steps)())
    found = list(itertools.islice(events, 5))
    assert [event.values["n"] for event in found] == [2, 4, 5, 6, 7]


def test_following_a_run_ends_with_its_process(tmp_path):
    """A run that is killed has no result."""
    log = RunLog(tmp_path, "2026-a")
    log.vmcloner_plan_ready(Plan(action="create", run="2026-a", host="h", clones=(), order=()))
    waits = []

    def wait(_seconds):
        waits.append(1)
        if len(waits) == 3:
            log.close()  # as the kernel does, however it dies

    events = run_events.read(tmp_path, run="2026-a", follow=True, wait=wait)
    assert [event.kind for event in events] == ["plan"]
    assert len(waits) == 3


def test_no_runs_yet(lab, run):
    assert run("events") == (0, "", "")
