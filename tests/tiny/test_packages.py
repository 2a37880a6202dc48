"""What apt says becomes what is fetched: on Debian, on Ubuntu, and where lists are missing."""

from pathlib import Path

import pytest

from vmcloner_core.errors import BackendError, DeadlineExceeded, HostCommandError
from vmcloner_core.process import CommandResult
from vmcloner_tiny.packages import Apt

BUSYBOX = """\
Package: busybox-static
Source: busybox
Version: 1:1.35.0-4+b3
Installed-Size: 2018
Depends: libnothing (>= 1)
Description: Standalone rescue shell with tons of builtin utilities
 Package: not-this-one
Size: 900
"""
DEBIAN = {
    "linux-image-cloud-amd64": """\
Package: linux-image-cloud-amd64
Version: 6.1.192-2
Depends: linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2)
Size: 15
""",
    "linux-image-6.1.0-56-cloud-amd64": """\
Package: linux-image-6.1.0-56-cloud-amd64
Version: 6.1.192-2
Depends: kmod, linux-base (>= 4.3~), initramfs-tools (>= 0.120+deb8u2) | linux-initramfs-tool
Size: 26000
""",
    "busybox-static": BUSYBOX,
}
UBUNTU = {
    "linux-image-virtual": """\
Package: linux-image-virtual
Version: 6.8.0-60.63
Depends: linux-image-6.8.0-60-generic
Size: 10
""",
    "linux-image-6.8.0-60-generic": """\
Package: linux-image-6.8.0-60-generic
Version: 6.8.0-60.63
Depends: kmod, linux-base (>= 4.5ubuntu1~16.04.1), linux-modules-6.8.0-60-generic
Recommends: linux-modules-extra-6.8.0-60-generic
Size: 14000
""",
    "linux-modules-6.8.0-60-generic": """\
Package: linux-modules-6.8.0-60-generic
Version: 6.8.0-60.63
Depends: wireless-regdb
Size: 37000
""",
    "busybox-static": BUSYBOX,
}


class FakeApt:
    """apt at the boundary: knows ``machine``; after an update of lists of one's own, ``archive``.

    A download works only of what the archive has, as after a security update.
    """

    def __init__(self, machine, archive=None, update_works=True):
        self.machine = machine
        self.archive = machine if archive is None else archive
        self.update_works = update_works
        self.commands = []

    def which(self, program):
        return f"/usr/bin/{program}"

    def run(self, argv, **_):
        self.commands.append(argv)
        own_lists = any(word.startswith("Dir::State::lists=") for word in argv)
        known = self.archive if own_lists else self.machine
        words = [word for word in argv if not word.startswith(("-", "Dir::"))]
        if words[0] == "apt-cache":
            names = [name for name in words[2:] if name in known]
            if not names:
                raise HostCommandError("apt-cache failed with 100: E: No packages found")
            return CommandResult(stdout="\n".join(known[n] for n in names).encode(), stderr=b"")
        if words[-1] == "update":
            if not self.update_works:
                raise HostCommandError("apt-get failed with 100: no network")
        else:
            assert words[0] == "env"
            assert words[2:4] == ["apt-get", "download"]
            name, _, version = words[-1].partition("=")
            if f"Version: {version}\n" not in self.archive.get(name, ""):
                raise HostCommandError("apt-get failed with 100: E: 404 Not Found")
            Path(words[1], f"{name}_{version}.deb").write_bytes(b"")
        return CommandResult(stdout=b"", stderr=b"")


def newer(packages):
    return {n: t.replace("6.1.192", "6.1.193") for n, t in packages.items()}


def test_debian(tmp_path):
    selection = Apt(FakeApt(DEBIAN), tmp_path).select()
    assert [(p.name, p.version, p.size) for p in selection.packages] == [
        ("linux-image-6.1.0-56-cloud-amd64", "6.1.192-2", 26000),
        ("busybox-static", "1:1.35.0-4+b3", 900),
    ]


def test_ubuntu_has_its_modules_apart(tmp_path):
    selection = Apt(FakeApt(UBUNTU), tmp_path).select()
    assert [p.name for p in selection.packages] == [
        "linux-image-6.8.0-60-generic",
        "linux-modules-6.8.0-60-generic",
        "busybox-static",
    ]


def test_fetches_in_order_and_tells_its_progress(tmp_path):
    apt, told = Apt(FakeApt(DEBIAN), tmp_path), []
    files = apt.fetch(apt.select(), lambda done, total: told.append((done, total)))
    assert [package.name for package in files] == [
        "linux-image-6.1.0-56-cloud-amd64",
        "busybox-static",
    ]
    assert all(path.is_file() and path.is_relative_to(tmp_path) for path in files.values())
    assert told == [(0, 26900), (26000, 26900), (26900, 26900)]


def test_missing_lists_are_fetched_beside_the_machine_s(tmp_path):
    fake = FakeApt({}, DEBIAN)
    apt = Apt(fake, tmp_path)
    assert apt.fetch(apt.select(), lambda *_: None)
    updates = [argv for argv in fake.commands if argv[-1] == "update"]
    assert len(updates) == 1
    assert f"Dir::State::lists={tmp_path}/lists" in updates[0]


def test_lists_behind_the_archive_are_made_good(tmp_path):
    apt = Apt(FakeApt(DEBIAN, newer(DEBIAN)), tmp_path)
    files = apt.fetch(apt.select(), lambda *_: None)
    assert next(iter(files)).version == "6.1.193-2"


@pytest.mark.parametrize(
    ("fake", "reason"),
    [
        (FakeApt({}), "apt has no busybox-static, or no kernel .linux-image-cloud-amd64 or"),
        (FakeApt({**DEBIAN, "busybox-static": ""}), "apt has no busybox-static"),
        (FakeApt({}, DEBIAN, update_works=False), "download of package lists failed: .*no network"),
    ],
)
def test_no_such_packages(tmp_path, fake, reason):
    with pytest.raises(BackendError, match=reason) as caught:
        Apt(fake, tmp_path).select()
    assert caught.value.hint


class NoDownloads(FakeApt):
    """A network that carries package lists and nothing else."""

    def run(self, argv, **options):
        if argv[0] == "env":
            raise HostCommandError("apt-get failed with 100: E: Failed to fetch")
        return super().run(argv, **options)


def test_a_download_that_fails_says_of_what(tmp_path):
    apt = Apt(NoDownloads(DEBIAN), tmp_path)
    with pytest.raises(
        BackendError, match=r"linux-image-6.1.0-56-cloud-amd64 6.1.192-2: download failed"
    ):
        apt.fetch(apt.select(), lambda *_: None)


def test_no_apt(tmp_path):
    fake = FakeApt(DEBIAN)
    fake.which = lambda _: None
    with pytest.raises(BackendError, match="apt-get is not installed") as caught:
        Apt(fake, tmp_path).select()
    assert "vmcloner template list" in caught.value.hint


def test_a_deadline_is_not_taken_for_a_missing_package(tmp_path):
    fake = FakeApt(DEBIAN)

    def hang(argv, **_):
        raise DeadlineExceeded("apt-cache: no answer within 60 s")

    fake.run = hang
    with pytest.raises(DeadlineExceeded):
        Apt(fake, tmp_path).select()
