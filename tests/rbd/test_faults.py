"""What goes wrong in a cluster: one line each, in bounded time, and nothing foreign is touched."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import attrs
import pytest

from tests.rbd.holding import HOLD
from vmcloner_core.drivers import ImageFile
from vmcloner_core.errors import BackendError, Conflict, NotEnoughResources, WrongState
from vmcloner_core.model import CloneMode, CloneRequest
from vmcloner_core.process import LocalRunner
from vmcloner_core.testing.samples import make_context, make_labels
from vmcloner_rbd import journal, naming
from vmcloner_rbd.driver import RbdDriver

pytestmark = pytest.mark.ceph


@pytest.fixture
def opened(tmp_path):
    """Open drivers; they are closed at the end."""
    with contextlib.ExitStack() as stack:

        def open_driver(settings):
            driver = RbdDriver(make_context(tmp_path), settings)
            stack.callback(driver.close)
            return driver

        yield open_driver


def request(number):
    """Ask for a clone's disk of its own, of 1 MiB."""
    return CloneRequest(
        labels=make_labels("web", number), origin=None, mode=CloneMode.LINKED, size=1024**2, disk=0
    )


@contextlib.contextmanager
def stopped(cluster, daemon):
    pid = cluster.pid(daemon)
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.mark.timeout(120)
def test_monitors_that_are_down(cluster, settings, opened):
    driver = opened(attrs.evolve(settings, timeout=2))
    with stopped(cluster, "mon.a"), pytest.raises(BackendError) as caught:
        driver.volumes()
    assert "the cluster did not answer within 2 s" in caught.value.message
    assert driver.volumes() == ()  # the same driver, once they are back


@pytest.mark.timeout(120)
def test_osds_that_are_down(cluster, settings, opened):
    driver = opened(attrs.evolve(settings, timeout=2))
    (made,) = driver.clone([request(1)])
    with stopped(cluster, "osd.0"), pytest.raises(BackendError) as caught:
        driver.volumes()
    assert "the cluster did not answer within 2 s" in caught.value.message
    assert driver.volumes() == (made.value,)


def test_a_user_without_the_right_key(cluster, settings, opened, tmp_path):
    key = tmp_path / "key"
    key.write_text("AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA==\n")
    key.chmod(0o600)
    with pytest.raises(BackendError, match="refuses user client"):
        opened(attrs.evolve(settings, keyring=key)).volumes()


@pytest.mark.timeout(180)
def test_a_full_pool(cluster, settings, opened):
    """New clones are refused, and those that are there can be deleted."""
    cluster.make_pool("small", 1)
    driver = opened(attrs.evolve(settings, pool="small", namespace=None, timeout=20))
    (made,) = driver.clone([request(1)])
    cluster.ceph("osd", "pool", "set-quota", "small", "max_objects", "1")
    deadline = time.monotonic() + 60
    while "full" not in cluster.ceph("osd", "pool", "ls", "detail"):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    (refused,) = driver.clone([request(2)])
    assert isinstance(refused.error, NotEnoughResources)
    assert "the pool is full" in refused.error.message
    (gone,) = driver.delete([made.value])
    assert gone.ok
    assert driver.volumes() == ()


@contextlib.contextmanager
def held_open(settings, state, name):
    """Have an image open in another process; yields what ends that early."""
    argv = [settings.conf, settings.keyring, settings.namespace, state, name]
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, *map(str, argv)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as holder:  # fmt: skip

        def end():
            holder.stdin.close()
            holder.wait(60)

        assert holder.stdout.readline() == b"open\n"
        try:
            yield end
        finally:
            end()


def test_who_has_a_disk_open_is_named(settings, opened, tmp_path):
    """As a guest on another host has it, which this host's libvirt doesn't know."""
    driver = opened(settings)
    (made,) = driver.clone([request(1)])
    with held_open(settings, tmp_path, made.value.name):
        (refused,) = driver.delete([made.value])
    assert isinstance(refused.error, WrongState)
    assert "web-1-disk0 is in use by 127.0.0.1" in refused.error.message
    (gone,) = driver.delete([made.value])
    assert gone.changed


def test_a_name_is_free_while_its_last_user_is_waited_for(settings, opened, tmp_path, monkeypatch):
    """Another host may remove the image meanwhile and make a new one, which stays."""
    monkeypatch.setattr(journal, "_NAMING", 4)
    driver, other = opened(settings), opened(settings)
    (made,) = driver.clone([request(1)])
    name = made.value.name
    first = driver._images.names()[name]
    killed = attrs.evolve(driver._journal.removal(name, first), process="killed")
    driver._cluster.set_keys(journal.OBJECT, {killed.key: killed.to_bytes()})

    def meanwhile(_seconds):
        end()
        (removed,) = other.delete([made.value])
        (again,) = other.clone([request(1)])
        assert removed.changed
        assert again.changed

    monkeypatch.setattr(naming, "pause", meanwhile)
    with held_open(settings, tmp_path, name) as end:
        (outcome,) = driver.delete([made.value])
    assert (outcome.error, outcome.changed) == (None, False)
    assert driver.volumes() == (made.value,)
    assert driver._images.names()[name] != first


def raw_image(folder, content):
    """Return a small image whose digest says what is in it."""
    path = folder / content.decode()
    path.write_bytes(content * 1024)
    return ImageFile(path=path, format="raw", size=len(content) * 1024, digest=f"x:{path.name}")


def untold(_done, _total):
    pass


def before_removal(driver, monkeypatch, do):
    """Do something once, right before a driver removes the first image."""
    there = driver._journal.removal

    def removal(name, known):
        monkeypatch.setattr(driver._journal, "removal", there)
        do()
        return there(name, known)

    monkeypatch.setattr(driver._journal, "removal", removal)


def usable(driver, origin):
    """Check that a template's image can have clones."""
    (made,) = driver.clone([CloneRequest(labels=make_labels(), origin=origin, disk=0)])
    made.unwrap()


def test_an_image_that_another_host_makes_while_the_old_one_is_removed(
    settings, opened, tmp_path, monkeypatch
):
    driver, other = opened(settings), opened(settings)
    driver.import_image("t1", raw_image(tmp_path, b"old"), untold).unwrap()
    new = []

    def meanwhile():
        assert other.delete_origin("t1").changed
        new.append(other.import_image("t1", raw_image(tmp_path, b"new"), untold).unwrap())

    before_removal(driver, monkeypatch, meanwhile)
    assert not driver.delete_origin("t1").changed
    assert driver.origins() == tuple(new)
    usable(other, *new)


def test_an_image_that_another_host_replaces_at_the_same_time(
    settings, opened, tmp_path, monkeypatch
):
    """What is removed is the image that was found to be an old one."""
    driver, other = opened(settings), opened(settings)
    driver.import_image("t1", raw_image(tmp_path, b"old"), untold).unwrap()
    image, names = raw_image(tmp_path, b"new"), []

    def meanwhile():
        other.import_image("t1", image, untold).unwrap()
        names.append(other._images.names())

    before_removal(driver, monkeypatch, meanwhile)
    outcome = driver.import_image("t1", image, untold)
    assert (outcome.changed, outcome.unwrap().digest) == (False, image.digest)
    assert driver._images.names() == {"template.t1": names[0]["template.t1"]}
    usable(driver, outcome.unwrap())
    assert driver.leftovers() == ()


def test_a_name_that_was_locked_for_too_long(settings, opened, monkeypatch):
    """Another host may have it by now: it is neither given nor taken away."""
    driver = opened(settings)
    (made,) = driver.clone([request(1)])
    names = driver._images.names

    def slowly():
        time.sleep(1)
        return names()

    with monkeypatch.context() as patch:
        patch.setattr(journal, "_NAMING", 1)
        patch.setattr(driver._images, "names", slowly)
        for outcome in (*driver.delete([made.value]), *driver.clone([request(2)])):
            assert isinstance(outcome.error, WrongState)
            assert "lost its lock" in outcome.error.message
    assert driver.volumes() == (made.value,)
    assert driver.leftovers() == ()


def test_an_image_without_labels_is_not_touched(cluster, settings, opened):
    """Neither one that lost them nor one that looks like a draft."""
    driver = opened(settings)
    (made,) = driver.clone([request(1)])
    place = f"vms/{settings.namespace}"
    cluster.rbd("image-meta", "remove", f"{place}/web-1-disk0", "vmcloner")
    cluster.rbd("create", "--size", "1M", f"{place}/vmcloner-draft.mine")
    (refused,) = driver.delete([made.value])
    assert not refused.ok
    (refused,) = driver.clone([request(1)])
    assert "exists and is not vmcloner's" in refused.error.message
    driver.sweep()
    assert driver.volumes() == driver.leftovers() == ()
    assert cluster.rbd("ls", place).split() == ["vmcloner-draft.mine", "web-1-disk0"]


def test_another_host_s_disks_are_not_touched(settings, tmp_path):
    """Two state folders share the pool; whatever their clones are called."""
    drivers = []
    for number, name in enumerate("ab"):
        context = make_context(tmp_path / name)
        context.host.state_id.parent.mkdir(parents=True)
        context.host.state_id.write_text(f"{number}" * 32)
        drivers.append(RbdDriver(context, settings))
    one, two = drivers
    asked = attrs.evolve(request(1), labels=make_labels(state="0" * 32))
    (made,) = one.clone([asked])
    assert one.volumes() == (made.value,)
    assert two.volumes() == ()
    assert two.unlabelled(["web-1-disk0"]) == ["web-1-disk0"]
    (refused,) = two.clone([attrs.evolve(request(1), labels=make_labels(state="1" * 32))])
    assert isinstance(refused.error, Conflict)
    assert "belongs to another host that shares the pool" in refused.error.message
    for driver in drivers:
        driver.close()


def test_what_a_killed_import_converted_is_swept(settings, opened, tmp_path):
    """What is converted by one that goes on stays."""
    raw, qcow2 = tmp_path / "a.raw", tmp_path / "a.qcow2"
    raw.write_bytes(b"data" * 1024**2)
    LocalRunner().run(["qemu-img", "convert", "-O", "qcow2", str(raw), str(qcow2)])
    image = ImageFile(path=qcow2, format="qcow2", size=raw.stat().st_size, digest="sha256:1")
    work = tmp_path / "state/import"
    left = work / "import-left"
    left.mkdir(parents=True)
    (left / "image.raw").write_bytes(b"gigabytes")
    driver, other = opened(settings), opened(settings)
    assert [found.name for found in driver.leftovers()] == [str(left)]
    during = []

    def sweep(*_progress):
        other.sweep()
        during.append([path.name for path in work.glob("*/image.raw")])

    driver.import_image("tiny", image, sweep)
    assert not left.exists()
    assert set(map(len, during)) == {1}
    assert list(work.iterdir()) == []
