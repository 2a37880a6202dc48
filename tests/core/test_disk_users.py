"""Who uses disks, from what domains and processes say; all files are real, domains are made up."""

import os
import subprocess
import uuid
from pathlib import Path

import pytest

from vmcloner_core.disk_users import DiskUsers, check_back, keys
from vmcloner_core.errors import WrongState
from vmcloner_core.model import DiskFile, DomainUse, Volume
from vmcloner_core.qcow2 import overlay
from vmcloner_core.testing.samples import make_labels


def make_volume(folder: Path, number: int = 1) -> Volume:
    labels = make_labels("web", number)
    name = f"{labels.clone}-disk0"
    (folder / name).touch()
    return Volume(
        name=name, pool="p", labels=labels, path=folder / name, size=2**20, format="qcow2"
    )


def make_overlay(path: Path, backing: str) -> Path:
    with path.open("wb") as stream:
        overlay(backing, 2**20).write(stream.fileno())
    return path


def use(name: str, *files: Path, form: str = "qcow2", **more) -> DomainUse:
    disks = tuple(DiskFile(path=path, format=form) for path in files)
    number = uuid.uuid5(uuid.NAMESPACE_DNS, name)
    return DomainUse(name=name, uuid=number, disks=disks, files=disks, **more)


def none_is_own(_domain, _arguments) -> bool:
    return False


def refusal(users: DiskUsers, volume: Volume) -> str:
    with pytest.raises(WrongState) as caught:
        users.check(volume.labels.clone, [volume], none_is_own)
    return str(caught.value)


def test_a_clones_own_domain_may_use_its_disk(tmp_path):
    volume = make_volume(tmp_path)
    DiskUsers([use("web-1", volume.path)], [volume]).check("web-1", [volume], none_is_own)


@pytest.mark.parametrize("how", ["path", "symbolic link", "hard link", "overlay", "overlay of one"])
def test_another_domain_is_named(tmp_path, how):
    volume = make_volume(tmp_path)
    path = tmp_path / "other"
    if how == "path":
        path = volume.path
    elif how == "symbolic link":
        path.symlink_to(volume.path)
    elif how == "hard link":
        path.hardlink_to(volume.path)
    else:
        make_overlay(path, str(volume.path))
        if how == "overlay of one":
            top = ["-u", "-b", "other", "-F", "qcow2", str(tmp_path / "top"), "1M"]
            subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *top], check=True)
            path = tmp_path / "top"
    users = DiskUsers([use("web-1", volume.path), use("other", path)], [volume])
    assert "domain 'other'" in refusal(users, volume)


def test_a_raw_disk_that_looks_like_an_overlay_of_another_counts_for_nothing(tmp_path):
    """A guest can write anything there."""
    volume = make_volume(tmp_path)
    hostile = make_overlay(tmp_path / "hostile", str(volume.path))
    users = DiskUsers([use("web-1", volume.path), use("other", hostile, form="raw")], [volume])
    users.check("web-1", [volume], none_is_own)


def test_overlays_in_a_circle_end(tmp_path):
    volume = make_volume(tmp_path)
    make_overlay(tmp_path / "a", str(tmp_path / "a"))
    DiskUsers([use("other", tmp_path / "a")], [volume]).check("web-1", [volume], none_is_own)


def test_a_process_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("vmcloner_core.disk_users.MOMENT", 0.0)
    volume = make_volume(tmp_path)
    with volume.path.open("rb") as stream, subprocess.Popen(["sleep", "60"], stdin=stream) as user:
        users = DiskUsers([use("web-1", volume.path)], [volume])
        assert f"process {user.pid} (sleep)" in refusal(users, volume)
        users.check("web-1", [volume], lambda _domain, words: words[0] == "sleep")
        assert f"process {user.pid} (sleep)" in refusal(DiskUsers([], [volume]), volume)
        user.kill()


def test_a_block_job_is_named(tmp_path):
    volume = make_volume(tmp_path)
    users = DiskUsers([use("web-1", volume.path, job="copy of vda")], [volume])
    assert "copy of vda" in refusal(users, volume)


def test_an_lvm_volume_is_known_by_both_of_its_names():
    """Also while it isn't active, and has no device."""
    names = (Path("/dev/my-vg/web-1-disk0"), Path("/dev/mapper/my--vg-web--1--disk0"))
    assert keys(names[0]) & keys(names[1])


def test_snapshots_beside_a_volume_are_its_own(tmp_path):
    volume = make_volume(tmp_path)
    first = make_overlay(tmp_path / f"{volume.name}.s1", str(volume.path))
    users = DiskUsers([use("web-1", first)], [volume])
    (moved,) = users.moved("web-1", [volume])
    assert (moved.now, moved.overlays, moved.own) == (first, (first,), True)
    check_back("web-1", [moved])
    assert users.overlays("web-1", [volume]) == (first,)
    first.unlink()  # by a run that was killed then
    users = DiskUsers([use("web-1", first)], [volume])
    assert users.moved("web-1", [volume])[0].own


@pytest.mark.parametrize("how", ["elsewhere", "no overlay", "beside, but no overlay"])
def test_other_files_are_named_and_kept(tmp_path, how):
    (tmp_path / "pool").mkdir()
    volume = make_volume(tmp_path / "pool")
    other = tmp_path / ("pool" if how.startswith("beside") else "") / f"{volume.name}.s1"
    if how == "elsewhere":
        make_overlay(other, str(volume.path))
    else:
        other.write_bytes(os.urandom(512))
    users = DiskUsers([use("web-1", other)], [volume])
    moved = users.moved("web-1", [volume])
    with pytest.raises(WrongState) as caught:
        check_back("web-1", moved)
    assert str(other) in str(caught.value)
    assert users.overlays("web-1", [volume]) == ()


def test_a_snapshot_that_another_domain_uses_is_kept(tmp_path):
    volume = make_volume(tmp_path)
    first = make_overlay(tmp_path / f"{volume.name}.s1", str(volume.path))
    users = DiskUsers([use("web-1", volume.path, snapshots=(first,)), use("o", first)], [])
    assert users.overlays("web-1", [volume]) == ()
    users = DiskUsers([use("web-1", volume.path, snapshots=(first,))], [])
    assert users.overlays("web-1", [volume]) == (first,)


def test_a_process_that_only_looks_is_none(tmp_path):
    """As udev does, when a device has changed."""
    volume = make_volume(tmp_path)
    with volume.path.open("rb") as stream, subprocess.Popen(["sleep", "0.5"], stdin=stream) as user:
        users = DiskUsers([], [volume])
        assert user.poll() is None
        users.check("web-1", [volume], none_is_own)
