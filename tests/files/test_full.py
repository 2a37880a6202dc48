"""Full copies of the backend files: resumed, verified, and reset as what they are."""

import subprocess

import attrs
import pytest

from vmcloner_core.copying import Target
from vmcloner_core.errors import HostCommandError
from vmcloner_core.model import CloneMode, CloneRequest, Copying
from vmcloner_core.qemu_img import convert
from vmcloner_core.testing.samples import make_labels
from vmcloner_core.testing.storage import MIB, StorageConformance, make_image, no_progress

SUITE = StorageConformance()


class Killed(BaseException):
    """The process ends here."""


@pytest.fixture
def image(tmp_path):
    return make_image(tmp_path / "image.raw", seed=1)


@pytest.fixture
def driver(tmp_path, make_driver):
    return make_driver(tmp_path)


def request(origin, mode=CloneMode.FULL, **options):
    copying = Copying(**options)
    return CloneRequest(labels=make_labels(), origin=origin, mode=mode, copying=copying)


@pytest.mark.parametrize("mode", list(CloneMode))
def test_an_interrupted_copy_is_resumed_in_either_mode(driver, image, monkeypatch, mode):
    origin = driver.import_image("tiny", image, no_progress).unwrap()

    def killed(target, data, offset):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Target, "write", killed)
        with pytest.raises(Killed):
            list(driver.clone([request(origin)]))
    [left] = driver.volumes()
    assert not left.complete
    [outcome] = driver.clone([request(origin, mode)])
    assert outcome.changed
    assert outcome.unwrap() == attrs.evolve(left, complete=True)
    assert outcome.unwrap().path.read_bytes() == image.path.read_bytes()
    assert driver.volumes() == (outcome.unwrap(),)


@pytest.mark.parametrize("scattered", [False, True])
def test_a_verified_import_of_qcow2_is_checked(tmp_path, driver, monkeypatch, scattered):
    raw = make_image(tmp_path / "image.raw", seed=1)
    image = attrs.evolve(raw, path=tmp_path / "image.qcow2", format="qcow2")
    argv = ["qemu-img", "convert", "-O", "qcow2", raw.path, image.path]
    subprocess.run(argv, check=True, timeout=60)
    if scattered:  # so the converted file is copied to one with fewer extents
        monkeypatch.setattr("vmcloner_files.importing.MAX_RUNS", 0)
        monkeypatch.setattr("vmcloner_files.importing.count_extents", lambda _fd: 1000)
    verified = Copying(verify=True)
    with SUITE.corrupting(), pytest.raises(HostCommandError):
        driver.import_image("tiny", image, no_progress, verified)
    assert driver.origins() == ()
    driver.import_image("tiny", image, no_progress, verified).unwrap()
    stored = tmp_path / "pool" / "templates" / "tiny.raw"
    assert stored.read_bytes() == raw.path.read_bytes()


def convert_unverified(runner, image, target, _options):
    convert(runner, image, target, Copying())


def test_a_wrong_byte_of_the_second_copy_of_a_qcow2_is_found(tmp_path, driver, monkeypatch):
    """Only the copy with fewer extents is wrong, not the converted file."""
    raw = make_image(tmp_path / "image.raw", seed=1)
    image = attrs.evolve(raw, path=tmp_path / "image.qcow2", format="qcow2")
    argv = ["qemu-img", "convert", "-O", "qcow2", raw.path, image.path]
    subprocess.run(argv, check=True, timeout=60)
    monkeypatch.setattr("vmcloner_files.importing.MAX_RUNS", 0)
    monkeypatch.setattr("vmcloner_files.importing.count_extents", lambda _fd: 1000)
    monkeypatch.setattr("vmcloner_files.importing.convert", convert_unverified)
    with SUITE.corrupting(), pytest.raises(HostCommandError, match="differ from the source"):
        driver.import_image("tiny", image, no_progress, Copying(verify=True))
    assert driver.origins() == ()


def test_defaults_of_a_pool_hold_for_resets(tmp_path, make_driver, image):
    driver = make_driver(tmp_path, copying=Copying(verify=True))
    origin = driver.import_image("tiny", image, no_progress).unwrap()
    [volume] = [outcome.unwrap() for outcome in driver.clone([request(origin)])]
    with SUITE.corrupting():
        [outcome] = driver.reset([request(origin)])
    assert isinstance(outcome.error, HostCommandError)
    assert volume.path.read_bytes() == image.path.read_bytes()


def test_a_reset_without_attributes_keeps_the_format(tmp_path, make_driver, image, monkeypatch):
    """Whoever resets does not know how the disk was made."""
    monkeypatch.setattr("vmcloner_files.pool.has_attributes", lambda _folder: False)
    driver = make_driver(tmp_path)
    origin = driver.import_image("tiny", image, no_progress).unwrap()
    list(driver.clone([request(origin)]))
    [outcome] = driver.reset([request(origin, CloneMode.LINKED)])
    assert outcome.unwrap().format == "raw"
    assert outcome.unwrap().path.read_bytes() == image.path.read_bytes()


@pytest.mark.filesystems
@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
def test_a_reset_of_a_full_clone_is_a_copy(
    mounts, new_folder, make_driver, image, shared_extents, kind
):
    driver = make_driver(new_folder(mounts(kind)))
    origin = driver.import_image("tiny", image, no_progress).unwrap()
    list(driver.clone([request(origin)]))
    [outcome] = driver.reset([request(origin, CloneMode.LINKED)])
    assert shared_extents(outcome.unwrap().path) == 0


def test_a_pool_of_copies_makes_no_other_clones(tmp_path, make_driver, image):
    driver = make_driver(tmp_path, clone="copy")
    assert driver.modes == {CloneMode.FULL}
    origin = driver.import_image("tiny", image, no_progress).unwrap()
    linked = request(origin, CloneMode.LINKED)
    for outcomes in (driver.clone([linked]), driver.reset([linked])):
        [outcome] = outcomes
        assert outcome.unwrap().format == "raw"
        assert driver._pool.record(outcome.unwrap().path).full
    assert driver.need(linked, 3) >= 3 * origin.allocated
    [cloning] = [check for check in driver.probe() if check.name == "cloning"]
    assert cloning.detail == "full copies (as set)"


def test_many_copies_have_few_files_open(tmp_path, make_driver, monkeypatch):
    driver = make_driver(tmp_path)
    image = make_image(tmp_path / "image.raw", seed=1, size=MIB)
    origin = driver.import_image("tiny", image, no_progress).unwrap()
    opened, most, real = [], [], Target.open

    def counted(target):
        opened.append(target)
        most.append(sum(each._plain >= 0 for each in opened))
        return real(target)

    monkeypatch.setattr(Target, "open", counted)
    requests = [attrs.evolve(request(origin), labels=make_labels(index=i)) for i in range(1, 66)]
    assert all(outcome.ok for outcome in driver.clone(requests))
    assert len(opened) == 65
    assert max(most) < 32
