"""A thousand clones through the engine, on libvirt's test driver and a real pool of files."""

import pytest

from vmcloner_core import Engine, State
from vmcloner_core.errors import Conflict


@pytest.fixture
def engine(paper_site, monkeypatch):
    monkeypatch.chdir(paper_site.folder)
    with Engine.open(config=paper_site.folder / "vmcloner.toml") as engine:
        yield engine
        engine.delete(everything=True)


def test_a_thousand(engine, paper_site):
    result = engine.create("web", "plain", count=1000)
    assert len(result.results) == 1000
    clones = engine.list("web")
    assert [clone.index for clone in clones] == list(range(1, 1001))
    assert {clone.state for clone in clones} == {State.STOPPED}
    assert len({clone.mac for clone in clones}) == 1000
    assert len({clone.domain.uuid for clone in clones}) == 1000
    assert len({clone.volumes[0].path for clone in clones}) == 1000
    engine.delete("web")
    assert engine.list() == ()
    pool = paper_site.folder / "state" / "pool"
    assert [path for path in pool.rglob("*web*") if path.is_file()] == []


def test_power(engine):
    engine.create("web", "plain", count=3, start=True)
    assert {c.state for c in engine.list()} == {State.RUNNING}
    engine.stop("web-[1-2]", kill=True)
    assert [c.state.value for c in engine.list()] == ["stopped", "stopped", "running"]
    engine.restart("web", kill=True)
    assert {c.state for c in engine.list()} == {State.RUNNING}


def test_the_test_drivers_own_domain_is_foreign(engine):
    """test:///default comes with a domain called ``test``."""
    assert engine.list() == ()
    engine.create("test", "plain", count=1)
    engine.delete(everything=True)
    driver = engine._host.drivers.hypervisor("kvm")
    assert "test" in driver.inspect().foreign_names


def test_a_foreign_file_of_that_name_is_never_touched(engine, paper_site):
    engine.import_template("plain")
    engine.create("web", "plain", count=1)
    volume = engine.show("web-1").volumes[0]
    foreign = volume.path.with_name(volume.path.name.replace("web-1", "web-2"))
    foreign.write_text("mine")
    from vmcloner_core.errors import PartialFailure

    with pytest.raises(PartialFailure) as caught:
        engine.create("web", "plain", count=3)
    ((name, error),) = caught.value.failures
    assert (name, type(error)) == ("web-2", Conflict)
    engine.delete("web")
    assert foreign.read_text() == "mine"
