"""What several threads ask for at once is done together."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from vmcloner_core.errors import HostCommandError
from vmcloner_lvm.activation import Together


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
