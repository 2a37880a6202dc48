"""The pipeline and the watcher alone: order, batches, bugs of drivers, hostile consoles."""

import threading
import time
from pathlib import Path

import attrs
import pytest

from vmcloner_core.drivers import Lane
from vmcloner_core.errors import Conflict, HostCommandError, Interrupted, WrongState
from vmcloner_core.locks import hold
from vmcloner_core.model import Outcome, State, Volume
from vmcloner_core.pipeline import Pipeline, Stage, Work, undo
from vmcloner_core.plan import ClonePlan, Readiness, Step
from vmcloner_core.readiness import Awaited, watch
from vmcloner_core.testing.samples import make_labels


def works(count, *steps):
    labels = [make_labels(index=index) for index in range(1, count + 1)]
    return [Work(plan=ClonePlan(labels=label, steps=steps)) for label in labels]


def fine(batch, _more):
    for work in batch:
        yield Outcome(key=work.name)


def run(stages, todo, cancelled=None):
    events = []
    cancelled = cancelled or threading.Event()
    Pipeline("r", stages, events.append, cancelled, time.monotonic())(todo)
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

    todo = works(20, Step.CLONE, Step.START)
    run([Stage(step=Step.CLONE, call=slow, lane=Lane(batch=20)),
         Stage(step=Step.START, call=quick, lane=Lane())], todo)  # fmt: skip
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

    run(
        [Stage(step=Step.CLONE, call=call, lane=Lane(batch=7, concurrency=3))],
        works(50, Step.CLONE),
    )
    assert max(sizes) <= 7
    assert peak <= 3
    assert sum(sizes) == 50


@pytest.mark.parametrize("bug", ["silent", "raises", "raises ours"])
def test_a_drivers_bug_fails_its_clones_and_hangs_nobody(bug):
    def call(batch, _more):
        yield Outcome(key=batch[0].name)
        if bug == "raises":
            raise RuntimeError("bug")
        if bug == "raises ours":
            raise HostCommandError("pool is gone")

    todo = works(4, Step.CLONE, Step.START)
    run([Stage(step=Step.CLONE, call=call, lane=Lane(batch=4)),
         Stage(step=Step.START, call=fine, lane=Lane())], todo)  # fmt: skip
    assert todo[0].error is None
    assert todo[0].made == [Step.CLONE, Step.START]
    assert all(work.failed_step is Step.CLONE for work in todo[1:])


def test_outcomes_of_strangers_and_doubles_are_ignored():
    def call(batch, _more):
        yield Outcome(key="stranger")
        yield from fine(batch, None)
        yield from fine(batch, None)

    todo = works(3, Step.CLONE)
    run([Stage(step=Step.CLONE, call=call, lane=Lane(batch=3))], todo)
    assert all(work.made == [Step.CLONE] for work in todo)


def test_cancelled_before_it_begins_does_nothing():
    cancelled = threading.Event()
    cancelled.set()
    todo = works(5, Step.CLONE)
    run([Stage(step=Step.CLONE, call=fine, lane=Lane(batch=2))], todo, cancelled)
    assert all(isinstance(work.error, Interrupted) and not work.made for work in todo)


def test_undo_leaves_what_the_run_did_not_make():
    (work,) = works(1, Step.CLONE, Step.DEFINE, Step.START)
    for disk in (1, 0):
        name = f"web-1-disk{disk}"
        volume = Volume(name=name, pool="p", labels=work.plan.labels, path=Path(name), size=1)
        work.add(volume, made=disk == 1)
    assert [volume.disk for volume in work.volumes] == [0, 1]
    work.made = [Step.CLONE, Step.DEFINE]
    assert undo(work).plan.steps == (Step.DESTROY, Step.UNDEFINE, Step.REMOVE)
    work.made, work.failed_step, work.error = [Step.CLONE], Step.DEFINE, HostCommandError("x")
    assert undo(work).plan.steps == (Step.DESTROY, Step.UNDEFINE, Step.REMOVE)
    work.error = Conflict("foreign")
    assert undo(work).plan.steps == (Step.REMOVE,)
    assert [volume.name for volume in undo(work).volumes] == ["web-1-disk1"]
    assert undo(work).forget
    work.made, work.own, work.error = [], (), Interrupted("x")
    assert undo(work).plan.steps == ()


def test_undo_leaves_a_domain_and_an_identity_that_were_there():
    (work,) = works(1, Step.DEFINE, Step.START)
    work.made, work.failed_step, work.error = [Step.DEFINE], Step.START, HostCommandError("x")
    for state, steps in (
        (State.ALLOCATED, (Step.DESTROY, Step.UNDEFINE)),
        (State.STOPPED, (Step.DESTROY,)),
        (State.ORPHAN, (Step.DESTROY,)),
    ):
        work.plan = attrs.evolve(work.plan, state=state)
        assert undo(work).plan.steps == steps
        assert not undo(work).forget


class Guest:
    """As much of a hypervisor as the watcher asks for."""

    def __init__(self, *chunks, state=State.RUNNING):
        self.said, self.chunks, self.state = b"", list(chunks), state

    def states(self):
        return {"web-1": self.state} if self.state else {}

    def read_console(self, _name, offset, limit):
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
