"""What is particular about copies: one reading, interruptions, verification, bandwidth."""

import os
import subprocess
import sys
from pathlib import Path

import attrs
import pytest

from vmcloner_core.copying import Pace, Target
from vmcloner_core.drivers import DriverContext
from vmcloner_core.errors import HostCommandError, InvalidRequest, WrongState
from vmcloner_core.model import CloneRequest, Copying, Host
from vmcloner_core.testing.samples import make_labels
from vmcloner_core.testing.storage import make_image, no_progress
from vmcloner_dd.plugin import vmcloner_storage_backend
from vmcloner_dd.settings import DdSettings

MIB = 1024**2
SLOW = Path(__file__).with_name("slow_copy.py")


@pytest.fixture
def driver(tmp_path, make_driver):
    return make_driver(tmp_path)


@pytest.fixture
def image(tmp_path):
    return make_image(tmp_path / "image.raw", seed=1, size=32 * MIB)


@pytest.fixture
def origin(driver, image):
    return driver.import_image("tiny", image, no_progress).unwrap()


def requests(origin, count, **options):
    return [
        CloneRequest(labels=make_labels(index=index), origin=origin, copying=Copying(**options))
        for index in range(1, count + 1)
    ]


def test_the_template_is_read_once(driver, origin, monkeypatch):
    read = []
    preadv = os.preadv

    def counted(fd, buffers, offset, *flags):
        if "templates" in str(Path(f"/proc/self/fd/{fd}").readlink()):
            read.append(sum(len(each) for each in buffers))
        return preadv(fd, buffers, offset, *flags)

    monkeypatch.setattr(os, "preadv", counted)
    outcomes = list(driver.clone(requests(origin, 10)))
    assert all(outcome.changed for outcome in outcomes)
    assert 0 < sum(read) < 2 * origin.allocated


def test_copies_are_sparse_and_their_own(driver, origin):
    for outcome in driver.clone(requests(origin, 3)):
        taken = outcome.unwrap().path.stat().st_blocks * 512
        assert origin.allocated <= taken <= 2 * origin.allocated


def interrupted(folder):
    """Kill a copy in its middle; returns what it left, by name."""
    process = subprocess.Popen(
        [sys.executable, SLOW, folder, str(256 * 1024)], stdout=subprocess.PIPE
    )
    with process:
        assert process.stdout.readline()
        process.kill()


def test_a_killed_copy_is_completed_by_the_same_request(tmp_path, make_driver, monkeypatch):
    interrupted(tmp_path)
    driver = make_driver(tmp_path)
    left = driver.volumes()
    assert sorted(v.name for v in left) == ["web-1-disk0", "web-2-disk0"]
    assert not any(volume.complete for volume in left)
    [origin] = driver.origins()
    for outcome in driver.activate(left):
        assert isinstance(outcome.error, WrongState)
        assert "run its create again to resume" in outcome.error.hint

    written = []
    write = Target.write
    monkeypatch.setattr(
        Target, "write", lambda self, data, at: (written.append(at), write(self, data, at))
    )
    outcomes = {o.key: o for o in driver.clone(requests(origin, 3, verify=True))}
    assert [outcomes[f"web-{n}-disk0"].changed for n in (1, 2, 3)] == [True] * 3
    content = (tmp_path / "image.raw").read_bytes()
    for outcome in outcomes.values():
        assert outcome.unwrap().complete
        assert outcome.unwrap().path.read_bytes() == content
    assert all(volume.complete for volume in driver.volumes())
    # What was written before is not written again: the first bytes of one, at the least.
    assert written.count(0) < 3


def test_a_killed_copy_can_be_deleted(tmp_path, make_driver):
    interrupted(tmp_path)
    driver = make_driver(tmp_path)
    assert [o.error for o in driver.delete(driver.volumes())] == [None, None]
    assert driver.volumes() == ()


def test_a_copy_that_grew_old_is_made_of_the_new_image(tmp_path, make_driver):
    """What was half copied of another image doesn't stay."""
    interrupted(tmp_path)
    driver = make_driver(tmp_path)
    other = make_image(tmp_path / "other.raw", seed=2, size=32 * MIB)
    origin = driver.import_image("tiny", other, no_progress).unwrap()
    for outcome in driver.clone(requests(origin, 2)):
        assert outcome.unwrap().path.read_bytes() == other.path.read_bytes()


@pytest.mark.parametrize(("image", "size"), [(64 * MIB, None), (64 * MIB, 96 * MIB), (0, 48 * MIB)])
def test_a_cut_off_copy_becomes_as_large_as_is_asked_for_now(tmp_path, make_driver, image, size):
    """Its image, or the disk that is asked for, has grown since it was begun."""
    interrupted(tmp_path)
    driver = make_driver(tmp_path)
    if image:
        larger = make_image(tmp_path / "image.raw", seed=2, size=image)
        driver.import_image("tiny", larger, no_progress)
    [origin] = driver.origins()
    content = (tmp_path / "image.raw").read_bytes()
    wanted = [attrs.evolve(each, size=size) for each in requests(origin, 2, verify=True)]
    for volume in [outcome.unwrap() for outcome in driver.clone(wanted)]:
        assert volume.complete
        assert volume.size == (size or image)
        assert volume.path.read_bytes() == content.ljust(volume.size, b"\0")
    assert {volume.size for volume in driver.volumes()} == {size or image}


def test_what_is_smaller_than_its_template_is_no_copy(driver, origin, monkeypatch):
    monkeypatch.setattr("vmcloner_files.cloning.disk_size", lambda *_: 16 * MIB)
    [outcome] = driver.clone(requests(origin, 1, verify=True))
    assert isinstance(outcome.error, WrongState)
    assert "has 16 MiB, less than the 32 MiB to copy" in str(outcome.error)
    assert driver.volumes() == ()


def test_who_comes_second_waits_for_the_copy(tmp_path, make_driver):
    process = subprocess.Popen(
        [sys.executable, SLOW, tmp_path, str(512 * 1024)], stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout.readline()
        driver = make_driver(tmp_path)
        [origin] = driver.origins()
        [busy, _] = driver.delete(driver.volumes())
        assert isinstance(busy.error, WrongState)
        assert f"process {process.pid}" in str(busy.error)
        outcomes = list(driver.clone(requests(origin, 2)))
        said = process.stdout.read()
    assert "web-1-disk0 True None" in said
    assert [outcome.changed for outcome in outcomes] == [False, False]
    assert all(outcome.unwrap().complete for outcome in outcomes)


def test_a_copy_that_is_not_its_template_is_an_error_and_goes(driver, origin, monkeypatch):
    flush = Target.flush

    def spoiled(target):
        if target.path.name == "web-2-disk0":
            with target.path.open("r+b") as stream:
                stream.write(b"spoiled")
        flush(target)

    monkeypatch.setattr(Target, "flush", spoiled)
    outcomes = {o.key: o for o in driver.clone(requests(origin, 3, verify=True))}
    assert isinstance(outcomes["web-2-disk0"].error, HostCommandError)
    assert "bytes read back differ" in str(outcomes["web-2-disk0"].error)
    assert sorted(v.name for v in driver.volumes()) == ["web-1-disk0", "web-3-disk0"]
    monkeypatch.undo()
    [again] = [o for o in driver.clone(requests(origin, 3)) if o.changed]
    assert again.key == "web-2-disk0"


def test_one_full_disk_is_that_ones_failure(driver, origin, monkeypatch):
    write = Target.write

    def full(target, data, at):
        if target.path.name == "web-1-disk0":
            raise OSError(28, "No space left on device")
        write(target, data, at)

    monkeypatch.setattr(Target, "write", full)
    outcomes = {o.key: o for o in driver.clone(requests(origin, 2))}
    assert "web-1-disk0: No space left on device" in str(outcomes["web-1-disk0"].error)
    assert [v.name for v in driver.volumes()] == ["web-2-disk0"]


def test_bandwidth_of_a_request_goes_before_that_of_the_settings(
    tmp_path, make_driver, image, monkeypatch
):
    asked = []
    monkeypatch.setattr(Pace, "__call__", lambda self, _count: asked.append(self.bandwidth))
    driver = make_driver(tmp_path, bandwidth=1000)
    origin = driver.import_image("tiny", image, no_progress).unwrap()
    list(driver.clone(requests(origin, 1)))
    assert set(asked) == {1000}
    asked.clear()
    driver.import_image("other", image, no_progress, Copying(bandwidth=7))
    list(driver.clone(requests(attrs.evolve(origin, template="other"), 2, bandwidth=7)))
    assert set(asked) == {7}


def test_progress_is_each_disks_own(driver, origin):
    told = {}
    list(
        driver.clone(
            requests(origin, 2),
            lambda name, done, total: told.setdefault(name, []).append((done, total)),
        )
    )
    assert set(told) == {"web-1-disk0", "web-2-disk0"}
    for steps in told.values():
        assert steps == sorted(steps)
        assert steps[-1] == (32 * MIB, 32 * MIB)


def test_settings_are_checked():
    with pytest.raises(InvalidRequest, match="must be absolute"):
        DdSettings(path=Path("relative"))
    with pytest.raises(InvalidRequest, match="only for a dd pool in a folder"):
        DdSettings(vg="VG01", qemu_user="root")


def test_disks_may_belong_to_the_user_that_runs_qemu(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr("vmcloner_files.driver.FilesDriver", lambda *words: made.append(words[1]))
    context = DriverContext(host=Host(name="local", state=tmp_path), name="dd", runner=None)
    vmcloner_storage_backend().factory(context, DdSettings(path=tmp_path, qemu_user="root"))
    assert [settings.qemu_user for settings in made] == ["root"]
