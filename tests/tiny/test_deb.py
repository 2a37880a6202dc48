"""Packages are read, whatever they are compressed with; and hostile ones do no harm."""

import subprocess
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tiny.debs import COMPRESS, ar, deb, file, tar
from vmcloner_core.errors import BackendError
from vmcloner_tiny import deb as deb_module
from vmcloner_tiny.deb import Deb


@pytest.mark.parametrize("suffix", COMPRESS)
def test_reads_a_file(tmp_path, suffix):
    package = deb(tmp_path / "a.deb", tar([file("./usr/bin/busybox", b"static")]), suffix)
    with Deb(package, tmp_path) as opened:
        assert opened.find("bin/busybox") == "bin/busybox"
        assert opened.read("bin/busybox", 100) == b"static"


def test_reads_what_dpkg_builds(tmp_path):
    """The oracle: a package by the distribution's own tool."""
    root = tmp_path / "root"
    (root / "DEBIAN").mkdir(parents=True)
    (root / "DEBIAN" / "control").write_text(
        "Package: x\nVersion: 1\nArchitecture: all\nMaintainer: x <x@example.org>\nDescription: x\n"
    )
    (root / "boot").mkdir()
    (root / "boot" / "vmlinuz-1").write_bytes(b"kernel" * 1000)
    package = tmp_path / "x.deb"
    subprocess.run(["dpkg-deb", "-b", root, package], check=True, capture_output=True)
    with Deb(package, tmp_path) as opened:
        assert list(opened) == ["boot/vmlinuz-1"]
        assert opened.read("boot/vmlinuz-1", 10_000) == b"kernel" * 1000


@pytest.mark.parametrize(
    "member",
    [
        file("./bin/busybox", kind=tarfile.SYMTYPE, link="/etc/shadow"),
        file("./bin/busybox", kind=tarfile.LNKTYPE, link="./etc/shadow"),
        file("./bin/busybox", kind=tarfile.CHRTYPE),
        file("./bin/busybox", kind=tarfile.FIFOTYPE),
        file("../bin/busybox", b"x"),
        file("./x/../bin/busybox", b"x"),
        file("bin/busybox\n", b"x"),
    ],
    ids=["symlink", "hardlink", "device", "fifo", "above", "through", "newline"],
)
def test_what_is_not_a_plain_file_is_not_there(tmp_path, member):
    before = sorted(tmp_path.iterdir())
    package = deb(tmp_path / "a.deb", tar([member]))
    with Deb(package, tmp_path) as opened, pytest.raises(BackendError, match="0 files match"):
        opened.find("bin/busybox")
    assert sorted(tmp_path.iterdir()) == [*before, package]


def test_two_that_fit_are_refused(tmp_path):
    members = [file("./boot/vmlinuz-1", b"a"), file("./boot/vmlinuz-2", b"b")]
    with (
        Deb(deb(tmp_path / "a.deb", tar(members)), tmp_path) as opened,
        pytest.raises(BackendError, match=r"a\.deb: 2 files"),
    ):
        opened.find(r"boot/vmlinuz-[^/]+")


@pytest.mark.parametrize("suffix", COMPRESS)
def test_a_bomb_is_refused(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(deb_module, "MAX_UNPACKED", 2**20)
    package = deb(tmp_path / "a.deb", tar([file("./zeros", bytes(2**22))]), suffix)
    with pytest.raises(BackendError, match="larger than 1048576 bytes when unpacked"):
        Deb(package, tmp_path)


def test_a_bomb_inside_is_refused(tmp_path):
    content = COMPRESS[".xz"](bytes(2**22))
    package = deb(tmp_path / "a.deb", tar([file("./a.ko.xz", content)]))
    with Deb(package, tmp_path) as opened, pytest.raises(BackendError, match="larger than 1000 "):
        opened.read("a.ko.xz", 1000)


def test_a_crowd_of_files_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(deb_module, "MAX_FILES", 10)
    package = deb(tmp_path / "a.deb", tar([file(f"./{n}") for n in range(11)]))
    with pytest.raises(BackendError, match="more than 10 files"):
        Deb(package, tmp_path)


def test_a_chain_of_long_names_is_refused(tmp_path):
    """Each asks tarfile to go one level deeper."""
    chain = _long_name() * 5000
    with pytest.raises(BackendError, match="damaged"):
        Deb(deb(tmp_path / "a.deb", chain), tmp_path)


def _long_name() -> bytes:
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 1
    return info.tobuf(tarfile.GNU_FORMAT) + b"a" + bytes(511)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04",
        b"!<arch>\n",
        ar([("debian-binary", b"2.0\n")]),
        ar([("data.tar.xz", b"not xz at all")]),
        ar([("data.tar.gz", b"\x1f\x8b" + bytes(40))]),
        ar([("data.tar.zst", b"\x28\xb5\x2f\xfd" + bytes(40))]),
        ar([("data.tar", b"x" * 1024)]),
        b"!<arch>\n" + b"data.tar.xz".ljust(48) + b"-1".ljust(10) + b"`\n",
    ],
)
def test_what_is_no_package_is_refused(tmp_path, content):
    path = tmp_path / "a.deb"
    path.write_bytes(content)
    with pytest.raises(BackendError, match=r"a\.deb"):
        Deb(path, tmp_path)


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst"])
def test_a_truncated_package_is_refused(tmp_path, suffix):
    whole = deb(tmp_path / "a.deb", tar([file("./a", bytes(range(256)) * 500)]), suffix)
    whole.write_bytes(whole.read_bytes()[:-40])
    with pytest.raises(BackendError, match="damaged"):
        Deb(whole, tmp_path)


SOUND = tar([file("./bin/busybox", b"static" * 99), file("./boot/vmlinuz-1", b"kernel" * 99)])


@given(st.lists(st.tuples(st.integers(0, len(SOUND) - 1), st.integers(0, 255)), max_size=20))
def test_damage_gives_an_error_or_a_file_never_a_crash(tmp_path_factory, changes):
    data = bytearray(SOUND)
    for place, value in changes:
        data[place] = value
    folder = tmp_path_factory.mktemp("deb")
    try:
        with Deb(deb(folder / "a.deb", bytes(data), ""), folder) as opened:
            for path in opened:
                opened.read(path, 2**20)
    except BackendError:
        pass


def test_the_uncompressed_archive_has_no_name(tmp_path):
    """So that a kill leaves nothing of it."""
    package = deb(tmp_path / "a.deb", tar([file("./a", b"x")]))
    with Deb(package, tmp_path):
        assert list(tmp_path.iterdir()) == [package]
