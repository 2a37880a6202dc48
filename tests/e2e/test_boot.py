"""Clones that boot the kernels on their own disks, on the real libvirtd."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.boot.disks import ext

pytestmark = pytest.mark.libvirt
MENU = """
set default=0
menuentry '{title}' {{
    linux /boot/{kernel} console=ttyS0 quiet panic=-1 mitigations=off nokaslr tsc=reliable \\
        no_timer_check lpj=4000000 host={host}
    initrd /boot/initrd.img
}}
"""
TEMPLATE = """
hypervisors = ["kvm"]
boot = "pygrub"
memory = "128MiB"
ready = 'console:vmcloner-ready '
[image]
path = "disk.raw"
"""


def debugfs(disk: Path, *commands: str) -> None:
    for command in commands:
        subprocess.run(["debugfs", "-w", "-R", command, disk], check=True, capture_output=True)


@pytest.mark.timeout(900)
def test_kernels_on_the_clones_own_disks(site, tmp_path):
    """Good ones boot, an upgrade is followed, bad disks harm nobody."""
    site.run("template", "import", "tiny", timeout=600)
    built = site.folder / "state/templates/tiny"
    root = site.folder / "templates/root"
    (root / "boot/grub").mkdir(parents=True)
    for name in ("vmlinuz", "initrd.img"):
        shutil.copy(built / name, root / "boot" / name)
    menu = root / "boot/grub/grub.cfg"
    menu.write_text(MENU.format(title="old", kernel="vmlinuz", host="old"))
    image = ext(site.folder / "templates/disk.raw", {}, size=64, source=root)
    (site.folder / "templates/own.toml").write_text(TEMPLATE)
    web = site.fleet("web")
    site.run("create", web, "-t", "own", "-n", "5", "--full")
    disks = {}
    for name in (f"{web}-{number}" for number in range(1, 6)):
        (disk,) = json.loads(site.run("show", name, "-f", "json"))["disks"]
        disks[name] = Path(disk["path"])
    assert image.stat().st_size == disks[f"{web}-1"].stat().st_size
    broken = tmp_path / "broken.cfg"
    broken.write_text("menuentry 'old' {\n")
    debugfs(disks[f"{web}-2"], "rm /boot/grub/grub.cfg", f"write {broken} /boot/grub/grub.cfg")
    debugfs(disks[f"{web}-3"], "rm /boot/vmlinuz", "symlink /boot/vmlinuz /etc/passwd")
    debugfs(disks[f"{web}-4"], "set_inode_field /boot/initrd.img size 1073741824")
    said = json.loads(_failed(site, "start", web, "--wait", "-f", "json"))
    errors = {row["name"].removeprefix(f"{web}-"): row["error"] for row in said}
    assert errors["1"] is errors["5"] is None
    assert "grub.cfg:1: what begins here with { isn't closed" in errors["2"]
    assert "/boot/vmlinuz isn't a file" in errors["3"]
    assert "1024 MiB is too much for an initrd" in errors["4"]
    states = [row["state"] for row in site.rows(web)]
    assert states == ["running", "stopped", "stopped", "stopped", "running"]
    assert _name(site, f"{web}-1") == "old"
    kept = {path.name for path in (site.folder / "state/boot").iterdir()}
    assert kept == {f"{web}-1", f"{web}-5", "shared"}

    site.run("stop", f"{web}-1", "--kill")
    new = tmp_path / "new.cfg"
    new.write_text(MENU.format(title="new", kernel="vmlinuz-new", host="new"))
    debugfs(
        disks[f"{web}-1"],
        f"write {built / 'vmlinuz'} /boot/vmlinuz-new",
        "rm /boot/vmlinuz",
        "rm /boot/grub/grub.cfg",
        f"write {new} /boot/grub/grub.cfg",
    )
    (shown,) = json.loads(site.run("boot", "resolve", f"{web}-1", "-f", "json"))
    assert (shown["kernel"], shown["running"]) == ("/boot/vmlinuz-new on the disk", False)
    assert shown["source"] == "entry 'new' of /boot/grub/grub.cfg on the disk"
    site.run("start", f"{web}-1", "--wait")
    assert _name(site, f"{web}-1") == "new"

    site.run("delete", web, "--yes")
    assert site.remains() == []
    assert [path.name for path in (site.folder / "state/boot").iterdir()] == ["shared"]


def _failed(site, *words: str) -> str:
    with site.popen(*words) as process:
        stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 10, stderr
    assert "Traceback" not in stderr
    return stdout


def _name(site, clone: str) -> str:
    (name,) = re.findall(r"vmcloner-ready name=(\S+)", site.run("console", clone, "--log"))
    return name
