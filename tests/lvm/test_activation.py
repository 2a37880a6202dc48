"""What several threads ask for at once is done together."""

import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from vmcloner_core.errors import HostCommandError
from vmcloner_lvm import activation
from vmcloner_lvm.activation import Together, deactivate
from vmcloner_lvm.devmapper import Device
from vmcloner_lvm.holders import Holders


def test_who_waits_is_served_together():
    started, go_on, batches = threading.Event(), threading.Event(), []

    def work(names):
        batches.append(list(names))
        started.set()
        go_on.wait(30)
        return dict.fromkeys(names)

    together = Together(work)
    with ThreadPoolExecutor(5) as pool:
        first = pool.submit(together, ["a"])
        assert started.wait(30)
        others = [pool.submit(together, [name, "shared"]) for name in "bcde"]
        while len(together._asked) < 8:
            time.sleep(0.001)
        go_on.set()
        assert first.result(30) == {"a": None}
        assert [other.result(30) for other in others] == [{n: None, "shared": None} for n in "bcde"]
    assert batches[0] == ["a"]
    assert sorted(batches[1]) == ["b", "c", "d", "e", "shared"]


def test_each_gets_its_own_error():
    error = HostCommandError("no")
    together = Together(lambda names: {name: error if name == "b" else None for name in names})
    assert together(["a", "b"]) == {"a": None, "b": error}
    assert together(["a"]) == {"a": None}


def test_a_failed_call_is_its_callers_alone():
    calls = []

    def work(names):
        calls.append(list(names))
        if len(calls) == 1:
            raise HostCommandError("gone")
        return dict.fromkeys(names)

    together = Together(work)
    with pytest.raises(HostCommandError):
        together(["a"])
    assert together(["b"]) == {"b": None}


def test_udev_has_its_time_however_long_lvm_took(monkeypatch):
    monkeypatch.setattr(activation, "_SETTLING", 1.0)
    monkeypatch.setattr(Holders, "name", lambda _self, _number: "process 7 (systemd-udevd)")
    opened = {"a": 0, "b": 1}
    now = itertools.count(step=0.1)
    monkeypatch.setattr(activation.time, "monotonic", lambda: next(now))
    monkeypatch.setattr(activation.time, "sleep", lambda _seconds: None)

    class Slow:
        group = "vg"

        def run(self, *words, **_options):
            for _ in range(100):
                next(now)
            for name in [word.partition("/")[2] for word in words if "/" in word]:
                del opened[name]

    class Mapper:
        looks = 0

        def device(self, name):
            volume = name.partition("-")[2]
            self.looks += volume == "b"
            if self.looks == 4:
                opened["b"] = 0
            return Device(number=1, opened=opened[volume]) if volume in opened else None

    assert deactivate(Slow(), Mapper(), ["a", "b"]) == {"a": None, "b": None}
