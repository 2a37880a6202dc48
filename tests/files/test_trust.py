"""Nothing in a pool is believed that another user could have written."""

import os
import stat

import attrs
import pytest

from vmcloner_core.errors import BackendError, HostCommandError, InvalidRequest
from vmcloner_core.model import CloneRequest, Status
from vmcloner_core.testing.samples import make_labels
from vmcloner_core.testing.storage import make_image, no_progress
from vmcloner_core.tomlfile import structure
from vmcloner_files import pool as pool_module
from vmcloner_files.driver import FilesDriver
from vmcloner_files.records import DiskRecord
from vmcloner_files.settings import FilesSettings

OTHER = 54321
QEMU = 64055
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another user: needs root")
PARTS = ["", "templates", "volumes", ".tmp"]


@pytest.fixture
def image(tmp_path):
    return make_image(tmp_path / "image.raw", seed=1)


@pytest.fixture
def volume(tmp_path, make_driver, image):
    driver = make_driver(tmp_path, clone="overlay")
    origin = driver.import_image("tiny", image, no_progress).unwrap()
    return next(driver.clone([CloneRequest(labels=make_labels(), origin=origin)])).unwrap()


def refused(driver, volume, reason):
    """Every way to read or use the pool is refused in one line; host check says the same."""
    image = make_image(volume.path.parents[2] / "other.raw", seed=2)
    for attempt in (
        driver.volumes,
        lambda: driver.import_image("other", image, no_progress),
        lambda: next(driver.delete([volume])).unwrap(),
    ):
        with pytest.raises(InvalidRequest, match=reason) as caught:
            attempt()
        assert "\n" not in str(caught.value)
        assert caught.value.hint
    [check] = [check for check in driver.probe() if check.name == "ownership"]
    assert check.status is Status.FAILED
    assert check.fix
    assert volume.path.exists()


def test_a_pool_of_ones_own_is_used(tmp_path, make_driver, volume):
    driver = make_driver(tmp_path)
    assert driver.volumes() == (volume,)
    assert {c.name: c.status for c in driver.probe()}["ownership"] is Status.OK


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("mode", [0o777, 0o1777])
def test_a_folder_that_all_can_write(tmp_path, make_driver, volume, part, mode):
    (tmp_path / "pool" / part).chmod(mode)
    refused(make_driver(tmp_path), volume, "can be written by other users")


@as_root
@pytest.mark.parametrize("part", PARTS)
def test_a_folder_of_another_user(tmp_path, make_driver, volume, part):
    os.chown(tmp_path / "pool" / part, OTHER, -1)
    refused(make_driver(tmp_path), volume, f"belongs to user {OTHER}")


def test_a_disk_that_all_can_write(tmp_path, make_driver, volume):
    volume.path.chmod(0o666)
    with pytest.raises(InvalidRequest, match=r"disk0: not used, since it can be written by other"):
        make_driver(tmp_path).volumes()
    outcome = next(make_driver(tmp_path).delete([volume]))
    assert isinstance(outcome.error, InvalidRequest)
    assert volume.path.exists()


@as_root
def test_a_planted_overlay_of_another_user_is_not_adopted(tmp_path, make_driver, volume):
    """It has our labels, and its backing file is a secret of root's."""
    secret = tmp_path / "secret"
    secret.write_text("root's")
    secret.chmod(0o600)
    labels = make_labels(index=2)
    planted = volume.path.with_name("web-2-disk0")
    planted.write_bytes(volume.path.read_bytes())
    record = DiskRecord(labels=labels, format="qcow2", size=volume.size)
    driver = make_driver(tmp_path, clone="overlay")
    with planted.open("rb") as stream:
        driver._pool.labels.write(stream.fileno(), planted, record.to_mapping())
    os.chown(planted, OTHER, -1)
    [origin] = driver.origins()
    [outcome] = driver.clone([CloneRequest(labels=labels, origin=origin)])
    assert isinstance(outcome.error, InvalidRequest)
    assert "belongs to" in outcome.error.message


@as_root
@pytest.mark.parametrize("what", ["volumes/web-1-disk0", "templates/tiny.raw"])
def test_files_that_libvirt_gave_to_qemus_user_are_ours(tmp_path, make_driver, volume, what):
    os.chown(tmp_path / "pool" / what, QEMU, -1)
    driver = make_driver(tmp_path, clone="overlay")
    assert driver.volumes() == (volume,)
    [origin] = driver.origins()
    [outcome] = driver.clone([CloneRequest(labels=make_labels(index=3), origin=origin)])
    assert outcome.ok


@as_root
def test_another_user_of_qemus_is_a_setting(tmp_path, make_driver, volume, monkeypatch):
    os.chown(volume.path, OTHER, -1)

    class Entry:
        pw_uid = OTHER

    monkeypatch.setattr("pwd.getpwnam", lambda name: {"alice": Entry}[name])
    settings = FilesSettings(path=tmp_path / "pool", qemu_user="alice")
    assert FilesDriver(make_driver(tmp_path).context, settings).volumes() == (volume,)
    with pytest.raises(InvalidRequest, match="no user 'bob'"):
        structure({"qemu_user": "bob"}, FilesSettings, where="settings")


def test_a_lock_that_is_a_link_makes_no_file_elsewhere(tmp_path, make_driver, volume):
    lock, elsewhere = tmp_path / "pool" / ".lock", tmp_path / "elsewhere"
    lock.unlink()
    lock.symlink_to(elsewhere)
    with pytest.raises(HostCommandError, match="symbolic links"):
        list(make_driver(tmp_path).delete([volume]))
    assert not elsewhere.exists()
    [check] = [check for check in make_driver(tmp_path).probe() if check.name == "ownership"]
    assert check.status is Status.FAILED


def test_a_lock_that_is_no_file_does_not_hang(tmp_path, make_driver, volume):
    lock = tmp_path / "pool" / ".lock"
    lock.unlink()
    os.mkfifo(lock)
    with pytest.raises(InvalidRequest, match="not a regular file"):
        list(make_driver(tmp_path).delete([volume]))


def test_locks_that_fail_are_one_line(tmp_path, make_driver, volume, monkeypatch):
    def fail(_fd, _how):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(pool_module.fcntl, "flock", fail)
    with pytest.raises(BackendError, match=r"can't lock .*\.lock: No locks available") as caught:
        list(make_driver(tmp_path).delete([volume]))
    assert caught.value.hint


@pytest.mark.parametrize(("source", "stored"), [(0o600, 0o400), (0o640, 0o440), (0o644, 0o444)])
@pytest.mark.parametrize("form", ["raw", "qcow2"])
def test_an_image_is_read_by_those_who_read_its_source(tmp_path, make_driver, source, stored, form):
    image = make_image(tmp_path / "image.raw", seed=1)
    if form == "qcow2":
        runner = make_driver(tmp_path).context.runner
        path = tmp_path / "image.qcow2"
        runner.run(["qemu-img", "convert", "-O", "qcow2", str(image.path), str(path)])
        image = attrs.evolve(image, path=path, format="qcow2")
    image.path.chmod(source)
    make_driver(tmp_path).import_image("tiny", image, no_progress).unwrap()
    mode = (tmp_path / "pool" / "templates" / "tiny.raw").stat().st_mode
    assert stat.S_IMODE(mode) == stored


def test_an_image_that_all_could_read_is_restricted_when_it_is_imported_again(
    tmp_path, make_driver
):
    image = make_image(tmp_path / "image.raw", seed=1)
    make_driver(tmp_path).import_image("tiny", image, no_progress).unwrap()
    stored = tmp_path / "pool" / "templates" / "tiny.raw"
    assert stat.S_IMODE(stored.stat().st_mode) == 0o444
    image.path.chmod(0o600)
    assert not make_driver(tmp_path).import_image("tiny", image, no_progress).changed
    assert stat.S_IMODE(stored.stat().st_mode) == 0o400


@pytest.mark.parametrize("umask", [0, 0o77])
def test_labels_are_written_by_us_alone_whatever_the_umask(tmp_path, make_driver, image, umask):
    old = os.umask(umask)
    try:
        make_driver(tmp_path).import_image("tiny", image, no_progress)
    finally:
        os.umask(old)
    labels = tmp_path / "pool" / ".labels"
    assert stat.S_IMODE(labels.stat().st_mode) == 0o644
    assert len(make_driver(tmp_path).origins()) == 1
    labels.chmod(0o666)
    with pytest.raises(
        InvalidRequest, match=r"\.labels: not used, since it can be written by other"
    ):
        make_driver(tmp_path).origins()


@as_root
@pytest.mark.parametrize("user", [OTHER, QEMU])
def test_labels_of_another_users_are_not_believed(tmp_path, make_driver, volume, user):
    """Not even of QEMU's user, who may own disks."""
    os.chown(tmp_path / "pool" / ".labels", user, -1)
    refused(make_driver(tmp_path), volume, r"\.labels: not used, since it belongs to")


@as_root
def test_what_root_makes_in_a_users_pool_is_the_users(tmp_path, make_driver, image, monkeypatch):
    monkeypatch.setenv("SUDO_UID", str(OTHER))
    pool = tmp_path / "pool"
    pool.mkdir()
    os.chown(pool, OTHER, OTHER)
    driver = make_driver(tmp_path)
    origin = driver.import_image("tiny", image, no_progress).unwrap()
    next(driver.clone([CloneRequest(labels=make_labels(), origin=origin)])).unwrap()
    for name in (".labels", ".id", ".tmp", "volumes", "templates"):
        assert (pool / name).stat().st_uid == OTHER
