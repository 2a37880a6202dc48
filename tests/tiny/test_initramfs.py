"""The archive is one that cpio itself reads."""

import stat
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmcloner_tiny.initramfs import executable, file, folder, pack


def cpio(*options: str, archive: bytes, cwd=None) -> str:
    argv = ["cpio", "--quiet", *options]
    done = subprocess.run(argv, check=True, input=archive, capture_output=True, cwd=cwd, timeout=30)
    assert done.stderr == b""
    return done.stdout.decode()


def test_cpio_lists_it():
    archive = pack([folder("bin"), executable("bin/sh", b"x" * 1001), file("order", b"a\n")])
    listed = cpio("-tv", "--numeric-uid-gid", archive=archive).splitlines()
    assert [line.split() for line in listed] == [
        ["drwxr-xr-x", "2", "0", "0", "0", "Jan", "1", "1970", "bin"],
        ["-rwxr-xr-x", "1", "0", "0", "1001", "Jan", "1", "1970", "bin/sh"],
        ["-rw-r--r--", "1", "0", "0", "2", "Jan", "1", "1970", "order"],
    ]


names = st.text(st.sampled_from("abcXYZ019._-ä"), min_size=1, max_size=40).filter(
    lambda name: name not in {".", "..", "TRAILER!!!"} and not name.startswith("-")
)


@given(st.dictionaries(names, st.binary(max_size=300), max_size=8))
def test_cpio_brings_every_byte_back(tmp_path_factory, contents):
    target = tmp_path_factory.mktemp("root")
    archive = pack([folder("d"), *(file(f"d/{n}", c) for n, c in contents.items())])
    assert len(archive) % 4 == 0
    cpio("-i", archive=archive, cwd=target)
    assert {p.name: p.read_bytes() for p in (target / "d").iterdir()} == contents


def test_the_same_content_gives_the_same_bytes():
    assert pack([file("a", b"1")]) == pack([file("a", b"1")])


@pytest.mark.parametrize(("make", "mode"), [(file, 0o644), (executable, 0o755)])
def test_modes(make, mode):
    assert make("a", b"").mode == stat.S_IFREG | mode
