"""Images become templates: raw, sparse, in few pieces, read-only, whole or not at all."""

import os
import stat
import subprocess
import threading

import attrs
import pytest

from vmcloner_core.drivers import ImageFile
from vmcloner_core.errors import (
    Conflict,
    HostCommandError,
    InvalidRequest,
    NotEnoughResources,
    WrongState,
)
from vmcloner_core.model import Capacity, CloneMode, CloneRequest
from vmcloner_core.process import LocalRunner
from vmcloner_core.qemu_img import measure
from vmcloner_core.testing.samples import make_labels
from vmcloner_core.testing.storage import MIB, make_image, no_progress


@pytest.fixture
def driver(tmp_path, make_driver):
    return make_driver(tmp_path, clone="overlay")


def stored(folder, template="tiny"):
    return folder / "pool" / "templates" / f"{template}.raw"


def qcow2_of(image, path, *options):
    argv = ["qemu-img", "convert", *options, "-f", "raw", "-O", "qcow2", image.path, path]
    subprocess.run(argv, check=True, timeout=60)
    return attrs.evolve(image, path=path, format="qcow2")


@pytest.mark.parametrize("options", [(), ("-c",)], ids=["plain", "compressed"])
def test_qcow2_is_stored_raw(tmp_path, driver, options):
    raw = make_image(tmp_path / "image.raw", seed=3)
    image = qcow2_of(raw, tmp_path / "image.qcow2", *options)
    seen = []
    driver.import_image("tiny", image, lambda *done: seen.append(done)).unwrap()
    assert stored(tmp_path).read_bytes() == raw.path.read_bytes()
    assert seen[-1][0] == seen[-1][1] > 0


def test_template_is_sparse_in_few_pieces_and_read_only(tmp_path, driver):
    path = tmp_path / "image.raw"
    image = make_image(path, seed=4, size=64 * MIB)
    path.write_bytes(path.read_bytes())  # zeros written out, no holes
    assert path.stat().st_blocks * 512 >= 64 * MIB
    seen = []
    origin = driver.import_image("tiny", image, lambda *done: seen.append(done)).unwrap()
    assert origin.allocated < MIB
    assert origin.extents == 3
    assert stat.S_IMODE(stored(tmp_path).stat().st_mode) == 0o444
    assert [done for done, _total in seen] == sorted(done for done, _total in seen)
    assert seen[-1][0] == seen[-1][1] == 256 * 1024 + 2 * 64 * 1024


def test_image_of_zeros_only(tmp_path, driver):
    path = tmp_path / "zeros.raw"
    path.write_bytes(bytes(MIB))
    image = ImageFile(path=path, format="raw", size=MIB, digest="sha256:0")
    assert driver.import_image("tiny", image, no_progress).unwrap().allocated <= 8192
    assert stored(tmp_path).read_bytes() == bytes(MIB)


@pytest.mark.filesystems
@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
@pytest.mark.parametrize("form", ["raw", "qcow2"])
def test_pieces_are_few_where_each_costs(tmp_path, mounts, new_folder, make_driver, kind, form):
    path = tmp_path / "scattered.raw"
    with path.open("wb") as stream:
        for index in range(300):
            stream.seek(index * 192 * 1024)
            stream.write(os.urandom(128 * 1024))
    image = ImageFile(path=path, format="raw", size=path.stat().st_size, digest="sha256:0")
    if form == "qcow2":
        image = qcow2_of(image, tmp_path / "scattered.qcow2")
    folder = new_folder(mounts(kind))
    origin = make_driver(folder).import_image("tiny", image, no_progress).unwrap()
    assert origin.extents <= 40
    assert stored(folder).read_bytes() == path.read_bytes()


@pytest.mark.filesystems
@pytest.mark.parametrize("form", ["raw", "qcow2"])
def test_no_room(tmp_path, mounts, new_folder, make_driver, form):
    path = tmp_path / "large.raw"
    path.write_bytes(os.urandom(24 * MIB))
    image = ImageFile(path=path, format="raw", size=24 * MIB, digest="sha256:0")
    if form == "qcow2":
        image = qcow2_of(image, tmp_path / "large.qcow2")
    folder = new_folder(mounts("tmpfs"))
    driver = make_driver(folder)
    with pytest.raises(NotEnoughResources, match=r"tiny needs 24 MiB in .*, 1[0-9.]* MiB are free"):
        driver.import_image("tiny", image, no_progress)
    assert driver.origins() == ()
    assert list((folder / "pool" / "templates").iterdir()) == []


@pytest.mark.filesystems
def test_room_that_runs_out_meanwhile(tmp_path, mounts, new_folder, make_driver, monkeypatch):
    path = tmp_path / "large.raw"
    path.write_bytes(os.urandom(24 * MIB))
    image = ImageFile(path=path, format="raw", size=24 * MIB, digest="sha256:0")
    folder = new_folder(mounts("tmpfs"))
    driver = make_driver(folder)
    monkeypatch.setattr("vmcloner_files.importing.Importer._check_room", lambda *_args: None)
    with pytest.raises(NotEnoughResources, match="No space left"):
        driver.import_image("tiny", image, no_progress)
    assert driver.capacity().free > 12 * MIB


def test_qcow2_that_qemu_cannot_read(tmp_path, driver):
    image = qcow2_of(make_image(tmp_path / "image.raw", seed=5), tmp_path / "image.qcow2")
    with image.path.open("r+b") as stream:
        stream.seek(40)
        stream.write(b"\xff" * 8)  # the L1 table's offset
    with pytest.raises(HostCommandError, match="qemu-img"):
        driver.import_image("tiny", image, no_progress)
    assert list((tmp_path / "pool" / "templates").iterdir()) == []


def test_linked_clones_keep_their_image(tmp_path, driver):
    image = make_image(tmp_path / "image.raw", seed=6)
    origin = driver.import_image("tiny", image, no_progress).unwrap()
    requests = [CloneRequest(labels=make_labels(index=i), origin=origin) for i in (1, 2, 3)]
    assert all(outcome.ok for outcome in driver.clone(requests))
    changed = make_image(tmp_path / "changed.raw", seed=7)
    for attempt in (
        lambda: driver.import_image("tiny", changed, no_progress),
        lambda: driver.delete_origin("tiny"),
    ):
        with pytest.raises(WrongState, match=r"tiny: clones are linked to its image: web-\[1-3\]"):
            attempt()
    assert driver.origins() == (origin,)


def test_a_clone_linked_during_the_import_is_seen(tmp_path, driver):
    origin = driver.import_image(
        "tiny", make_image(tmp_path / "image.raw", seed=6), no_progress
    ).unwrap()

    def clone(done, total):
        request = CloneRequest(labels=make_labels(), origin=origin)
        assert all(outcome.ok for outcome in driver.clone([request]))

    with pytest.raises(WrongState):
        driver.import_image("tiny", make_image(tmp_path / "changed.raw", seed=7), clone)
    assert driver.origins() == (origin,)


def test_copies_do_not_need_their_image(tmp_path, driver):
    image = make_image(tmp_path / "image.raw", seed=6)
    origin = driver.import_image("tiny", image, no_progress).unwrap()
    [outcome] = driver.clone(
        [CloneRequest(labels=make_labels(), origin=origin, mode=CloneMode.FULL)]
    )
    assert driver.delete_origin("tiny").changed
    assert outcome.unwrap().path.read_bytes() == image.path.read_bytes()


def test_a_plan_made_for_another_image_is_refused(tmp_path, driver):
    old = driver.import_image("tiny", make_image(tmp_path / "a.raw", seed=8), no_progress).unwrap()
    driver.import_image("tiny", make_image(tmp_path / "b.raw", seed=9), no_progress).unwrap()
    [outcome] = driver.clone([CloneRequest(labels=make_labels(), origin=old)])
    assert isinstance(outcome.error, WrongState)
    assert driver.volumes() == ()


def test_foreign_file_of_the_templates_name(tmp_path, driver):
    image = make_image(tmp_path / "image.raw", seed=1)
    stored(tmp_path).parent.mkdir(parents=True)
    stored(tmp_path).write_bytes(b"somebody's")
    for attempt in (
        lambda: driver.import_image("tiny", image, no_progress),
        lambda: driver.delete_origin("tiny"),
    ):
        with pytest.raises(Conflict, match="is not vmcloner's"):
            attempt()
    assert stored(tmp_path).read_bytes() == b"somebody's"
    assert driver.origins() == ()


def test_two_imports_at_once(tmp_path, make_driver):
    image = make_image(tmp_path / "image.raw", seed=1)
    outcomes, barrier = [], threading.Barrier(2)

    def run():
        driver = make_driver(tmp_path)
        barrier.wait(30)
        outcomes.append(driver.import_image("tiny", image, no_progress))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(outcome.changed for outcome in outcomes) == [False, True]
    assert outcomes[0].value == outcomes[1].value


def test_an_image_that_changes_size_meanwhile(tmp_path, driver):
    image = make_image(tmp_path / "image.raw", seed=1)
    os.truncate(image.path, 4096)
    with pytest.raises(InvalidRequest, match="changed while it was imported"):
        driver.import_image("tiny", image, no_progress)
    assert driver.origins() == ()


def test_an_empty_qcow2_larger_than_the_free_space_is_imported(tmp_path, driver, monkeypatch):
    image = attrs.evolve(
        make_image(tmp_path / "image.raw", seed=1), path=tmp_path / "large.qcow2", format="qcow2"
    )
    argv = ["qemu-img", "create", "-q", "-f", "qcow2", image.path, "100G"]
    subprocess.run(argv, check=True, timeout=60)
    image = attrs.evolve(image, size=100 * 1024**3)
    free = Capacity(total=66 * MIB, free=66 * MIB)
    monkeypatch.setattr("vmcloner_files.importing.space", lambda _folder: free)
    origin = driver.import_image("tiny", image, no_progress).unwrap()
    assert origin.size == 100 * 1024**3
    assert origin.allocated < MIB


@pytest.mark.parametrize("options", [(), ("-c",), ("-o", "cluster_size=2M")])
@pytest.mark.parametrize("piece", [4096, 64 * 1024, 100_000])
def test_the_need_of_a_qcow2_is_a_near_bound_of_what_it_takes(tmp_path, driver, options, piece):
    path = tmp_path / "scattered.raw"
    with path.open("wb") as stream:
        for index in range(40):
            stream.seek(index * 3 * MIB + index * 4096)
            stream.write(os.urandom(piece))
        stream.truncate(256 * MIB)
    raw = ImageFile(path=path, format="raw", size=256 * MIB, digest="sha256:0")
    image = qcow2_of(raw, tmp_path / "scattered.qcow2", *options)
    need = measure(LocalRunner(), image)
    allocated = driver.import_image("tiny", image, no_progress).unwrap().allocated
    clusters = 2 * MIB if "cluster_size=2M" in options else 64 * 1024
    assert allocated <= need <= 40 * (piece + 2 * clusters)
