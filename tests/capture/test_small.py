"""A clone with an ext4 disk becomes a template: on the real libvirt, sealed by the real guest."""

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pytest

from tests.e2e.conftest import Site, make_site

pytestmark = [pytest.mark.libvirt, pytest.mark.timeout(900)]
MIB = 1024**2
TEMPLATE = """
extends = "tiny"
swap = "1MiB"
[image]
path = "small.raw"
[kernel]
path = "{built}/vmlinuz"
initrd = "{built}/initrd.img"
[seal]
remove = ["/srv/app/id"]
keep = ["/var/log/kept.log"]
"""
FILES = {
    "etc/passwd": "root:x:0:0::/:/bin/sh\n",
    "etc/machine-id": "0123456789abcdef0123456789abcdef\n",
    "etc/ssh/ssh_host_ed25519_key": "PRIVATE-KEY-OF-THE-CLONE",
    "etc/ssh/sshd_config": "Port 22\n",
    "srv/app/id": "me",
    "srv/app/data": "data",
    "var/log/syslog": "what happened",
    "var/log/kept.log": "kept",
    "var/lib/cloud/instance/user-data": "x",
}


def make_disk(
    path: Path,
    files: dict[str, str],
    size: int = 64 * MIB,
    links: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Make a raw ext4 image with these files and links. Its host name is a pipe, unless given."""
    root = path.with_suffix(".d")
    root.mkdir()
    for name, target in links.items():
        (root / name).symlink_to(target)
    (root / "etc").mkdir()
    if "etc/hostname" not in files:
        os.mkfifo(root / "etc/hostname")
    for name, text in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    with path.open("wb") as stream:
        stream.truncate(size)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-d", root, path], check=True, timeout=60)
    shutil.rmtree(root)


def read(disk: Path, name: str) -> str | None:
    """Return a file's content on an ext4 image, None if it isn't there."""
    argv = ["debugfs", "-R", f"cat /{name}", disk]
    done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=60)
    return None if "File not found" in done.stderr else done.stdout


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        site = make_site("qemu:///system")
        patch.setenv("XDG_CONFIG_HOME", str(site.folder / "config"))
        try:
            site.run("template", "import", "tiny", timeout=600)
            built = site.folder / "state" / "templates" / "tiny"
            text = TEMPLATE.format(built=built)
            (site.folder / "templates" / "small.toml").write_text(text)
            make_disk(site.folder / "templates" / "small.raw", FILES)
            yield site
        finally:
            shutil.rmtree(site.folder)


@pytest.fixture
def fleet(small: Site):
    made: list[str] = []

    def create(name: str, *words: str) -> str:
        made.append(small.fleet(name))
        small.run("create", made[-1], *words, timeout=600)
        return made[-1]

    yield create
    for name in made[::-1]:
        small.run("delete", name, "--yes", "--missing-ok", timeout=300)


def origin(site: Site, template: str) -> Path:
    return site.folder / "state" / "pool" / "templates" / f"{template}.raw"


def test_a_clone_becomes_a_template(small, fleet, tmp_path):
    web = fleet("web", "-t", "small", "-n", "1")
    words = ("template", "capture", f"{web}-1", "ready", "--description", "set up", "-f", "json")
    dry = json.loads(small.run(*words, "--dry-run"))
    assert (dry["changed"], dry["sealed"]) == (False, True)
    assert dry["left_out"] == [f"{web}-1-disk1 is left out: new clones have a new swap area"]
    assert not origin(small, "ready").exists()

    assert json.loads(small.run(*words, timeout=600))["changed"] is True
    disk = origin(small, "ready")
    subprocess.run(["e2fsck", "-fn", disk], check=True, capture_output=True, timeout=60)
    assert read(disk, "etc/machine-id") == ""
    assert read(disk, "etc/ssh/ssh_host_ed25519_key") is None
    assert b"PRIVATE-KEY-OF-THE-CLONE" not in disk.read_bytes()
    assert read(disk, "etc/ssh/sshd_config") == "Port 22\n"
    assert (read(disk, "srv/app/id"), read(disk, "srv/app/data")) == (None, "data")
    assert (read(disk, "var/log/syslog"), read(disk, "var/log/kept.log")) == ("", "kept")
    assert read(disk, "var/lib/cloud/instance/user-data") is None
    # The clone is what it was.
    volume = small.folder / "state" / "pool" / "volumes" / f"{web}-1-disk0"
    flat = tmp_path / "flat.raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", volume, flat], check=True, timeout=60)
    assert read(flat, "etc/machine-id") == FILES["etc/machine-id"]

    shown = json.loads(small.run("template", "show", "ready", "-f", "json"))
    assert (shown["description"], shown["disk_size"]) == ("set up", 64 * MIB)
    assert (shown["captured"]["clone"], shown["captured"]["sealed"]) == (f"{web}-1", True)
    # Again, nothing; another clone, or another way: the name is taken.
    assert json.loads(small.run(*words))["changed"] is False
    small.run("template", "capture", f"{web}-1", "ready", "--no-seal", code=5)
    small.run("template", "capture", f"{web}-1", "small", code=5)

    # The parent isn't needed, nor is the clone.
    small.run("delete", web, "--yes")
    new = fleet("new", "-t", "ready", "-n", "2", "--start", "--wait", "--timeout", "300")
    assert "was made from it" in small.run("template", "delete", "ready", code=6)

    # Elsewhere: the folder with what was written is a folder of templates.
    other = make_site("qemu:///system")
    try:
        file = other.folder / "templates" / "moved.qcow2"
        exported = ("template", "export", "ready", str(file), "--compress", "-f", "json")
        assert json.loads(small.run(*exported))["format"] == "qcow2"
        assert "exists" in small.run(*exported, code=5)
        make_disk(other.folder / "templates" / "small.raw", {"etc/passwd": ""})
        text = TEMPLATE.format(built=small.folder / "state" / "templates" / "tiny")
        (other.folder / "templates" / "small.toml").write_text(text)
        other.run("template", "import", "moved")
        moved = other.fleet("far")
        other.run("create", moved, "-t", "moved", "-n", "1", "--start", "--wait", timeout=600)
        other.run("delete", moved, "--yes")
        assert read(origin(other, "moved"), "srv/app/data") == "data"
    finally:
        shutil.rmtree(other.folder)

    small.run("delete", new, "--yes")
    small.run("template", "delete", "ready")
    assert not disk.exists()
    assert "unknown template" in small.run("template", "show", "ready", code=4)


def test_what_must_not_become_a_template(small, fleet):
    web = fleet("run", "-t", "small", "-n", "1", "--start", "--wait", "--timeout", "300")
    capture = ("template", "capture", f"{web}-1", "never")
    assert "is running" in small.run(*capture, code=6)
    assert "no agent in the guest" in small.run(*capture, "--live", code=6, timeout=600)
    small.run("stop", web, "--kill")
    volume = small.folder / "state" / "pool" / "volumes" / f"{web}-1-disk0"
    with volume.open("r+b"):
        assert "used by" in small.run(*capture, code=6)
    assert "did you mean" in small.run("template", "capture", f"{web}-2", "never", code=4)

    # What can't be sealed: tiny's own disk has no file system.
    bare = fleet("bare", "-t", "tiny", "-n", "1")
    said = small.run("template", "capture", f"{bare}-1", "never", code=6, timeout=600)
    assert "no operating system was found" in said
    assert not origin(small, "never").exists()
    assert "unknown template" in small.run("template", "show", "never", code=4)
    small.run("template", "capture", f"{bare}-1", "never", "--no-seal")
    assert "NOT sealed" in small.run("template", "show", "never")
    small.run("template", "delete", "never")
