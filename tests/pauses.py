"""Hold a reference pool's clone() where a test wants it, and wait for what comes."""

import threading
import time

LONG = 60


def meeting(monkeypatch, driver, parties):
    """Have calls of the driver's clone() wait until so many are in it at once."""
    barrier = threading.Barrier(parties, timeout=LONG)
    clone = driver.clone

    def met(*args, **options):
        barrier.wait()
        return clone(*args, **options)

    monkeypatch.setattr(driver, "clone", met)


def halted(monkeypatch, driver):
    """Have calls of the driver's clone() wait; returns (set once one is in it, lets them go on)."""
    inside, go_on = threading.Event(), threading.Event()
    clone = driver.clone

    def slow(*args, **options):
        inside.set()
        assert go_on.wait(LONG)
        return clone(*args, **options)

    monkeypatch.setattr(driver, "clone", slow)
    return inside, go_on


def until(tells):
    """Wait until a function tells that it is so."""
    end = time.monotonic() + LONG
    while not tells():
        assert time.monotonic() < end, "not within a minute"
        time.sleep(0.01)
