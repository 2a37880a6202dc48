"""Pools: clones are taken, given back and come back, whatever kills their holders."""

import functools
import threading
import time

import attrs
import pytest

from tests.core.test_leases import time_here  # noqa: F401 - a fixture
from tests.pauses import until
from vmcloner_core import Engine, Pool, PoolReset, State
from vmcloner_core.claims import Claims
from vmcloner_core.deadlines import answers
from vmcloner_core.errors import (
    BackendError,
    Conflict,
    DeadlineExceeded,
    Interrupted,
    InvalidRequest,
    NotFound,
    PartialFailure,
    WrongState,
)
from vmcloner_core.local_host import LocalHost

POOL = Pool(template="t1", name="box", size=3)


def another(lab):
    """Return the engine of another process, as far as its files can tell."""
    engine = lab.engine
    return Engine(engine.settings, engine.plugins, LocalHost(engine.host, engine.plugins))


def states(lab, name="box"):
    return [member.state for member in lab.engine.pool_members(name)]


def content(lab, name):
    return lab.pool.contents[f"{name}-disk0"]


def use(lab, machine):
    """Leave something on a machine's disk."""
    lab.pool.contents[f"{machine.name}-disk0"] = b"used"


def test_a_pool_is_filled_with_ready_clones(lab):
    members = lab.engine.fill_pool(POOL)
    assert [m.name for m in members] == ["box-1", "box-2", "box-3"]
    assert states(lab) == ["ready"] * 3
    assert [clone.state for clone in lab.engine.list("box")] == [State.RUNNING] * 3
    assert lab.engine.fill_pool("box") == members
    assert lab.engine.pools() == (POOL,)


def test_taken_clones_are_nobody_elses(lab):
    lab.engine.fill_pool(POOL)
    mine = lab.engine.acquire("box", 2)
    (other,) = another(lab).acquire("box", who="somebody")
    assert {m.name for m in (*mine, other)} == {"box-1", "box-2", "box-3"}
    with pytest.raises(DeadlineExceeded, match="0 ready, 3 taken"):
        lab.engine.acquire("box", timeout=0.05)
    taken = {m.name: m for m in lab.engine.pool_members("box")}
    assert taken[other.name].who == "somebody"
    assert 0 < taken[other.name].left <= 300


def test_a_template_is_enough(lab):
    machines = lab.engine.acquire("t1", 5, timeout=60)
    assert {machine.name.rpartition("-")[0] for machine in machines} == {"t1-pool"}
    assert [(pool.name, pool.size) for pool in lab.engine.pools()] == [("t1-pool", 5)]
    lab.engine.release(*machines)
    (again,) = lab.engine.acquire("t1", timeout=60)
    assert again.name.startswith("t1-pool-")
    with pytest.raises(NotFound, match="no pool 'nothing'"):
        lab.engine.acquire("nothing")


def test_all_or_none_are_taken(lab):
    lab.engine.fill_pool(POOL)
    lab.engine.acquire("box", 2)
    with pytest.raises(DeadlineExceeded):
        lab.engine.acquire("box", 2, timeout=0.05)
    assert states(lab).count("ready") == 1
    with pytest.raises(InvalidRequest, match="4 clones of a pool of 3"):
        lab.engine.acquire("box", 4)


def test_what_is_given_back_is_reset_in_the_background(lab):
    lab.engine.fill_pool(POOL)
    (machine,) = lab.engine.acquire("box")
    use(lab, machine)
    lab.engine.release(machine)
    until(lambda: states(lab) == ["ready"] * 3)
    assert content(lab, machine.name) != b"used"
    lab.engine.release(machine)  # again: it is somebody else's by now
    assert states(lab) == ["ready"] * 3


@pytest.mark.parametrize(
    ("reset", "failed", "stays"),
    [("never", True, True), ("on-failure", False, True), ("on-failure", True, False)],
)
def test_when_a_clone_is_reset(lab, reset, failed, stays):
    lab.engine.fill_pool(Pool(template="t1", name="box", size=1, reset=reset))
    (machine,) = lab.engine.acquire("box")
    use(lab, machine)
    lab.engine.release(machine, failed=failed)
    until(lambda: states(lab) == ["ready"])
    assert (content(lab, machine.name) == b"used") is stays


def test_a_clone_that_was_given_back_stopped_is_reset(lab):
    lab.engine.fill_pool(Pool(template="t1", name="box", size=1, reset="never"))
    (machine,) = lab.engine.acquire("box")
    lab.engine.stop(machine.name)
    lab.engine.release(machine)
    until(lambda: states(lab) == ["ready"])
    assert lab.engine.show("box-1").state is State.RUNNING


def test_a_clone_that_stopped_in_the_pool_is_started_again(lab):
    lab.engine.fill_pool(POOL)
    lab.engine.stop("box-2", kill=True)
    lab.engine.fill_pool("box")
    assert lab.engine.show("box-2").state is State.RUNNING
    assert states(lab) == ["ready"] * 3


def test_the_claim_of_a_dead_holder_runs_out_and_the_next_one_resets_the_clone(lab, time_here):  # noqa: F811
    lab.engine.fill_pool(Pool(template="t1", name="box", size=1, ttl=3600))
    dead = another(lab)
    (machine,) = dead.acquire("box", ttl=60)
    use(lab, machine)
    time_here.later(59)
    dead.renew(machine, ttl=60)
    time_here.later(59)
    assert states(lab) == ["taken"]
    time_here.later(1)
    assert states(lab) == ["used"]
    with pytest.raises(WrongState, match="the claim on box-1 has ended"):
        dead.renew(machine)
    (again,) = lab.engine.acquire("box", timeout=60)
    assert content(lab, again.name) != b"used"
    dead.release(machine)  # late: it is another one's, and stays so
    assert states(lab) == ["taken"]
    dead.close()


def test_gc_takes_idle_clones_whose_leases_ended_and_none_that_is_taken(lab, time_here):  # noqa: F811
    lab.engine.fill_pool(Pool(template="t1", name="box", size=2, ttl=100))
    (machine,) = another(lab).acquire("box", ttl=200)
    time_here.later(150)
    lab.engine.gc(expired=True)
    assert [clone.name for clone in lab.engine.list()] == [machine.name]
    time_here.later(50)
    lab.engine.gc(expired=True)
    assert lab.engine.list() == ()


def test_a_clone_whose_lease_ended_is_not_taken_but_made_anew_or_kept(lab, time_here):  # noqa: F811
    lab.engine.fill_pool(Pool(template="t1", name="box", size=1, ttl=100))
    time_here.later(150)
    (machine,) = lab.engine.acquire("box", timeout=60)
    (state,) = lab.engine.leases(lab.engine.list(machine.name))
    assert state.left > 0


def test_after_a_boot_of_the_host_clones_are_not_ready(lab, time_here):  # noqa: F811
    lab.engine.fill_pool(POOL)
    time_here.reboot()
    assert states(lab) == ["used"] * 3
    lab.engine.fill_pool("box")
    assert states(lab) == ["ready"] * 3


def test_a_fleet_that_is_no_pool_is_not_touched(lab):
    lab.engine.create("box", "t1", count=1, start=True)
    lab.pool.contents["box-1-disk0"] = b"mine"
    with pytest.raises(Conflict, match="is no pool"):
        lab.engine.fill_pool(POOL)
    with pytest.raises(Conflict, match="is no pool"):
        lab.engine.acquire(POOL, timeout=60)
    with pytest.raises(NotFound, match="no pool 'box'"):
        lab.engine.empty_pool("box")
    assert content(lab, "box-1") == b"mine"


def test_a_pool_of_another_template_is_refused(lab):
    lab.engine.fill_pool(POOL)
    with pytest.raises(Conflict, match="is made from template 't1'"):
        lab.engine.fill_pool(Pool(template="t2", name="box", size=3))
    assert lab.engine.pools() == (POOL,)


def test_a_clone_that_is_given_back_unused_during_a_filling_is_not_reset(lab, monkeypatch):
    lab.engine.fill_pool(Pool(template="t1", name="box", size=1, reset="never"))
    (machine,) = lab.engine.acquire("box")
    use(lab, machine)
    close = Claims.close

    def late(claims, clones):
        if clones:
            lab.engine.release(machine)
        return close(claims, clones)

    monkeypatch.setattr(Claims, "close", late)
    lab.engine.fill_pool("box")
    assert content(lab, "box-1") == b"used"


def test_emptying_leaves_what_is_taken(lab):
    lab.engine.fill_pool(POOL)
    (machine,) = lab.engine.acquire("box")
    assert [m.name for m in lab.engine.empty_pool("box")] == [machine.name]
    assert lab.engine.empty_pool("box", force=True) == ()
    assert lab.engine.pools() == ()
    assert lab.engine.list() == ()


def test_a_clone_that_fails_is_deleted_and_made_anew(lab):
    lab.engine.fill_pool(POOL)
    lab.engine.stop("box-2", kill=True)
    lab.machines.fail["start", "box-2"] = BackendError("no")
    with pytest.raises(PartialFailure, match="no"):
        lab.engine.fill_pool("box")
    assert [m.name for m in lab.engine.pool_members("box")] == ["box-1", "box-3"]
    lab.engine.fill_pool("box")
    assert states(lab) == ["ready"] * 3


def test_a_pool_that_cannot_be_filled_says_why(lab):
    pool = Pool(template="missing")
    with pytest.raises(NotFound, match="missing"):
        lab.engine.acquire(pool, timeout=60)


def test_unfinished_clones_of_a_killed_filling_are_finished(lab):
    lab.engine.fill_pool(POOL)
    (lab.engine.host.records / "box-1" / "pool.json").unlink()
    (lab.engine.host.records / "box-2" / "pool.json").write_text("{")
    assert states(lab) == ["used", "used", "ready"]
    lab.engine.fill_pool("box")
    assert states(lab) == ["ready"] * 3


@pytest.mark.parametrize(
    "text",
    ["[]", '{"since": 1}', "null", "[" * 100_000, '{"since": null, "address": null, "claim": 3}'],
)
def test_a_damaged_file_counts_as_used(lab, text):
    lab.engine.fill_pool(POOL)
    (lab.engine.host.records / "box-1" / "pool.json").write_text(text)
    assert states(lab) == ["used", "ready", "ready"]


def test_snapshots_of_a_user_are_gone_after_a_reset(lab):
    lab.engine.fill_pool(Pool(template="t1", name="box", size=1))
    (machine,) = lab.engine.acquire("box")
    machine.snapshot()
    use(lab, machine)
    machine.revert()
    assert content(lab, machine.name) != b"used"
    lab.engine.release(machine)
    until(lambda: states(lab) == ["ready"])
    assert lab.engine.show("box-1").snapshots == ()


KEPT = Pool(template="t1", name="box", size=2, memory=True)


def used(lab):
    """Use one of the pool's clones and give it back; returns its name once it is ready again."""
    (machine,) = lab.engine.acquire("box")
    machine.snapshot()
    use(lab, machine)
    lab.machines.said[machine.name] += b"used"
    lab.engine.release(machine)
    until(lambda: states(lab) == ["ready"] * 2)
    assert content(lab, machine.name) != b"used"
    assert b"used" not in lab.machines.said[machine.name]
    return machine.name


def test_a_reset_from_memory_boots_nothing(lab):
    lab.engine.fill_pool(KEPT)
    before = dict(lab.machines.boots)
    lab.machines.boots.clear()
    name = used(lab)
    assert lab.machines.boots == {}
    assert [each.name for each in lab.engine.show(name).snapshots] == ["pool-ready"]
    used(lab)
    assert before


def test_where_the_memory_does_not_fit_any_more_the_clone_boots(lab):
    lab.engine.fill_pool(KEPT)
    lab.machines.boots.clear()
    (machine,) = lab.engine.acquire("box")
    domain = lab.machines.machines[machine.name]
    lab.machines.machines[machine.name] = attrs.evolve(domain, memory=2 * domain.memory)
    use(lab, machine)
    lab.engine.release(machine)
    until(lambda: states(lab) == ["ready"] * 2)
    assert list(lab.machines.boots) == [machine.name]
    assert content(lab, machine.name) != b"used"
    assert [each.name for each in lab.engine.show(machine.name).snapshots] == ["pool-ready"]


def test_a_pool_that_keeps_memory_from_now_on_boots_once_more(lab):
    lab.engine.fill_pool(Pool(template="t1", name="box", size=2))
    (machine,) = lab.engine.acquire("box")
    lab.engine.release(machine)
    lab.engine.close()
    lab.engine.fill_pool(KEPT)
    assert states(lab) == ["ready"] * 2
    used(lab)


def test_many_users_at_once_never_have_the_same_clone(lab):
    """Eight engines, as of as many processes, take and give back the same three clones."""
    lab.engine.fill_pool(Pool(template="t1", name="box", size=3, reset="on-failure"))
    inside, errors, lock = set(), [], threading.Lock()

    def work():
        engine = another(lab)
        try:
            for _ in range(20):
                (machine,) = engine.acquire("box", timeout=120)
                with lock:
                    if machine.name in inside:
                        errors.append(machine.name)
                    inside.add(machine.name)
                time.sleep(0.001)
                with lock:
                    inside.discard(machine.name)
                engine.release(machine)
        except Exception as error:
            errors.append(error)
        finally:
            engine.close()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert states(lab) == ["ready"] * 3


def test_the_last_user_removes_the_pool(lab):
    with lab.engine.use_pool(POOL), another(lab).use_pool(POOL):
        until(lambda: states(lab) == ["ready"] * 3)
    assert lab.engine.list() == ()
    with lab.engine.use_pool(POOL):
        with another(lab).use_pool(POOL):
            until(lambda: states(lab) == ["ready"] * 3)
        assert states(lab) == ["ready"] * 3
    assert lab.engine.list() == ()


def test_a_pool_can_be_kept(lab):
    with lab.engine.use_pool(POOL, keep=True):
        until(lambda: states(lab) == ["ready"] * 3)
    assert states(lab) == ["ready"] * 3


def test_names_of_pools():
    assert Pool(template="debian-12").name == "debian-12-pool"
    assert Pool(template="opensuse-leap-16.0").name == "opensuse-leap-16-0-pool"
    assert len(Pool(template="a" * 63).name) <= 61
    assert Pool(template="t1", reset="on-failure").reset is PoolReset.ON_FAILURE
    with pytest.raises(InvalidRequest, match=r"reset 'often' is unknown \(one of: always, on-f"):
        Pool(template="t1", reset="often")


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": 0},
        {"size": True},
        {"reset": "sometimes"},
        {"ready": "magic"},
        {"ttl": 0},
        {"ttl": "never"},
        {"timeout": -1},
        {"name": "web-1"},
    ],
)
def test_wrong_pools_are_refused(wrong):
    with pytest.raises(InvalidRequest):
        Pool(template="t1", **wrong)


def test_taking_a_clone_asks_no_backend(lab, monkeypatch):
    lab.engine.fill_pool(POOL)
    for driver in (lab.pool, lab.machines):
        for call in ("volumes", "inspect", "states", "addresses"):
            if hasattr(driver, call):
                monkeypatch.setattr(driver, call, None)
    assert lab.engine.acquire("box")


def test_a_pool_whose_clones_are_gone_is_none_and_its_name_is_free(lab, time_here):  # noqa: F811
    lab.engine.fill_pool(POOL)
    time_here.later(POOL.ttl + 1)
    lab.engine.gc(expired=True)
    assert lab.engine.pools() == ()
    lab.engine.fill_pool(POOL)
    lab.engine.delete("box")
    lab.engine.create("box", "t1", count=1)
    with pytest.raises(Conflict, match="is no pool"):
        lab.engine.fill_pool(POOL)


def test_waiting_for_a_machine_can_be_cancelled(lab):
    lab.engine.fill_pool(Pool(template="t1", name="box", size=1))
    lab.engine.acquire("box")
    canceller = threading.Timer(0.2, lab.engine.cancel)
    canceller.start()
    with pytest.raises(Interrupted):
        lab.engine.acquire("box", timeout=100)
    canceller.join()


def test_a_cancelled_engine_fills_its_pools_again(lab):
    lab.engine.fill_pool(POOL)
    for _ in range(2):
        (machine,) = lab.engine.acquire("box")
        lab.engine.cancel()
        lab.engine.release(machine)
        lab.engine.cancel()
        other = lab.engine.acquire("box", 3, timeout=60)
        lab.engine.release(*other)


def test_what_is_given_back_to_a_pool_that_is_gone_is_fine(lab):
    lab.engine.fill_pool(POOL)
    (machine,) = lab.engine.acquire("box")
    lab.engine.empty_pool("box", force=True)
    lab.engine.release(machine)
    assert lab.engine.list() == ()


def test_a_hypervisor_that_hangs_holds_up_nobody_who_gives_back(lab, monkeypatch):
    lab.engine.fill_pool(Pool(template="t1", name="box", size=1, reset=PoolReset.ON_FAILURE))
    (machine,) = lab.engine.acquire("box")
    hung = threading.Event()
    calls = iter([hung.wait])  # only the first one hangs
    monkeypatch.setattr(answers, "__defaults__", (0.2,))
    monkeypatch.setattr(
        lab.machines, "states", functools.partial(_next, calls, lab.machines.states)
    )
    giving = threading.Thread(target=lab.engine.release, args=(machine,))
    giving.start()
    try:
        giving.join(20)
        assert not giving.is_alive()
    finally:
        hung.set()
        giving.join()
    until(lambda: states(lab) == ["ready"])


def _next(calls, otherwise):
    return next(calls, otherwise)()
