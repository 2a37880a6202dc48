"""Pictures of screens: PPM to PNG, and commands without a screen."""

import struct
import zlib

import pytest

from vmcloner_core.errors import HostCommandError
from vmcloner_core.pictures import png

PIXELS = bytes(range(18))


def pixels(picture: bytes) -> tuple[int, int, bytes]:
    """Read a PNG of 8-bit RGB without filters."""
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, at = {}, 8
    while at < len(picture):
        (length,) = struct.unpack_from("!I", picture, at)
        kind, data = picture[at + 4 : at + 8], picture[at + 8 : at + 8 + length]
        (check,) = struct.unpack_from("!I", picture, at + 8 + length)
        assert check == zlib.crc32(kind + data)
        chunks[kind] = data
        at += 12 + length
    assert list(chunks) == [b"IHDR", b"IDAT", b"IEND"]
    width, height, *rest = struct.unpack("!2I5B", chunks[b"IHDR"])
    assert rest == [8, 2, 0, 0, 0]
    raw = zlib.decompress(chunks[b"IDAT"])
    lines = [raw[n * (3 * width + 1) :][: 3 * width + 1] for n in range(height)]
    assert {line[0] for line in lines} == {0}
    return width, height, b"".join(line[1:] for line in lines)


@pytest.mark.parametrize("header", [b"P6\n3 2\n255\n", b"P6 3\t2 255 ", b"P6\n# QEMU\n3 2\n255\n"])
def test_the_pixels_stay(header):
    assert pixels(png(header + PIXELS)) == (3, 2, PIXELS)
    assert pixels(png(header + PIXELS + b"more")) == (3, 2, PIXELS)


def test_png_stays():
    made = png(b"P6\n3 2\n255\n" + PIXELS)
    assert png(made) is made


@pytest.mark.parametrize(
    "picture",
    [
        b"",
        b"GIF89a",
        b"P5\n3 2\n255\n" + PIXELS,
        b"P6\n3 2\n65535\n" + PIXELS,
        b"P6\n3 2\n255\n" + PIXELS[:-1],
        b"P6\n0 2\n255\n",
        b"P6\n99999 99999\n255\n" + PIXELS,
        b"P6\n999999999999 1\n255\n",
        b"P6" + b" " * 100_000,
    ],
)
def test_what_is_no_picture(picture):
    with pytest.raises(HostCommandError, match="picture"):
        png(picture)


def test_a_hypervisor_without_screens(lab, run, tmp_path):
    lab.engine.create("web", "t1", count=1, start=True)
    for words in (("viewer", "web-1"), ("screenshot", "web-1", str(tmp_path / "x.png"))):
        code, _, err = run(*words)
        assert code == 8
        assert "shows no screens (vmcloner console web-1)" in err
    assert run("viewer", "web-9")[0] == 4
    assert not (tmp_path / "x.png").exists()


class Screens:
    """One screen."""

    def address(self, name):
        return "vnc://127.0.0.1:5900"

    def picture(self, name):
        return b"P6\n3 2\n255\n" + PIXELS


def test_the_commands(lab, run, tmp_path, monkeypatch):
    lab.engine.create("web", "t1", count=1, start=True)
    lab.machines.displays = Screens()
    assert run("viewer", "web-1")[1] == "vnc://127.0.0.1:5900\n"
    file = tmp_path / "x.png"
    assert run("screenshot", "web-1", str(file))[0] == 0
    assert pixels(file.read_bytes())[2] == PIXELS
    monkeypatch.setenv("PATH", str(tmp_path))
    code, _, err = run("viewer", "web-1", "--open")
    assert code == 8
    assert "virt-viewer" in err
