"""Archives of one file, held to cpio itself."""

import subprocess
import tempfile

import pytest

from vmcloner_pxe.cpio import archive, understood


def made(arguments: str, content: bytes = b"hello") -> bytes:
    source = tempfile.TemporaryFile()  # noqa: SIM115 - the archive closes it
    source.write(content)
    source.flush()
    with archive(source, arguments) as stream:
        assert source.closed
        stream.seek(0)
        return stream.read()


@pytest.mark.parametrize(
    ("arguments", "listed"),
    [
        ("/a.cfg", ["-rw-r--r-- /a.cfg"]),
        ("/d/e/a.cfg mode=755", ["-rwxr-xr-x /d/e/a.cfg"]),
        ("/d/e/a.cfg mkdir=1", ["drwxr-xr-x /d/e", "-rw-r--r-- /d/e/a.cfg"]),
        ("/d/e/a.cfg mkdir=-1", ["drwxr-xr-x /d", "drwxr-xr-x /d/e", "-rw-r--r-- /d/e/a.cfg"]),
        ("/d/a.cfg mkdir=9", ["drwxr-xr-x /d", "-rw-r--r-- /d/a.cfg"]),
    ],
)
def test_cpio_reads_it(arguments, listed):
    data = made(arguments)
    assert len(data) % 4 == 0
    # A kernel needs no trailer, cpio does.
    trailer = b"070701" + b"0" * 88 + b"0000000b" + b"0" * 8 + b"TRAILER!!!\0" + bytes(600)
    shown = subprocess.run(["cpio", "-tv"], input=data + trailer, capture_output=True, check=True)
    lines = [line.split() for line in shown.stdout.decode().splitlines()]
    assert [f"{line[0]} {line[-1]}" for line in lines] == listed
    assert b"hello" in data


@pytest.mark.parametrize(
    ("arguments", "is_so"),
    [("/a", True), ("/a mode=0644", True), ("a", False), ("/", False), ("/a mode=9", False),
     ("/a b", False), ("/a/", False), ("/\x07a", False)],
)  # fmt: skip
def test_what_is_understood(arguments, is_so):
    assert understood(arguments) is is_so
