"""What others hung on our volumes, on a real volume group: it stays, and so do they."""

import pytest

from tests.lvm.conftest import POOL, VG, lvm
from vmcloner_core.errors import Conflict
from vmcloner_core.model import CloneRequest
from vmcloner_core.testing.samples import make_labels
from vmcloner_core.testing.storage import make_image, no_progress

pytestmark = pytest.mark.lvm


def names():
    return set(lvm("lvs", "--noheadings", "-o", "lv_name", VG))


@pytest.mark.parametrize("strategy", ["auto", "lvcreate"])
def test_a_snapshot_that_is_not_thin(open_driver, tmp_path, strategy):
    driver = open_driver(strategy)
    image = make_image(tmp_path / "image.raw", seed=1)
    origin = driver.import_image("tiny", image, no_progress).unwrap()
    requests = [CloneRequest(labels=make_labels(index=n), origin=origin) for n in (1, 2)]
    [clone, other] = [outcome.unwrap() for outcome in driver.clone(requests)]
    assert all(outcome.ok for outcome in driver.activate([clone]))
    lvm("lvcreate", "-y", "-s", "-L", "8m", "-n", "precious", f"{VG}/{clone.name}")
    try:
        outcomes = {o.key: o.error for o in driver.delete([clone, other])}
        assert isinstance(outcomes[clone.name], Conflict)
        assert f"would be removed with it: {VG}/precious" in str(outcomes[clone.name])
        assert outcomes[other.name] is None
        assert names() == {POOL, "template.tiny", clone.name, "precious"}
    finally:
        lvm("lvremove", "-y", f"{VG}/precious")
    assert [outcome.error for outcome in driver.delete([clone])] == [None]
