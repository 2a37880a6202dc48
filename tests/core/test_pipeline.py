"""The pipeline and the watcher alone: order, batches, bugs of drivers, hostile consoles."""

import threading
import time
from pathlib import Path

import attrs
import pytest

from vmcloner_core.cancelling import pause
from vmcloner_core.drivers import Lane
from vmcloner_core.errors import Conflict, HostCommandError, Interrupted, WrongState
from vmcloner_core.locks import hold
from vmcloner_core.model import Outcome, State, Volume
from vmcloner_core.pipeline import Pipeline, Stage, Work
from vmcloner_core.plan import ClonePlan, Readiness
from vmcloner_core.readiness import Awaited
from vmcloner_core.steps import undoing
from vmcloner_core.testing.samples import make_labels
from vmcloner_core.watching import watch


def works(count, *stages):
    labels = [make_labels(index=index) for index in range(1, count + 1)]
    steps = tuple(stage.step for stage in stages)
    return [Work(plan=ClonePlan(labels=each, steps=steps), route=stages) for each in labels]


def made(*steps):
    """A clone whose plan has these steps."""
    return Work(plan=ClonePlan(labels=make_labels(), steps=steps))


def fine(batch, _more):
    for work in batch:
        yield Outcome(key=work.name)


def run(todo, cancelled=None):
    events = []
    cancelled = cancelled or threading.Event()
    Pipeline("r", events.append, cancelled, time.monotonic())(todo)
    return events


def test_clones_stream_through():
    """The first is started before the last is cloned."""
    order = []

    def slow(batch, _more):
        for work in batch:
            time.sleep(0.005)
            order.append(("clone", work.name))
            yield Outcome(key=work.name)

    def quick(batch, _more):
        for work in batch:
            order.append(("start", work.name))
            yield Outcome(key=work.name)

    todo = works(
        20,
        Stage(step="clone", call=slow, lane=Lane(batch=20)),
        Stage(step="start", call=quick, lane=Lane()),
    )
    run(todo)
    assert order.index(("start", "web-1")) < order.index(("clone", "web-20"))
    assert len(order) == 40
    assert all(work.error is None for work in todo)


def test_batches_and_calls_are_bounded():
    sizes, at_once, peak, lock = [], 0, 0, threading.Lock()

    def call(batch, _more):
        nonlocal at_once, peak
        with lock:
            sizes.append(len(batch))
            at_once += 1
            peak = max(peak, at_once)
        time.sleep(0.01)
        yield from fine(batch, None)
        with lock:
            at_once -= 1

    run(works(50, Stage(step="clone", call=call, lane=Lane(batch=7, concurrency=3))))
    assert max(sizes) <= 7
    assert peak <= 3
    assert sum(sizes) == 50


def test_a_batch_counts_the_members_of_each_clone():
    """Three disks of one clone and one of another are four volumes of a driver's call."""
    sizes = []

    def call(batch, _more):
        sizes.append([members[work.name] for work in batch])
        yield from fine(batch, None)

    members = {"web-1": 3, "web-2": 1, "web-3": 2, "web-4": 9, "web-5": 4}
    stage = Stage(step="clone", call=call, lane=Lane(batch=4), members=lambda w: members[w.name])
    run(works(5, stage))
    assert [size for batch in sizes for size in batch] == [3, 1, 2, 9, 4]
    assert all(sum(batch) <= 4 or len(batch) == 1 for batch in sizes)


@pytest.mark.parametrize("bug", ["silent", "raises", "raises ours", "leaves"])
def test_a_drivers_bug_fails_its_clones_and_hangs_nobody(bug):
    def call(batch, _more):
        yield Outcome(key=batch[0].name)
        if bug == "raises":
            raise RuntimeError("bug")
        if bug == "leaves":
            raise SystemExit(3)
        if bug == "raises ours":
            raise HostCommandError("pool is gone")

    todo = works(
        4,
        Stage(step="clone", call=call, lane=Lane(batch=4)),
        Stage(step="start", call=fine, lane=Lane()),
    )
    run(todo)
    assert todo[0].error is None
    assert todo[0].made == ["clone", "start"]
    assert all(work.failed_step == "clone" for work in todo[1:])


def test_outcomes_of_strangers_and_doubles_are_ignored():
    def call(batch, _more):
        yield Outcome(key="stranger")
        yield from fine(batch, None)
        yield from fine(batch, None)

    todo = works(3, Stage(step="clone", call=call, lane=Lane(batch=3)))
    run(todo)
    assert all(work.made == ["clone"] for work in todo)


def test_cancelled_before_it_begins_does_nothing():
    cancelled = threading.Event()
    cancelled.set()
    todo = works(5, Stage(step="clone", call=fine, lane=Lane(batch=2)))
    run(todo, cancelled)
    assert all(isinstance(work.error, Interrupted) and not work.made for work in todo)


def test_undo_leaves_what_the_run_did_not_make():
    work = made("clone", "define", "start")
    for disk in (1, 0):
        name = f"web-1-disk{disk}"
        volume = Volume(name=name, pool="p", labels=work.plan.labels, path=Path(name), size=1)
        work.add(volume, made=disk == 1)
    assert [volume.disk for volume in work.volumes] == [0, 1]
    work.made = ["clone", "define"]
    assert undoing(work).plan.steps == ("destroy", "undefine", "remove")
    work.made, work.failed_step, work.error = ["clone"], "define", HostCommandError("x")
    assert undoing(work).plan.steps == ("destroy", "undefine", "remove")
    work.error = Conflict("foreign")
    assert undoing(work).plan.steps == ("remove",)
    assert [volume.name for volume in undoing(work).volumes] == ["web-1-disk1"]
    assert undoing(work).forget
    work.made, work.own, work.error = [], (), Interrupted("x")
    assert undoing(work) is None


def test_undo_leaves_a_domain_and_an_identity_that_were_there():
    work = made("define", "start")
    work.made, work.failed_step, work.error = ["define"], "start", HostCommandError("x")
    for state, steps in (
        (State.ALLOCATED, ("destroy", "undefine")),
        (State.STOPPED, ("destroy",)),
        (State.ORPHAN, ("destroy",)),
    ):
        work.plan = attrs.evolve(work.plan, state=state)
        assert undoing(work).plan.steps == steps
        assert not undoing(work).forget


class Guest:
    """As much of a hypervisor as the watcher asks for."""

    def __init__(self, *chunks, state=State.RUNNING):
        self.said, self.chunks, self.state = b"", list(chunks), state

    def states(self):
        return {"web-1": self.state} if self.state else {}

    @property
    def consoles(self):
        return self

    def read(self, _name, offset, limit):
        if self.chunks:
            self.said += self.chunks.pop(0)
        data = self.said[offset : offset + limit]
        return data, offset + len(data)


def ready(guest, pattern, timeout=1.0):
    readiness = Readiness(kind="console", argument=pattern, timeout=timeout)
    (outcome,) = watch([Awaited(name="web-1", driver=guest, readiness=readiness)])
    return outcome


def test_a_line_may_come_in_pieces_with_colours_and_without_an_end():
    assert ready(Guest(b"boot\r\n\x1b[32mweb-", b"1\x1b[0m log", b"in:"), "^web-1 login:").ok


def test_bytes_that_are_no_text():
    assert ready(Guest(bytes(range(256)) * 300, b"\nready\n"), "^ready$").ok


def test_one_endless_line_is_bounded():
    outcome = ready(Guest(*[b"a" * 60000] * 20), "b", timeout=0.8)
    assert len(str(outcome.error)) < 5000


def test_the_dead_are_not_waited_for():
    started = time.monotonic()
    for state in (State.CRASHED, State.STOPPED, None):
        outcome = ready(Guest(b"Kernel panic\n", state=state), "login", timeout=30)
        assert isinstance(outcome.error, WrongState)
        assert "Kernel panic" in str(outcome.error)
    assert time.monotonic() - started < 20


def test_locks_hold_between_threads_and_end_with_their_holder(tmp_path):
    order = []

    def second():
        with hold(tmp_path, ["fleet/web"], waiting=lambda name: order.append(f"waiting {name}")):
            order.append("second")

    with hold(tmp_path, ["fleet/web", "fleet/db"]):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.3)
        with hold(tmp_path, ["fleet/other"]):
            order.append("first")
    thread.join()
    assert order == ["waiting fleet/web", "first", "second"]


def test_waiting_for_a_lock_can_be_stopped(tmp_path):
    with (
        hold(tmp_path, ["a"]),
        pytest.raises(Interrupted),
        hold(tmp_path, ["a"], cancelled=lambda: True),
    ):
        pass


def test_a_call_that_hangs_after_its_last_outcome_does_not_hang_the_run():
    for_ever = threading.Event()

    def call(batch, _more):
        yield from fine(batch, None)
        for_ever.wait(100)

    todo = works(2, Stage(step="start", call=call, lane=Lane(batch=2), patience=0.3))
    begun = time.monotonic()
    run(todo)
    assert time.monotonic() - begun < 60
    assert all(work.error is None for work in todo)
    for_ever.set()


def test_a_drivers_pause_ends_when_the_run_does():
    cancelled, paused = threading.Event(), threading.Event()

    def call(batch, _more):
        paused.set()
        pause(200)
        yield from fine(batch, None)

    threading.Thread(target=lambda: paused.wait(60) and cancelled.set(), daemon=True).start()
    todo = works(1, Stage(step="start", call=call, lane=Lane()))
    run(todo, cancelled)
    assert isinstance(todo[0].error, Interrupted)
