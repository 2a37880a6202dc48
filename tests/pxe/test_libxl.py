"""libxl's bootloader protocol: arguments in, files and output out."""

import contextlib
import errno
import io
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmcloner_core.errors import UsageError
from vmcloner_pxe import libxl
from vmcloner_pxe.errors import NetbootError

ITEMS = [("kernel", "/d/k"), ("ramdisk", "/d/r"), ("args", "a b=c")]


@pytest.mark.parametrize(
    ("form", "output"),
    [
        ("simple0", b"kernel /d/k\0ramdisk /d/r\0args a b=c\0\0"),
        ("simple", b"kernel /d/k\nramdisk /d/r\nargs a b=c\n\n"),
        ("sxp", b"linux (kernel '/d/k')(ramdisk '/d/r')(args 'a b=c')"),
    ],
)
def test_output_byte_for_byte(form, output):
    assert libxl.render(ITEMS, form) == output


@pytest.mark.parametrize("args", ["x\0kernel /etc/shadow", "x\nkernel /etc/shadow", "a" * 8187])
def test_arguments_that_libxl_would_misread_are_refused(args):
    with pytest.raises(NetbootError, match="args: "):
        libxl.render([("args", args)], "simple0")


def test_the_longest_arguments_that_libxl_takes():
    assert len(libxl.render([("args", "a" * 8186)], "simple0")) == 8191 + 2


def test_takes_apart_what_libvirt_joined():
    argv = ["--args=root=x y", "--output=/o p", "--mac=m --interface='a b'", "mac=1, bridge=b",
            "/dev/my disk"]  # fmt: skip
    assert libxl.split_arguments(argv) == [
        *("--args=root=x y", "--output=/o p", "--mac=m", "--interface=a b"),
        *("mac=1,", "bridge=b", "/dev/my disk"),
    ]
    with pytest.raises(UsageError):
        libxl.split_arguments(["--mac='x y", "/disk"])


@pytest.mark.parametrize(
    "words",
    [
        ["mac=00:16:3E:00:00:01,bridge=xenbr0"],
        ["mac=00:16:3e:00:00:01,", "bridge=xenbr0,", "script=vif-bridge"],
        ["vif=['bridge=xenbr0", "mac=00:16:3e:00:00:01']"],
        ["mac='00-16-3e-00-00-01',bridge='xenbr0'"],
    ],
)
def test_understands_the_ancestors_vif(words):
    assert libxl.read_vif(words) == {"mac": "00:16:3e:00:00:01", "interface": "xenbr0"}


def test_hands_over_copies_and_cleans_up(tmp_path):
    output, directory = tmp_path / "out", tmp_path / "d"
    output.write_bytes(b"old and long")
    directory.mkdir()

    def fail() -> None:
        with libxl.Handover(output, directory, "simple0", 20) as handover:
            assert handover.add("kernel", [io_file(tmp_path, b"k")]).read_bytes() == b"k"
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert (list(directory.iterdir()), output.read_bytes()) == ([], b"")
    with libxl.Handover(output, directory, "simple0", 10) as handover:
        kernel = handover.add("kernel", [io_file(tmp_path, b"k")])
        ramdisk = handover.add("ramdisk", [io_file(tmp_path, b"12345"), io_file(tmp_path, b"67")])
        handover.write(kernel, ramdisk, "")
    assert ramdisk.read_bytes() == b"12345\0\0\x0067"
    assert kernel.stat().st_mode & 0o777 == 0o600
    assert output.read_bytes() == f"kernel {kernel}\0ramdisk {ramdisk}\0\0".encode()


def io_file(folder, content: bytes) -> io.BufferedReader:
    path = folder / f"f{len(list(folder.iterdir()))}"
    path.write_bytes(content)
    return path.open("rb")


@pytest.mark.parametrize("inside", [True, False])
def test_of_a_file_that_grows_no_more_is_copied_than_it_had(tmp_path, monkeypatch, inside):
    path = tmp_path / "f"
    path.write_bytes(b"12345")
    copy = os.copy_file_range

    def grown(source, target, size):
        with path.open("ab") as stream:
            stream.write(b"more" * 1000)
        if not inside:
            raise OSError(errno.EXDEV, "another file system")
        return copy(source, target, size)

    monkeypatch.setattr(os, "copy_file_range", grown)
    with path.open("rb") as file, (tmp_path / "joined").open("wb") as target:
        libxl.join([file], target, 10)
    assert (tmp_path / "joined").read_bytes() == b"12345"


def test_initrds_are_counted_together(tmp_path):
    parts = [io_file(tmp_path, bytes(4)) for _ in range(3)]
    with (tmp_path / "joined").open("wb") as target:
        libxl.join(parts, target, 12)
    with (tmp_path / "joined").open("wb") as target, pytest.raises(NetbootError, match="max-size"):
        libxl.join(parts, target, 11)


def test_never_follows_a_link(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "out").symlink_to("/etc/hostname")
    with pytest.raises(NetbootError):
        libxl.Handover(tmp_path / "out", tmp_path / "d", "simple0", 10)


@given(st.text(max_size=60), st.sampled_from(libxl.FORMATS))
def test_any_arguments_are_one_item_or_an_error(args, form):
    try:
        output = libxl.render([("kernel", "/k"), ("args", args)], form)
    except NetbootError:
        return
    if form != "sxp":
        end = b"\0" if form == "simple0" else b"\n"
        items = output.split(end)
        assert items[:2] == [b"kernel /k", b"args " + args.encode(errors="surrogatepass")]


@given(st.lists(st.text(max_size=30), max_size=4))
def test_any_command_line_is_split_or_refused(argv):
    with contextlib.suppress(UsageError):
        libxl.split_arguments(argv)
        libxl.read_vif(argv)
