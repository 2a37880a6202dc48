"""The builder of Debian images, up to where the packages come in: that is tests/identity's."""

import struct

import pytest

from vmcloner_core.drivers import DriverContext
from vmcloner_core.errors import BackendError, HostCommandError, InvalidRequest
from vmcloner_core.model import Host
from vmcloner_core.tomlfile import structure
from vmcloner_debian import builder, disk, overlay
from vmcloner_debian.builder import DebianBuilder
from vmcloner_debian.settings import DebianOptions


class Runner:
    """A host with these programs, on which every command succeeds and leaves nothing."""

    def __init__(self, programs):
        self.programs = programs
        self.ran = []

    def which(self, program):
        return f"/usr/bin/{program}" if program in self.programs else None

    def run(self, argv, **_):
        self.ran.append(list(argv))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setattr(builder, "image_cache", lambda: folder / "images")
    return folder


def made(tmp_path, runner, **options):
    context = DriverContext(host=Host(name="local", state=tmp_path), name="debian", runner=runner)
    return DebianBuilder(context, DebianOptions(**options))


@pytest.mark.parametrize(
    "options",
    [
        {"suite": "Book Worm"},
        {"suite": "../etc"},
        {"packages": ["vim", "--option"]},
        {"packages": ["a,b"]},
        {"size": "100MiB"},
        {"size": "1.5 bananas"},
        {"mirror": "file:///etc"},
        {"mirror": "http://x/ y"},
        {"sweet": "bookworm"},
    ],
)
def test_options_that_make_no_image_are_refused(options):
    with pytest.raises(InvalidRequest, match=next(iter(options))):
        structure(options, DebianOptions, where="t1: image.options")


def test_the_fingerprint_follows_the_options(tmp_path):
    prints = {
        made(tmp_path, Runner(()), **options).fingerprint()
        for options in (
            {},
            {"suite": "trixie"},
            {"packages": ("git",)},
            {"size": 4 * 1024**3},
            {"mirror": "http://mirror.example.org/debian"},
            {"revision": "2"},
        )
    }
    assert len(prints) == 6
    ordered = [
        made(tmp_path, Runner(()), packages=p).fingerprint() for p in (("aa", "bb"), ("bb", "aa"))
    ]
    assert ordered[0] == ordered[1]


@pytest.mark.parametrize("tool", sorted(builder.TOOLS))
def test_a_tool_that_is_missing_is_named_with_its_package(tmp_path, tool):
    runner = Runner(builder.TOOLS.keys() - {tool})
    with pytest.raises(BackendError, match=tool) as caught:
        made(tmp_path, runner).build(tmp_path, lambda *_: None)
    assert builder.TOOLS[tool] in caught.value.hint
    assert runner.ran == []


class Failing(Runner):
    """A host on which mmdebstrap fails, and says this."""

    def __init__(self, said):
        super().__init__(builder.TOOLS)
        self.said = said

    def run(self, argv, **_):
        if "mmdebstrap" not in argv:
            return
        assert "--quiet" not in argv  # it would keep apt's words from us
        raise HostCommandError("mmdebstrap failed with 25: …", output=self.said)


@pytest.mark.parametrize(
    ("suite", "said", "message", "hint"),
    [
        (
            "bookwrom",
            "Err:2 http://x/debian bookwrom Release\n  404  Not Found\n"
            "E: The repository 'http://x/debian bookwrom Release' does not have a Release file.\n"
            "E: apt-get update --error-on=any failed\nE: mmdebstrap failed to run\n",
            "bookwrom Release' does not have a Release file",
            "suite 'bookwrom': did you mean 'bookworm'?",
        ),
        (
            "bookworm",
            "E: Unable to locate package gti\nE: setup failed: E: apt-get install failed\n",
            "Unable to locate package gti",
            "see the packages of bookworm",
        ),
        (
            "bookworm",
            "E: The repository 'http://x/ bookworm Release' does not have a Release file.\n",
            "does not have a Release file",
            "is 'bookworm' a suite of that archive? see suite and mirror",
        ),
    ],
)
def test_what_apt_said_is_told(tmp_path, monkeypatch, suite, said, message, hint):
    monkeypatch.setattr("os.geteuid", lambda: 0)
    with pytest.raises(HostCommandError, match=message) as caught:
        made(tmp_path, Failing(said), suite=suite).build(tmp_path, lambda *_: None)
    assert hint in caught.value.hint


def test_an_image_that_was_made_before_is_taken(tmp_path, cache):
    runner = Runner(())
    image = made(tmp_path, runner)
    folder, again = tmp_path / "a", tmp_path / "b"
    folder.mkdir()
    again.mkdir()
    for name in (builder.IMAGE, builder.KERNEL, builder.INITRD):
        (folder / name).write_text(name)
    import hashlib

    key = hashlib.sha256(image.fingerprint().encode()).hexdigest()[:32]
    builder._keep(runner, folder, cache / "images" / key)
    assert image.build(again, lambda *_: None) == again / builder.IMAGE
    assert sorted(path.name for path in again.iterdir()) == sorted(
        (builder.IMAGE, builder.KERNEL, builder.INITRD)
    )
    assert [path.name for path in (cache / "images").iterdir()] == [key]
    (cache / "images").chmod(0o777)  # another user could put an image there
    assert not builder._take(runner, cache / "images" / key, tmp_path / "c")


def test_the_first_sector_boots_one_partition():
    size = 2 * 1024**3
    sector = disk.boot_record(b"\xeb" * 512, size)
    assert len(sector) == 512
    assert sector[:440] == b"\xeb" * 440
    assert sector[510:] == b"\x55\xaa"
    flag, _, kind, _, first, count = struct.unpack("<B3sB3sII", sector[446:462])
    assert (flag, kind, first * 512) == (0x80, 0x83, disk.START)
    assert first * 512 + count * 512 == size
    assert sector[462:510] == bytes(48)


def test_the_overlay_is_readable_and_masks_by_links(tmp_path):
    overlay.write(tmp_path)
    units = tmp_path / "etc/systemd/system"
    assert (units / "apt-daily.timer").readlink().as_posix() == "/dev/null"
    modes = {path.stat().st_mode & 0o777 for path in tmp_path.rglob("*") if not path.is_symlink()}
    assert modes <= {0o755, 0o644}
    assert f"LABEL={overlay.ROOT_LABEL}" in (tmp_path / "etc/fstab").read_text()
