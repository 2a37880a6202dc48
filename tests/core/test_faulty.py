"""Backends that fail on demand, and that the engine stands what they do."""

import subprocess
import sys

import pytest

from vmcloner_core import Engine
from vmcloner_core.errors import InvalidRequest, PartialFailure
from vmcloner_core.hooks import NoSettings
from vmcloner_core.testing.faulty import Fault, FaultKind, FaultySettings, spoil
from vmcloner_core.testing.reference import BootPlugin, HypervisorPlugin, ReferenceHypervisor

SETTINGS = """
[defaults]
hypervisor = "reference"
storage = "flaky"
[hosts.local]
state = "FOLDER/state"
[hosts.local.storage.flaky]
driver = "faulty"
of = "files"
settings = { path = "FOLDER/pool" }
MORE
"""
RUN = """
import sys
from pathlib import Path
from vmcloner_core import Engine
from vmcloner_core.testing.reference import BootPlugin, HypervisorPlugin
plugins = [HypervisorPlugin(), BootPlugin()]
with Engine.open(config=Path(sys.argv[1]), plugins=plugins) as engine:
    engine.create("web", "t1", count=3)
    print(len(engine.list("web")))
"""


def script(*faults, **more):
    return FaultySettings(of="any", faults=faults, **more)


def broken(call, *words, **options):
    with pytest.raises(PartialFailure) as caught:
        call(*words, **options)
    return dict(caught.value.failures)


def names(lab):
    return [clone.name for clone in lab.engine.list()]


def test_a_clone_fails_and_the_same_again_goes_on(lab):
    spoil(lab.pool, script(Fault(call="clone", key="web-2", fault=FaultKind.FAIL)))
    failed = broken(lab.engine.create, "web", "t1", count=3)
    assert "clone: a fault that the settings ask for" in str(failed["web-2"])
    assert names(lab) == ["web-1", "web-3"]
    assert lab.engine.create("web", "t1", count=3).ok
    assert names(lab) == ["web-1", "web-2", "web-3"]


@pytest.mark.parametrize("kind", [FaultKind.FAIL_AFTER, FaultKind.LOSE])
@pytest.mark.parametrize("call", ["clone", "define", "start"])
def test_what_took_effect_and_said_so_wrongly(lab, kind, call):
    driver = lab.pool if call == "clone" else lab.machines
    spoil(driver, script(Fault(call=call, key="web-2", fault=kind)))
    assert set(broken(lab.engine.create, "web", "t1", count=3, start=True)) == {"web-2"}
    assert lab.engine.create("web", "t1", count=3, start=True).ok
    assert lab.engine.delete("web").ok
    assert (lab.pool.volumes(), lab.machines.machines) == ((), {})


def test_a_part_of_a_driver_fails(lab):
    lab.engine.create("web", "t1", count=2)
    fault = Fault(call="snapshots.create", fault=FaultKind.FAIL)
    spoil(lab.pool, script(fault))
    failed = broken(lab.engine.create_snapshot, "web", name="s1")
    assert "snapshots.create: a fault that the settings ask for" in str(failed["web-1"])
    assert lab.engine.create_snapshot("web", name="s1").ok


def test_a_boot_provider_fails(lab):
    _, provider = lab.engine._host.drivers.boot("reference")
    spoil(provider, script(Fault(call="resolve", at=2, fault=FaultKind.FAIL)))  # 1: of the plan
    failed = broken(lab.engine.create, "web", "t1", count=1)
    assert "resolve: a fault that the settings ask for" in str(failed["web-1"])
    assert lab.engine.create("web", "t1", count=1).ok


def test_a_delete_that_fails_after_it_has_taken_effect(lab):
    lab.engine.create("web", "t1", count=3)
    spoil(lab.pool, script(Fault(call="delete", key="web-2", fault=FaultKind.FAIL_AFTER)))
    assert set(broken(lab.engine.delete, "web")) == {"web-2"}
    assert lab.engine.delete("web").ok
    assert names(lab) == []


@pytest.mark.parametrize("kind", [FaultKind.SHUFFLE, FaultKind.SLOW])
def test_what_is_only_odd_changes_nothing(lab, kind):
    for driver, call in ((lab.pool, "clone"), (lab.machines, "define")):
        spoil(driver, script(Fault(call=call, fault=kind, seconds=0.01, once=False)))
    assert lab.engine.create("web", "t1", count=3).ok
    assert names(lab) == ["web-1", "web-2", "web-3"]


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (FaultKind.LOSE, "yielded no outcome"),
        (FaultKind.DOUBLE, "yielded a second outcome for web-2"),
        (FaultKind.STRAY, "yielded an outcome unasked for nobody-1"),
        (FaultKind.WRONG, "gave a object"),
    ],
)
@pytest.mark.parametrize("call", ["clone", "define", "start"])
def test_what_breaks_the_contract_is_named_and_the_same_again_goes_on(lab, call, kind, said):
    driver = lab.pool if call == "clone" else lab.machines
    spoil(driver, script(Fault(call=call, key="web-2", fault=kind)))
    failed = broken(lab.engine.create, "web", "t1", count=3, start=True)
    assert f"{call} of " in str(failed["web-2"])
    assert said in str(failed["web-2"])
    assert lab.engine.create("web", "t1", count=3, start=True).ok
    assert lab.engine.delete("web").ok
    assert (lab.pool.volumes(), lab.machines.machines) == ((), {})


def test_a_whole_call_fails_at_its_second_time_only(lab):
    spoil(lab.pool, script(Fault(call="capacity", at=2, fault=FaultKind.FAIL)))
    lab.pool.capacity()
    with pytest.raises(Exception, match="capacity: a fault"):
        lab.pool.capacity()
    lab.pool.capacity()


def test_chance_is_the_same_for_the_same_seed(lab):
    def drawn(seed):
        machines = ReferenceHypervisor(lab.machines.context, NoSettings())
        spoil(machines, script(rate=0.3, seed=seed, kinds=(FaultKind.FAIL,)))
        found = []
        for _ in range(60):
            try:
                machines.states()
                found.append(True)
            except Exception:
                found.append(False)
        return found

    assert drawn(1) == drawn(1) != drawn(2)
    assert 5 < drawn(1).count(False) < 35


def test_a_call_that_hangs_is_given_up_by_the_engine(lab, monkeypatch):
    monkeypatch.setattr("vmcloner_core.survey.DEADLINE", 0.3)
    monkeypatch.setattr("vmcloner_core.testing.faulty.LONG", 5.0)
    spoil(lab.machines, script(Fault(call="inspect", fault=FaultKind.HANG)))
    found = lab.engine.survey()
    assert [each.name for each in found.unseen] == ["reference"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ('faults = [{ call = "klone", fault = "fail" }]', "has no call 'klone'"),
        ('faults = [{ call = "close", fault = "fail" }]', "'close' can't be spoiled"),
        ('faults = [{ call = "clone", fault = "explode" }]', "fault"),
        ('faults = [{ call = "clone", fault = "fail", at = -1 }]', "out of range"),
        ("rate = 2.0", "rate must be 0 to 1"),
        ('kinds = ["fial"]\nrate = 0.1', "kinds"),
        ("colour = 1", "colour"),
    ],
)
def test_a_script_that_makes_no_sense_is_one_line(site, more, message):
    with pytest.raises(InvalidRequest, match=message) as caught:
        site(more).create("web", "t1")
    assert len(str(caught.value).splitlines()) == 1


@pytest.fixture
def site(lab, tmp_path):
    """Return a function that opens an engine on a faulty pool of files."""
    engines = []

    def made(more):
        config = tmp_path / "faulty.toml"
        config.write_text(SETTINGS.replace("FOLDER", str(tmp_path)).replace("MORE", more))
        (tmp_path / "pool").mkdir(exist_ok=True)
        engines.append(Engine.open(config=config, plugins=[HypervisorPlugin(), BootPlugin()]))
        return engines[-1]

    yield made
    for engine in engines:
        engine.close()


def test_a_pool_of_the_settings(site):
    engine = site('faults = [{ call = "clone", key = "web-2", fault = "fail" }]')
    assert set(broken(engine.create, "web", "t1", count=3)) == {"web-2"}
    assert {clone.labels.storage for clone in engine.list()} == {"flaky"}


@pytest.mark.parametrize("kind", ["die", "die-after"])
def test_a_process_that_dies_once_and_the_same_command_again(site, tmp_path, kind):
    engine = site(f'faults = [{{ call = "clone", fault = "{kind}" }}]')
    words = [sys.executable, "-c", RUN, str(tmp_path / "faulty.toml")]
    first = subprocess.run(
        words, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=100
    )
    assert first.returncode == -9, first.stderr
    again = subprocess.run(
        words, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=100
    )
    assert (again.returncode, again.stdout) == (0, "3\n"), again.stderr
    assert len(list((tmp_path / "state/faulty/flaky").iterdir())) == 1
    engine.delete("web", missing_ok=True)
