"""Overlay headers, judged by QEMU's own tools."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vmcloner_core import qcow2
from vmcloner_core.errors import InvalidRequest

sectors = st.one_of(
    st.integers(1, 4096),
    st.integers(1, qcow2.MAX_SIZE // 512),
    st.sampled_from([2**20, 2**20 - 1, 2**20 + 1, qcow2.MAX_SIZE // 512]),
)
# Unicode's noncharacters are left out: qemu-img's JSON replaces them.
names = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0/").filter(
        lambda letter: ord(letter) & 0xFFFE != 0xFFFE and not 0xFDD0 <= ord(letter) <= 0xFDEF
    ),
    min_size=1,
    max_size=40,
).filter(lambda name: name not in (".", "..") and len(name.encode()) <= 200)


def qemu_img(*argv: str | Path) -> str:
    done = subprocess.run(
        ["qemu-img", *argv], check=False, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def write(path: Path, backing: Path, size: int) -> None:
    with path.open("xb") as stream:
        qcow2.overlay(str(backing), size).write(stream.fileno())


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(count=sectors, name=names)
def test_qemu_finds_any_overlay_sound(tmp_path, count, name):
    size = count * 512
    backing, path = tmp_path / name, tmp_path / "overlay"
    path.unlink(missing_ok=True)
    with backing.open("wb") as stream:
        stream.truncate(512)
    write(path, backing, size)
    qemu_img("check", "-f", "qcow2", path)
    info = json.loads(qemu_img("info", "--output", "json", "-f", "qcow2", path))
    assert info["virtual-size"] == size
    assert info["backing-filename"] == str(backing)
    assert info["backing-filename-format"] == "raw"
    assert info["format-specific"]["data"]["compat"] == "1.1"
    backing.unlink()


def test_overlay_is_what_qemu_img_makes(tmp_path):
    backing = tmp_path / "backing.raw"
    backing.write_bytes(bytes(range(256)) * 4096 * 4)
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    write(ours, backing, 64 * 1024**2)
    qemu_img("create", "-q", "-f", "qcow2", "-F", "raw", "-b", backing, theirs, "64M")
    qemu_img("compare", "-f", "qcow2", "-F", "qcow2", ours, theirs)
    pattern = tmp_path / "pattern"
    pattern.write_bytes(b"\xaa" * 65536)
    for path in (ours, theirs):
        for offset in (0, 1000 * 512, 48 * 1024**2):
            command = f"write -s {pattern} {offset} 65536"
            subprocess.run(["qemu-io", "-f", "qcow2", "-c", command, path], check=True, timeout=60)
        qemu_img("check", "-f", "qcow2", path)
    qemu_img("compare", "-f", "qcow2", "-F", "qcow2", ours, theirs)


@pytest.mark.parametrize("size", [0, -512, 513, qcow2.MAX_SIZE + 512])
def test_size_that_cannot_be(size):
    with pytest.raises(InvalidRequest):
        qcow2.overlay("/pool/templates/tiny.raw", size)


@pytest.mark.parametrize("path", ["relative.raw", "/" + "x" * qcow2.MAX_BACKING])
def test_backing_file_that_cannot_be(path):
    with pytest.raises(InvalidRequest, match="cannot be the backing file"):
        qcow2.overlay(path, 512)


def test_blocks_are_what_a_file_system_stores(tmp_path):
    backing, path = tmp_path / "backing.raw", tmp_path / "overlay"
    write(path, backing, 1024**4)
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
    block = os.statvfs(path).f_frsize
    assert path.stat().st_blocks * 512 == qcow2.overlay(str(backing), 1024**4).blocks(block) * block
