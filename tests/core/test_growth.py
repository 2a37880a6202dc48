"""An engine that makes and deletes fleets keeps nothing of them."""

import collections
import gc
import itertools
import logging
import threading
import types

import pytest

from vmcloner_core import names
from vmcloner_core.plugins import PluginHost

FLEETS = 20
CONTAINERS = (dict, list, set, collections.deque, collections.OrderedDict)


@pytest.fixture
def grown(lab):
    """A function that makes and deletes fleets, and returns by how much this process has grown."""
    numbers = itertools.count()

    def held():
        """Return how many objects there are, and how many values all containers have together."""
        lab.pool.copyings.clear()  # what this pool was asked for, which tests look at
        names.clone_name.cache_clear()  # it keeps 4,096 names, no more
        gc.collect()
        found = gc.get_objects()
        # Modules' values are in dictionaries. asyncio's module would return freed objects, of which
        # Python 3.12.5 makes a circle (https://github.com/python/cpython/issues/122695).
        holding = (one for one in found if type(one) is not types.ModuleType)
        inside = (each for one in holding for each in gc.get_referents(one))
        plain = {
            id(each): each for each in inside if type(each) is dict and not gc.is_tracked(each)
        }
        containers = [each for each in found if type(each) in CONTAINERS]
        return len(found) + sum(map(len, [*containers, *plain.values()]))

    def make():
        for number in itertools.islice(numbers, FLEETS):
            lab.engine.create(f"fleet{number}", "t1", count=2, start=True)
            lab.engine.delete(f"fleet{number}")

    def round_of_fleets():
        before = held()
        make()
        return held() - before

    def grown():
        make()  # what is made once
        # What a process makes once, as a module that is imported late, is in one round only.
        return min(round_of_fleets() for _ in range(3))

    logging.disable()  # pytest keeps what is logged: how much that is depends on the tests before
    yield grown
    logging.disable(logging.NOTSET)


def test_an_engine_keeps_nothing_of_its_fleets(grown):
    assert grown() < FLEETS // 2
    threads = threading.active_count()
    grown()
    assert threading.active_count() <= threads


def test_the_measure_sees_what_is_kept(grown, monkeypatch):
    """One short text for each fleet is seen, also in a dictionary that the collector leaves out."""
    kept, plan_ready = {}, PluginHost.plan_ready

    def keeping(plugins, plan):
        if plan.action == "create":
            kept[plan.run] = None
        plan_ready(plugins, plan)

    monkeypatch.setattr(PluginHost, "plan_ready", keeping)
    assert grown() > FLEETS // 2
