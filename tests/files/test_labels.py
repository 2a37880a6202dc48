"""Labels on files: kept in attributes or sidecars, read back or refused."""

import json
import os
import shutil
import string

import attrs
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from vmcloner_core.errors import Conflict
from vmcloner_core.model import CloneMode, CloneRequest, Labels
from vmcloner_core.testing.samples import make_labels
from vmcloner_core.testing.storage import make_image, no_progress
from vmcloner_files.labelling import ATTRIBUTE, SidecarLabels, XattrLabels, decode, encode
from vmcloner_files.records import DiskRecord, ImageRecord

text = st.text(max_size=100)
words = st.text(string.ascii_lowercase + string.digits, min_size=1, max_size=20)
disks = st.builds(
    DiskRecord,
    labels=st.builds(
        Labels,
        fleet=words.filter(lambda word: word != "0"),
        index=st.integers(1, 999_999),
        template=words,
        run=text,
        owner=text,
        created=text,
        storage=text,
        hypervisor=text,
        expires=st.none() | text,
    ),
    format=st.sampled_from(["raw", "qcow2"]),
    size=st.integers(0, 2**60),
)
images = st.builds(
    ImageRecord,
    template=words,
    digest=st.text(min_size=1, max_size=80),
    size=st.integers(0, 2**60),
    extents=st.none() | st.integers(0, 2**40),
)


@pytest.mark.parametrize("store", [XattrLabels(), SidecarLabels()], ids=["xattr", "sidecar"])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(record=disks | images)
@example(record=ImageRecord(template="t", digest="\ud800", size=1))
def test_records_come_back_as_they_were(tmp_path, store, record):
    path = tmp_path / "file"
    with path.open("wb") as stream:
        store.write(stream.fileno(), path, record.to_mapping())
    assert type(record).from_mapping(store.read(path)) == record


@pytest.mark.parametrize("store", [XattrLabels(), SidecarLabels()], ids=["xattr", "sidecar"])
def test_files_without_labels(tmp_path, store):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "dangling").symlink_to("nowhere")
    for name in ("file", "folder", "link", "dangling"):
        assert store.read(tmp_path / name) is None
    with pytest.raises(FileNotFoundError):
        store.read(tmp_path / "none")


@given(st.binary() | st.recursive(st.none() | st.text(), st.lists).map(json.dumps).map(str.encode))
@example(b"[" * 100_000)
@example(b'{"version": 1}')
@example(b'{"version": ["1"]}')
def test_what_is_no_object_of_strings_is_no_label(content):
    values = decode(content)
    assert values is None or all(isinstance(value, str) for value in values.values())


@given(
    base=disks | images,
    key=st.sampled_from(["version", "size", "format", "index", "template", "digest", "fleet"]),
    value=st.none() | st.text(max_size=30) | st.sampled_from(["-1", "1" * 5000, "²", "../x"]),
)
def test_what_is_malformed_is_no_record(base, key, value):
    values = base.to_mapping()
    values.pop(key, None)
    if value is not None:
        values[key] = value
    for kind in (DiskRecord, ImageRecord):
        record = kind.from_mapping(decode(encode(values)) or {})
        assert record is None or 0 <= record.size < 10**20


def test_a_sidecar_belongs_to_its_file_only(tmp_path):
    store, path = SidecarLabels(), tmp_path / "file"
    with path.open("wb") as stream:
        store.write(stream.fileno(), path, {"version": "1"})
    path.rename(tmp_path / "moved")
    path.touch()
    assert store.read(path) is None


def test_sidecars_without_files_are_swept(tmp_path):
    store = SidecarLabels()
    for name in ("kept", "gone"):
        with (tmp_path / name).open("wb") as stream:
            store.write(stream.fileno(), tmp_path / name, {"version": "1"})
    (tmp_path / "gone").unlink()
    store.sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".kept.labels", "kept"]


@pytest.fixture
def driver(tmp_path, make_driver):
    return make_driver(tmp_path)


@pytest.fixture
def request_one(driver, tmp_path):
    image = make_image(tmp_path / "image.raw", seed=1)
    origin = driver.import_image("tiny", image, no_progress).unwrap()
    return CloneRequest(labels=make_labels(), origin=origin, mode=CloneMode.FULL)


def test_one_attribute_says_it_all(driver, request_one):
    [outcome] = driver.clone([request_one])
    path = outcome.unwrap().path
    assert [n for n in os.listxattr(path) if n.startswith("user.")] == [ATTRIBUTE]
    stored = json.loads(os.getxattr(path, ATTRIBUTE))
    assert stored.items() >= request_one.labels.to_mapping().items()


def test_a_copy_with_attributes_is_no_clone(driver, request_one):
    [outcome] = driver.clone([request_one])
    volume = outcome.unwrap()
    for name in ("backup", "web-2-disk0"):
        shutil.copy2(volume.path, volume.path.with_name(name))
    assert driver.volumes() == (volume,)
    second = attrs.evolve(request_one, labels=make_labels(index=2))
    [outcome] = driver.clone([second])
    assert isinstance(outcome.error, Conflict)


def test_a_guest_cannot_choose_its_disks_format(driver, request_one):
    [outcome] = driver.clone([request_one])
    outcome.unwrap().path.write_bytes(b"QFI\xfb" + bytes(4092))
    [volume] = driver.volumes()
    assert volume.format == "raw"


def test_labels_that_the_file_system_cannot_hold(driver, request_one):
    long = attrs.evolve(request_one.labels, owner="x" * 100_000)
    [outcome] = driver.clone([attrs.evolve(request_one, labels=long)])
    assert outcome.error is not None
    assert driver.volumes() == ()
