"""Fleets and pools that are completed later, in the way in which they were begun."""

import attrs
import pytest

from tests.warm.forking import SEEDED, TEMPLATE, states
from vmcloner_core.errors import (
    Conflict,
    WrongState,
)
from vmcloner_core.model import State
from vmcloner_core.pools import Pool
from vmcloner_core.request import CreateRequest

KINDS = {"cold": {}, "own": {"warm": True}, "copy": {"warm": True, "identical": True}}


@pytest.mark.parametrize("then", KINDS)
@pytest.mark.parametrize("first", KINDS)
def test_a_clone_is_completed_as_what_it_was_begun(warm, lab, first, then):
    """Else a copy of its parent would have a host key, or a fork no seed that it could read."""
    lab.template("seeded", SEEDED)
    warm.create("web", "seeded", count=2, **KINDS[first])
    assert [each.ok for each in lab.machines.undefine(["web-2"])] == [True]
    before = warm._host.records.find("web-2")
    if first == then:
        warm.create("web", "seeded", count=2, start=True, **KINDS[then])
        assert states(warm, "web") == {"web-1": State.RUNNING, "web-2": State.RUNNING}
        return
    with pytest.raises(Conflict, match="web-2 is incomplete and was made with") as caught:
        warm.create("web", "seeded", count=2, start=True, **KINDS[then])
    assert "vmcloner delete web-2 first" in caught.value.hint
    assert warm._host.records.find("web-2") == before


def test_one_that_was_made_without_identity_gets_none_from_forks_beside_it(warm):
    warm.create("web", "warm", start=True)
    warm.stop("web", kill=True)
    warm.create("web", "warm", count=2, warm=True)
    found = {name: warm._host.records.find(name).identity for name in ("web-1", "web-2")}
    assert found["web-1"] is None
    assert found["web-2"] is not None


def test_a_fleet_that_is_complete_needs_no_origin(warm, lab):
    warm.create("web", "warm", count=2, warm=True)
    origins = warm.warm_origins()
    lab.machines.warm.version = "2"
    request = CreateRequest(fleet="web", template="warm", count=2, warm=True)
    assert warm.plan(request).warnings == ()
    warm.create("web", "warm", count=2, warm=True)
    assert warm.warm_origins() == origins
    assert "booted once before" in warm.plan(attrs.evolve(request, count=3)).warnings[-1]


def test_a_pool_that_is_full_needs_no_origin(warm, lab):
    pool = Pool(template="warm", name="box", size=1, warm=True, ready="running")
    warm.fill_pool(pool)
    origins = warm.warm_origins()
    lab.machines.warm.version = "2"
    warm.fill_pool(pool)
    assert warm.warm_origins() == origins
    warm.fill_pool(attrs.evolve(pool, size=2))
    assert len(warm.warm_origins()) == 2


@pytest.mark.parametrize("other", ["kind", "template", "gone"])
def test_an_origin_of_another_purpose_is_not_used(warm, lab, other):
    lab.template("more", TEMPLATE)
    key = warm.warm_template("more" if other == "template" else "warm", identical=other == "kind")
    origin = "0" * 20 if other == "gone" else key.unwrap().key
    with pytest.raises(WrongState, match="template warm has no warm origin in pool 'files'"):
        warm.run(CreateRequest(fleet="web", template="warm", warm=True, origin=origin))
    assert warm.list() == ()
