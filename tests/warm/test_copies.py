"""Forks that stay exact copies of their parent."""

import json
import shutil
from types import SimpleNamespace

import pytest

from tests.warm.forking import SEEDED, TEMPLATE, memory, states
from vmcloner_core.errors import (
    HostCommandError,
    InvalidRequest,
    WrongState,
)
from vmcloner_core.model import State
from vmcloner_core.pools import Pool
from vmcloner_core.request import CreateRequest


def test_a_guest_that_cannot_be_reseeded_is_copied_on_request(warm, mute):
    with pytest.raises(WrongState, match="can't take a new identity") as caught:
        warm.create("web", "warm", warm=True)
    assert "--identical" in caught.value.hint
    warm.create("web", "warm", count=2, warm=True, identical=True, start=True)
    assert states(warm, "web") == {"web-1": State.RUNNING, "web-2": State.RUNNING}
    assert warm.read_console("web-1")[0] == b""
    assert list((memory(warm) / "forks").iterdir()) == []
    assert len({clone.mac for clone in warm.list("web")}) == 2
    (origin,) = warm.warm_origins()
    assert origin.depends["identical"] == "yes"
    assert not warm.warm_template("warm", identical=True).changed


def test_a_copy_has_no_identity_of_its_own(warm, mute):
    """So nothing says that it has one: there is no seed, and no host key that ssh would expect."""
    warm.create("web", "warm", warm=True, identical=True, start=True)
    record = warm._host.records.find("web-1")
    assert (record.identity, record.seed.image) == (None, None)
    assert warm._host.records.known_hosts("web-1") is None
    with pytest.raises(WrongState, match="web-1 has no known host key") as caught:
        warm._host.access(warm.list("web")[0].labels, "192.0.2.1")
    assert "without --identical" in caught.value.hint


def test_a_guest_that_nobody_has_asked_is_not_forked_to_others(warm, mute):
    """An origin of copies is of no use for clones that shall be somebody of their own."""
    copies = warm.warm_template("warm", identical=True).unwrap()
    with pytest.raises(WrongState, match="can't take a new identity"):
        warm.create("db", "warm", warm=True)
    assert warm.warm_origins() == (copies,)


def test_both_kinds_of_origins_stay(warm):
    own, copies = (warm.warm_template("warm", identical=each).unwrap() for each in (False, True))
    assert {origin.key for origin in warm.warm_origins()} == {own.key, copies.key}
    warm.create("web", "warm", warm=True, start=True)
    warm.create("db", "warm", warm=True, identical=True, start=True)
    keys = {clone.fleet: clone.labels.warm for clone in warm.list()}
    assert keys == {"web": own.key, "db": copies.key}
    assert warm.read_console("web-1")[0] == b"vmcloner-reseeded web-1\n"
    assert warm.read_console("db-1")[0] == b""


def test_a_copy_that_is_reset_is_a_copy_again(warm, mute):
    warm.create("web", "warm", warm=True, identical=True, start=True)
    warm.reset("web")
    assert states(warm, "web") == {"web-1": State.RUNNING}
    assert warm.read_console("web-1")[0] == b""


def test_only_forks_are_copies(warm):
    with pytest.raises(InvalidRequest, match="only forks are copies"):
        warm.create("web", "warm", identical=True)
    with pytest.raises(InvalidRequest, match="only forks are copies"):
        Pool(template="warm", identical=True)


def test_copies_of_a_guest_whose_console_tells_nothing(warm, lab, mute):
    """Nobody knows when it has booted, as nobody asks it anything else."""
    lab.template("dumb", TEMPLATE.replace("console:here is the parent", "port:22"))
    with pytest.raises(InvalidRequest, match="ready = port:22 doesn't tell when") as caught:
        warm.create("web", "dumb", warm=True, identical=True)
    assert "template warm dumb --identical --at console:REGEX" in caught.value.hint
    with pytest.raises(InvalidRequest, match="ready = port:22 doesn't tell when"):
        warm.plan(CreateRequest(fleet="web", template="dumb", warm=True, identical=True))
    lab.template("agent", TEMPLATE + "[domain]\nagent = true\n")
    with pytest.raises(InvalidRequest, match="template agent: --at ssh doesn't tell when"):
        warm.warm_template("agent", identical=True, at="ssh")
    assert warm.origins("dumb") == ()  # which is said before anything is imported
    warm.warm_template("dumb", identical=True, at="console:the parent")
    warm.create("web", "dumb", warm=True, identical=True, start=True)
    assert states(warm, "web") == {"web-1": State.RUNNING}


def test_copies_have_any_provider_of_identities(warm, lab, mute):
    """None of it is told to them."""
    lab.template("args", TEMPLATE + '[identity]\nprovider = "kernel-args"\n')
    with pytest.raises(InvalidRequest, match="not by kernel-args"):
        warm.create("web", "args", warm=True)
    warm.create("web", "args", warm=True, identical=True, start=True)
    assert warm._host.records.find("web-1").template().identity.provider == "none"


def test_a_copy_is_ready_when_its_parent_was(warm, lab, monkeypatch):
    """It says its parent's name, if any, and only once."""
    monkeypatch.setattr(lab.machines, "started", lambda _name: 1.0)
    lab.template("own", TEMPLATE.replace("here is the parent", "{{ name }}|here is the parent"))
    warm.create("web", "own", warm=True, identical=True, start=True)
    warm.wait("web", timeout=3)
    record = json.loads((warm.host.records / "web-1" / "record.json").read_text())
    assert record["ready"] == "1.0 console:web-1|here is the parent"


def test_copies_get_the_time_from_their_agents(warm, lab, mute, caplog):
    late = []
    lab.machines.agents = SimpleNamespace(
        set_clocks=late.extend, reported=lambda _names: frozenset(), freeze=None, thaw=None
    )
    warm.create("web", "warm", count=2, warm=True, identical=True, start=True)
    assert sorted(late) == ["web-1", "web-2"]

    def fails(_names):
        raise HostCommandError("the daemon is gone")

    lab.machines.agents.set_clocks = fails
    warm.create("db", "warm", warm=True, identical=True, start=True)
    assert "the clocks of db-1: the daemon is gone" in caplog.text
    assert list((memory(warm) / "forks").iterdir()) == []


def test_a_pool_of_copies(warm, mute):
    pool = Pool(template="warm", name="box", warm=True, identical=True, size=1, ready="running")
    assert {each.state for each in warm.fill_pool(pool)} == {"ready"}
    (origin,) = warm.warm_origins()
    assert origin.identical
    assert warm.pool("box").identical


@pytest.mark.parametrize("recorded", [True, False])
def test_a_copy_that_is_off_gets_no_identity(warm, lab, shop, mute, recorded):
    """Not by a create without the options, and not by the lab that starts it again."""
    lab.template("warm", SEEDED)
    shop_lab = shop("identical = true\n")
    warm.apply_lab(shop_lab)
    warm.stop("web", kill=True)
    if not recorded:
        shutil.rmtree(warm.host.records / "web-1")
    warm.apply_lab(shop_lab)
    warm.stop("web", kill=True)
    warm.create("web", "warm", count=2, start=True)
    assert states(warm, "web") == {"web-1": State.RUNNING, "web-2": State.RUNNING}
    assert [warm._host.records.known_hosts(name) for name in ("web-1", "web-2")] == [None, None]
