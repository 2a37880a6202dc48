"""Calls that arrive during a call share the next one."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from vmcloner_core.coalesce import Coalescer


class Work:
    """Records its calls; the first waits for ``go_on`` and then fails if ``fails``."""

    def __init__(self, fails=False):
        self.calls, self.fails = [], fails
        self.started, self.go_on = threading.Event(), threading.Event()

    def __call__(self, items):
        self.calls.append(list(items))
        if len(self.calls) == 1:
            self.started.set()
            assert self.go_on.wait(30)
            if self.fails:
                raise OSError("failed")
        return {item: item.upper() for item in items}


def ask_during_a_call(work, **options):
    """Ask for a; for b to e in four threads meanwhile. Returns what each call gave."""
    coalesce = Coalescer(work, **options)
    with ThreadPoolExecutor(5) as pool:
        first = pool.submit(coalesce, ["a"])
        assert work.started.wait(30)
        others = [pool.submit(coalesce, [name, "x"]) for name in "bcde"]
        while len(coalesce._waiting) < 4:
            time.sleep(0.001)
        work.go_on.set()
        return first, [other.result(30) for other in others]


def test_waiting_calls_share_the_next_one():
    work = Work()
    first, others = ask_during_a_call(work)
    assert first.result() == {"a": "A"}
    assert others == [{n: n.upper(), "x": "X"} for n in "bcde"]
    assert work.calls[0] == ["a"]
    assert [sorted(call) for call in work.calls[1:]] == [["b", "c", "d", "e", "x"]]


def test_an_exception_is_for_its_caller_alone():
    work = Work(fails=True)
    first, others = ask_during_a_call(work)
    with pytest.raises(OSError, match="failed"):
        first.result()
    assert others == [{n: n.upper(), "x": "X"} for n in "bcde"]


def test_callers_of_a_call_that_failed_call_again():
    work = Work()
    answer = work.__call__

    def fails_once(items):
        if len(work.calls) == 1:
            work.calls.append(list(items))
            raise OSError("failed")
        return answer(items)

    coalesce = Coalescer(fails_once)
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(coalesce, ["a"])
        assert work.started.wait(30)
        others = [pool.submit(coalesce, [name]) for name in "bc"]
        while len(coalesce._waiting) < 2:
            time.sleep(0.001)
        work.go_on.set()
        assert first.result(30) == {"a": "A"}
        errors = [other.exception(30) for other in others]
    assert sorted(work.calls[1]) == ["b", "c"]
    assert sorted(str(error) for error in errors) == ["None", "failed"]


def test_the_largest_call():
    calls = []

    def work(items):
        calls.append(list(items))
        return dict.fromkeys(items)

    assert Coalescer(work, most=2)("abcde") == dict.fromkeys("abcde")
    assert calls == [["a", "b"], ["c", "d"], ["e"]]


def test_items_have_keys_and_may_lack_results():
    coalesce = Coalescer(
        lambda items: {item["name"]: 1 for item in items[1:]}, key=lambda i: i["name"]
    )
    assert coalesce([{"name": "a"}, {"name": "b"}]) == {"b": 1}


def test_nothing_asked_for():
    assert Coalescer(dict.fromkeys)([]) == {}
