"""Fleets of labs that are made of forks."""

import attrs
import pytest

from tests.warm.forking import LAB, states
from vmcloner_core.errors import (
    BackendError,
    InvalidRequest,
)
from vmcloner_core.labs import read_lab
from vmcloner_core.model import State


def test_a_lab_of_forks(warm, shop):
    lab = shop()
    assert [(c.action, c.why) for c in warm.diff_lab(lab)] == [
        ("create", "forked from a booted guest")
    ] * 2
    warm.apply_lab(lab, dry_run=True)
    assert warm.warm_origins() == ()
    warm.apply_lab(lab)
    assert states(warm, "web") == {"web-1": State.RUNNING, "web-2": State.RUNNING}
    assert warm.read_console("web-2")[0] == b"vmcloner-reseeded web-2\n"
    assert warm.diff_lab(lab) == ()
    assert warm.apply_lab(lab).changes == ()


def test_a_fork_that_a_lab_starts_again_needs_no_origin(warm, shop, lab):
    shop_lab = shop()
    warm.apply_lab(shop_lab)
    warm.stop("web-1", kill=True)
    lab.machines.warm.version = "2"
    (origin,) = warm.warm_origins()
    warm.apply_lab(shop_lab)
    assert states(warm, "web") == {"web-1": State.RUNNING, "web-2": State.RUNNING}
    assert warm.warm_origins() == (origin,)


def test_a_lab_of_copies(warm, shop, mute):
    lab = shop("identical = true\n")
    assert {c.why for c in warm.diff_lab(lab)} == {"an exact copy of a booted guest"}
    warm.apply_lab(lab)
    assert states(warm, "web") == {"web-1": State.RUNNING, "web-2": State.RUNNING}
    assert warm.diff_lab(lab) == ()


def test_nothing_that_logs_in_is_for_copies(shop):
    with pytest.raises(InvalidRequest, match=r"fleets.web.playbook: nothing logs in to exact cop"):
        shop('identical = true\nplaybook = "site.yml"\n')


def test_clones_that_a_lab_has_booted_stay(warm, shop):
    """The key is about new ones."""
    cold = attrs.evolve(shop().fleets["web"], warm=False, count=1)
    warm.apply_lab(attrs.evolve(shop(), fleets={"web": cold}))
    warm.apply_lab(shop())
    found = {clone.name: clone.labels.warm is not None for clone in warm.list("web")}
    assert found == {"web-1": False, "web-2": True}


def test_what_stands_against_a_labs_forks_is_said_before_anything_is_made(warm, shop, lab):
    file = shop().file
    file.write_text(LAB.replace("warm = true", "") + "identical = true\n")
    with pytest.raises(InvalidRequest, match=r"lab.toml:8: fleets.web.identical: only forks"):
        read_lab(file)
    lab.machines.warm = None
    lab.machines.not_warm = "its guests share nothing"
    more = '[fleets.aaa]\ntemplate = "warm"\nready = "running"\n'
    with pytest.raises(BackendError, match=r"fleets.web: hypervisor .* has no warm forks"):
        warm.apply_lab(shop(more))
    assert warm.list() == ()
