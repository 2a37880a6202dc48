"""A thousand snapshots on a real thin pool take as many transactions as a thousand clones.

And all devices are found at once, however many there are.
"""

import time

import pytest

from tests.lvm.conftest import POOL, VG
from vmcloner_core.model import CloneRequest
from vmcloner_core.testing.samples import make_labels
from vmcloner_core.testing.snapshots import snapshot_of
from vmcloner_core.testing.storage import make_image, no_progress
from vmcloner_lvm import devmapper

pytestmark = pytest.mark.lvm
COUNT = 1000


def batched(call, members, size=512):
    started = time.monotonic()
    made = []
    for start in range(0, len(members), size):
        made += [outcome.unwrap() for outcome in call(members[start : start + size])]
    return made, time.monotonic() - started


@pytest.mark.timeout(1200)
def test_a_thousand_snapshots_cost_what_a_thousand_clones_cost(open_driver, tmp_path):
    driver = open_driver()
    origin = driver.import_image("tiny", make_image(tmp_path / "i.raw", 1), no_progress).unwrap()
    wanted = [
        CloneRequest(labels=make_labels("many", n), origin=origin) for n in range(1, COUNT + 1)
    ]

    def transaction():
        return driver._pool.read().pool(POOL).transaction_id

    first = transaction()
    volumes, cloning = batched(driver.clone, wanted)
    second = transaction()
    snapshots, taking = batched(driver.snapshots.create, [snapshot_of(v) for v in volumes])
    third = transaction()
    assert len(driver.snapshots.found()) == len(driver.volumes()) == COUNT
    assert third - second == second - first
    _, reverting = batched(driver.snapshots.revert, snapshots)
    assert transaction() - third == third - second
    others = [
        CloneRequest(labels=make_labels("more", n), origin=origin) for n in range(1, COUNT + 1)
    ]
    started = time.monotonic()
    for outcome in driver.snapshots.delete(snapshots):
        outcome.unwrap() if outcome.error else None
    deleting = time.monotonic() - started
    assert driver.snapshots.found() == ()
    _, beside = batched(driver.clone, others)  # beside as many volumes as the snapshots were
    print(
        f"{COUNT} clones {cloning:.2f} s, beside {COUNT} others {beside:.2f} s, "
        f"snapshots {taking:.2f} s, reverts {reverting:.2f} s, removals {deleting:.2f} s"
    )
    for start in range(0, 2 * COUNT, 1000):  # LVM's own commands would take minutes
        assert all(o.ok for o in driver.delete(driver.volumes()[:1000])), start
    assert driver.volumes() == ()


def test_devices_are_listed_in_answers_of_any_size(open_driver, tmp_path, monkeypatch):
    driver = open_driver()
    origin = driver.import_image("tiny", make_image(tmp_path / "i.raw", 1), no_progress).unwrap()
    wanted = [CloneRequest(labels=make_labels("web", n), origin=origin) for n in range(1, 13)]
    volumes = [outcome.unwrap() for outcome in driver.clone(wanted)]
    assert all(outcome.ok for outcome in driver.activate(volumes[:10]))
    names = [devmapper.device_name(VG, volume.name) for volume in volumes]
    monkeypatch.setattr(devmapper, "_SIZE", 400)  # the first answer is too small
    mapper = devmapper.KernelDeviceMapper()
    assert mapper.present(names) == names[:10]
    assert mapper.present([]) == []
    monkeypatch.undo()
    assert mapper.present(names) == names[:10]
    assert all(outcome.ok for outcome in driver.deactivate(volumes))
    assert mapper.present(names) == []
    assert all(outcome.ok for outcome in driver.delete(volumes))
