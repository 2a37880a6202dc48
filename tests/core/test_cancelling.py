"""A run's end reaches what drivers wait for, in the pipeline's threads and in theirs."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from vmcloner_core.cancelling import cancellable, carried, pause
from vmcloner_core.copying import Pace
from vmcloner_core.errors import Interrupted


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
