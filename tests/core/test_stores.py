"""The storage driver for stores of volumes: its store here is a folder."""

import itertools
import json
import os
from pathlib import Path

import attrs
import pytest

from vmcloner_core import qcow2
from vmcloner_core.drivers.stores import Kept, Store, StoreDriver
from vmcloner_core.errors import Conflict, NotEnoughResources, WrongState
from vmcloner_core.model import Capacity, CloneMode, CloneRequest
from vmcloner_core.testing.samples import make_context, make_labels
from vmcloner_core.testing.storage import StorageConformance, make_image, no_progress
from vmcloner_core.testing.store import StoreConformance


class Folder(Store):
    """Volumes in a folder, with records beside them; a record of a whole one ends in a blank."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.free = 2**40

    def _record(self, name):
        return self.folder / f"{name}.record"

    def capacity(self):
        return Capacity(total=2**40, free=self.free)

    def names(self):
        return [path.stem for path in self.folder.glob("*.record")]

    def find(self, name):
        record, path = self._record(name), self.folder / name
        if not record.exists():
            if path.exists():
                raise Conflict(f"{name} is not ours")
            return None
        text = record.read_text()
        return Kept(path=path, known=json.loads(text), whole=path.exists() and text.endswith(" "))

    def make(self, name, known, size, below):
        self._record(name).write_text(json.dumps(known))
        path = self.folder / name
        with path.open("xb") as file:
            if below is None:
                file.truncate(size)
            else:
                qcow2.overlay(str(below), size).write(file.fileno())
        return path

    def finish(self, name):
        with self._record(name).open("a") as file:
            file.write(" ")

    def remove(self, name):
        (self.folder / name).unlink(missing_ok=True)
        self._record(name).unlink(missing_ok=True)


@pytest.fixture
def store(tmp_path):
    (tmp_path / "pool").mkdir()
    return Folder(tmp_path / "pool")


@pytest.fixture
def driver(tmp_path, store):
    return StoreDriver(make_context(tmp_path, "pool"), store)


@pytest.fixture
def image(tmp_path):
    return make_image(tmp_path / "image", seed=1)


class TestFolder(StoreConformance):
    @pytest.fixture
    def open_store(self, tmp_path):
        return lambda: Folder(tmp_path)


class TestStore(StorageConformance):
    @pytest.fixture
    def open_driver(self, tmp_path, store):
        return lambda: StoreDriver(make_context(tmp_path, "pool"), store)


@pytest.mark.parametrize(
    "damage",
    [
        {"size": "8"},
        {"size": None},
        {"size": 1.5},
        {"labels": {}},
        {"labels": [1]},
        {"labels": {**make_labels().to_mapping(), "version": "9"}},
        {"below": 3},
        {"digest": "sha256:0"},
    ],
    ids=str,
)
def test_a_damaged_record_is_neither_listed_nor_touched(driver, store, image, damage):
    """Nor is what its volume may be linked to."""
    origin = driver.import_image("tiny", image, no_progress).unwrap()
    [made] = driver.clone([CloneRequest(labels=make_labels(), origin=origin)])
    record = store.folder / f"{made.key}.record"
    record.write_text(json.dumps({**json.loads(record.read_text()), **damage}) + " ")
    content = made.unwrap().path.read_bytes()
    assert driver.volumes() == ()
    with pytest.raises(WrongState, match="web-1-disk0 may be linked to the image of template tiny"):
        driver.delete_origin("tiny")
    with pytest.raises(WrongState):
        driver.import_image("tiny", attrs.evolve(image, digest="sha256:0"), no_progress)
    [again] = driver.clone([CloneRequest(labels=make_labels(), origin=origin)])
    [deleted] = driver.delete([made.unwrap()])
    for outcome in (again, deleted):
        assert isinstance(outcome.error, Conflict)
    assert record.exists()
    assert made.unwrap().path.read_bytes() == content


def test_an_unfinished_volume_of_another_state_folder_is_left(driver, store, image, tmp_path):
    origin = driver.import_image("tiny", image, no_progress).unwrap()
    store.finish = lambda _name: None  # as if it was killed before
    request = CloneRequest(labels=make_labels(), origin=origin, mode=CloneMode.FULL)
    list(driver.clone([request]))
    del store.finish
    other = tmp_path / "other"
    other.mkdir()
    context = make_context(other, "pool")
    context.host.state.mkdir()
    context.host.state_id.write_text("b" * 32)
    [outcome] = StoreDriver(context, store).clone([request])
    assert isinstance(outcome.error, WrongState)
    [outcome] = driver.clone([request])
    assert outcome.unwrap().complete


def test_what_fails_leaves_nothing(driver, store, image):
    origin = driver.import_image("tiny", image, no_progress).unwrap()
    real = store.make

    def full(*words):
        real(*words)
        raise NotEnoughResources("full")

    store.make = full
    [outcome] = driver.clone([CloneRequest(labels=make_labels(), origin=origin)])
    assert isinstance(outcome.error, NotEnoughResources)
    assert driver.volumes() == ()
    assert sorted(path.name for path in store.folder.iterdir()) == [
        "tiny.image",
        "tiny.image.record",
    ]


def test_an_image_that_does_not_fit_is_refused(driver, store, image):
    store.free = 1024
    with pytest.raises(NotEnoughResources, match="pool pool: tiny needs"):
        driver.import_image("tiny", image, no_progress)
    with pytest.raises(NotEnoughResources):
        driver.import_image("tiny", attrs.evolve(image, digest="sha256:0"), no_progress)
    assert list(store.folder.iterdir()) == []


def killed(work, store, at):
    """Do work in a process that is killed before or after a change of the store's, the at-th."""
    if (pid := os.fork()) == 0:
        points = itertools.count()

        def around(change):
            def changed(*words):
                for step in (lambda: None, lambda: change(*words)):
                    result = step()
                    if next(points) == at:
                        os._exit(9)
                return result

            return changed

        for name in ("make", "finish", "remove"):
            setattr(store, name, around(getattr(store, name)))
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, 9)
    return code == 9


def test_killed_anywhere_the_same_calls_complete_it(driver, store, image):
    """Killed around each change, while the driver imports, clones and deletes."""
    foreign = store.folder / "web-2-disk0"
    foreign.write_bytes(b"foreign")

    def work():
        origin = driver.import_image("tiny", image, no_progress).unwrap()
        [made] = driver.clone([CloneRequest(labels=make_labels(), origin=origin)])
        assert made.unwrap().complete
        assert driver.volumes() == (made.value,)
        assert all(outcome.ok for outcome in driver.delete(driver.volumes()))
        assert driver.delete_origin("tiny").changed

    for at in itertools.count():
        again = killed(work, store, at)
        work()
        assert list(store.folder.iterdir()) == [foreign]
        if not again:
            break
    assert at == 16  # what is left of killed calls is removed first: two removals more
