"""A short slice of the kills after which gc must leave nothing, and touch nothing of others."""

import os

import pytest

from tests.campaign.rubbish import rubbish

SEED = os.environ.get("SEED", "slice")
KILLS = int(os.environ.get("KILLS", "0"))
"""In each pool; else as many as there is time for."""


@pytest.mark.timeout(7200)
@pytest.mark.parametrize(
    ("pool", "seconds"),
    [
        pytest.param("overlay", 20, marks=pytest.mark.libvirt),
        pytest.param("dd", 10, marks=[pytest.mark.libvirt, pytest.mark.slow]),
        pytest.param("lvm-thin", 120, marks=[pytest.mark.lvm, pytest.mark.slow]),
    ],
)
def test_gc_leaves_nothing_and_touches_nothing_of_others(pool, seconds):
    found = rubbish(pool, SEED, KILLS or 10**6, 3000 if KILLS else seconds, tell=print)
    assert found.findings == [], f"seed {SEED}\n" + "\n".join(map(str, found.findings))
    assert found.hits
