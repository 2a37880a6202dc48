"""Images are written into volumes as they are."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vmcloner_core.drivers import ImageFile
from vmcloner_core.errors import HostCommandError, InvalidRequest
from vmcloner_core.model import AS_IT_COMES, Copying
from vmcloner_core.process import LocalRunner
from vmcloner_core.testing.storage import StorageConformance
from vmcloner_lvm.filling import fill, opened, sweep

pieces = st.lists(st.tuples(st.booleans(), st.integers(1, 100_000)), min_size=1, max_size=12)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(pieces)
def test_what_is_written_is_the_image(tmp_path, pieces):
    content = b"".join((b"\xa5" if data else b"\0") * length for data, length in pieces)
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(content)
    target.write_bytes(bytes(len(content) + 8192))
    seen = []
    with source.open("rb") as stream:
        fill(stream.fileno(), target, len(content), AS_IT_COMES, lambda *at: seen.append(at))
    assert target.read_bytes() == content + bytes(8192)
    assert seen[-1] == (len(content), len(content))


def test_zeros_are_written_where_old_bytes_may_be(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    with source.open("wb") as stream:
        stream.seek(4096)
        stream.write(b"data" * 1024)
        stream.truncate(1024**2)
    target.write_bytes(b"old!" * (256 * 1024))
    with source.open("rb") as stream:
        fill(stream.fileno(), target, 1024**2, AS_IT_COMES, lambda *_: None, blank=False)
    assert target.read_bytes() == source.read_bytes()


def test_qcow2_is_converted_and_nothing_is_left(tmp_path):
    raw, qcow2 = tmp_path / "a.raw", tmp_path / "a.qcow2"
    raw.write_bytes(b"data" * 1024 + bytes(1024**2))
    runner = LocalRunner()
    runner.run(["qemu-img", "convert", "-O", "qcow2", str(raw), str(qcow2)])
    size = raw.stat().st_size
    image = ImageFile(path=qcow2, format="qcow2", size=size, digest="sha256:1")
    with opened(image, tmp_path / "work", runner) as fd:
        assert os.pread(fd, size, 0) == raw.read_bytes()
    assert list((tmp_path / "work").iterdir()) == []


def test_a_verified_conversion_is_checked(tmp_path):
    raw, qcow2 = tmp_path / "a.raw", tmp_path / "a.qcow2"
    raw.write_bytes(b"data" * 1024)
    runner = LocalRunner()
    runner.run(["qemu-img", "convert", "-O", "qcow2", str(raw), str(qcow2)])
    image = ImageFile(path=qcow2, format="qcow2", size=raw.stat().st_size, digest="sha256:1")
    reading = opened(image, tmp_path / "work", runner, Copying(verify=True))
    with StorageConformance().corrupting(), pytest.raises(HostCommandError), reading:
        pass
    assert list((tmp_path / "work").iterdir()) == []


def test_a_sweep_removes_conversions_of_the_dead_only(tmp_path):
    raw, qcow2 = tmp_path / "a.raw", tmp_path / "a.qcow2"
    raw.write_bytes(b"data" * 1024)
    runner = LocalRunner()
    runner.run(["qemu-img", "convert", "-O", "qcow2", str(raw), str(qcow2)])
    image = ImageFile(path=qcow2, format="qcow2", size=raw.stat().st_size, digest="sha256:1")
    work = tmp_path / "work"
    sweep(work)  # there is none yet
    left = work / "import-left"
    left.mkdir(parents=True)
    (left / "image.raw").write_bytes(b"gigabytes")
    (work / "notes").write_bytes(b"")
    with opened(image, work, runner) as fd:
        sweep(work)
        assert not left.exists()
        assert len(list(work.iterdir())) == 2
        assert os.pread(fd, 4, 0) == b"data"
    assert [path.name for path in work.iterdir()] == ["notes"]


@pytest.mark.filesystems
def test_an_image_on_a_device(tmp_path):
    path = tmp_path / "a.raw"
    path.write_bytes(b"data" * 1024**2)
    device = LocalRunner().run(["losetup", "--find", "--show", str(path)]).stdout.decode().strip()
    try:
        image = ImageFile(path=Path(device), format="raw", size=4 * 1024**2, digest="sha256:1")
        with opened(image, tmp_path, LocalRunner()) as fd:
            assert os.pread(fd, 4, 0) == b"data"
    finally:
        LocalRunner().run(["losetup", "--detach", device])


def test_an_image_that_shrank(tmp_path):
    path = tmp_path / "a.raw"
    path.write_bytes(b"short")
    image = ImageFile(path=path, format="raw", size=6, digest="sha256:1")
    with pytest.raises(InvalidRequest, match="changed"), opened(image, tmp_path, LocalRunner()):
        pass


def test_a_verified_import_is_checked(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"data" * 4096)
    target.write_bytes(bytes(16384))
    verified = Copying(verify=True)
    with source.open("rb") as stream:
        fill(stream.fileno(), target, 16384, verified, lambda *_: None)
        with (
            StorageConformance().corrupting(),
            pytest.raises(HostCommandError, match="differ from the source"),
        ):
            fill(stream.fileno(), target, 16384, verified, lambda *_: None)


def test_a_target_that_isnt_there(tmp_path):
    path = tmp_path / "a.raw"
    path.write_bytes(b"data")
    with path.open("rb") as stream, pytest.raises(HostCommandError, match="No such file"):
        fill(stream.fileno(), tmp_path / "none", 4, AS_IT_COMES, lambda *_: None)
