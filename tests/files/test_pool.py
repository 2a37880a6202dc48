"""The folder of a pool: what is made when, for whom, and what is said when it can't be."""

import os
import stat

import pytest

from vmcloner_core.errors import BackendError, DeadlineExceeded, InvalidRequest, VmclonerError
from vmcloner_core.model import CloneMode, CloneRequest, Origin, Status
from vmcloner_core.stored_ids import KnownPool
from vmcloner_core.testing.samples import make_labels
from vmcloner_core.testing.storage import make_image, no_progress
from vmcloner_core.tomlfile import structure
from vmcloner_files import drafts
from vmcloner_files import pool as pool_module
from vmcloner_files.plugin import vmcloner_storage_backend
from vmcloner_files.pool import Pool
from vmcloner_files.settings import FilesSettings

ORIGIN = Origin(template="tiny", pool="pool", size=2**30, allocated=2**20, digest="sha256:0")


def new_pool(folder):
    return Pool(folder / "pool", KnownPool(folder / "state", "pool"))


def checks(driver):
    return {check.name: check for check in driver.probe()}


def linked(driver, folder):
    image = make_image(folder / "image.raw", seed=1)
    origin = driver.import_image("tiny", image, no_progress).unwrap()
    [outcome] = driver.clone([CloneRequest(labels=make_labels(), origin=origin)])
    return outcome.unwrap()


def test_reading_makes_nothing(tmp_path, make_driver):
    driver = make_driver(tmp_path)
    assert driver.volumes() == driver.origins() == ()
    assert not driver.delete_origin("tiny").changed
    assert driver.capacity().free > 0
    for mode in CloneMode:
        assert driver.need(CloneRequest(labels=make_labels(), origin=ORIGIN, mode=mode), 10) > 0
    assert checks(driver)["pool"].status is Status.OK
    assert list(tmp_path.iterdir()) == []


def test_probing_a_pool_changes_nothing(tmp_path, make_driver):
    driver = make_driver(tmp_path)
    linked(driver, tmp_path)
    before = sorted(path for path in (tmp_path / "pool").rglob("*"))
    assert all(check.status is not Status.FAILED for check in driver.probe())
    assert sorted(path for path in (tmp_path / "pool").rglob("*")) == before


@pytest.mark.parametrize("umask", [0o077, 0o000])
def test_modes(tmp_path, make_driver, umask):
    old = os.umask(umask)
    try:
        volume = linked(make_driver(tmp_path / "deep"), tmp_path)
    finally:
        os.umask(old)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in volume.path.parents[:4]}
    assert all(mode & 0o777 == 0o711 for mode in list(modes.values())[:3])
    assert stat.S_IMODE(volume.path.stat().st_mode) == 0o600


def test_default_folder_is_in_the_hosts_state(tmp_path, make_driver):
    context = make_driver(tmp_path).context
    backend = vmcloner_storage_backend()
    driver = backend.factory(context, structure({}, backend.settings, where="test"))
    assert linked(driver, tmp_path).path.is_relative_to(context.host.state / "pool")


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"path": "relative"}, "absolute"),
        ({"clone": "hardlink"}, "clone"),
        ({"pfad": "/x"}, "pfad"),
        ({"path": 3}, "path"),
    ],
)
def test_settings_that_cannot_be(table, said):
    with pytest.raises(InvalidRequest, match=said):
        structure(table, FilesSettings, where="test")


def test_pool_that_is_a_file(tmp_path, make_driver):
    (tmp_path / "pool").touch()
    driver = make_driver(tmp_path)
    assert checks(driver)["pool"].status is Status.FAILED
    with pytest.raises(VmclonerError, match="pool"):
        linked(driver, tmp_path)


@pytest.mark.filesystems
@pytest.mark.parametrize(
    ("kind", "clone", "found", "status"),
    [
        ("xfs", "auto", "raw", Status.OK),
        ("btrfs", "reflink", "raw", Status.OK),
        ("xfs", "overlay", "qcow2", Status.OK),
        ("xfs-plain", "auto", "qcow2", Status.OK),
        ("ext4", "auto", "qcow2", Status.OK),
        ("ext4", "reflink", None, Status.FAILED),
    ],
)
def test_how_clones_are_linked(
    tmp_path, mounts, new_folder, make_driver, kind, clone, found, status
):
    driver = make_driver(new_folder(mounts(kind)), clone)
    check = checks(driver)["cloning"]
    assert check.status is status
    assert kind.partition("-")[0] in check.detail
    if found is None:
        with pytest.raises(BackendError, match="does not support reflinks"):
            linked(driver, tmp_path)
    else:
        assert linked(driver, tmp_path).format == found


def test_missing_qemu_img(tmp_path, make_driver, monkeypatch):
    driver = make_driver(tmp_path)
    monkeypatch.setattr(driver.context.runner, "which", lambda program: None, raising=False)
    assert "apt-get install" in checks(driver)["qemu-img"].fix


def test_folder_that_keeps_qemu_out(tmp_path, make_driver):
    assert os.geteuid() == 0, "libvirt runs QEMU as another user only under root"
    (tmp_path / "closed").mkdir(mode=0o700)
    check = checks(make_driver(tmp_path / "closed"))["access"]
    assert check.status is Status.WARNING
    assert check.fix.startswith("chmod o+x ")


@pytest.fixture
def open_folder(tmp_path):
    """Return a folder that everybody gets to."""
    for folder in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        folder.chmod(0o755)
    return tmp_path


@pytest.mark.parametrize("exists", [True, False])
def test_without_permission(open_folder, make_driver, exists):
    image = make_image(open_folder / "image.raw", seed=2)
    if exists:
        linked(make_driver(open_folder), open_folder)
    driver = make_driver(open_folder)
    os.seteuid(65534)
    try:
        check = checks(driver)["pool"]
        with pytest.raises(BackendError, match="Permission denied") as error:
            driver.import_image("other", image, no_progress)
        if exists:
            with pytest.raises(BackendError, match="Permission denied"):
                driver.volumes()
    finally:
        os.seteuid(0)
    assert check.status is Status.FAILED
    assert "as the pool's owner or as root" in str(error.value)


def test_lock_that_is_never_given_back(tmp_path, monkeypatch):
    monkeypatch.setattr(pool_module, "LOCK_TIMEOUT", 0.05)
    pool = new_pool(tmp_path)
    pool.prepare()
    with (
        pool.lock(),
        pool.lock(),  # those who add don't wait for one another
        pytest.raises(DeadlineExceeded, match="locked by another process"),
        pool.lock(alone=True),
    ):
        pass
    with pool.lock(alone=True), pytest.raises(DeadlineExceeded), pool.lock():
        pass


def test_what_the_dead_left_goes_and_what_the_living_hold_stays(tmp_path):
    folder = tmp_path / "pool" / ".tmp"
    first = new_pool(tmp_path)
    first.prepare()
    dead = folder / "0123.tmp"
    dead.touch()
    other = folder / "notes"
    other.touch()

    with drafts.named(folder) as living:
        new_pool(tmp_path).prepare()
        assert sorted(folder.iterdir()) == sorted([living.name, other])
    assert list(folder.iterdir()) == [other]


@pytest.mark.filesystems
def test_labels_that_the_dead_left_go(tmp_path, mounts, new_folder, make_driver):
    folder = new_folder(mounts("ramfs"))
    volume = linked(make_driver(folder), tmp_path)
    labels = volume.path.parents[1] / ".labels"
    with labels.open("a") as stream:
        stream.write("web-2-disk0.7 {}\n")
    again = make_driver(folder)
    assert again.volumes() == (volume,)
    linked(again, tmp_path)
    assert "web-2" not in labels.read_text()
    assert again.volumes() == (volume,)


@pytest.mark.parametrize("mode", CloneMode)
def test_need_covers_what_clones_take(tmp_path, make_driver, mode):
    driver = make_driver(tmp_path, clone="overlay")
    image = make_image(tmp_path / "image.raw", seed=1)
    origin = driver.import_image("tiny", image, no_progress).unwrap()
    requests = [
        CloneRequest(labels=make_labels(index=index), origin=origin, mode=mode)
        for index in range(1, 21)
    ]
    volumes = [outcome.unwrap() for outcome in driver.clone(requests)]
    os.sync()
    taken = sum(volume.path.stat().st_blocks * 512 for volume in volumes)
    assert taken <= driver.need(requests[0], 20) <= taken * 1.5
