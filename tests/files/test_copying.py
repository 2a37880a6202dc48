"""Runs of bytes, extents, and copies."""

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vmcloner_core.copying import CHUNK, Target, copy_runs, fan_out
from vmcloner_core.extents import GRANULE, data_runs, nonzero_runs
from vmcloner_files.extents import coalesce, count_extents

in_a_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def ascending_runs(draw):
    position, runs = 0, []
    for gap, length in draw(st.lists(st.tuples(st.integers(1, 999), st.integers(1, 999)))):
        runs.append((position + gap, position + gap + length))
        position += gap + length
    return runs


@given(runs=ascending_runs(), limit=st.integers(1, 8))
def test_coalesce_covers_all_and_fills_the_smallest_gaps(runs, limit):
    joined = coalesce(iter(runs), limit)
    assert all(any(a <= start and end <= b for a, b in joined) for start, end in runs)
    assert all(joined[i][1] < joined[i + 1][0] for i in range(len(joined) - 1))
    data = sum(end - start for start, end in runs)
    filled = sum(end - start for start, end in joined) - data
    assert 0 <= filled <= data // 2
    if len(runs) <= limit:
        assert joined == runs
    else:
        assert len(joined) >= limit
        gaps = [runs[i + 1][0] - runs[i][1] for i in range(len(runs) - 1)]
        assert filled == sum(sorted(gaps)[: len(runs) - len(joined)])


@in_a_folder
@given(marks=st.lists(st.tuples(st.integers(0, 40 * GRANULE), st.integers(1, 3 * GRANULE))))
def test_copy_of_what_is_not_zero_is_a_copy(tmp_path, marks):
    size = 44 * GRANULE - 512
    with (tmp_path / "source").open("w+b") as source, (tmp_path / "target").open("w+b") as target:
        source.truncate(size)
        for offset, length in marks:
            os.pwrite(source.fileno(), b"\x01" * min(length, size - offset), offset)
        zeros = os.pread(source.fileno(), size, 0)
        os.pwrite(source.fileno(), zeros, 0)  # now no zero is a hole
        runs = list(nonzero_runs(source.fileno()))
        assert all(start % GRANULE == 0 and start < end <= size for start, end in runs)
        target.truncate(size)
        copied = []
        copy_runs(source.fileno(), target.fileno(), runs, copied.append)
        assert os.pread(target.fileno(), size, 0) == zeros
        assert sum(copied) == sum(end - start for start, end in runs)
        touched = {at // GRANULE for o, n in marks for at in (*range(o, o + n, GRANULE), o + n - 1)}
        stored = {at // GRANULE for start, end in runs for at in range(start, end, GRANULE)}
        assert stored == {granule for granule in touched if granule * GRANULE < size}


@pytest.mark.parametrize("size", [0, 512, 3 * GRANULE])
def test_a_file_that_is_one_hole_has_no_runs(tmp_path, size):
    with (tmp_path / "hole").open("w+b") as stream:
        stream.truncate(size)
        assert list(data_runs(stream.fileno())) == []
        assert list(nonzero_runs(stream.fileno())) == []
        assert count_extents(stream.fileno()) == 0


def test_a_file_system_that_tells_no_holes(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"x" * 1000)

    real = os.lseek

    def refuse(fd, position, whence):
        if whence == os.SEEK_END:
            return real(fd, position, whence)
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "lseek", refuse)
    with (tmp_path / "file").open("rb") as stream:
        assert list(data_runs(stream.fileno())) == [(0, 1000)]


def test_extents_are_counted(tmp_path):
    with (tmp_path / "file").open("w+b") as stream:
        for index in range(3):
            os.pwrite(stream.fileno(), b"x" * 65536, index * 1024**2)
        assert count_extents(stream.fileno()) == 3


def test_a_source_that_shrinks_is_an_error(tmp_path):
    with (tmp_path / "source").open("w+b") as source, (tmp_path / "target").open("w+b") as target:
        source.write(b"x" * 4096)
        source.flush()
        with pytest.raises(OSError, match="shorter"):
            copy_runs(source.fileno(), target.fileno(), [(0, 8192)])


@pytest.mark.filesystems
def test_a_device_gets_every_byte(tmp_path):
    """On a block device of old bytes, zeros are as much to be written as the rest."""
    size = 3 * CHUNK + 512 * 7
    content = bytearray(size)
    content[CHUNK : CHUNK + 999] = b"\x07" * 999
    content[-512:] = b"\x08" * 512
    (tmp_path / "source").write_bytes(content)
    (tmp_path / "disk").write_bytes(b"\xff" * size)
    device = subprocess.run(
        ["losetup", "--find", "--show", tmp_path / "disk"],
        check=True, capture_output=True, text=True, timeout=60,
    ).stdout.strip()  # fmt: skip
    try:
        for resumed in (False, True):
            target = Target(path=Path(device), size=size, resumed=resumed)
            with (tmp_path / "source").open("rb") as source, target.open():
                fan_out(source.fileno(), [target], verify=True)
            assert target.error is None
            assert Path(device).read_bytes() == content
    finally:
        subprocess.run(["losetup", "--detach", device], check=True, timeout=60)
