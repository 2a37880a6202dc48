"""One source, many targets: every byte, whatever was there before, and one's failure its own."""

import contextlib
import errno
import os
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vmcloner_core.copying import Pace, Target, fan_out
from vmcloner_core.extents import GRANULE

CHUNK = 4 * GRANULE
SIZE = 2 * CHUNK + 3 * GRANULE + 512
in_a_folder = settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
MARKS = st.lists(st.tuples(st.integers(0, SIZE - 1), st.integers(1, CHUNK)), max_size=6)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Have many chunks in small files."""
    monkeypatch.setattr("vmcloner_core.copying.CHUNK", CHUNK)


def sparse(path, size, marks):
    """Make a file of marks and holes, and return its bytes."""
    with path.open("w+b") as stream:
        stream.truncate(size)
        for number, (offset, count) in enumerate(marks, start=1):
            os.pwrite(stream.fileno(), bytes([number]) * min(count, size - offset), offset)
    return path.read_bytes()


def copy(source, targets, **options):
    with contextlib.ExitStack() as stack:
        fd = os.open(source, os.O_RDONLY)
        stack.callback(os.close, fd)
        fan_out(fd, [stack.enter_context(target.open()) for target in targets], **options)
    return [target.error for target in targets]


def fresh(path, size):
    with path.open("wb") as stream:
        stream.truncate(size)
    return Target(path=path, size=size, blank=True)


@in_a_folder
@given(marks=MARKS, more=st.sampled_from([0, 512, CHUNK + 4096]))
def test_copies_are_copies(tmp_path, marks, more):
    content = sparse(tmp_path / "source", SIZE, marks)
    targets = [fresh(tmp_path / "same", SIZE), fresh(tmp_path / "larger", SIZE + more)]
    told = []
    targets[1].progress = lambda *now: told.append(now)
    errors = copy(tmp_path / "source", targets, verify=True)
    assert errors == [None, None]
    assert (tmp_path / "same").read_bytes() == content
    assert (tmp_path / "larger").read_bytes() == content + bytes(more)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1] == (SIZE + more, SIZE + more)


@in_a_folder
@given(marks=MARKS, before=MARKS, resumed=st.booleans())
def test_what_was_there_does_not_stay(tmp_path, marks, before, resumed):
    content = sparse(tmp_path / "source", SIZE, marks)
    sparse(tmp_path / "target", SIZE, before)
    target = Target(path=tmp_path / "target", size=SIZE, resumed=resumed)
    assert copy(tmp_path / "source", [target], verify=True) == [None]
    assert (tmp_path / "target").read_bytes() == content


def test_holes_stay_holes(tmp_path):
    sparse(tmp_path / "source", 4 * CHUNK, [(CHUNK, GRANULE)])
    copy(tmp_path / "source", [fresh(tmp_path / "target", 4 * CHUNK)])
    assert (tmp_path / "target").stat().st_blocks * 512 <= 2 * GRANULE


def test_zeros_that_are_written_become_holes(tmp_path):
    (tmp_path / "source").write_bytes(bytes(CHUNK))
    (tmp_path / "target").write_bytes(b"x" * CHUNK)
    assert copy(tmp_path / "source", [Target(path=tmp_path / "target", size=CHUNK)]) == [None]
    assert (tmp_path / "target").stat().st_blocks == 0
    assert (tmp_path / "target").read_bytes() == bytes(CHUNK)


def test_resuming_writes_what_differs_only(tmp_path, monkeypatch):
    content = sparse(tmp_path / "source", SIZE, [(0, SIZE)])
    half = fresh(tmp_path / "target", SIZE)
    (tmp_path / "target").write_bytes(content[:CHUNK].ljust(SIZE, b"\0"))
    half.resumed = True
    written = []
    write = Target.write

    def counted(target, data, offset):
        written.append((offset, len(data)))
        write(target, data, offset)

    monkeypatch.setattr(Target, "write", counted)
    assert copy(tmp_path / "source", [half]) == [None]
    assert (tmp_path / "target").read_bytes() == content
    assert sorted(written) == [(CHUNK, CHUNK), (2 * CHUNK, SIZE - 2 * CHUNK)]


def test_one_that_fails_keeps_no_other_from_being_done(tmp_path):
    content = sparse(tmp_path / "source", SIZE, [(0, SIZE)])
    targets = [
        fresh(tmp_path / "one", SIZE),
        Target(path="/dev/full", size=SIZE),
        fresh(tmp_path / "two", SIZE),
    ]
    first, failed, second = copy(tmp_path / "source", targets, verify=True)
    assert (first, failed.errno, second) == (None, errno.ENOSPC, None)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes() == content


@pytest.mark.parametrize("where", [0, CHUNK, SIZE - 600])
@pytest.mark.parametrize("marks", [[(0, SIZE)], []], ids=["data", "zeros"])
def test_verifying_finds_one_wrong_byte(tmp_path, monkeypatch, where, marks):
    sparse(tmp_path / "source", SIZE, marks)
    target = fresh(tmp_path / "target", SIZE)
    flush = Target.flush

    def spoiled(target):
        with (tmp_path / "target").open("r+b") as stream:
            stream.seek(where)
            stream.write(b"\xee")
        flush(target)

    monkeypatch.setattr(Target, "flush", spoiled)
    [error] = copy(tmp_path / "source", [target], verify=True)
    assert error is not None
    assert f"near offset {where - where % CHUNK if marks else 0}" in str(error)


def test_without_direct_writes(tmp_path, monkeypatch):
    real = os.open

    def without(path, flags, *more):
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(path, flags, *more)

    monkeypatch.setattr(os, "open", without)
    content = sparse(tmp_path / "source", SIZE, [(0, CHUNK), (SIZE - 99, 99)])
    assert copy(tmp_path / "source", [fresh(tmp_path / "target", SIZE)], verify=True) == [None]
    assert (tmp_path / "target").read_bytes() == content


def test_what_waits_does_not_grow_with_the_source(tmp_path, monkeypatch):
    known, most = weakref.WeakSet(), []

    class Counting(ThreadPoolExecutor):
        def submit(self, *work):
            job = super().submit(*work)
            known.add(job)
            most.append(len(known))
            return job

    monkeypatch.setattr("vmcloner_core.copying.ThreadPoolExecutor", Counting)
    size = 200 * CHUNK
    content = sparse(tmp_path / "source", size, [(n * CHUNK, 9) for n in range(0, 200, 2)])
    targets = [fresh(tmp_path / f"target{number}", size) for number in range(3)]
    assert copy(tmp_path / "source", targets) == [None] * 3
    assert len(most) > 3 * 200
    assert max(most) < 3 * 20
    assert all(target.path.read_bytes() == content for target in targets)


def test_a_source_that_shrinks_is_an_error(tmp_path, monkeypatch):
    sparse(tmp_path / "source", SIZE, [(0, SIZE)])
    monkeypatch.setattr("vmcloner_core.copying.data_runs", lambda _fd: iter([(0, SIZE + CHUNK)]))
    monkeypatch.setattr("vmcloner_core.copying.length", lambda _fd: SIZE + CHUNK)
    with pytest.raises(OSError, match="became shorter"):
        copy(tmp_path / "source", [fresh(tmp_path / "target", SIZE + CHUNK)])


def test_pace():
    now, slept = 100.0, []

    def sleep(seconds):
        nonlocal now
        slept.append(seconds)
        now += seconds

    pace = Pace(1000, clock=lambda: now, sleep=sleep)
    for _ in range(5):
        pace(500)
    assert sum(slept) == pytest.approx(2.0)
    now += 60.0  # what wasn't used is not saved up
    pace(500)
    pace(500)
    assert sum(slept) == pytest.approx(2.5)


def test_pace_counts_what_all_targets_write(tmp_path):
    sparse(tmp_path / "source", 4 * CHUNK, [(0, CHUNK)])
    counted = []
    targets = [fresh(tmp_path / name, 4 * CHUNK) for name in "abc"]
    copy(tmp_path / "source", targets, pace=counted.append)
    assert sum(counted) == 3 * CHUNK
