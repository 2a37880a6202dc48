"""Images, partitions and ext file systems, as the real tools make them."""

import contextlib
import os
import random
import re
import struct
import sys
import tracemalloc
import zlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.boot.disks import MIB, disk, ext, fill, run
from vmcloner_boot.disk_image import (
    Budget,
    Bytes,
    Exhausted,
    Qcow2Image,
    RawImage,
    Unreadable,
    open_image,
)
from vmcloner_boot.ext import Ext, _Inode
from vmcloner_boot.partitions import partitions
from vmcloner_boot.systems import systems
from vmcloner_boot.trees import Kind, Tree
from vmcloner_core.errors import DeadlineExceeded, HostCommandError, VmclonerError
from vmcloner_tiny.compression import zstd


class Memory(Bytes):
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.size = len(data)

    def read(self, offset: int, length: int) -> bytes:
        return self.data[offset : offset + length] if offset >= 0 else b""


def tree(path: Path, image_format: str = "raw") -> Tree:
    ((found,), _) = systems(open_image(path, image_format, Budget()))
    return found


def content(tree: Tree, path: str) -> bytes:
    node = tree.file(path)
    assert node is not None, path
    data = b"".join(tree.system.content(node))
    assert len(data) == node.size
    return data


# --- ext --------------------------------------------------------------------------------------

LARGE = random.Random(1).randbytes(3 * MIB + 17)
FILES = {
    "boot/vmlinuz-6.1": b"the kernel",
    "vmlinuz": Path("boot/vmlinuz-6.1"),
    "absolute": Path("/boot/vmlinuz-6.1"),
    "long": Path("/" + "boot/../" * 12 + "boot/vmlinuz-6.1"),
    "large": LARGE,
    "empty": b"",
    "a/b/c/deep": b"x",
    "small": b"tiny",
}


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("ext2", ["-b", "1024"]),
        ("ext4", ["-b", "1024", "-O", "bigalloc"]),
        ("ext4", ["-b", "1024", "-O", "bigalloc,meta_bg,^resize_inode"]),
        ("ext4", ["-b", "4096", "-O", "bigalloc", "-C", "65536"]),
        ("ext2", ["-b", "4096"]),
        ("ext2", ["-O", "^sparse_super,^resize_inode", "-b", "1024"]),
        ("ext3", ["-b", "1024"]),
        ("ext4", []),
        ("ext4", ["-b", "1024", "-O", "^64bit"]),
        ("ext4", ["-O", "inline_data", "-I", "512"]),
        ("ext4", ["-O", "meta_bg,^resize_inode"]),
        ("ext4", ["-O", "metadata_csum_seed,large_dir,casefold"]),
        ("ext4", ["-b", "1024", "-O", "^flex_bg,meta_bg,^resize_inode", "-g", "1024"]),
        ("ext4", ["-I", "128"]),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value) or "plain",
)
def test_ext(tmp_path: Path, kind: str, options: list[str]) -> None:
    found = tree(ext(tmp_path / "fs", FILES, *options, kind=kind))
    for path in ("vmlinuz", "absolute", "long", "/boot/vmlinuz-6.1"):
        assert content(found, path) == b"the kernel"
    assert content(found, "large") == LARGE
    assert content(found, "empty") == b""
    assert content(found, "a/b/c/deep") == b"x"
    assert content(found, "small") == b"tiny"
    assert set(found.names("/")) == {
        "boot", "vmlinuz", "absolute", "long", "large", "empty", "a", "small", "lost", "lost+found",
    }  # fmt: skip
    assert found.file("boot") is None
    assert found.file("nothing") is None
    assert found.file("large/x") is None


def test_many_names_in_one_folder(tmp_path: Path) -> None:
    files = {f"many/{'n' * 60}{number}": str(number) for number in range(600)}
    found = tree(ext(tmp_path / "fs", files, "-O", "dir_index"))
    assert len(found.names("many")) == 600
    assert content(found, f"many/{'n' * 60}234") == b"234"


@pytest.mark.parametrize("kind", ["ext2", "ext4"])
def test_holes_are_zeros(tmp_path: Path, kind: str) -> None:
    root = tmp_path / "fs.d"
    root.mkdir()
    with (root / "holes").open("wb") as stream:
        stream.seek(5 * MIB)
        stream.write(b"middle")
        stream.truncate(9 * MIB)
    found = tree(ext(tmp_path / "fs", {}, kind=kind))
    assert content(found, "holes") == (bytes(5 * MIB) + b"middle").ljust(9 * MIB, b"\0")


def test_an_identity(tmp_path: Path) -> None:
    uuid = "6f1cbc1e-5b1f-4a39-8d4f-3f2f0e6d1c01"
    found = tree(ext(tmp_path / "fs", {}, "-U", uuid, "-L", "BOOT"))
    assert (found.system.uuid, found.system.label) == (uuid, "BOOT")


def test_links_stay_inside(tmp_path: Path) -> None:
    files = {
        "up": Path("../../../../etc/hostname"),
        "root": Path("/../../.."),
        "etc/hostname": b"of the guest",
        "loop": Path("loop"),
        "ping": Path("pong"),
        "pong": Path("ping"),
        "dir": Path("etc"),
    }
    found = tree(ext(tmp_path / "fs", files))
    assert content(found, "up") == b"of the guest"
    assert content(found, "root/etc/hostname") == b"of the guest"
    assert content(found, "dir/../etc/hostname") == b"of the guest"
    for path in ("loop", "ping", "loop/x"):
        with pytest.raises(Unreadable, match="too many links"):
            found.file(path)


def test_sixteen_links_and_no_more(tmp_path: Path) -> None:
    files: dict[str, object] = {f"l{number}": Path(f"l{number - 1}") for number in range(1, 18)}
    found = tree(ext(tmp_path / "fs", {**files, "l0": b"end"}))
    assert content(found, "l16") == b"end"
    with pytest.raises(Unreadable):
        found.file("l17")


class Nodes(Bytes):
    """A tree of extents as wide as can be: block N holds a node of depth N with leads to N - 1."""

    size = 1 << 40

    def __init__(self, block: int) -> None:
        self.block = block
        self.reads = 0

    def read(self, offset: int, length: int) -> bytes:
        self.reads += 1
        return self.node(offset // self.block, self.block // 12 - 1).ljust(length, b"\0")

    @staticmethod
    def node(depth: int, count: int) -> bytes:
        head = struct.pack("<HHHHI", 0xF30A, count, count, depth, 0)
        entry = (
            struct.pack("<IIHH", 0, depth - 1, 0, 0) if depth else struct.pack("<IHHI", 0, 1, 0, 9)
        )
        return head + entry * count


def test_of_a_wide_tree_of_extents_only_what_is_walked_is_read(tmp_path: Path) -> None:
    system = Ext(Memory(ext(tmp_path / "fs", {}).read_bytes()))
    system._data = nodes = Nodes(system._block)
    runs = system._extents(_Inode(1, 0, Nodes.node(5, 4), b""))
    assert next(runs) == (0, 9, 1)
    assert nodes.reads == 5


# --- XFS and btrfs ----------------------------------------------------------------------------


def xfs(path: Path, folder: Path) -> Path:
    """Make an XFS with two files and a link, as its prototype file says (mkfs.xfs(8))."""
    (folder / "large").write_bytes(LARGE)
    (folder / "small").write_bytes(b"tiny")
    prototype = folder / "prototype"
    prototype.write_text(
        f"""/dev/null
0 0
d--755 0 0
boot d--755 0 0
large ---644 0 0 {folder}/large
small ---644 0 0 {folder}/small
link l--777 0 0 ../boot/small
$
$
"""
    )
    with path.open("wb") as stream:
        stream.truncate(320 * MIB)
    run("mkfs.xfs", "-q", "-f", "-p", prototype, path)
    return path


def test_xfs(tmp_path: Path) -> None:
    image = disk(tmp_path / "disk", "gpt", [None, xfs(tmp_path / "fs", tmp_path)])
    found = tree(image)
    assert (found.system.kind, found.place) == ("xfs", "partition 2")
    assert content(found, "boot/large") == LARGE
    assert content(found, "boot/link") == b"tiny"
    assert set(found.names("boot")) == {"large", "small", "link"}
    assert found.file("boot/none") is None
    assert re.fullmatch(r"[0-9a-f-]{36}", found.system.uuid)


def test_labels(tmp_path: Path) -> None:
    image = xfs(tmp_path / "fs", tmp_path)
    run("xfs_admin", "-L", "MYDATA", image)
    assert tree(image).system.label == "MYDATA"
    with (tmp_path / "b").open("wb") as stream:
        stream.truncate(128 * MIB)
    run("mkfs.btrfs", "-q", "-L", "a btrfs", tmp_path / "b")
    assert tree(tmp_path / "b").system.label == "a btrfs"


def test_subvolumes_of_any_name(tmp_path: Path) -> None:
    """Those with a folder boot, be it empty."""
    root = fill(
        tmp_path / "root",
        {"@arch/boot/k": b"k", "own root/boot": None, "@home/x": b"", "boot/y": b""},
    )
    with (tmp_path / "fs").open("wb") as stream:
        stream.truncate(128 * MIB)
    run("mkfs.btrfs", "-q", "--rootdir", root, tmp_path / "fs")
    trees, _ = systems(RawImage(tmp_path / "fs", Budget()))
    assert {(t.subvolume, t.default) for t in trees} == {
        ("", False), ("@arch", False), ("own root", False),
    }  # fmt: skip
    assert "the disk, subvolume @arch" in [t.place for t in trees]


def test_btrfs(tmp_path: Path) -> None:
    """Subvolumes that are root file systems are looked into, too."""
    root = fill(
        tmp_path / "root", {"@/boot/small": b"tiny", "@/boot/large": LARGE, "@/x": Path("boot")}
    )
    image = tmp_path / "fs"
    with image.open("wb") as stream:
        stream.truncate(128 * MIB)
    run("mkfs.btrfs", "-q", "--rootdir", root, image)
    (top, sub), _ = systems(RawImage(image, Budget()))
    assert content(top, "/@/boot/large") == LARGE
    assert content(sub, "/x/small") == b"tiny"
    assert content(sub, "/../../boot/small") == b"tiny"


def packed(path: Path, content: bytes, method: int) -> Tree:
    """Make a btrfs with a file ``x`` of this content, told to be what it is packed by."""
    with path.open("wb") as stream:
        stream.truncate(128 * MIB)
    content += bytes(-len(content) % 4096)  # btrfs-progs 7 makes an extent of a sector in parts
    folder = fill(path.with_name("packed"), {"x": content})
    run("mkfs.btrfs", "-q", "--rootdir", folder, path)
    data = path.read_bytes()
    plain = struct.pack("<QBBHB", len(content), 0, 0, 0, 1)
    assert plain in data
    return systems(Memory(data.replace(plain, plain[:8] + bytes([method]) + plain[9:])))[0][0]


PACKERS = {1: zlib.compress, 3: zstd.compress}


@pytest.mark.parametrize("method", PACKERS)
def test_a_packed_file_on_btrfs(tmp_path: Path, method: int) -> None:
    data = random.Random(3).randbytes(9000) + bytes(90_000)
    found = packed(tmp_path / "fs", PACKERS[method](data), method)
    node = found.file("x")
    assert node is not None
    assert b"".join(found.system.content(node)) == data[: node.size]


@pytest.mark.parametrize("method", PACKERS)
def test_what_unpacks_without_end_on_btrfs(tmp_path: Path, method: int) -> None:
    bomb = PACKERS[method](random.Random(3).randbytes(9000) + bytes(64 * MIB))
    found = packed(tmp_path / "fs", bomb, method)
    node = found.file("x")
    assert node is not None
    tracemalloc.start()
    with contextlib.suppress(Unreadable):
        b"".join(found.system.content(node))
    assert tracemalloc.get_traced_memory()[1] < 16 * MIB
    tracemalloc.stop()


@pytest.mark.parametrize("count", [0, 1, 2**32 - 1])
def test_a_tree_of_btrfs_that_is_a_circle(tmp_path: Path, count: int) -> None:
    image = tmp_path / "fs"
    with image.open("wb") as stream:
        stream.truncate(128 * MIB)
    run("mkfs.btrfs", "-q", image)
    data = bytearray(image.read_bytes())
    root = data[0x10000 + 80 : 0x10000 + 88]
    nodes = [at for at in range(0, len(data), 4096) if data[at + 48 : at + 56] == root]
    for at in nodes:
        if data[at + 88 : at + 96] == (1).to_bytes(8, "little"):  # a node of the tree of roots
            struct.pack_into("<IB17x", data, at + 96, count, count % 2)
            data[at + 118 : at + 126] = root
    (), (skipped,) = systems(Memory(bytes(data)))
    assert "(btrfs) is damaged: a tree of it" in skipped.reason


@pytest.mark.parametrize(
    ("at", "size"), [(144, 0), (144, 2**31), (148, 0), (148, 2**31), (148, 12288)]
)
def test_sizes_that_btrfs_does_not_have(at: int, size: int) -> None:
    data = bytearray(MIB)
    data[0x10040:0x10048] = b"_BHRfS_M"
    struct.pack_into("<II", data, 0x10000 + 144, 4096, 16384)
    struct.pack_into("<I", data, 0x10000 + at, size)
    (), (skipped,) = systems(Memory(bytes(data)))
    assert "the size of its blocks" in skipped.reason


def test_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dissect.xfs", None)
    (), (skipped,) = systems(Memory(b"XFSB".ljust(MIB, b"\0")))
    assert skipped.reason == "xfs, which needs pip install 'vmcloner[filesystems]'"


@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
def test_damage_to_others_is_an_error_of_ours(tmp_path: Path, kind: str) -> None:
    magic = {"xfs": (0, b"XFSB"), "btrfs": (0x10040, b"_BHRfS_M")}[kind]
    for filling in (b"\0", b"\xff", b"\x01"):
        data = bytearray(filling * MIB)
        data[magic[0] : magic[0] + len(magic[1])] = magic[1]
        data[1024 + 0x38 : 1024 + 0x3A] = b"\0\0"
        data[510:512] = b"\0\0"
        (), (skipped,) = systems(Memory(bytes(data)))
        assert f"({kind}) is damaged" in skipped.reason


# --- partitions -------------------------------------------------------------------------------


def logical(*links: tuple[int, int, int]) -> Memory:
    """Return a disk with an extended partition from sector 100: (link, first, next link)."""
    data = bytearray(4096 * 512)

    def table(sector: int, *entries: tuple[int, int, int]) -> None:
        for index, entry in enumerate(entries):
            at = sector * 512 + 446 + 16 * index
            data[at : at + 16] = struct.pack("<4xB3xII", *entry)
        data[sector * 512 + 510 : sector * 512 + 512] = b"\x55\xaa"

    table(0, (0x83, 10, 20), (5, 100, 3996))
    for link, first, following in links:
        table(link, (0x83, first, 8) if first else (0, 0, 0), (5 * bool(following), following, 9))
    return Memory(bytes(data))


def test_logical_partitions_may_lie_in_any_order() -> None:
    disk = logical((100, 5, 900), (1000, 6, 400), (500, 7, 0))
    parts = [(part.number, part.data.start) for part in partitions(disk)]  # type: ignore[attr-defined]
    assert parts == [(1, 10 * 512), (5, 105 * 512), (6, 1006 * 512), (7, 507 * 512)]


def test_an_empty_link_has_no_number() -> None:
    disk = logical((100, 0, 900), (1000, 6, 0))
    assert [part.number for part in partitions(disk)] == [1, 5]


def test_logical_partitions_in_a_circle() -> None:
    disk = logical((100, 5, 900), (1000, 6, 400), (500, 7, 900))
    assert [part.number for part in partitions(disk)] == [1, 5, 6, 7]


@pytest.mark.parametrize("table", ["gpt", "dos"])
def test_partitions(tmp_path: Path, table: str) -> None:
    first = ext(tmp_path / "one", {"one": b"1"}, size=4)
    second = ext(tmp_path / "two", {"two": b"2"}, size=8)
    image = RawImage(disk(tmp_path / "disk", table, [first, None, second]), Budget())
    trees, skipped = systems(image)
    assert [found.place for found in trees] == ["partition 1", "partition 3"]
    assert [found.table for found in trees] == ["gpt" if table == "gpt" else "msdos"] * 2
    assert content(trees[1], "two") == b"2"
    assert skipped == ()


def test_logical_partitions(tmp_path: Path) -> None:
    parts = [ext(tmp_path / name, {name: name}, size=4) for name in ("p1", "l5", "l6", "l7")]
    image = RawImage(disk(tmp_path / "disk", "dos", parts, logical=1), Budget())
    trees, _ = systems(image)
    assert [found.partition for found in trees] == [1, 5, 6, 7]
    assert content(trees[3], "l7") == b"l7"


def test_a_file_system_on_the_whole_disk(tmp_path: Path) -> None:
    found = tree(ext(tmp_path / "fs", {"x": b"x"}))
    assert (found.place, found.partition) == ("the disk", 0)


def test_a_chain_of_logical_partitions_that_is_a_loop(tmp_path: Path) -> None:
    parts = [ext(tmp_path / name, {}, size=4) for name in ("p1", "l5", "l6")]
    path = disk(tmp_path / "disk", "dos", parts, logical=1)
    data = bytearray(path.read_bytes())
    start = next(int.from_bytes(data[454 + i : 458 + i], "little") for i in (16,))
    link = start * 512 + 446 + 16
    data[link + 8 : link + 12] = (0).to_bytes(4, "little")  # to itself
    assert [p.number for p in partitions(Memory(bytes(data)))] == [1, 5]


def test_a_damaged_gpt(tmp_path: Path) -> None:
    path = disk(tmp_path / "disk", "gpt", [ext(tmp_path / "fs", {}, size=4)])
    data = bytearray(path.read_bytes())
    data[512:520] = b"nonsense"
    with pytest.raises(Unreadable, match="GUID partition table"):
        partitions(Memory(bytes(data)))


# --- qcow2 ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["-c"],
        ["-c", "-o", "compression_type=zstd"],
        ["-o", "cluster_size=4096"],
        ["-o", "compat=0.10"],
        ["-c", "-o", "cluster_size=512"],
    ],
    ids=" ".join,
)
def test_qcow2(tmp_path: Path, options: list[str]) -> None:
    raw = ext(tmp_path / "fs", FILES)
    path = tmp_path / "image.qcow2"
    run("qemu-img", "convert", "-O", "qcow2", *options, raw, path)
    image = Qcow2Image(path, Budget())
    assert image.size == raw.stat().st_size
    whole = b"".join(image.read(at, MIB - 7) for at in range(0, image.size, MIB - 7))
    assert whole == raw.read_bytes()
    image.close()
    assert content(tree(path, "qcow2"), "large") == LARGE


def test_overlays(tmp_path: Path) -> None:
    raw = ext(tmp_path / "base.raw", FILES)
    run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", raw, tmp_path / "one")
    run(
        "qemu-img",
        "create",
        "-q",
        "-f",
        "qcow2",
        "-F",
        "qcow2",
        "-b",
        "one",
        tmp_path / "two",
        "64M",
    )
    data = random.Random(2).randbytes(200_000)
    (tmp_path / "data").write_bytes(data)
    at = 1_234_944
    io = f"write -s {tmp_path / 'data'} {at} {len(data) // 512 * 512}"
    run("qemu-io", "-f", "qcow2", "-c", io, "-c", "write -z 2M 64k", tmp_path / "two")
    expected = bytearray(raw.read_bytes().ljust(64 * MIB, b"\0"))
    expected[at : at + len(data) // 512 * 512] = data[: len(data) // 512 * 512]
    expected[2 * MIB : 2 * MIB + 65536] = bytes(65536)
    image = open_image(tmp_path / "two", "qcow2", Budget())
    assert b"".join(image.read(o, MIB) for o in range(0, image.size, MIB)) == expected
    image.close()


def named(path: Path, backing: bytes, kind: bytes | None) -> None:
    """Name a backing file in the header of an image."""
    data = bytearray(path.read_bytes())
    data[8:20] = struct.pack(">QI", 0x1000, len(backing))
    data[0x1000 : 0x1000 + len(backing)] = backing
    data[112:136] = (
        bytes(24) if kind is None else struct.pack(">II16s", 0xE2792ACA, len(kind), kind)
    )
    path.write_bytes(data)


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_a_raw_backing_file_is_never_taken_for_an_image(tmp_path: Path, kind: str) -> None:
    """A guest's disk that looks like a qcow2 image over a file of the host."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"TOP SECRET".ljust(MIB, b"\0"))
    disk = tmp_path / "disk.raw"
    run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", secret, disk)
    with disk.open("r+b") as stream:
        stream.truncate(MIB)
    clone = tmp_path / "clone"
    run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", disk, clone)
    if kind == "qcow2":  # the raw file lies under two overlays
        run("qemu-img", "create", "-q", "-f", "qcow2", "-F", kind, "-b", "clone", tmp_path / "top")
        clone = tmp_path / "top"
    image = open_image(clone, "qcow2", Budget())
    assert image.read(0, MIB) == disk.read_bytes()
    image.close()


@pytest.mark.parametrize(
    ("backing", "kind", "reason"),
    [
        (b"base", None, "which format its backing file has"),
        (b"base", b"vmdk", "of format 'vmdk'"),
        (b"base", b"", "of format ''"),
        (b"json:{'driver': 'raw', 'file': {'filename': '/etc/shadow'}}", b"raw", "no plain file"),
        (b'file:json:{"driver":"raw"}', b"raw", "no plain file"),
        (b"nbd://localhost/x", b"raw", "no plain file"),
        (b"base\0", b"raw", "no plain file"),
        (b"", b"raw", "no plain file"),
        (b"base", b"qcow2", "base: can't be read here: is not a qcow2 image"),
    ],
)  # fmt: skip
def test_a_backing_file_that_is_refused(
    tmp_path: Path, backing: bytes, kind: bytes | None, reason: str
) -> None:
    (tmp_path / "base").write_bytes(b"KDMV".ljust(MIB, b"\0"))
    path = tmp_path / "image"
    run("qemu-img", "create", "-q", "-f", "qcow2", path, "1M")
    named(path, backing, kind)
    with pytest.raises(Unreadable, match=re.escape(reason)):
        Qcow2Image(path, Budget())


def test_a_backing_file_is_read_as_its_header_names_it(tmp_path: Path) -> None:
    (tmp_path / "base").write_bytes(b"KDMV".ljust(MIB, b"\0"))
    path = tmp_path / "image"
    run("qemu-img", "create", "-q", "-f", "qcow2", path, "1M")
    named(path, b"file:base", b"raw")
    image = Qcow2Image(path, Budget())
    assert image.read(0, 4) == b"KDMV"
    image.close()


def test_the_backing_file_that_the_pool_knows_counts(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"s" * MIB)
    (tmp_path / "base").write_bytes(b"b" * MIB)
    path = tmp_path / "image"
    run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", tmp_path / "secret", path)
    image = open_image(path, "qcow2", Budget(), tmp_path / "base")
    assert image.read(0, 4) == b"bbbb"
    image.close()


def test_an_external_data_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "image"
    run("qemu-img", "create", "-q", "-f", "qcow2", "-o", f"data_file={tmp_path}/d", path, "1M")
    with pytest.raises(Unreadable, match="can't be read here: keeps its data in another file"):
        Qcow2Image(path, Budget())


@pytest.mark.parametrize("field", [24, 40], ids=["size", "l1_offset"])
def test_numbers_that_no_file_has(tmp_path: Path, field: int) -> None:
    path = tmp_path / "image"
    run("qemu-img", "create", "-q", "-f", "qcow2", path, "1M")
    data = bytearray(path.read_bytes())
    data[field : field + 8] = b"\xff" * 8
    path.write_bytes(data)
    with pytest.raises(Unreadable):
        Qcow2Image(path, Budget())


def test_overlays_over_one_another_without_end(tmp_path: Path) -> None:
    path = tmp_path / "image"
    run("qemu-img", "create", "-q", "-f", "qcow2", path, "1M")
    named(path, b"image", b"qcow2")
    with pytest.raises(Unreadable, match="over one another"):
        Qcow2Image(path, Budget())
    links = Path("/proc/self/fd").iterdir()
    assert path not in [link.readlink() for link in links if link.is_symlink()]


@pytest.mark.parametrize("options", ["encryption=on", "extended_l2=on,cluster_size=65536"])
def test_qcow2_of_other_kinds(tmp_path: Path, options: str) -> None:
    path = tmp_path / "image"
    if options == "encryption=on":  # making it for real takes a key's derivation of 10 s
        run("qemu-img", "create", "-q", "-f", "qcow2", path, "1M")
        data = bytearray(path.read_bytes())
        data[35] = 2
        path.write_bytes(data)
    else:
        run("qemu-img", "create", "-q", "-f", "qcow2", "-o", options, path, "1M")
    with pytest.raises(Unreadable, match="can't be read here"):
        open_image(path, "qcow2", Budget())


# --- limits -----------------------------------------------------------------------------------


def test_bytes_and_time_are_bounded(tmp_path: Path) -> None:
    path = ext(tmp_path / "fs", FILES)
    with pytest.raises(Exhausted, match="takes more to read"):
        systems(RawImage(path, Budget(left=1000)))
    with pytest.raises(DeadlineExceeded):
        systems(RawImage(path, Budget(deadline=0)))


def test_what_is_no_disk(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/null"), tmp_path / "nothing"):
        with pytest.raises(HostCommandError):
            RawImage(path, Budget())


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("images")
    files = {**FILES, "large": LARGE[:100_000]}
    made = [
        ext(folder / "ext2", files, "-b", "1024", kind="ext2", size=2),
        ext(folder / "ext4", files, "-O", "inline_data", "-I", "512", size=2),
        disk(folder / "gpt", "gpt", [ext(folder / "p", files, size=2)]),
        disk(folder / "dos", "dos", [None, ext(folder / "l", files, size=2)], logical=1),
    ]
    return [path.read_bytes() for path in made]


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_is_an_error_of_ours(images: list[bytes], data: st.DataObject) -> None:
    """Whatever bytes are changed, reading ends, within bounds, well or with our error."""
    image = bytearray(data.draw(st.sampled_from(images)))
    # Where the structures are: in the first and the last kilobytes of what is not file content.
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.integers(0, min(len(image), 400_000) - 8))
        patch = data.draw(st.binary(min_size=1, max_size=8) | st.just(b"\xff" * 4))
        image[at : at + len(patch)] = patch
    try:
        trees, _ = systems(Memory(bytes(image)))
        for found in trees:
            for path in ("vmlinuz", "long", "large", "a/b/c/deep", "small"):
                node = found.find(path)
                if node is not None and node.kind is Kind.FILE and node.size < 4 * MIB:
                    b"".join(found.system.content(node))
            found.names("/")
    except VmclonerError:
        pass


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_superblock_is_an_error_of_ours(images: list[bytes], data: st.DataObject) -> None:
    """Each field that is read may say anything, one or several at once."""
    image = bytearray(images[data.draw(st.integers(0, 1))])
    fields = {0: 4, 4: 4, 0x14: 4, 0x18: 4, 0x20: 4, 0x28: 4, 0x4C: 4, 0x58: 2, 0x60: 4, 0x64: 4,
              0xFE: 2, 0x104: 4}  # fmt: skip
    for at in data.draw(st.lists(st.sampled_from(sorted(fields)), min_size=1, max_size=3)):
        size = fields[at]
        value = data.draw(st.integers(0, 300) | st.integers(0, 256**size - 1))
        image[1024 + at : 1024 + at + size] = value.to_bytes(size, "little")
    with contextlib.suppress(VmclonerError):
        system = Ext(Memory(bytes(image)))
        for name in system.names(system.root()):
            system.find(system.root(), name)


@pytest.mark.parametrize("size", [0, 127, 129, 250, 2048, 65535])
def test_a_size_of_inodes_that_cannot_be(images: list[bytes], size: int) -> None:
    image = bytearray(images[0])
    struct.pack_into("<H", image, 1024 + 0x58, size)
    with pytest.raises(Unreadable, match="damaged"):
        Ext(Memory(bytes(image)))


def test_an_unknown_feature(tmp_path: Path) -> None:
    image = bytearray(ext(tmp_path / "fs", {}).read_bytes())
    image[1024 + 0x60 + 3] |= 0x80
    with pytest.raises(Unreadable, match="features"):
        Ext(Memory(bytes(image)))
    ((), (skipped,)) = systems(Memory(bytes(image)))
    assert "features" in skipped.reason
