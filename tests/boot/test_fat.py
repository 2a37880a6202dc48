"""FAT, as mkfs.fat and mtools write it."""

import random
import struct
from pathlib import Path

import pytest

from tests.boot.disks import MIB, disk, fat
from tests.boot.memory import tree as memory
from vmcloner_boot.disk_image import Budget, RawImage, Unreadable
from vmcloner_boot.fat import Fat
from vmcloner_boot.loaders import choose
from vmcloner_boot.systems import systems
from vmcloner_boot.trees import Tree

LARGE = random.Random(1).randbytes(2 * MIB + 77)
FILES = {
    "EFI/BOOT/BOOTX64.EFI": b"x",
    "EFI/Debian GNU/grub.cfg": b"true\n",
    "EFI/Debian GNU/a rather long name of a file.conf": b"long",
    "kernel-é": LARGE,
    "empty": b"",
    **{f"loader/entries/entry-{n}.conf": b"%d" % n for n in range(60)},
}


@pytest.mark.parametrize(("bits", "size"), [(12, 4), (16, 32), (32, 64)])
def test_files(tmp_path: Path, bits: int, size: int) -> None:
    image = disk(tmp_path / "disk", "gpt", [fat(tmp_path / "fs", bits, FILES, size)])
    (found,), skipped = systems(RawImage(image, Budget()))
    assert (found.system.kind, found.system.uuid, found.system.label) == (
        "vfat", "1234-ABCD", "MY ESP",
    )  # fmt: skip
    assert skipped == ()
    for name, content in FILES.items():
        for path in (name, name.upper(), f"/{name.lower()}"):
            node = found.file(path)
            assert node is not None
            assert b"".join(found.system.content(node)) == content
    assert set(found.names("/EFI/debian gnu")) == {
        "grub.cfg", "a rather long name of a file.conf",
    }  # fmt: skip
    assert len(found.names("loader/entries")) == 60
    assert found.find("EFI/none") is None


def test_what_boots_from_it(tmp_path: Path) -> None:
    files = {
        "loader/loader.conf": b"default b\n",
        "loader/entries/a.conf": b"linux /k\noptions a\n",
        "loader/entries/b.conf": b"title B\nlinux \\k\noptions b\n".replace(b"\\", b"/"),
        "k": b"k",
    }
    system = Fat(RawImage(fat(tmp_path / "fs", 16, files, 16), Budget()))
    assert choose([Tree(system, "partition 1", 1, "gpt"), memory({})], Budget()).cmdline == "b"


def test_chains_in_a_circle(tmp_path: Path) -> None:
    files = {"k": LARGE, **{f"a long name, number {n}.conf": b"" for n in range(40)}}
    image = fat(tmp_path / "fs", 32, files, 64)
    data = bytearray(image.read_bytes())
    (reserved,) = struct.unpack_from("<H", data, 14)
    for number in range(2, 9000):
        struct.pack_into("<I", data, reserved * 512 + 4 * number, 2 + (number + 1) % 3)
    image.write_bytes(data)
    system = Fat(RawImage(image, Budget()))
    with pytest.raises(Unreadable, match=r"circle|larger than any"):
        list(system.names(system.root()))
    with pytest.raises(Unreadable, match=r"circle|larger than any"):
        system.find(system.root(), b"none")


@pytest.mark.parametrize(("at", "value"), [(11, 0), (11, 511), (13, 0), (16, 0), (22, 0), (19, 1)])
def test_sizes_that_fat_does_not_have(tmp_path: Path, at: int, value: int) -> None:
    image = fat(tmp_path / "fs", 16, {"x": b""}, 16)
    data = bytearray(image.read_bytes())
    struct.pack_into("<H" if at in (11, 19, 22) else "<B", data, at, value)
    image.write_bytes(data)
    (), (skipped,) = systems(RawImage(image, Budget()))
    assert "FAT" in skipped.reason
