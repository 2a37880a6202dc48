"""What one owner may have on a host."""

import json
import os
import threading

import attrs
import pytest

from vmcloner_core import Engine, quotas
from vmcloner_core.errors import NotEnoughResources
from vmcloner_core.locks import hold
from vmcloner_core.plan import Sizes
from vmcloner_core.request import CreateRequest

MIB = 1024**2


@pytest.fixture
def limited(lab, monkeypatch):
    """Return a function that returns an engine with limits, for clones of alice."""
    monkeypatch.setattr(os, "getuid", lambda: 0)
    monkeypatch.setenv("SUDO_USER", "alice")

    def limited(**limits):
        settings = attrs.evolve(
            lab.engine.settings, limits=attrs.evolve(lab.engine.settings.limits, **limits)
        )
        return Engine(settings, lab.engine.plugins, lab.engine._host)

    return limited


def test_clones_are_counted_over_fleets(limited):
    engine = limited(max_clones_per_owner=3)
    engine.create("web", "t1", count=2)
    with pytest.raises(NotEnoughResources) as error:
        engine.create("db", "t1", count=2)
    assert "alice has 2 clones, and 2 more" in str(error.value)
    assert "max_clones_per_owner = 3" in str(error.value)
    assert "vmcloner list --owner alice" in error.value.hint
    assert len(engine.list()) == 2, "nothing was made"
    engine.create("db", "t1", count=1)
    engine.create("web", "t1", count=2)
    with pytest.raises(NotEnoughResources):
        engine.plan(CreateRequest(fleet="web", template="t1", add=1))


def test_others_are_counted_apart(limited, monkeypatch):
    engine = limited(max_clones_per_owner=2)
    engine.create("web", "t1", count=2)
    monkeypatch.setenv("SUDO_USER", "bob")
    engine.create("db", "t1", count=2)
    with pytest.raises(NotEnoughResources, match="bob has 2 clones"):
        engine.create("web", "t1", count=3)


def test_memory_is_counted_also_of_stopped_clones(limited):
    engine = limited(max_memory_per_owner=600 * MIB)
    engine.create("web", "t1", count=2)
    with pytest.raises(NotEnoughResources, match="2 clones with 512 MiB of memory, and 256 MiB"):
        engine.create("db", "t1", count=1)
    engine.create("db", "t1", count=1, sizes=Sizes(memory=64 * MIB))


def test_a_change_of_memory_is_counted_too(limited):
    engine = limited(max_memory_per_owner=600 * MIB)
    engine.create("web", "t1", count=2)
    with pytest.raises(NotEnoughResources, match="max_memory_per_owner"):
        engine.set("web", sizes=Sizes(memory=400 * MIB))
    engine.set("web", sizes=Sizes(memory=300 * MIB))
    engine.set("web", sizes=Sizes(vcpus=2))


def test_who_has_too_much_can_do_all_but_take_more(limited):
    limited().create("web", "t1", count=3)
    engine = limited(max_clones_per_owner=1, max_memory_per_owner=MIB)
    engine.start("web")
    engine.set("web", sizes=Sizes(memory=128 * MIB))
    engine.create("web", "t1", count=3)
    engine.reset("web")
    engine.delete("web-3")
    with pytest.raises(NotEnoughResources):
        engine.create("web", "t1", count=3)


def test_a_plan_is_counted_again_when_it_is_carried_out(limited):
    engine = limited(max_clones_per_owner=2)
    plan = engine.plan(CreateRequest(fleet="web", template="t1", count=2))
    engine.create("db", "t1", count=1)
    with pytest.raises(NotEnoughResources):
        engine.apply(plan)
    assert len(engine.list()) == 1


def test_what_another_run_is_still_making_is_counted(limited, lab):
    engine, other = limited(max_clones_per_owner=3), limited(max_clones_per_owner=3)
    refused = []

    def meanwhile(_plan):
        def attempt():
            try:
                other.create("db", "t1", count=2)
            except NotEnoughResources as error:
                refused.append(str(error))

        thread = threading.Thread(target=attempt)
        thread.start()
        thread.join(60)

    engine.run(CreateRequest(fleet="web", template="t1", count=2), on_plan=meanwhile)
    assert len(refused) == 1
    assert "alice has 2 clones" in refused[0]
    assert list(lab.engine.host.admitted.iterdir()) == []


def test_many_at_once_stay_within_the_limit(limited, lab):
    done = []

    def attempt(number):
        try:
            limited(max_clones_per_owner=10).create(f"f{number}", "t1", count=3)
        except NotEnoughResources:
            return
        done.append(number)

    threads = [threading.Thread(target=attempt, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(done) == 3
    assert len(lab.engine.list()) == 9


def test_what_a_killed_run_was_admitted_for_counts_no_more(limited, lab):
    engine = limited(max_clones_per_owner=2)
    folder = lab.engine.host.admitted
    folder.mkdir(parents=True)
    notes = {f"db-{n}": {"owner": "alice", "memory": 1} for n in (1, 2)}
    (folder / "db.json").write_text(json.dumps(notes))
    (folder / ".db.json.draft").write_text("{")
    with hold(lab.engine.host.state, ["fleet/db"]), pytest.raises(NotEnoughResources):
        engine.create("web", "t1", count=1)
    engine.create("web", "t1", count=2)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("text", ["", "[]", "5", '{"a": 1}', '{"a": {"owner": 1}}', "[" * 99_999])
def test_damaged_notes_are_ignored(lab, text):
    folder = lab.engine.host.admitted
    folder.mkdir(parents=True)
    (folder / "db.json").write_text(text)
    with hold(lab.engine.host.state, ["fleet/db"]):
        assert quotas.Admissions(lab.engine.host).others() == {}
