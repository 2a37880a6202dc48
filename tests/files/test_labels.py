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
from vmcloner_files.labelling import ATTRIBUTE, FileLabels, decode, encode
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


@pytest.fixture(params=[True, False], ids=["attributes", "none"])
def store(request, tmp_path):
    return new_store(tmp_path, attributes=request.param)


def new_store(tmp_path, *, attributes):
    (tmp_path / ".labels").touch()
    return FileLabels(tmp_path / ".labels", attributes=attributes)


def read(store, path):
    return store.read(path, path.lstat())


def label(store, path, **labels):
    with path.open("wb") as stream:
        store.write(stream.fileno(), path, {"version": "1", **labels})


def key(path):
    return f"{path.name}.{path.lstat().st_ino}"


def stored(tmp_path):
    """Return for which files there are labels."""
    lines = (tmp_path / ".labels").read_text().splitlines()
    last = dict(line.split(" ", 1) for line in lines if line and line[0] != "#")
    return [name for name, labels in last.items() if labels != "-"]


def compact(store, folder):
    (folder.parent / ".labels").write_bytes(store.compacted([folder]))
    assert store.compacted([folder]) is None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(record=disks | images)
@example(record=ImageRecord(template="t", digest="\ud800", size=1))
def test_records_come_back_as_they_were(tmp_path, store, record):
    path = tmp_path / "file"
    with path.open("wb") as stream:
        store.write(stream.fileno(), path, record.to_mapping())
    assert type(record).from_mapping(read(store, path)) == record


def test_files_without_labels(tmp_path, store):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "dangling").symlink_to("nowhere")
    for name in ("file", "folder", "link", "dangling"):
        assert read(store, tmp_path / name) is None


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


def test_labels_belong_to_their_file_only(tmp_path, store):
    path = tmp_path / "file"
    label(store, path)
    path.rename(tmp_path / "moved")
    path.touch()
    assert read(store, path) is None


def test_a_file_without_the_attribute_is_not_ours_whatever_its_inode(tmp_path):
    """ext4 gives the inode of a removed file to the next one."""
    store = new_store(tmp_path, attributes=True)
    label(store, tmp_path / "file")
    os.removexattr(tmp_path / "file", ATTRIBUTE)
    assert read(store, tmp_path / "file") is None


def test_a_disk_can_not_label_itself(tmp_path):
    """QEMU can write the attribute of the disk that it has open, not what is in .labels."""
    store = new_store(tmp_path, attributes=True)
    label(store, tmp_path / "file", format="raw")
    os.setxattr(tmp_path / "file", ATTRIBUTE, encode({"version": "1", "format": "qcow2"}))
    assert read(store, tmp_path / "file") == {"version": "1", "format": "raw"}


def test_the_last_line_counts_whoever_wrote_it(tmp_path, store):
    path = tmp_path / "file"
    label(store, path, complete="no")
    other = FileLabels(tmp_path / ".labels", attributes=False)
    for words in ({"complete": "no"}, {"size": "3"}, {}):
        with path.open("rb") as stream:
            other.write(stream.fileno(), path, {"version": "1", **words})
        assert read(store, path) == {"version": "1", **words}
    other.forget(path, path.stat().st_ino)
    assert read(FileLabels(tmp_path / ".labels", attributes=False), path) is None


@pytest.mark.parametrize("torn", ["web-1", "file.{inode} ", 'file.{inode} {{"version', "\0" * 4096])
def test_a_torn_line_changes_no_other(tmp_path, store, torn):
    path = tmp_path / "file"
    label(store, path)
    with (tmp_path / ".labels").open("a") as stream:
        stream.write(torn.format(inode=path.stat().st_ino))
    for _ in range(2):
        assert read(store, path) == {"version": "1"}
        label(store, tmp_path / "next")
    assert read(store, tmp_path / "next") == {"version": "1"}


def test_lines_without_files_go(tmp_path, store):
    folder = tmp_path / "volumes"
    folder.mkdir()
    for name in ("kept", "gone"):
        label(store, folder / name)
    (folder / "gone").unlink()
    compact(store, folder)
    assert stored(tmp_path) == [key(folder / "kept")]
    assert read(store, folder / "kept") == {"version": "1"}


def test_old_lines_go(tmp_path):
    folder = tmp_path / "volumes"
    folder.mkdir()
    store = new_store(tmp_path, attributes=False)
    for _ in range(3):
        label(store, folder / "one", owner="x" * 60_000)
        label(store, folder / "one")
    compact(store, folder)
    assert stored(tmp_path) == [key(folder / "one")]


def test_labels_of_files_themselves_are_stored(tmp_path):
    """In a pool of an earlier version, or one that was copied with its attributes."""
    folder = tmp_path / "volumes"
    folder.mkdir()
    for name in ("one", "foreign"):
        (folder / name).touch()
    os.setxattr(folder / "one", ATTRIBUTE, encode({"version": "1"}))
    store = new_store(tmp_path, attributes=True)
    assert read(store, folder / "one") == {"version": "1"}
    compact(store, folder)
    assert stored(tmp_path) == [key(folder / "one")]
    assert read(store, folder / "foreign") is None


def test_sidecars_of_an_earlier_version_are_read_and_stored(tmp_path):
    folder = tmp_path / "volumes"
    folder.mkdir()
    inodes = {}
    for name in ("one", "replaced"):
        (folder / name).touch()
        inodes[name] = (folder / name).stat().st_ino
    for name, inode in (("one", inodes["one"]), ("replaced", 1), ("gone", 2)):
        (folder / f".{name}.labels").write_bytes(encode({"version": "1", "inode": str(inode)}))
    store = new_store(tmp_path, attributes=False)
    assert read(store, folder / "one") == {"version": "1"}
    assert read(store, folder / "replaced") is None
    compact(store, folder)
    assert stored(tmp_path) == [f"one.{inodes['one']}"]
    for left in folder.glob(".*"):
        left.unlink()
    assert read(store, folder / "one") == {"version": "1"}


@pytest.fixture
def driver(tmp_path, make_driver):
    return make_driver(tmp_path)


@pytest.fixture
def request_one(driver, tmp_path):
    image = make_image(tmp_path / "image.raw", seed=1)
    origin = driver.import_image("tiny", image, no_progress).unwrap()
    return CloneRequest(labels=make_labels(), origin=origin, mode=CloneMode.FULL)


def test_one_attribute_and_one_file_say_it_all(driver, request_one):
    [outcome] = driver.clone([request_one])
    path = outcome.unwrap().path
    assert [n for n in os.listxattr(path) if n.startswith("user.")] == [ATTRIBUTE]
    attribute = os.getxattr(path, ATTRIBUTE)
    assert json.loads(attribute).items() >= request_one.labels.to_mapping().items()
    lines = (path.parents[1] / ".labels").read_bytes().splitlines()
    assert lines[-1] == f"{key(path)} ".encode() + attribute


def test_a_reset_and_a_delete_leave_no_labels(driver, request_one):
    list(driver.clone([request_one]))
    [outcome] = driver.reset([request_one])
    path = outcome.unwrap().path
    driver.sweep()
    assert [name.partition(".")[0] for name in stored(path.parents[1])] == ["tiny", path.name]
    assert next(driver.delete([outcome.unwrap()])).changed
    driver.sweep()
    assert [name.partition(".")[0] for name in stored(path.parents[1])] == ["tiny"]


def test_a_copy_with_attributes_is_no_clone(driver, request_one, caplog):
    [outcome] = driver.clone([request_one])
    volume = outcome.unwrap()
    for name in ("backup", "web-1-disk1", "web-2-disk0"):
        shutil.copy2(volume.path, volume.path.with_name(name))
    assert driver.volumes() == (volume,)
    driver.sweep()
    assert driver.volumes() == (volume,)
    second = attrs.evolve(request_one, labels=make_labels(index=2))
    [outcome] = driver.clone([second])
    assert isinstance(outcome.error, Conflict)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 3, "each is named once"
    assert all("has the labels of a disk of web-1: it is left" in text for text in messages)
    assert next(driver.delete([volume])).changed
    for copied in (attrs.evolve(volume, name="web-1-disk1"), attrs.evolve(volume, name="backup")):
        assert driver.unlabelled([copied.name]) == [copied.name]
        assert copied.path.with_name(copied.name).exists()


def test_a_copied_line_labels_no_other_file(driver, request_one, tmp_path):
    """Nor does one that is invented: a file that is ours has the attribute too."""
    [outcome] = driver.clone([request_one])
    volume = outcome.unwrap()
    other = volume.path.with_name("web-2-disk0")
    other.write_bytes(b"another user's")
    labels = tmp_path / "pool" / ".labels"
    line = labels.read_text().splitlines()[-1]
    with labels.open("a") as stream:
        stream.write(line.replace("web-1-disk0", "web-2-disk0").replace('"1"', '"2"') + "\n")
        copied = line.replace(key(volume.path), key(other)).replace('"index":"1"', '"index":"2"')
        stream.write(copied + "\n")
    assert driver.volumes() == (volume,)
    second = attrs.evolve(volume, name=other.name, path=other, labels=make_labels(index=2))
    [outcome] = driver.delete([second])
    assert isinstance(outcome.error, Conflict)
    assert other.read_bytes() == b"another user's"


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
