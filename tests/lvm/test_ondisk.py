"""Metadata is read from disks as LVM leaves them; from others not at all."""

import os
import re
import struct
from pathlib import Path

import pytest

from tests.lvm.fakes import IMPORTED, VG, write_disk
from vmcloner_lvm.metadata import parse, stored
from vmcloner_lvm.ondisk import checksum, read_metadata
from vmcloner_lvm.volumegroup import VolumeGroup

RECORDED = Path(__file__).parent / "recorded"
AREA = 4096


@pytest.fixture
def disk(tmp_path):
    path = tmp_path / "disk"
    write_disk(path, IMPORTED)
    return path


def spoil(path, offset, new):
    """Overwrite bytes of a file."""
    with path.open("r+b") as stream:
        stream.seek(offset)
        stream.write(new)


def test_a_text_is_read_as_it_is(disk):
    found = read_metadata([disk])
    assert VolumeGroup.parse(found.text, VG).section == VolumeGroup.parse(IMPORTED, VG).section
    assert VolumeGroup.parse(found.text, VG).version == (2, 3, 16)
    assert found.area == 64 * 1024


def test_a_text_that_goes_round_the_end_of_its_area(tmp_path):
    path = tmp_path / "disk"
    write_disk(path, IMPORTED, area=8192, at=8192 - 512)
    assert parse(read_metadata([path]).text)


def test_a_known_checksum():
    """Of lvm2's own: the label of a recorded physical volume."""
    sector = (RECORDED / "disk.head").read_bytes()[512:1024]
    assert checksum(sector[20:]) == struct.unpack_from("<I", sector, 16)[0]


def test_a_recorded_disk():
    found = read_metadata([RECORDED / "disk.head"])
    group = VolumeGroup.parse(found.text, "spare")
    assert group.version == (2, 3, 16)
    assert group.pool("pool").size == 64 * 1024**2
    assert found.area == 1044480
    assert stored(group.section) == re.sub(r"\n+", "\n", found.text.partition("# Gen")[0])


@pytest.mark.parametrize(
    ("offset", "new"),
    [
        (512, b"LABELTWO"),
        (512 + 8, b"\2"),
        (512 + 24, b"LVM1 001"),
        (512 + 100, b"\1"),
        (AREA, b"\0\0\0\0"),
        (AREA + 4, b"LVM1"),
        (AREA + 300, b"\1"),
        (AREA + 512 + 100, b"~"),
    ],
    ids=["no label", "moved", "of another format", "label", "checksum", "magic", "area", "text"],
)
def test_what_is_damaged_is_left_to_lvm(disk, offset, new):
    spoil(disk, offset, new)
    assert read_metadata([disk]) is None


def test_a_write_that_was_cut_off_is_left_to_lvm(disk):
    header = bytearray(disk.read_bytes()[AREA : AREA + 512])
    header[64:88] = struct.pack("<QQII", 4096, 10, 0, 0)
    header[:4] = struct.pack("<I", checksum(bytes(header[4:])))
    spoil(disk, AREA, header)
    assert read_metadata([disk]) is None


def test_an_area_beyond_what_a_file_can_have(disk):
    sector = bytearray(disk.read_bytes()[512:1024])
    struct.pack_into("<Q", sector, 104, 2**64 - 4096)
    struct.pack_into("<I", sector, 16, checksum(bytes(sector[20:])))
    spoil(disk, 512, sector)
    assert read_metadata([disk]) is None


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert read_metadata([tmp_path / "pipe"]) is None


def test_no_disk_is_no_metadata(tmp_path):
    assert read_metadata([]) is None
    assert read_metadata([tmp_path / "missing"]) is None
    (tmp_path / "short").write_bytes(b"LABELONE")
    assert read_metadata([tmp_path / "short"]) is None


@pytest.fixture
def pair(tmp_path):
    """Have a group of two disks, each with a copy of the metadata."""
    one, two = tmp_path / "one", tmp_path / "two"
    text = (RECORDED / "mixed.vg").read_text()
    ids = re.findall(r'pv\d \{\n\t+id = "([^"]+)"', text)
    text = text.replace("/dev/ubda", str(one)).replace("/dev/ubdb", str(two))
    for path, uuid in zip((one, two), ids, strict=True):
        write_disk(path, text, uuid=uuid)
    return one, two, text, ids


@pytest.mark.parametrize("first", [0, 1])
def test_all_disks_of_a_group_are_read(pair, first):
    assert read_metadata([pair[first]]) == read_metadata(pair[:2])
    assert read_metadata([pair[first]]) is not None


def test_copies_that_differ_are_left_to_lvm(pair):
    one, two, text, ids = pair
    write_disk(two, text.replace("seqno = 19", "seqno = 18"), uuid=ids[1])
    assert read_metadata([one]) is None


def test_another_disk_in_the_place_of_one_is_left_to_lvm(pair):
    one, two, text, ids = pair
    write_disk(two, text, uuid=ids[0])
    assert read_metadata([one]) is None
    two.unlink()
    assert read_metadata([one]) is None


def test_the_smallest_area_counts(pair):
    one, two, text, ids = pair
    write_disk(two, text, uuid=ids[1], area=32 * 1024)
    assert read_metadata([one]).area == 32 * 1024
