"""Chains of images beside QEMU, which makes them and reads them too."""

import json
import subprocess
import tempfile
from pathlib import Path

import attrs
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.boot.disks import run
from vmcloner_boot.disk_image import Budget, Unreadable, open_image
from vmcloner_core import qcow2

pytestmark = pytest.mark.others

KIB = 1024
SIZE = 1024 * KIB


@attrs.frozen
class Layer:
    """An image: the options that it is made with, its size, and what is then done with it."""

    format: str
    options: str
    size: int
    commands: tuple[str, ...]


OPTIONS = st.sampled_from(
    ["", "compat=0.10", "cluster_size=512", "cluster_size=4096", "cluster_size=2097152",
     "extended_l2=on", "compression_type=zstd", "lazy_refcounts=on", "refcount_bits=1",
     "preallocation=metadata", "extended_l2=on,cluster_size=16384"]
)  # fmt: skip
AT = st.integers(0, SIZE // 512 - 1).map(lambda sector: sector * 512)
COMMAND = st.tuples(
    st.sampled_from(["write -P 1", "write -P 2", "write -z", "write -z -u", "discard", "write -c"]),
    AT,
    st.sampled_from([512, 4096, 65536, 200 * 512]),
)


def commands(drawn: list[tuple[str, int, int]]) -> tuple[str, ...]:
    """Return commands for qemu-io; compressed are whole clusters, at the start of one."""
    return tuple(
        f"write -c -P 3 {at // 65536 * 65536} 65536" if what == "write -c" else
        f"{what} {at} {min(length, SIZE - at)}"
        for what, at, length in drawn
    )  # fmt: skip


LAYER = st.builds(
    Layer,
    st.sampled_from(["qcow2", "qcow2", "qcow2", "raw", "vmdk"]),
    OPTIONS,
    st.sampled_from([SIZE, SIZE, SIZE // 2, SIZE + 512, 3 * SIZE]),
    st.lists(COMMAND, max_size=4).map(commands),
)


def make(folder: Path, layers: list[Layer]) -> tuple[Path, str]:
    """Make a chain of images, from the base on; returns the last with its format."""
    below: list[object] = []
    path, kind = folder, ""
    for number, layer in enumerate(layers):
        kind = "qcow2" if below else layer.format
        path = folder / f"{number}.{kind}"
        options = ["-o", layer.options] if layer.options and kind == "qcow2" else []
        if below and "preallocation" in layer.options:
            options = []
        run("qemu-img", "create", "-q", "-f", kind, *options, *below, path, layer.size)
        for command in layer.commands:  # what an image can't have is not done
            argv = ["qemu-io", "-f", kind, "-d", "unmap", "-c", command, str(path)]
            subprocess.run(argv, capture_output=True, check=False, timeout=60)
        below = ["-b", path.name, "-F", kind]
    return path, kind


@settings(max_examples=25, derandomize=True, database=None)
@given(st.lists(LAYER, min_size=1, max_size=3))
@example([Layer("raw", "", SIZE, ("write -P 1 0 65536",)), Layer("qcow2", "", 3 * SIZE, ())])
def test_images_are_what_qemu_reads(layers: list[Layer]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path, kind = make(folder, layers)
        formats = {file.suffix for file in folder.iterdir()}
        if kind == "qcow2":
            describe(path)
        try:
            image = open_image(path, kind, Budget())
        except Unreadable as error:
            assert ".vmdk" in formats or "extended L2" in str(error)
            return
        except Exception:
            assert kind == "vmdk"
            return
        run("qemu-img", "convert", "-f", kind, "-O", "raw", path, folder / "all")
        whole = (folder / "all").read_bytes()
        assert ".vmdk" not in formats
        assert image.size == len(whole)
        assert b"".join(image.read(at, 99_999) for at in range(0, len(whole), 99_999)) == whole
        image.close()


def describe(path: Path) -> None:
    """Check what the header says."""
    with path.open("rb") as stream:
        header = qcow2.read_header(lambda at, size: (stream.seek(at), stream.read(size))[1])
    said = json.loads(
        subprocess.run(
            ["qemu-img", "info", "--output", "json", "-f", "qcow2", path],
            stdout=subprocess.PIPE, check=True, timeout=60,
        ).stdout
    )  # fmt: skip
    data = said["format-specific"]["data"]
    assert header.size == said["virtual-size"]
    assert header.cluster == said["cluster-size"]
    assert header.backing == said.get("backing-filename")
    assert header.backing_format == said.get("backing-filename-format")
    assert header.extended_l2 == data.get("extended-l2", False)
    assert header.zstd == (data.get("compression-type") == "zstd")
