"""Images are hostile input: what they claim is checked before anything reads them."""

import ctypes
import errno
import hashlib
import http.server
import os
import shutil
import struct
import subprocess
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.publisher import Server
from vmcloner_core import contained, images
from vmcloner_core.drivers import ImageBuilder, ImageFile
from vmcloner_core.errors import HostCommandError, InvalidRequest, NotFound
from vmcloner_core.model import AS_IT_COMES, ImageSource
from vmcloner_core.process import LocalRunner
from vmcloner_core.qemu_img import convert, enlarge, measure


def quiet(_done, _total):
    pass


def look(path, **source):
    return images.from_file(ImageSource(path=path, **source), quiet)


def qemu_img(*argv):
    argv = ["qemu-img", *map(str, argv)]
    return subprocess.run(argv, check=True, timeout=60, capture_output=True).stdout


def has_landlock():
    return ctypes.CDLL(None).syscall(contained._CREATE_RULESET, None, 0, 1) > 0


@pytest.fixture
def raw(tmp_path):
    path = tmp_path / "disk.raw"
    path.write_bytes(b"data" * 256 * 1024)
    return path


@pytest.fixture
def qcow2(raw):
    path = raw.with_suffix(".qcow2")
    qemu_img("convert", "-O", "qcow2", raw, path)
    return path


def test_raw(raw):
    image = look(raw)
    assert (image.format, image.size) == ("raw", 1024**2)
    assert image.digest == "sha256:" + hashlib.sha256(raw.read_bytes()).hexdigest()


@pytest.mark.parametrize("options", [[], ["-c"], ["-o", "cluster_size=512"], ["-o", "compat=0.10"]])
def test_qcow2(raw, tmp_path, options):
    path = tmp_path / "x.qcow2"
    qemu_img("convert", *options, "-O", "qcow2", raw, path)
    image = look(path)
    assert (image.format, image.size) == ("qcow2", 1024**2)


def test_extended_l2(raw, tmp_path):
    path = tmp_path / "x.qcow2"
    qemu_img("convert", "-o", "extended_l2=on,cluster_size=128k", "-O", "qcow2", raw, path)
    assert look(path).size == 1024**2


def test_wrong_suffix(raw, qcow2):
    shutil.copy(qcow2, raw)
    with pytest.raises(InvalidRequest, match="is qcow2, though its name says raw"):
        look(raw)


def test_wrong_format(raw):
    with pytest.raises(InvalidRequest, match="is raw, though its format says qcow2"):
        look(raw, format="qcow2")


@pytest.mark.parametrize("kind", ["vmdk", "vhdx", "vdi"])
def test_other_formats(raw, kind):
    path = raw.parent / "other.img"
    qemu_img("convert", "-O", kind, raw, path)
    with pytest.raises(InvalidRequest, match=f"is {kind.upper()}"):
        look(path)


def test_truncated(raw, qcow2):
    for path, size in ((raw, 1000), (qcow2, 300_000), (qcow2, 50), (qcow2, 70_000)):
        with path.open("r+b") as stream:
            stream.truncate(size)
        with pytest.raises(InvalidRequest, match="truncated"):
            look(path)


def test_backing_file(raw, tmp_path):
    path = tmp_path / "overlay.qcow2"
    qemu_img("create", "-f", "qcow2", "-b", "/etc/passwd", "-F", "raw", path)
    with pytest.raises(InvalidRequest, match="backing file"):
        look(path)


def test_data_file(tmp_path):
    path = tmp_path / "x.qcow2"
    qemu_img("create", "-f", "qcow2", "-o", f"data_file={tmp_path}/d,data_file_raw=on", path, "1M")
    with pytest.raises(InvalidRequest, match="in another file"):
        look(path)


def test_what_is_no_file(tmp_path):
    import os

    os.mkfifo(tmp_path / "fifo.raw")
    with pytest.raises(InvalidRequest, match="neither a file nor a block device"):
        look(tmp_path / "fifo.raw")
    with pytest.raises(InvalidRequest, match=r"neither a file nor a block device|Is a directory"):
        look(tmp_path)
    with pytest.raises(NotFound, match="doesn't exist"):
        look(tmp_path / "gone.raw")


def test_wrong_checksum(raw):
    with pytest.raises(InvalidRequest, match="sha256 is"):
        look(raw, sha256="0" * 64)


@settings(max_examples=200)
@given(st.binary(max_size=600))
def test_any_header_is_read_or_refused(tmp_path_factory, tail):
    path = tmp_path_factory.mktemp("fuzz") / "x.qcow2"
    path.write_bytes(b"QFI\xfb" + tail)
    try:
        look(path)
    except InvalidRequest as error:
        assert str(path) in str(error)


def test_a_huge_table_is_refused_at_once(qcow2):
    with qcow2.open("r+b") as stream:
        stream.seek(36)
        stream.write(struct.pack(">I", 2**31))
    with pytest.raises(InvalidRequest, match="out of range"):
        look(qcow2)


BITS = 16
TABLE = 1 << BITS


def qcow2_of(path, l1, tables, size=2**40, **fields):
    """Write an image with an L1 table and tables of entries, all in clusters of 64 KiB."""
    numbers = {"refcounts": TABLE, "l1_offset": 2 * TABLE, **fields}
    head = struct.pack(
        ">4sIQIIQIIQQ", b"QFI\xfb", 3, 0, 0, BITS, size, 0, len(l1),
        numbers["l1_offset"], numbers["refcounts"],
    )  # fmt: skip
    with path.open("wb") as stream:
        stream.write(head.ljust(100, b"\0") + struct.pack(">I", 104))
        stream.seek(2 * TABLE)
        stream.write(struct.pack(f">{len(l1)}Q", *l1))
        for offset, entries in tables.items():
            stream.seek(offset)
            stream.write(struct.pack(f">{len(entries)}Q", *entries))
        stream.truncate(64 * TABLE)
    return path


def test_one_table_for_every_part_of_the_disk_is_refused_before_it_is_read(tmp_path):
    """4 million times the same table are hours of reading, and a disk of 2 PiB."""
    used = [1 << 63 | 20 * TABLE] * 8192
    path = qcow2_of(tmp_path / "x.qcow2", [1 << 63 | 10 * TABLE] * 4096, {10 * TABLE: used})
    with pytest.raises(InvalidRequest, match="two parts of the disk share one table"):
        look(path)


@pytest.mark.parametrize("entry", [1 << 63 | 20 * TABLE, 1 << 62 | 20 * TABLE])
def test_one_cluster_for_every_part_of_the_disk_is_refused(tmp_path, entry):
    path = qcow2_of(tmp_path / "x.qcow2", [10 * TABLE], {10 * TABLE: [entry] * 8192})
    with pytest.raises(InvalidRequest, match="share their clusters"):
        look(path)


def test_two_tables_that_share_their_clusters_are_refused(tmp_path):
    used = [number * TABLE for number in range(20, 64)]
    tables = {10 * TABLE: used, 11 * TABLE: used}
    with pytest.raises(InvalidRequest, match="share their clusters"):
        look(qcow2_of(tmp_path / "x.qcow2", list(tables), tables))


def test_more_tables_than_any_image_needs_are_refused_before_they_are_read(tmp_path):
    l1 = [number * TABLE for number in range(10, 10 + 5000)]
    with pytest.raises(InvalidRequest, match="256 MiB of tables"):
        look(qcow2_of(tmp_path / "x.qcow2", l1, {}))


@pytest.mark.parametrize("field", ["refcounts", "l1_offset"])
@pytest.mark.parametrize("value", [2**63, 2**64 - 512])
def test_offsets_that_no_file_has(tmp_path, field, value):
    path = qcow2_of(tmp_path / "x.qcow2", [1 << 63], {}, **{field: value})
    with pytest.raises(InvalidRequest, match="truncated"):
        look(path)


@pytest.mark.parametrize("size", [0, 2**62, 2**63, 2**64 - 1])
def test_sizes_that_no_disk_has(tmp_path, size):
    with pytest.raises(InvalidRequest, match="out of range"):
        look(qcow2_of(tmp_path / "x.qcow2", [0], {}, size=size))


@pytest.mark.parametrize("name", ["disk", "disk.bin", "disk.qcow2.bak"])
def test_content_never_says_the_format(qcow2, tmp_path, name):
    """What a guest wrote on its disk doesn't make it another kind of image."""
    path = tmp_path / name
    shutil.copy(qcow2, path)
    with pytest.raises(InvalidRequest, match="which neither its name nor its template") as caught:
        look(path)
    assert 'name it *.qcow2, or say format = "qcow2" in [image]' in caught.value.hint
    assert look(path, format="qcow2").format == "qcow2"


def test_a_backing_file_named_after_the_check_stays_shut(qcow2, tmp_path):
    """An image's owner may change it while it is imported."""
    (tmp_path / "secret").write_bytes(b"s" * 1024**2)
    image = look(qcow2)
    qemu_img("create", "-f", "qcow2", "-F", "raw", "-b", tmp_path / "secret", qcow2)
    (tmp_path / "made").touch()
    convert(LocalRunner(), image, tmp_path / "made", AS_IT_COMES)
    assert (tmp_path / "made").read_bytes() == bytes(1024**2)


@pytest.fixture
def server(tmp_path):
    folder = tmp_path / "www"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(folder))

        def do_GET(self):
            if self.path.startswith("/short"):
                self.send_response(200)
                self.send_header("Content-Length", "1000")
                self.end_headers()
                self.wfile.write(b"x" * 10)
                return
            super().do_GET()

        def log_message(self, *_):
            pass

    with Server(("127.0.0.1", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()


def fetch(url, sha256, folder):
    return images.download(ImageSource(url=url, sha256=sha256), folder, quiet)


def test_download(server, raw, tmp_path):
    folder, url = server
    shutil.copy(raw, folder / "disk.raw")
    digest = hashlib.sha256(raw.read_bytes()).hexdigest()
    source = fetch(f"{url}/disk.raw?x=1", digest, tmp_path)
    assert source.path.name == "disk.raw"
    assert images.from_file(source, quiet).digest == f"sha256:{digest}"
    with pytest.raises(InvalidRequest, match="sha256 is"):
        images.from_file(fetch(f"{url}/disk.raw", "0" * 64, tmp_path), quiet)


def test_download_that_fails(server, tmp_path):
    _, url = server
    with pytest.raises(HostCommandError, match="answered 404"):
        fetch(f"{url}/gone.raw", "0" * 64, tmp_path)
    with pytest.raises(HostCommandError, match="short"):
        fetch(f"{url}/short", "0" * 64, tmp_path)
    with pytest.raises(InvalidRequest, match="needs a sha256"):
        fetch(f"{url}/disk.raw", None, tmp_path)


class Builder(ImageBuilder):
    def __init__(self, fingerprint="1", fail=False):
        self.print, self.fail, self.built = fingerprint, fail, 0

    def fingerprint(self):
        return self.print

    def build(self, folder, progress):
        self.built += 1
        (folder / "disk.raw").write_bytes(bytes(1024))
        if self.fail:
            raise HostCommandError("no")
        return folder / "disk.raw"


def test_templates_of_the_same_share_what_was_built(tmp_path):
    first = images.build(Builder(), tmp_path / "built" / "a", quiet)
    builder = Builder(fail=True)
    second = images.build(builder, tmp_path / "built" / "b", quiet)
    assert second.path.samefile(first.path)
    assert second.path != first.path
    assert second.digest == first.digest
    shutil.rmtree(tmp_path / "built" / "a")
    assert images.build(builder, tmp_path / "built" / "b", quiet) == second
    with pytest.raises(HostCommandError):
        images.build(Builder("2", fail=True), tmp_path / "built" / "c", quiet)

    class Another(Builder):
        """It has the same fingerprint, and makes something else."""

    with pytest.raises(HostCommandError):
        images.build(Another(fail=True), tmp_path / "built" / "c", quiet)


def test_what_cannot_be_shared_is_built(tmp_path, monkeypatch):
    images.build(Builder(), tmp_path / "built" / "a", quiet)

    def link(source, target):
        shutil.copyfile(source, target)
        raise OSError(errno.EMLINK, "too many links")

    monkeypatch.setattr(os, "link", link)
    image = images.build(Builder(), tmp_path / "built" / "b", quiet)
    assert sorted(p.name for p in image.path.parent.iterdir()) == sorted(
        p.name for p in (tmp_path / "built" / "a").iterdir()
    )


def test_a_build_is_made_once_and_whole(tmp_path):
    folder = tmp_path / "t" / "tiny"
    with pytest.raises(HostCommandError):
        images.build(Builder(fail=True), folder, quiet)
    assert list(folder.parent.iterdir()) == []
    builder = Builder()
    first = images.build(builder, folder, quiet)
    again = images.build(builder, folder, quiet)
    assert builder.built == 1
    assert first == again
    assert images.build(Builder("2"), folder, quiet).digest != first.digest
    assert [path.name for path in folder.parent.iterdir()] == ["tiny"]


def sparse(path, *, size, holes=True):
    """Write a few pieces of data far apart, between holes or written zeros."""
    with path.open("wb") as stream:
        if not holes:
            stream.write(bytes(size))
        for offset in (0, size // 2, size - 4096):
            stream.seek(offset)
            stream.write(hashlib.sha256(b"%d" % offset).digest() * 128)
    return path


def hashed_bytes(monkeypatch):
    """Return a list that gets the length of each piece that is hashed."""
    sizes, sha256 = [], hashlib.sha256

    class Counting:
        def __init__(self, data=b""):
            self._digest = sha256()
            self.update(data)

        def update(self, data):
            sizes.append(len(data))
            self._digest.update(data)

        def hexdigest(self):
            return self._digest.hexdigest()

    monkeypatch.setattr(images.hashlib, "sha256", Counting)
    return sizes


def test_a_terabyte_of_holes_is_hashed_by_its_data(tmp_path, monkeypatch):
    path = sparse(tmp_path / "large.raw", size=1024**4)
    told = []
    sizes = hashed_bytes(monkeypatch)
    image = images.from_file(ImageSource(path=path), lambda *done: told.append(done))
    assert image.size == 1024**4
    assert image.digest.startswith("sparse-sha256:")
    assert sum(sizes) < 1024**2
    assert told[-1] == (1024**4, 1024**4)


def test_a_sparse_digest_tells_images_apart_and_not_their_holes(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MAX_HOLES", 0)
    image = look(sparse(tmp_path / "a.raw", size=4 * 1024**2))
    more = sparse(tmp_path / "more.raw", size=4 * 1024**2)
    with more.open("r+b") as stream:
        stream.write(bytes(300 * 1024))  # zeros, and no hole, where there was data
    with (tmp_path / "b.raw").open("wb") as stream:
        stream.write((tmp_path / "a.raw").read_bytes()[:-8192])
        stream.truncate(4 * 1024**2)
    zeros = bytearray((tmp_path / "a.raw").read_bytes())
    written = tmp_path / "written.raw"
    with written.open("wb") as stream:  # other holes, the same bytes
        stream.write(zeros[: 3 * 1024**2])
        stream.seek(4 * 1024**2 - 4096)
        stream.write(zeros[-4096:])
    longer = sparse(tmp_path / "longer.raw", size=4 * 1024**2)
    with longer.open("r+b") as stream:
        stream.truncate(5 * 1024**2)
    assert look(written).digest == image.digest
    others = {look(p).digest for p in (more, tmp_path / "b.raw", longer)}
    assert len(others) == 3
    assert image.digest not in others


@pytest.mark.parametrize("holes", [True, False])
def test_digests_of_images_with_small_holes_are_as_before(tmp_path, holes):
    path = sparse(tmp_path / "small.raw", size=8 * 1024**2, holes=holes)
    assert look(path).digest == f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


def test_a_sha256_that_is_given_is_checked_with_all_holes(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MAX_HOLES", 0)
    path = sparse(tmp_path / "known.raw", size=8 * 1024**2)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert look(path, sha256=sha256).digest == f"sha256:{sha256}"
    with pytest.raises(InvalidRequest, match=f"sha256 is {sha256}, not "):
        look(path, sha256="0" * 64)


@pytest.mark.skipif(not has_landlock(), reason="the kernel has no Landlock")
def test_a_header_that_changes_after_its_check_opens_no_other_file(tmp_path):
    """Neither the file that it names for its data, nor one below it; nor is such a file changed."""
    secret = tmp_path / "secret"
    path, target = tmp_path / "image.qcow2", tmp_path / "made"
    named = f"data_file={secret},data_file_raw=on"
    qemu_img("create", "-f", "qcow2", "-o", named, path, "1M")
    secret.write_bytes(b"secret" * 1000 + bytes(1024**2 - 6000))
    image = ImageFile(path=path, format="qcow2", size=1024**2, digest="sha256:1")
    for work in (
        lambda: convert(LocalRunner(), image, target, AS_IT_COMES),
        lambda: measure(LocalRunner(), image),
        lambda: enlarge(LocalRunner(), path, tmp_path / "below", 2 * 1024**2),
    ):
        target.write_bytes(b"")
        with pytest.raises(HostCommandError, match=r"^qemu-img failed.*Permission denied"):
            work()
        assert target.read_bytes().strip(b"\0") == b""
        assert secret.stat().st_size == 1024**2
    below = tmp_path / "below.raw"
    below.write_bytes(bytes(1024**2))
    path.unlink()
    qemu_img("create", "-f", "qcow2", "-b", below, "-F", "raw", path)
    enlarge(LocalRunner(), path, below, 4 * 1024**3)
    assert b'"virtual-size": 4294967296' in qemu_img("info", "--output", "json", path)
