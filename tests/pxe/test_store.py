"""The store of kernels and initrds: once each, whole, and never swept from under a guest."""

import os

import pytest

from vmcloner_pxe.batch import KEEP, Store

CONTENT = b"K" * 5000


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "source"
    path.write_bytes(CONTENT)
    with path.open("rb") as stream:
        yield stream


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "store"


def test_guests_of_one_kernel_take_its_space_once(source, folder, tmp_path):
    Store(folder).link([source], tmp_path / "one")
    Store(folder).link([source], tmp_path / "two")
    [kept] = folder.iterdir()
    assert len({path.stat().st_ino for path in (kept, tmp_path / "one", tmp_path / "two")}) == 1
    assert (tmp_path / "two").read_bytes() == CONTENT
    assert kept.stat().st_mode & 0o777 == 0o644


def test_what_a_power_cut_left_of_a_file_is_not_used_again(source, folder, tmp_path):
    Store(folder).link([source], tmp_path / "one")
    [kept] = folder.iterdir()
    with kept.open("r+b") as stream:
        stream.truncate(0)
    Store(folder).link([source], tmp_path / "two")
    assert (tmp_path / "two").read_bytes() == CONTENT
    assert [path.name for path in folder.iterdir()] == [kept.name]


def test_content_is_on_the_disk_before_it_has_its_name(source, folder, tmp_path, monkeypatch):
    synced = []

    def fsync(fd):
        synced.append([path.name for path in folder.iterdir()])

    monkeypatch.setattr(os, "fsync", fsync)
    Store(folder).link([source], tmp_path / "one")
    Store(folder).link([source], tmp_path / "two")  # has its name already
    [[name]] = synced
    assert name.startswith(".draft-")


def test_a_sweep_by_another_process_is_made_good(source, folder, tmp_path, monkeypatch):
    Store(folder).link([source], tmp_path / "one")
    (tmp_path / "one").unlink()
    [kept] = folder.iterdir()
    long_ago = kept.stat().st_mtime - KEEP - 1
    utime = os.utime
    raced = []

    def racing(path, *rest):
        if not raced:
            raced.append(path)
            utime(path, (long_ago, long_ago))
            Store(folder).sweep()
        utime(path, *rest)

    monkeypatch.setattr(os, "utime", racing)
    Store(folder).link([source], tmp_path / "two")
    assert (tmp_path / "two").read_bytes() == CONTENT


def test_a_guests_folder_that_is_gone_is_an_error(source, folder, tmp_path):
    with pytest.raises(FileNotFoundError):
        Store(folder).link([source], tmp_path / "gone" / "kernel")


def test_a_sweep_removes_what_no_guest_has(source, folder, tmp_path):
    Store(folder).link([source], tmp_path / "one")
    [kept] = folder.iterdir()
    os.utime(kept, (1, 1))
    Store(folder).sweep()
    assert kept.exists()
    (tmp_path / "one").unlink()
    Store(folder).sweep()
    assert not kept.exists()
