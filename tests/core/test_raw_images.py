"""Images are read as raw files, and what a killed import converted is swept."""

import os
from pathlib import Path

import pytest

from vmcloner_core.drivers import ImageFile
from vmcloner_core.errors import HostCommandError, InvalidRequest
from vmcloner_core.model import Copying
from vmcloner_core.process import LocalRunner
from vmcloner_core.raw_images import opened, sweep
from vmcloner_core.testing.storage import StorageConformance


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
