"""Snapshots of lvm-thin on a faked host: how many transactions, and what a crash leaves."""

import contextlib

import attrs
import pytest

from tests.lvm.fakes import VG, Killed
from tests.lvm.test_batches import commands, driver, errors, host, open_driver, requests
from vmcloner_core.errors import Conflict, InvalidRequest, NotFound, WrongState
from vmcloner_core.testing.snapshots import snapshot_of

__all__ = ["driver", "host", "open_driver"]


def volumes(driver, count):
    return [outcome.unwrap() for outcome in driver.clone(requests(driver, count))]


def taken(driver, count, name="ready"):
    wanted = [snapshot_of(volume, name) for volume in volumes(driver, count)]
    return [outcome.unwrap() for outcome in driver.snapshots.create(wanted)]


def test_a_batch_is_one_transaction(driver, host, monkeypatch):
    wanted = [snapshot_of(volume) for volume in volumes(driver, 50)]
    monkeypatch.setattr(host, "device", None)  # the kernel isn't asked about each origin
    host.calls.clear()
    before = host.group.pool("pool").transaction_id
    assert errors(driver.snapshots.create(wanted)) == {}
    assert commands(host).count("vgcfgrestore") == 2
    assert "lvcreate" not in commands(host)
    assert host.group.pool("pool").transaction_id == before + 1
    assert len(driver.snapshots.found()) == 50
    assert len(driver.volumes()) == 50


def test_snapshots_have_their_volumes_as_origins(driver, host):
    [snapshot] = taken(driver, 1)
    made = host.group.thin["web-1-disk0.ready"]
    assert made.origin == "web-1-disk0"
    assert str(snapshot.path) == f"/dev/{VG}/web-1-disk0.ready"
    [outcome] = driver.snapshots.revert([snapshot])
    assert outcome.unwrap() == driver.volumes()[0]
    assert host.group.thin["web-1-disk0"].origin == "web-1-disk0.ready"


def test_a_revert_is_one_transaction(driver, host):
    snapshots = taken(driver, 20)
    before = host.group.pool("pool").transaction_id
    assert errors(driver.snapshots.revert(snapshots)) == {}
    assert host.group.pool("pool").transaction_id == before + 1
    assert len(driver.volumes()) == len(driver.snapshots.found()) == 20


def test_a_volume_in_use_is_left(driver, host):
    snapshots = taken(driver, 3)
    host.active = host.opened = {"web-2-disk0": 1}
    assert errors(driver.snapshots.revert(snapshots)) == {"web-2-disk0": WrongState}
    assert len(driver.volumes()) == 3


def test_names_that_lvm_reserves(driver):
    [volume] = volumes(driver, 1)
    with pytest.raises(InvalidRequest, match="LVM reserves"):
        driver.snapshots.check_name("web-1-disk0.a_tmeta")
    driver.snapshots.check_name("web-1-disk0.a")
    assert errors(driver.snapshots.create([snapshot_of(volume, "a_tmeta")])) == {
        "web-1-disk0.a_tmeta": InvalidRequest
    }


def test_deleted_volumes_leave_snapshots_and_these_go_too(driver):
    snapshots = taken(driver, 2)
    assert errors(driver.delete(driver.volumes())) == {}
    assert set(driver.snapshots.found()) == set(snapshots)
    [outcome] = driver.snapshots.revert(snapshots[:1])
    assert outcome.unwrap().name == "web-1-disk0"
    assert errors(driver.snapshots.delete(snapshots)) == {}
    assert driver.snapshots.found() == ()
    assert errors(driver.snapshots.revert(snapshots[:1])) == {"web-1-disk0": NotFound}


def test_another_runs_snapshot_is_left(driver):
    [snapshot] = taken(driver, 1)
    [volume] = driver.volumes()
    later = snapshot_of(volume, taken="2027-01-01T00:00:00+00:00")
    assert errors(driver.snapshots.create([later])) == {snapshot.key: Conflict}
    other = attrs.evolve(snapshot.labels.labels, template="other")
    foreign = attrs.evolve(snapshot, labels=attrs.evolve(snapshot.labels, labels=other))
    assert errors(driver.snapshots.delete([foreign])) == {snapshot.key: Conflict}


@pytest.mark.parametrize("at", range(1, 12))
def test_a_crash_at_any_call_leaves_all_or_none(open_driver, host, at):
    driver = open_driver()
    wanted = [snapshot_of(volume) for volume in volumes(driver, 3)]
    host.calls.clear()
    host.die_at = at
    with contextlib.suppress(Killed):
        list(driver.snapshots.create(wanted))
    host.die_at = None
    again = open_driver()
    assert len(again.snapshots.found()) in (0, 3)
    assert errors(again.snapshots.create(wanted)) == {}
    assert len(again.snapshots.found()) == 3
    assert len(again.volumes()) == 3
