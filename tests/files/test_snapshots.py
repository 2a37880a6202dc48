"""Snapshots in folders: what a file of that name may be, and what keeps images and labels."""

import os

import pytest

from vmcloner_core.errors import Conflict, InvalidRequest, NotEnoughResources, WrongState
from vmcloner_core.model import CloneMode, CloneRequest
from vmcloner_core.testing.samples import make_context, make_labels
from vmcloner_core.testing.snapshots import snapshot_of
from vmcloner_core.testing.storage import make_image, no_progress
from vmcloner_dd.plugin import vmcloner_storage_backend
from vmcloner_files import snapshots as module


@pytest.fixture
def pool(tmp_path, make_driver):
    return make_driver(tmp_path, clone="overlay")


@pytest.fixture
def volume(pool, tmp_path):
    origin = pool.import_image("tiny", make_image(tmp_path / "i.raw", 1), no_progress).unwrap()
    request = CloneRequest(labels=make_labels(), origin=origin, mode=CloneMode.LINKED)
    [outcome] = pool.clone([request])
    return outcome.unwrap()


def take(pool, volume, name="ready"):
    [outcome] = pool.snapshots.create([snapshot_of(volume, name)])
    return outcome


def test_a_file_of_that_name_that_is_not_ours(pool, volume):
    path = pool.snapshots._pool.snapshots / f"{volume.name}.ready"
    path.write_bytes(b"mine")
    assert isinstance(take(pool, volume).error, Conflict)
    assert path.read_bytes() == b"mine"
    assert pool.snapshots.found() == ()


def test_a_file_that_another_user_could_have_written(pool, volume):
    snapshot = take(pool, volume).unwrap()
    snapshot.path.chmod(0o666)
    with pytest.raises(InvalidRequest):
        pool.snapshots.found()
    [outcome] = pool.snapshots.revert([snapshot])
    assert isinstance(outcome.error, InvalidRequest)


def test_images_stay_while_snapshots_are_overlays_of_them(pool, volume):
    snapshot = take(pool, volume).unwrap()
    list(pool.delete([volume]))
    with pytest.raises(WrongState, match="web-1"):
        pool.delete_origin("tiny")
    list(pool.snapshots.delete([snapshot]))
    assert pool.delete_origin("tiny").changed


def test_labels_of_snapshots_outlive_sweeps(pool, volume):
    taken = [take(pool, volume, f"s{n}").unwrap() for n in range(3)]
    list(pool.snapshots.delete(taken[:1]))
    for _ in range(2):
        pool.sweep()
        assert set(pool.snapshots.found()) == set(taken[1:])


@pytest.mark.parametrize("failing", ["_copy", "publish"])
def test_what_fails_leaves_nothing(pool, volume, monkeypatch, failing):
    def full(*_):
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patch:
        if failing == "_copy":
            patch.setattr(module.FolderSnapshots, "_copy", full)
        else:
            patch.setattr("vmcloner_files.drafts.Draft.publish", full)
        assert isinstance(take(pool, volume).error, NotEnoughResources)
    assert pool.snapshots.found() == ()
    assert list(pool.snapshots._pool.snapshots.iterdir()) == []
    assert take(pool, volume).changed


def test_a_snapshot_of_an_overlay_is_an_overlay_of_the_image_alone(pool, volume):
    snapshot = take(pool, volume).unwrap()
    assert snapshot.path.stat().st_size == volume.path.stat().st_size
    assert snapshot.path.stat().st_ino != volume.path.stat().st_ino
    assert b"snapshots" not in snapshot.path.read_bytes()
    [outcome] = pool.snapshots.revert([snapshot])
    assert outcome.unwrap() == volume


def test_dd_has_none(tmp_path):
    backend = vmcloner_storage_backend()
    driver = backend.factory(make_context(tmp_path), backend.settings())
    assert driver.snapshots is None
