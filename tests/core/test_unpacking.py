"""Images that come packed or in a foreign format are unpacked within bounds, or refused by name."""

import bz2
import gzip
import io
import json
import lzma
import shutil
import subprocess
import sys
import tarfile
import tracemalloc
from contextlib import contextmanager
from pathlib import Path

import pytest

from vmcloner_core import contained, images, unpacking
from vmcloner_core.errors import HostCommandError, InvalidRequest, NotEnoughResources
from vmcloner_core.model import Host, ImageSource, Template
from vmcloner_core.process import LocalRunner

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

CONTENT = b"a disk " * 1000 + bytes(1024**2 - 7000)
OVF = """<?xml version="1.0"?>
<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1"
    xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1">
  <References>{files}</References><DiskSection>{disks}</DiskSection>
</Envelope>"""
FILE = '<File ovf:id="{0}" ovf:href="{1}"/>'
DISK = '<Disk ovf:diskId="d{0}" ovf:fileRef="{0}"/>'


def quiet(_done, _total):
    pass


def qemu_img(*argv):
    subprocess.run(["qemu-img", *map(str, argv)], check=True, timeout=60, capture_output=True)


@pytest.fixture
def raw(tmp_path):
    path = tmp_path / "disk.raw"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def imported(tmp_path):
    """Return a function that obtains an image; gives its bytes, and checks that nothing is left."""
    host = Host(name="local", state=tmp_path / "state")

    @contextmanager
    def obtained(path, **source):
        template = Template(name="t", image=ImageSource(path=path, **source))
        with images.obtained(template, None, host, quiet) as image:
            yield image
        assert not host.templates.exists() or not list(host.templates.iterdir())

    def content(path, **source):
        with obtained(path, **source) as image:
            made = tmp_path / "as.raw"
            qemu_img("convert", "-f", image.format, "-O", "raw", image.path, made)
            assert image.size == made.stat().st_size
            return made.read_bytes()

    return content


def tar(path, members, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def ova(path, *disks, files=None):
    names = [disk.name for disk in disks]
    said = OVF.format(
        files="".join(FILE.format(number, name) for number, name in enumerate(files or names)),
        disks="".join(DISK.format(number) for number in range(len(files or names))),
    )
    content = {"vm.ovf": said.encode()} | {disk.name: disk.read_bytes() for disk in disks}
    return tar(path, content)


def vmdk(raw):
    path = raw.with_name("disk1.vmdk")
    qemu_img("convert", "-O", "vmdk", "-o", "subformat=streamOptimized", raw, path)
    return path


@pytest.mark.parametrize("kind", ["vmdk", "vdi", "vhdx", "vpc", "qed", "qcow", "parallels"])
@pytest.mark.parametrize("suffix", [".img", "", None])
def test_foreign_formats_are_converted(raw, imported, kind, suffix):
    path = raw.with_name(f"other{f'.{kind}' if suffix is None else suffix}")
    qemu_img("convert", "-O", kind, raw, path)
    found = imported(path)
    assert found[: len(CONTENT)] == CONTENT  # a VHD's size is rounded up to whole cylinders
    assert not any(found[len(CONTENT) :])


def test_a_vhd_of_fixed_size_has_only_a_footer(raw, imported):
    path = raw.with_name("disk.vhd")
    qemu_img("convert", "-O", "vpc", "-o", "subformat=fixed,force_size", raw, path)
    assert imported(path) == CONTENT


@pytest.mark.parametrize("inner", ["raw", "qcow2"])
@pytest.mark.parametrize(
    ("suffix", "pack"),
    [
        (".gz", gzip.compress),
        (".xz", lzma.compress),
        (".bz2", bz2.compress),
        (".zst", zstd.compress),
    ],
)
def test_compressed_images(raw, imported, suffix, pack, inner):
    disk = raw.with_name(f"disk.{inner}")
    if inner != "raw":
        qemu_img("convert", "-O", inner, raw, disk)
    path = raw.with_name(f"disk.{inner}{suffix}")
    path.write_bytes(pack(disk.read_bytes()))
    assert imported(path) == CONTENT
    shutil.copy(path, raw.with_name(f"disk.img{suffix}"))
    assert imported(raw.with_name(f"disk.img{suffix}")) == CONTENT
    # Half of it
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InvalidRequest, match=r"disk\.\S+: (truncated|damaged|the image in it)"):
        imported(path)


def test_an_ova_and_one_that_is_compressed(raw, imported):
    path = ova(raw.with_name("vm.ova"), vmdk(raw))
    assert imported(path) == CONTENT
    packed = raw.with_name("vm.ova.xz")
    packed.write_bytes(lzma.compress(path.read_bytes()))
    assert imported(packed) == CONTENT


def test_an_ova_whose_disk_is_not_one(raw, imported):
    disk, other = vmdk(raw), raw.with_name("other.vmdk")
    shutil.copy(disk, other)
    for path, reason in (
        (ova(raw.with_name("two.ova"), disk, other), "2 disks"),
        (
            ova(raw.with_name("gone.ova"), disk, files=["gone.vmdk"]),
            "'gone.vmdk', which is missing",
        ),
        (ova(raw.with_name("up.ova"), disk, files=["../../etc/shadow"]), "which is missing"),
        (tar(raw.with_name("bad.ova"), {"a.ovf": b"<not xml"}), "isn't XML"),
        (tar(raw.with_name("ent.ova"), {"a.ovf": b"<!DOCTYPE a []><a/>"}), "declares entities"),
        (tar(raw.with_name("text.ova"), {"readme.txt": b"x"}), "no disk image"),
    ):
        with pytest.raises(InvalidRequest, match=reason):
            imported(path)


def test_a_box_of_vagrant(raw, imported):
    qemu_img("convert", "-O", "qcow2", raw, raw.with_name("box.img"))
    members = {
        "./metadata.json": json.dumps({"provider": "libvirt", "format": "qcow2"}).encode(),
        "./Vagrantfile": b"",
        "./box.img": raw.with_name("box.img").read_bytes(),
    }
    assert imported(tar(raw.with_name("debian.box"), members, "w:gz")) == CONTENT


def test_links_in_an_archive_are_not_followed(raw, imported):
    path = raw.with_name("links.tar")
    with tarfile.open(path, "w") as archive:
        member = tarfile.TarInfo("disk.raw")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(member)
    with pytest.raises(InvalidRequest, match="no disk image"):
        imported(path)


def test_what_can_not_be_converted_is_named(raw, imported):
    for head, name in (
        (b"# Disk DescriptorFile\nversion=1\n", "VMDK descriptor"),
        (b"PK\x03\x04", "zip"),
        (b"7z\xbc\xaf\x27\x1c", "7z"),
        (b"\x04\x22\x4d\x18", "lz4"),
    ):
        path = raw.with_name("some.img")
        path.write_bytes(head.ljust(1024, b"\0"))
        with pytest.raises(InvalidRequest, match=f"is {name}, which can't be imported") as caught:
            imported(path)
        assert caught.value.hint


@pytest.mark.parametrize("suffix", [".vmdk", ".ova", ".dmg", ".zip", ".qed", ".xz"])
def test_a_name_that_the_content_belies_makes_no_raw_disk(raw, imported, suffix):
    path = raw.rename(raw.with_suffix(suffix))
    with pytest.raises(InvalidRequest, match="though its name says so"):
        imported(path)
    assert imported(path, format="raw") == CONTENT


def test_the_name_or_the_format_of_a_raw_disk_keeps_its_content_from_being_opened(raw, imported):
    """A guest may have written any bytes at its disk's start."""
    disk = vmdk(raw)
    shutil.copy(disk, raw)
    with pytest.raises(InvalidRequest, match="is VMDK, though its name says raw"):
        imported(raw)
    with pytest.raises(InvalidRequest, match="is VMDK, though its format says raw"):
        imported(disk, format="raw")


def test_a_vmdk_opens_no_other_file(raw, imported, tmp_path):
    """Neither as its parent, nor as an extent that its descriptor names."""
    secret = tmp_path / "secret.raw"
    secret.write_bytes(b"secret".ljust(1024**2, b"s"))
    child = tmp_path / "child.vmdk"
    parent = tmp_path / "parent.vmdk"
    qemu_img("convert", "-O", "vmdk", secret, parent)
    qemu_img("create", "-f", "vmdk", "-b", parent, "-F", "vmdk", child)
    with pytest.raises(InvalidRequest, match="backing file"):
        imported(child)
    # A header without a capacity makes QEMU read the descriptor's extents.
    content = bytearray(vmdk(raw).read_bytes())
    content[12:20] = bytes(8)
    said = '# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType="x"\n'
    said = said.replace('"x"', '"monolithicFlat"') + f'RW 2048 FLAT "{secret}" 0\n'
    content[512:1536] = said.encode().ljust(1024, b"\0")
    child.write_bytes(bytes(content))
    with pytest.raises(InvalidRequest, match="other files"):  # without Landlock, too
        imported(child)


@pytest.mark.parametrize("kind", ["qed", "qcow"])
def test_backing_files_of_old_formats_are_refused(raw, imported, kind):
    path = raw.with_name(f"child.{kind}")
    qemu_img("create", "-f", kind, "-b", "/etc/passwd", "-F", "raw", path, "1M")
    with pytest.raises(InvalidRequest, match="backing file"):
        imported(path)


def test_bombs_are_refused(raw, imported, monkeypatch):
    monkeypatch.setattr(unpacking, "FREE_RATIO", 1024**2)
    path = raw.with_name("bomb.raw.xz")
    path.write_bytes(lzma.compress(bytes(64 * 1024**2)))
    with pytest.raises(InvalidRequest, match="more than 1000 times"):
        imported(path)


def test_archives_whose_headers_are_bombs_are_refused(raw, imported):
    """They take neither gigabytes of memory nor all levels of recursion, nor end in a traceback."""
    path = raw.with_name("bomb.tar")
    name = tarfile.TarInfo("././@LongLink")
    name.type, name.size = b"L", 100 * 1024**2
    path.write_bytes(name.tobuf(tarfile.GNU_FORMAT))
    with path.open("r+b") as stream:
        stream.truncate(name.size + 10240)
    tracemalloc.start()
    try:
        with pytest.raises(InvalidRequest, match="a header is too long"):
            imported(path)
        assert tracemalloc.get_traced_memory()[1] < 50 * 1024**2
    finally:
        tracemalloc.stop()
    name.size = 1
    path.write_bytes((name.tobuf(tarfile.GNU_FORMAT) + b"a".ljust(512, b"\0")) * 3000)
    with pytest.raises(InvalidRequest, match="damaged archive"):
        imported(path)
    sparse = bytearray(tarfile.TarInfo("a").tobuf(tarfile.GNU_FORMAT))
    sparse[156:157], sparse[482] = b"S", 1  # more of its map follows, but nothing does
    sparse[148:156] = b"%06o\0 " % tarfile.calc_chksums(bytes(sparse))[0]
    path.write_bytes(bytes(sparse))
    with pytest.raises(InvalidRequest, match="damaged archive"):
        imported(path)


def test_xz_takes_no_more_memory_than_its_bound(raw, imported):
    path = raw.with_name("disk.raw.xz")
    small = lzma.compress(CONTENT[:7168])
    path.write_bytes(small + bytes(8) + lzma.compress(CONTENT[7168:], preset=9))
    assert imported(path) == CONTENT
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 2 * unpacking.MAX_MEMORY}]
    path.write_bytes(small + lzma.compress(CONTENT[:512], filters=filters))
    with pytest.raises(InvalidRequest, match="damaged xz data: Memory usage limit exceeded"):
        imported(path)
    path.write_bytes(small[:-8])
    with pytest.raises(InvalidRequest, match="ends too early"):
        imported(path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-be", "cp037"])
def test_entities_are_refused_in_any_encoding(raw, imported, encoding):
    declared = {"utf-8": "", "cp037": ' encoding="cp037"'}.get(encoding, ' encoding="utf-16"')
    said = OVF.format(files=FILE.format(0, "&a;"), disks=DISK.format(0)).partition("?>")[2]
    said = f'<?xml version="1.0"{declared}?><!DOCTYPE x [<!ENTITY a "disk.raw">]>{said}'
    content = {"vm.ovf": said.encode(encoding), "disk.raw": raw.read_bytes()}
    with pytest.raises(InvalidRequest, match=r"declares entities|isn't XML"):
        imported(tar(raw.with_name("vm.ova"), content))


def test_what_does_not_fit_is_refused(raw, imported, monkeypatch):
    usage = shutil.disk_usage("/")._replace(free=unpacking.RESERVE + 100_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)
    path = raw.with_name("disk.raw.gz")
    path.write_bytes(gzip.compress(b"x" * 1024**2))
    with pytest.raises(NotEnoughResources, match="are free in"):
        imported(path)
    raw.write_bytes(b"x" * 1024**2)
    with pytest.raises(NotEnoughResources, match="are free in"):
        imported(vmdk(raw))


def test_layers_without_an_end(raw, imported):
    content = raw.read_bytes()
    for _ in range(6):
        content = gzip.compress(content)
    path = raw.with_name("disk.gz")
    path.write_bytes(content)
    with pytest.raises(InvalidRequest, match="more than 4 layers"):
        imported(path)


def test_the_digest_is_that_of_the_file_that_was_given(raw, imported, tmp_path):
    import hashlib

    path = raw.with_name("disk.raw.gz")
    path.write_bytes(gzip.compress(CONTENT))
    right = hashlib.sha256(path.read_bytes()).hexdigest()
    assert imported(path, sha256=right) == CONTENT
    with pytest.raises(InvalidRequest, match="sha256 is"):
        imported(path, sha256="0" * 64)


# --- the container ------------------------------------------------------------------------------


def run(*argv, read=(), write=(), size=1024**2):
    words = contained.command(argv, read=read, write=write, size=size, seconds=10)
    return LocalRunner().run(words, timeout=20).stdout


def test_contained_programs_open_only_what_is_named(tmp_path):
    shown, hidden, made = tmp_path / "shown", tmp_path / "hidden", tmp_path / "made"
    for path in (shown, hidden, made):
        path.write_text(path.name)
    assert run("cat", str(shown), read=[shown]) == b"shown"
    run("cp", str(shown), str(made), read=[shown], write=[made])
    assert made.read_text() == "shown"
    for argv in (("cat", str(hidden)), ("cp", str(shown), str(hidden)), ("rm", str(shown))):
        with pytest.raises(HostCommandError, match="denied"):
            run(*argv, read=[shown], write=[made])
    with pytest.raises(HostCommandError):
        run("cp", str(shown), str(shown.with_name("new")), read=[shown])


def test_contained_programs_have_no_network_and_write_no_more_than_they_may(tmp_path):
    made = tmp_path / "made"
    made.touch()
    links = run("ip", "-brief", "link").decode().splitlines()
    assert [line.split()[0] for line in links] == ["lo"]
    with pytest.raises(HostCommandError):
        run("dd", "if=/dev/zero", f"of={made}", "bs=1M", "count=9", read=[Path("/dev/zero")],
            write=[made], size=1024**2)  # fmt: skip
    assert made.stat().st_size <= 1024**2
