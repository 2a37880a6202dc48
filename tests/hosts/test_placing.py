"""Which host gets which clones: pure functions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmcloner_core.errors import NotEnoughResources
from vmcloner_core.placing import Placing, Room, place

rooms = st.lists(
    st.builds(Room, host=st.sampled_from("abcdef"), memory=st.integers(0, 50),
              clones=st.integers(0, 5)),
    min_size=1, unique_by=lambda room: room.host,
)  # fmt: skip


def room(host, memory=100, clones=0):
    return Room(host=host, memory=memory, clones=clones)


def test_spread_prefers_few_of_the_fleet_then_few_of_all_then_memory():
    hosts = [room("a", 90), room("b", 100), room("c", 100, clones=3)]
    assert place([1, 2, 3, 4], hosts, need=1) == {"a": (2,), "b": (1, 4), "c": (3,)}
    assert place([5], hosts, need=1, there={"a": 2, "b": 1}) == {"c": (5,)}


def test_pack_fills_hosts_by_name():
    hosts = [room("b", 10), room("a", 3)]
    assert place([1, 2, 3, 4, 5], hosts, need=1, how=Placing.PACK) == {"a": (1, 2, 3), "b": (4, 5)}
    assert place([7], hosts, need=1, how=Placing.PACK, each=2, there={"a": 2}) == {"b": (7,)}


def test_too_many_says_how_many_fit():
    with pytest.raises(NotEnoughResources, match=r"2 hosts can take 3 of 5 new clones"):
        place([1, 2, 3, 4, 5], [room("a", 2), room("b", 1)], need=1)


@given(rooms, st.integers(0, 30), st.integers(0, 9), st.sampled_from(Placing))
def test_every_clone_has_one_host_with_room_or_none_fits(hosts, count, need, how):
    memory = {each.host: each.memory for each in hosts}
    try:
        placed = place(range(1, count + 1), hosts, need=need, how=how)
    except NotEnoughResources:
        assert count > sum(each // need for each in memory.values())
    else:
        assert sorted(n for mine in placed.values() for n in mine) == list(range(1, count + 1))
        assert all(len(mine) * need <= memory[host] for host, mine in placed.items())
