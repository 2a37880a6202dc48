"""A run's end reaches what drivers wait for, in the pipeline's threads and in theirs."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from vmcloner_core.cancelling import cancellable, carried, interruptible, pause, pauses
from vmcloner_core.copying import Pace
from vmcloner_core.errors import Interrupted
from vmcloner_core.process import LocalRunner


def ended():
    event = threading.Event()
    event.set()
    return event


def test_a_pause_outside_of_a_run_only_waits():
    pause(0)
    pause(-1)


def test_a_pause_ends_with_its_run():
    with cancellable(threading.Event()):
        pause(0)
        with cancellable(ended()), pytest.raises(Interrupted):
            pause(300)
        pause(0)


def test_threads_belong_to_the_run_only_if_they_are_told():
    with cancellable(ended()), ThreadPoolExecutor(2) as pool:
        pool.submit(pause, 0).result()
        both = [pool.submit(carried(pause), 300) for _ in range(2)]
        for each in both:
            with pytest.raises(Interrupted):
                each.result()


@pytest.mark.parametrize("bandwidth", [None, 1])
def test_a_copy_ends_with_its_run(bandwidth):
    pace = Pace(bandwidth)
    pace(1)
    with cancellable(ended()), pytest.raises(Interrupted):
        pace(1)


def test_waiting_ends_when_the_run_does():
    event = threading.Event()
    timer = threading.Timer(0.05, event.set)
    timer.start()
    begun = time.monotonic()
    with cancellable(event), pytest.raises(Interrupted):
        pause(300)
    assert time.monotonic() - begun < 300


def test_a_command_that_may_be_interrupted_ends_with_its_run(tmp_path):
    """It is asked to, by SIGTERM; one that must finish is waited for."""
    mark, begun = tmp_path / "asked", tmp_path / "begun"
    script = f"trap 'touch {mark}; exit 0' TERM; touch {begun}; sleep 200 & wait"
    event = threading.Event()

    def watch():
        while not begun.exists():
            time.sleep(0.02)
        event.set()

    threading.Thread(target=watch, daemon=True).start()
    with cancellable(event):
        with pytest.raises(Interrupted), interruptible():
            LocalRunner().run(["sh", "-c", script], timeout=300)
        assert mark.exists()
        assert LocalRunner().run(["echo", "done"], timeout=60).stdout == b"done\n"
        with pytest.raises(Interrupted), interruptible():
            LocalRunner().run(["touch", str(tmp_path / "never")], timeout=60)
    assert not (tmp_path / "never").exists()


def test_looks_become_rarer_up_to_a_limit(monkeypatch):
    waited = []
    monkeypatch.setattr("vmcloner_core.cancelling.pause", waited.append)
    looks = pauses(1.0)
    for _ in range(30):
        next(looks)
    assert waited[0] == 0.05
    assert waited == sorted(waited)
    assert waited[-1] == 1.0
    # What is looked for is seen at most a quarter of its own time late.
    assert all(waited[n] <= 0.05 + 0.26 * sum(waited[:n]) for n in range(len(waited)))
    waited.clear()
    next(pauses(0.0))
    assert waited == [0.0]
