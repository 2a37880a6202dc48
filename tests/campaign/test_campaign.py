"""A short slice of the campaign: ``make test-kills`` runs more of it."""

import os

import pytest

from tests.campaign.campaign import campaign

SEED = os.environ.get("SEED", "slice")
HITS = int(os.environ.get("KILLS", "0"))
"""In each pool; else as many as there is time for."""
SECONDS = float(os.environ.get("KILLS_SECONDS", "3000"))
"""In each pool, at most, if there is a number of hits."""
libvirt = pytest.mark.libvirt
in_lab = [pytest.mark.lvm, pytest.mark.slow]
"""Five minutes each, as the lab is emulated."""
mounts = [pytest.mark.libvirt, pytest.mark.filesystems]


def _tell(line):
    print(line, flush=True)


@pytest.mark.timeout(7200)
@pytest.mark.parametrize(
    ("pool", "how", "seconds"),
    [
        pytest.param("overlay", "kills", 12, marks=libvirt),
        pytest.param("overlay", "faults", 12, marks=libvirt),
        pytest.param("full", "kills", 5, marks=[libvirt, pytest.mark.slow]),
        pytest.param("dd", "faults", 5, marks=[libvirt, pytest.mark.slow]),
        pytest.param("reflink", "kills", 5, marks=mounts),
        pytest.param("lvm-thin", "kills", 60, marks=in_lab),
        pytest.param("lvm-thin", "faults", 60, marks=in_lab),
        pytest.param("lvm-dd", "kills", 60, marks=in_lab),
        pytest.param("lvm-dd", "faults", 60, marks=in_lab),
    ],
)
def test_the_same_command_again_completes_it(pool, how, seconds):
    run = campaign(pool, how, SEED, HITS or 10**6, SECONDS if HITS else seconds, tell=_tell)
    assert run.findings == [], f"seed {SEED}\n" + "\n".join(map(str, run.findings))
    assert run.hits
