"""Batches of lvm-thin on a faked host: what is done, in which steps, and what a crash leaves."""

import os
import subprocess
import sys
import time
from pathlib import Path

import attrs
import pytest

from tests.lvm.fakes import POOL, VG, FakeHost, Killed, check_readable
from vmcloner_core.drivers import DriverContext, ImageRecord
from vmcloner_core.errors import (
    BackendError,
    Conflict,
    HostCommandError,
    InvalidRequest,
    NotEnoughResources,
    NotFound,
    WrongState,
)
from vmcloner_core.locks import hold
from vmcloner_core.model import CloneRequest, Host
from vmcloner_core.testing.samples import make_labels
from vmcloner_core.testing.storage import make_image, no_progress
from vmcloner_lvm import tags
from vmcloner_lvm.commands import bound
from vmcloner_lvm.driver import LvmThinDriver
from vmcloner_lvm.holders import Holders
from vmcloner_lvm.metadata import stored, write
from vmcloner_lvm.settings import LvmThinSettings
from vmcloner_lvm.transaction import queue

MIB = 1024**2
RECORDED = Path(__file__).parent / "recorded"


@pytest.fixture(params=["read by LVM", "read from disk"])
def host(request, tmp_path):
    host = FakeHost(disk=tmp_path / "disk" if "disk" in request.param else None)
    host.locks = tmp_path / "locks"
    return host


@pytest.fixture
def open_driver(host, tmp_path):
    def opened(strategy="auto", thinpool=POOL):
        context = DriverContext(host=Host(name="local", state=tmp_path), name="p", runner=host)
        settings = LvmThinSettings(vg=VG, thinpool=thinpool, strategy=strategy)
        return LvmThinDriver(context, settings, host)

    return opened


@pytest.fixture
def driver(open_driver):
    return open_driver()


def requests(driver, count, first=1, **changes):
    origin = driver.origins()[0]
    made = [
        CloneRequest(labels=make_labels("web", index), origin=origin)
        for index in range(first, first + count)
    ]
    return [attrs.evolve(request, **changes) for request in made]


def swap(index=1, size=20 * MIB):
    labels = make_labels("web", index)
    return CloneRequest(labels=labels, disk=1, size=size, head=b"swap" * 1024)


def errors(outcomes):
    return {outcome.key: type(outcome.error) for outcome in outcomes if outcome.error}


def commands(host):
    return [call.split()[0] for call in host.calls]


# --- what is done ---


def test_a_batch_is_one_transaction(host, driver):
    before = host.transaction
    wanted = requests(driver, 50)
    host.calls.clear()
    outcomes = list(driver.clone([*wanted, swap()]))
    assert errors(outcomes) == {}
    assert [outcome.value.labels for outcome in outcomes[:50]] == [r.labels for r in wanted]
    assert commands(host).count("vgcfgrestore") == 2
    assert commands(host).count("create_snap") == 50
    last = ["vgcfgrestore"] if host.disk else ["vgcfgrestore", "vgcfgbackup"]
    assert commands(host)[-len(last) :] == last
    assert "lvcreate" not in commands(host)
    assert host.transaction == before + 1
    assert host.consistent()
    volume = host.group.thin["web-1-disk1"]
    assert host.heads[volume.device_id] == (b"swap" * 1024).ljust(64 * 1024, b"\0")
    assert volume.size == 20 * MIB
    check_readable(host)


def test_each_write_has_a_number_of_its_own(host, driver):
    before = host.group.values["seqno"]
    list(driver.clone(requests(driver, 2)))
    assert host.group.values["seqno"] == before + 2


def test_new_volumes_stay_inactive_at_boot_and_are_writable(host, driver):
    list(driver.clone(requests(driver, 1)))
    values = host.group.logical["web-1-disk0"].values()
    assert values["flags"] == ("ACTIVATION_SKIP",)
    assert host.group.thin["web-1-disk0"].writable
    assert not host.group.thin["template.tiny"].writable


@pytest.fixture
def on_disk(host, tmp_path):
    """Have the metadata on a disk that can be read."""
    host.disk = tmp_path / "disk"
    host.text = host.text
    return host


def test_where_disks_can_be_read_lvm_only_writes(on_disk, driver):
    list(driver.clone([*requests(driver, 5), swap()]))
    list(driver.delete(driver.volumes()))
    ours = {"create_snap", "create_thin", "write_head", "drop_head", "delete", "set_transaction_id"}
    assert {*commands(on_disk)} - ours == {"lvmconfig", "vgcfgrestore"}
    assert on_disk.consistent()


def test_what_lvm_writes_otherwise_is_told(host, open_driver, monkeypatch):
    driver, restore = open_driver("transaction"), host._vgcfgrestore

    def otherwise(words):
        restore(words)
        if "message" not in host.text:
            host.text = host.text.replace("web-2-disk0", "web-7-disk0")

    monkeypatch.setattr(host, "_vgcfgrestore", otherwise)
    outcomes = list(driver.clone(requests(driver, 3)))
    assert errors(outcomes) == {"web-2-disk0": HostCommandError}
    assert "is not what was written" in str(outcomes[1].error)


def test_what_the_kernel_has_not_is_not_made(host, open_driver, monkeypatch):
    driver, restore = open_driver("transaction"), host._vgcfgrestore

    def forgetful(words):
        restore(words)
        if "message" not in host.text:
            host.transaction -= 1

    monkeypatch.setattr(host, "_vgcfgrestore", forgetful)
    outcomes = list(driver.clone(requests(driver, 3)))
    assert errors(outcomes) == dict.fromkeys([each.key for each in outcomes], HostCommandError)
    with pytest.raises(WrongState, match="transaction id"):
        list(driver.clone(requests(driver, 3)))


def test_what_the_kernel_still_has_is_not_gone(host, open_driver, monkeypatch):
    driver, restore = open_driver("transaction"), host._vgcfgrestore
    list(driver.clone(requests(driver, 3)))

    def forgetful(words):
        restore(words)
        if "message" not in host.text:
            host.transaction -= 1

    monkeypatch.setattr(host, "_vgcfgrestore", forgetful)
    assert len(errors(list(driver.delete(driver.volumes())))) == 3


def test_what_was_there_stays_byte_for_byte(host, driver):
    before = stored(host.group.section)
    list(driver.clone(requests(driver, 3)))
    list(driver.delete(driver.volumes()))
    after = stored(host.group.section)
    for number in ("seqno", "transaction_id"):
        before = before.replace(f"{number} = ", f"{number}=")
        after = after.replace(f"{number} = ", f"{number}=")
    changed = [(a, b) for a, b in zip(before.split("\n"), after.split("\n"), strict=True) if a != b]
    assert len(changed) == 2  # the two numbers


def test_a_delete_is_one_transaction(host, driver):
    list(driver.clone([*requests(driver, 50), swap()]))
    host.calls.clear()
    outcomes = list(driver.delete(driver.volumes()))
    assert errors(outcomes) == {}
    assert commands(host).count("delete") == 51
    assert commands(host).count("vgcfgrestore") == 2
    assert "lvremove" not in commands(host)
    assert host.consistent()
    assert driver.volumes() == ()


def device_ids(host):
    """Return the device ids of clones."""
    return {v.device_id for v in host.group.thin.values() if v.writable}


def test_a_reset_is_one_transaction(host, driver):
    wanted = [*requests(driver, 3), swap()]
    list(driver.clone(wanted))
    before, ids = driver.volumes(), device_ids(host)
    later = attrs.evolve(swap().labels, run="20270101-000000-ffff")
    again = [attrs.evolve(r, labels=attrs.evolve(r.labels, run=later.run)) for r in wanted]
    transaction = host.transaction
    host.calls.clear()
    outcomes = list(driver.reset(again))
    assert errors(outcomes) == {}
    assert commands(host).count("vgcfgrestore") == 2
    assert commands(host).count("delete") == 4
    assert host.transaction == transaction + 1
    assert driver.volumes() == before
    assert not device_ids(host) & ids
    assert list(host.heads) == [host.group.thin["web-1-disk1"].device_id]
    assert host.consistent()


def test_a_reset_by_lvm_is_the_same(host, open_driver):
    driver = open_driver("lvcreate")
    wanted = [*requests(driver, 2), swap()]
    list(driver.clone(wanted))
    before = driver.volumes()
    assert errors(driver.reset(wanted)) == {}
    assert driver.volumes() == before
    assert "vgcfgrestore" not in commands(host)
    assert host.consistent()


def test_volumes_of_others_are_left_alone(host, driver):
    host.run(bound(["lvcreate", "-V", "8388608b", "-n", "web-1-disk0"]))
    [clone, other] = driver.clone(requests(driver, 2))
    assert isinstance(clone.error, Conflict)
    assert other.ok
    fake = attrs.evolve(other.value, name="web-1-disk0", labels=make_labels("web", 1))
    [deleted] = driver.delete([fake])
    assert isinstance(deleted.error, Conflict)
    assert "web-1-disk0" in host.group.thin


@pytest.mark.parametrize("fleet", ["snapshot", "pvmove", "a" + "-" * 59 + "a"])
def test_names_that_lvm_keeps_for_itself(driver, fleet):
    request = requests(driver, 1)[0]
    [outcome] = driver.clone([attrs.evolve(request, labels=make_labels(fleet, 1))])
    assert isinstance(outcome.error, InvalidRequest)


def test_a_volume_in_use_stays_and_says_who(host, driver):
    list(driver.clone(requests(driver, 3)))
    host.active = {"web-1-disk0": 0, "web-2-disk0": 0}
    host.opened = {"web-2-disk0": 1}
    outcomes = list(driver.delete(driver.volumes()))
    assert errors(outcomes) == {"web-2-disk0": WrongState}
    assert [volume.name for volume in driver.volumes()] == ["web-2-disk0"]
    assert "web-1-disk0" not in host.active
    assert host.consistent()


def test_names_are_those_of_all_pools_in_a_group(host, driver, tmp_path):
    wanted = requests(driver, 1)
    list(driver.clone(wanted))
    host.text = host.text.replace('thin_pool = "pool"', 'thin_pool = "other"')
    assert (driver.origins(), driver.volumes()) == ((), ())
    [outcome] = driver.clone(wanted)
    assert isinstance(outcome.error, Conflict)
    assert "vg/web-1-disk0 belongs to pool vg/other" in str(outcome.error)
    image = make_image(tmp_path / "image.raw", seed=3)
    for refused in (
        lambda: driver.import_image("tiny", image, no_progress),
        lambda: driver.delete_origin("tiny"),
    ):
        with pytest.raises(Conflict, match=r"vg/template.tiny belongs to pool vg/other"):
            refused()
    assert {"web-1-disk0", "template.tiny"} <= host.group.thin.keys()


@pytest.mark.parametrize(
    ("pool", "record", "message"),
    [
        ("other", {"template": "new"}, "belongs to pool vg/other"),
        (POOL, {"template": "old"}, "is not vmcloner's"),
        (POOL, None, "is not vmcloner's"),
        (POOL, {"template": "new"}, None),
    ],
)
def test_only_the_draft_of_an_import_is_swept(host, driver, tmp_path, pool, record, message):
    values = make_labels("web", 1).to_mapping()
    if record is not None:
        values = ImageRecord(digest="sha256:1", size=1, allocated=0, **record).to_mapping()
    words = [f"--addtag={tag}" for tag in tags.encode(values)]
    host.run(bound(["lvcreate", "-V", "8388608b", "-n", "import.new", *words]))
    start = host.text.index("import.new {")
    moved = host.text[start:].replace('thin_pool = "pool"', f'thin_pool = "{pool}"')
    host.text = host.text[:start] + moved
    driver._importer = attrs.evolve(driver._importer, locks=tmp_path)
    host.refuse = {"^lvcreate": Killed("lvcreate")}
    image = make_image(tmp_path / "image.raw", seed=3)
    with pytest.raises(Conflict if message else Killed, match=message):
        driver.import_image("new", image, no_progress)
    assert ("import.new" in host.group.thin) is (message is not None)


def test_the_draft_of_a_killed_import_is_garbage_unless_its_lock_is_held(host, driver, tmp_path):
    record = ImageRecord(template="new", digest="sha256:1", size=1, allocated=0)
    words = [f"--addtag={tag}" for tag in tags.encode(record.to_mapping())]
    for name in ("import.new", "import.other"):  # of the second, the name isn't that of its record
        host.run(bound(["lvcreate", "-V", "8388608b", "-n", name, *words]))
    driver._importer = attrs.evolve(driver._importer, locks=tmp_path / "held")
    with hold(tmp_path / "held", [f"{VG}/template.new"]):
        assert driver.leftovers() == ()
        driver.sweep()
        assert "import.new" in host.group.thin
    [left] = driver.leftovers()
    assert (left.kind, left.name) == ("image", f"{VG}/import.new")
    driver.sweep()
    assert driver.leftovers() == ()
    assert "import.new" not in host.group.thin
    assert "import.other" in host.group.thin


HANGING = pytest.mark.parametrize("how", ["snapshot", "external_origin"])


@HANGING
@pytest.mark.parametrize("strategy", ["auto", "lvcreate"])
def test_what_others_hung_on_a_clone_stays_and_so_does_it(host, open_driver, how, strategy):
    driver = open_driver(strategy)
    list(driver.clone(requests(driver, 2)))
    host.hang("precious", "web-1-disk0", how)
    outcomes = list(driver.delete(driver.volumes()))
    assert errors(outcomes) == {"web-1-disk0": Conflict}
    assert "be removed with it: vg/precious" in str(outcomes[0].error)
    assert {"precious", "web-1-disk0"} <= host.group.logical.keys()
    assert [volume.name for volume in driver.volumes()] == ["web-1-disk0"]
    assert host.consistent()


@HANGING
def test_what_others_hung_on_an_image_stays_and_so_does_it(host, driver, how, tmp_path):
    host.hang("precious", "template.tiny", how)
    with pytest.raises(Conflict, match="be removed with it: vg/precious"):
        driver.delete_origin("tiny")
    image = make_image(tmp_path / "image.raw", seed=3)
    driver._importer = attrs.evolve(driver._importer, locks=tmp_path)
    host.calls.clear()
    with pytest.raises(Conflict, match="be removed with it: vg/precious"):
        driver.import_image("tiny", image, no_progress)
    assert "lvcreate" not in commands(host)
    assert {"precious", "template.tiny"} <= host.group.logical.keys()


@HANGING
def test_what_others_hung_on_a_draft_stays_and_so_does_it(host, open_driver, how):
    driver = open_driver("lvcreate")
    host.refuse = {"^lvextend": Killed("lvextend")}
    with pytest.raises(Killed):
        list(driver.clone(requests(driver, 1, size=12 * MIB)))
    host.refuse = {}
    host.hang("precious", "web-1-disk0", how)
    assert driver.volumes() == ()
    assert {"precious", "web-1-disk0"} <= host.group.logical.keys()
    assert errors(driver.clone([swap(7)])) == {}


# --- crashes ---


def steps(host, work):
    """Return at how many places a process can end in doing some work."""
    host.calls.clear()
    work()
    return len(host.calls)


@pytest.mark.parametrize("snapshots", [0, 2])
def test_a_crash_anywhere_in_a_clone_is_repaired(tmp_path, snapshots):
    def fresh():
        host = FakeHost()
        host.locks = tmp_path / "locks"
        context = DriverContext(host=Host(name="local", state=tmp_path), name="p", runner=host)
        return host, LvmThinDriver(context, LvmThinSettings(vg=VG, thinpool=POOL), host)

    host, driver = fresh()
    wanted = [*requests(driver, snapshots), swap(2)]
    total = steps(host, lambda: list(driver.clone(wanted)))
    assert total >= 8 + snapshots
    for die_at in range(total):
        host, driver = fresh()
        host.calls.clear()
        host.die_at = die_at
        with pytest.raises(Killed):
            list(driver.clone(wanted))
        _crash_while_repairing(host, driver)
        names = {volume.name for volume in driver.volumes()}
        assert host.consistent(), die_at
        assert names <= {request.volume_name for request in wanted}
        assert errors(driver.clone(wanted)) == {}
        assert len(driver.volumes()) == len(wanted)
        assert len(host.heads) == 1
        assert host.consistent()


def test_a_crash_anywhere_in_a_delete_is_repaired(tmp_path):
    def fresh():
        host = FakeHost()
        host.locks = tmp_path / "locks"
        context = DriverContext(host=Host(name="local", state=tmp_path), name="p", runner=host)
        driver = LvmThinDriver(context, LvmThinSettings(vg=VG, thinpool=POOL), host)
        list(driver.clone(requests(driver, 3)))
        return host, driver

    host, driver = fresh()
    volumes = driver.volumes()
    total = steps(host, lambda: list(driver.delete(volumes[:2])))
    for die_at in range(total):
        host, driver = fresh()
        host.calls.clear()
        host.die_at = die_at
        with pytest.raises(Killed):
            list(driver.delete(volumes[:2]))
        _crash_while_repairing(host, driver)
        assert host.consistent() or "web-1-disk0" not in host.group.thin
        assert errors(driver.delete(volumes[:2])) == {}
        assert [volume.name for volume in driver.volumes()] == ["web-3-disk0"]
        assert host.consistent()


def test_a_crash_anywhere_in_a_reset_is_repaired(tmp_path):
    def fresh():
        host = FakeHost()
        host.locks = tmp_path / "locks"
        context = DriverContext(host=Host(name="local", state=tmp_path), name="p", runner=host)
        driver = LvmThinDriver(context, LvmThinSettings(vg=VG, thinpool=POOL), host)
        wanted = [*requests(driver, 2), swap()]
        list(driver.clone(wanted))
        return host, driver, wanted

    host, driver, wanted = fresh()
    volumes = driver.volumes()
    total = steps(host, lambda: list(driver.reset(wanted)))
    for die_at in range(total):
        host, driver, wanted = fresh()
        host.calls.clear()
        host.die_at = die_at
        with pytest.raises(Killed):
            list(driver.reset(wanted))
        _crash_while_repairing(host, driver)
        assert host.consistent(), die_at
        assert errors(driver.reset(wanted)) == {}
        assert driver.volumes() == volumes
        assert len(host.heads) == 1
        assert host.consistent()


def _crash_while_repairing(host, driver):
    """Let the repair end too, at each of its steps, before it may come through."""
    for die_at in range(100):
        host.calls.clear()
        host.die_at = die_at
        try:
            driver.volumes()
        except Killed:
            continue
        break
    host.die_at = None


def test_a_power_cut_with_a_part_carried_out(host, driver):
    """dm-thin commits every second: devices exist while the transaction id is still the old one."""
    host.refuse = {"create_snap 6 ": Killed("power")}
    with pytest.raises(Killed):
        list(driver.clone(requests(driver, 10)))
    host.refuse = {}
    pool = host.group.pool(POOL)
    assert len(pool.messages.creates) == 10
    assert 1 < len(host.devices) < 11
    with pytest.raises(HostCommandError, match="queued"):
        host.run(bound(["lvcreate", "-V", "4194304b", "-n", "other"]))
    host.active = {"web-1-disk0": 0}  # as udev does at boot
    assert len(driver.volumes()) == 10
    assert host.consistent()


@pytest.fixture
def named(monkeypatch):
    """Have a process that has everything open which is open."""
    monkeypatch.setattr(Holders, "name", lambda _self, _number: "process 7 (qemu)")


def killed_at(host, pattern, work):
    host.refuse = {pattern: Killed("power")}
    with pytest.raises(Killed):
        work()
    host.refuse = {}


def test_a_pending_volume_in_use_is_kept(named, host, driver):
    killed_at(host, "create_snap 6 ", lambda: list(driver.clone(requests(driver, 10))))
    host.active = host.opened = {"web-2-disk0": 1}
    assert len(driver.volumes()) == 10
    assert host.consistent()
    assert errors(driver.clone([swap(77)])) == {}


def test_a_pending_volume_in_use_that_cant_be_kept_is_named(named, host, driver):
    killed_at(host, "create_snap 6 ", lambda: list(driver.clone(requests(driver, 10))))
    host.active = host.opened = {"web-2-disk0": 1}
    host.refuse = {"create_snap 9 ": OSError(28, "No space left on device")}
    with pytest.raises(WrongState, match=r"vg/web-2-disk0 is in use by process 7 \(qemu\)"):
        driver.volumes()
    assert len(host.group.pool(POOL).messages.creates) == 10
    host.active = host.opened = {}
    assert driver.volumes() == ()
    assert host.consistent()


def test_a_pending_empty_volume_is_taken_back_once_nobody_uses_it(named, host, driver):
    killed_at(host, "set_transaction", lambda: list(driver.clone([swap(1), swap(2)])))
    host.active, host.opened = {"web-1-disk1": 1, "web-2-disk1": 0}, {"web-1-disk1": 1}
    with pytest.raises(WrongState, match=r"vg/web-1-disk1 is in use by process 7"):
        driver.volumes()
    host.opened = {}
    assert driver.volumes() == ()
    assert host.consistent()
    assert host.active == {}


@pytest.mark.parametrize("strategy", ["auto", "transaction"])
def test_what_cant_be_taken_back_stays_pending_and_goes_later(host, open_driver, strategy):
    driver = open_driver(strategy)
    busy = OSError(16, "Device or resource busy")
    host.refuse = {"write_head": busy, "delete 2$": busy}
    outcomes = list(driver.clone([swap(1), swap(2)]))
    assert set(errors(outcomes).values()) == {WrongState}
    assert "thin pool vg/pool: delete 2: Device or resource busy" in str(outcomes[0].error)
    host.refuse = {}
    assert driver.volumes() == ()
    assert host.consistent()
    assert errors(driver.clone([swap(1), swap(2)])) == {}


def test_pending_messages_that_arent_ours_are_left_to_lvm(host, driver):
    host.refuse = {"create_snap": Killed("power")}
    with pytest.raises(Killed):
        list(driver.clone(requests(driver, 1)))
    host.refuse = {}
    host.text = host.text.replace('"vmcloner', '"somebody')
    assert driver.volumes() == ()
    assert host.group.pool(POOL).messages
    [outcome] = driver.clone([swap(7)])
    assert isinstance(outcome.error, HostCommandError)


@pytest.mark.parametrize("mark", ["", "vmcloner-batch-1"])
def test_pending_deletes_that_arent_ours_are_left_to_lvm(host, driver, mark):
    """Nothing is left of a volume that LVM deletes by which it could be told whose it was."""
    host.run(bound(["lvcreate", "-V", "8388608b", "-n", "foreign"]))
    before = host.devices.copy()
    text = write(queue(host.group, POOL, delete=["foreign"]).tree)
    [tag] = host.group.parse(text, VG).pool(POOL).tags
    host.text = text.replace(tag, mark or "somebodys")
    host.calls.clear()
    assert driver.volumes() == ()
    assert host.group.pool(POOL).messages
    assert host.devices == before
    [outcome] = driver.clone(requests(driver, 1))
    assert isinstance(outcome.error, HostCommandError)
    assert "vgcfgrestore" not in commands(host)


def test_the_mark_of_a_batch_goes_with_it(host, driver):
    host.text = host.text.replace("pool {\n", 'pool {\ntags = ["mine"]\n', 1)
    killed_at(host, "create_snap", lambda: list(driver.clone(requests(driver, 1))))
    pool = host.group.pool(POOL)
    assert pool.tags == ("mine", f"vmcloner-batch-{pool.transaction_id}")
    assert len(driver.volumes()) == 1
    assert host.group.pool(POOL).tags == ("mine",)


def test_ids_that_came_apart_are_told(host, driver):
    host.refuse = {"create_snap": Killed("power")}
    with pytest.raises(Killed):
        list(driver.clone(requests(driver, 1)))
    host.refuse = {}
    host.transaction -= 1
    with pytest.raises(WrongState, match="transaction id"):
        driver.volumes()


# --- refusals of the kernel, and of LVM ---


def test_a_refused_message_takes_the_batch_back_and_lvm_makes_it(host, driver):
    host.refuse = {"create_snap 3 ": OSError(28, "No space left on device")}
    wanted = requests(driver, 3)
    outcomes = list(driver.clone(wanted))
    assert errors(outcomes) == {}
    assert commands(host).count("lvcreate") == 3
    assert host.consistent()


def test_a_refused_message_fails_the_batch_and_leaves_nothing(host, open_driver):
    driver = open_driver("transaction")
    host.refuse = {"create_snap 3 ": OSError(28, "No space left on device")}
    outcomes = list(driver.clone(requests(driver, 3)))
    assert set(errors(outcomes).values()) == {HostCommandError}
    assert "No space left" in str(outcomes[0].error)
    assert driver.volumes() == ()
    assert host.consistent()


def test_a_device_of_that_id_that_isnt_ours_stays(host, open_driver):
    driver = open_driver("transaction")
    host.devices.add(3)  # known to no metadata: somebody's own
    outcomes = list(driver.clone(requests(driver, 3)))
    assert "File exists" in str(outcomes[0].error)
    assert 3 in host.devices
    assert driver.volumes() == ()


def test_a_failed_restore_leaves_nothing(host, open_driver):
    driver = open_driver("transaction")
    host.refuse = {"^vgcfgrestore": HostCommandError("vgcfgrestore failed with 5: disk")}
    outcomes = list(driver.clone(requests(driver, 3)))
    assert set(errors(outcomes).values()) == {HostCommandError}
    assert driver.volumes() == ()
    assert host.consistent()


# --- lvcreate ---


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("2.03.16(2)", "2.04.00(2)"),
        ("# Generated by LVM2", "# Made by"),
        ('format = "lvm2"', 'format = "lvm3"'),
    ],
)
def test_what_isnt_provably_safe_is_left_to_lvcreate(host, open_driver, old, new):
    host.text = host.text.replace(old, new, 1)
    outcomes = list(open_driver().clone(requests(open_driver(), 2)))
    assert errors(outcomes) == {}
    assert "vgcfgrestore" not in commands(host)
    with pytest.raises(HostCommandError, match="transaction is not safe"):
        raise next(open_driver("transaction").clone([swap()])).error
    assert errors(open_driver().delete(open_driver().volumes())) == {}
    assert "vgcfgrestore" not in commands(host)
    assert host.consistent()


def test_other_ids_in_the_kernel_are_told(host, driver):
    wanted = requests(driver, 1)
    host.transaction += 1
    with pytest.raises(WrongState, match="transaction id 2 in the kernel, 1 in LVM's metadata"):
        list(driver.clone(wanted))
    assert "vgcfgrestore" not in commands(host)


def test_an_active_origin_is_left_to_lvcreate(host, driver):
    host.active = {"template.tiny": 0}
    assert errors(driver.clone(requests(driver, 2))) == {}
    assert "vgcfgrestore" not in commands(host)


def test_lvcreate_makes_the_same(host, open_driver):
    driver = open_driver("lvcreate")
    size = 12 * MIB
    wanted = [*requests(driver, 2), *requests(driver, 1, first=3, size=size), swap(1)]
    assert errors(driver.clone(wanted)) == {}
    assert {volume.name: volume.size for volume in driver.volumes()} == {
        "web-1-disk0": 8 * MIB,
        "web-2-disk0": 8 * MIB,
        "web-3-disk0": size,
        "web-1-disk1": 20 * MIB,
    }
    assert len(host.heads) == 1
    assert errors(driver.delete(driver.volumes())) == {}
    assert host.consistent()


def test_lvcreate_that_crashed_leaves_drafts_that_go(host, open_driver):
    driver = open_driver("lvcreate")
    host.refuse = {"^lvextend": Killed("lvextend")}
    with pytest.raises(Killed):
        list(driver.clone(requests(driver, 1, size=12 * MIB)))
    host.refuse = {}
    assert "web-1-disk0" in host.group.thin
    assert driver.volumes() == ()
    assert "web-1-disk0" not in host.group.thin
    assert errors(driver.clone(requests(driver, 1, size=12 * MIB))) == {}


def test_lvcreate_that_crashed_while_it_wrote_a_head(host, open_driver):
    """The device that it wrote by is still there, and keeps the volume's busy."""
    driver = open_driver("lvcreate")
    killed_at(host, "drop_head", lambda: list(driver.clone([swap(1)])))
    assert len(host.held) == 1
    assert driver.volumes() == ()
    assert host.held == set()
    assert host.consistent()
    assert errors(driver.clone([swap(1)])) == {}


def test_a_draft_in_use_stays_until_it_is_not(named, host, open_driver):
    driver = open_driver("lvcreate")
    killed_at(host, "^write_head", lambda: list(driver.clone([swap(1)])))
    host.active = host.opened = {"web-1-disk1": 1}
    assert driver.volumes() == ()
    assert errors(driver.clone([swap(2)])) == {}
    host.active = host.opened = {}
    assert [volume.name for volume in driver.volumes()] == ["web-2-disk1"]
    assert "web-1-disk1" not in host.group.thin


# --- room, and pools that can't be used ---


def test_a_pools_metadata_that_is_nearly_full(host, driver):
    host.status |= {"metadata_used": 8997}
    outcomes = list(driver.clone(requests(driver, 5)))
    assert set(errors(outcomes).values()) == {NotEnoughResources}
    assert "89% of its metadata" in str(outcomes[0].error)
    assert "3 more volumes fit" in str(outcomes[0].error)
    assert errors(driver.clone(requests(driver, 3))) == {}
    assert driver.capacity().warnings == ("metadata 89 % full",)


def test_a_pools_data_that_are_nearly_full(host, driver):
    """Snapshots take none of them at first, but what a swap area begins with."""
    host.status |= {"data_used": 997}
    assert errors(driver.clone(requests(driver, 4))) == {}
    outcomes = list(driver.clone([swap(index) for index in range(1, 11)]))
    assert set(errors(outcomes).values()) == {NotEnoughResources}
    assert "192 KiB are free, 3 of 10 new volumes fit" in str(outcomes[0].error)
    assert host.heads == {}
    assert errors(driver.clone([swap(index) for index in range(1, 4)])) == {}


@pytest.mark.parametrize("sectors", [128, 2048])
def test_what_a_new_volume_begins_with_takes_whole_chunks(host, driver, sectors):
    host.text = host.text.replace("chunk_size = 128", f"chunk_size = {sectors}")
    assert driver.need(swap(), 1000) == 1000 * sectors * 512
    assert driver.need(attrs.evolve(swap(), head=b""), 1000) == 0
    assert driver.need(requests(driver, 1)[0], 1000) == 0
    assert errors(driver.clone([swap()])) == {}
    assert [len(head) for head in host.heads.values()] == [sectors * 512]


def test_a_metadata_area_that_is_full(host, open_driver):
    driver = open_driver("transaction")
    host.mda = 16 * 1024
    host.text = host.text
    outcomes = list(driver.clone(requests(driver, 100)))
    assert set(errors(outcomes).values()) == {NotEnoughResources}
    fit = int(str(outcomes[0].error).split(": ")[1].split()[0])
    assert 0 < fit < 20
    assert errors(driver.clone(requests(driver, fit))) == {}
    assert host.consistent()


@pytest.mark.parametrize("mode", ["ro", "Fail", "out_of_data_space"])
def test_a_pool_that_cant_be_written(host, driver, mode):
    host.status |= {"mode": mode}
    [outcome] = driver.clone(requests(driver, 1))
    assert isinstance(outcome.error, (WrongState, NotEnoughResources))
    assert driver.volumes() == ()


@pytest.mark.parametrize(
    ("name", "what"), [("other", "does not exist"), ("template.tiny", "is not a thin pool")]
)
def test_a_pool_that_isnt_there(open_driver, name, what):
    with pytest.raises(NotFound, match=f"vg/{name} {what}"):
        open_driver(thinpool=name).volumes()


def test_a_group_that_lacks_a_disk(host, driver):
    host.text = (RECORDED / "partial.vg").read_text()
    with pytest.raises(WrongState, match="lacks"):
        driver.volumes()


def test_a_group_that_is_shared(host, driver):
    host.text = host.text.replace('format = "lvm2"', 'lock_type = "sanlock"\nformat = "lvm2"', 1)
    with pytest.raises(BackendError, match="shared"):
        driver.volumes()


def test_a_host_without_lvm(host, driver):
    host.missing = {"vgcfgbackup", "vgs", "lvmconfig"}
    for asked in (driver.volumes, driver.capacity, lambda: list(driver.clone([swap()]))):
        with pytest.raises(BackendError, match=r"lvm2 is not installed \(apt-get install lvm2\)"):
            asked()


# --- host check ---


@pytest.fixture
def root(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)


def test_the_doctor_is_content(root, driver):
    checks = {check.name: (check.status.value, check.detail) for check in driver.probe()}
    assert checks == {
        "pool": ("ok", "vg/pool, 8 MiB provisioned (0.1 times its size)"),
        "cloning": ("ok", "a batch in one transaction"),
    }


def test_the_doctor_warns(root, host, open_driver):
    host.text = host.text.replace("zero_new_blocks = 1", "zero_new_blocks = 0")
    host.transaction += 1
    found = {check.name: check.status.value for check in open_driver().probe()}
    assert found == {"pool": "ok", "zeroing": "warning", "cloning": "warning"}
    found = {check.name: check.status.value for check in open_driver("transaction").probe()}
    assert found["cloning"] == "failed"
    found = {check.name: check.status.value for check in open_driver(thinpool="other").probe()}
    assert found == {"pool": "failed"}


@pytest.mark.parametrize(
    ("status", "detail", "fix"),
    [
        ({"mode": "Fail", "data_total": 0, "metadata_total": 0}, "is in mode Fail", "--repair"),
        ({"mode": "ro"}, "is in mode ro", "--repair"),
        ({"needs_check": True}, "needs a check", "--repair"),
        ({"mode": "out_of_data_space", "data_used": 1000}, "is full", "lvextend"),
    ],
)
def test_the_doctor_says_what_is_wrong_with_a_pool(root, host, driver, status, detail, fix):
    host.status |= status
    [check] = driver.probe()
    assert (check.name, check.status.value) == ("pool", "failed")
    assert detail in check.detail
    assert fix in check.fix
    if fix == "--repair":
        with pytest.raises(WrongState, match=detail):
            driver.capacity()


# --- commands ---


def test_a_command_dies_with_its_parent(tmp_path):
    """The child of a process that is killed doesn't come to what it would have done later."""
    script = (
        "import subprocess, sys; from vmcloner_lvm.commands import bound;"
        "p = subprocess.Popen(bound(['sh', '-c', 'echo up; sleep 600']));"
        "print(p.pid, flush=True); p.wait()"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as one:
        lines = {one.stdout.readline().strip(), one.stdout.readline().strip()}
        one.kill()
    [pid] = lines - {"up"}
    deadline = time.monotonic() + 30
    while Path(f"/proc/{pid}").exists() and "Z" not in _state(pid):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _state(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return "Z"


@pytest.mark.parametrize("made_anew", ["vg", "pool"])
def test_another_group_or_pool_of_the_same_name_is_refused(open_driver, tmp_path, made_anew):
    """The disks of the one that has the clones are not connected, say."""
    host = FakeHost()
    host.locks = tmp_path / "locks"
    context = DriverContext(host=Host(name="local", state=tmp_path), name="p", runner=host)
    settings = LvmThinSettings(vg=VG, thinpool=POOL, strategy="auto")

    def opened():
        return LvmThinDriver(context, settings, host)

    [origin] = opened().origins()
    [volume] = [
        o.unwrap() for o in opened().clone([CloneRequest(labels=make_labels(), origin=origin)])
    ]
    section = host.group.section if made_anew == "vg" else host.group.logical[POOL]
    old = str(section.values()["id"])
    host.text = host.text.replace(old, old[::-1])
    for ask in (
        opened().volumes,
        lambda: list(opened().delete([volume])),
        lambda: list(opened().clone([CloneRequest(labels=make_labels(index=2), origin=origin)])),
    ):
        with pytest.raises(BackendError, match=f"pool {VG}/{POOL} is not the one that storage 'p'"):
            ask()
    (tmp_path / "pools" / "p").unlink()
    assert [each.name for each in opened().volumes()] == [volume.name]


# --- disks that grow ---


@pytest.mark.parametrize("die_at", ["lvextend", "extended", None])
def test_a_disk_of_a_running_guest_that_was_being_enlarged(host, driver, die_at):
    """A killed lvextend leaves the new size in the metadata, and the kernel's device as it was."""
    [volume] = [outcome.value for outcome in driver.clone(requests(driver, 1))]
    host.active[volume.name], host.opened[volume.name] = 0, 1
    host.sizes[volume.name] = volume.size
    size = volume.size + 5 * MIB
    step, host.step = host.step, lambda what: _die_at(step, what, die_at)
    if die_at is not None:
        with pytest.raises(Killed):
            list(driver.grow([volume], size))
    host.step = step
    [grown] = driver.grow([volume], size)
    assert grown.unwrap().size == driver.whole(size) == host.size(f"{VG}-web--1--disk0")
    assert grown.changed == (die_at != "extended")
    assert host.consistent()


def _die_at(step, what, where):
    step(what)
    if where is not None and what.startswith(where):
        raise Killed


def test_disks_grow_under_one_lock(host, driver):
    volumes = [outcome.value for outcome in driver.clone(requests(driver, 3))]
    host.refuse = {f"lvextend.*{volumes[1].name}": HostCommandError("lvextend failed with 5: no")}
    outcomes = list(driver.grow(volumes, volumes[0].size + MIB))
    assert errors(outcomes) == {volumes[1].name: HostCommandError}
    assert [outcome.changed for outcome in outcomes] == [True, False, True]
