"""Clones on the real libvirtd that boot from a network of the tests' own."""

import contextlib
import gzip
import json
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import attrs
import pytest

from tests.e2e.conftest import Site, make_site
from tests.pxe.network import Network, network
from vmcloner_tiny import initramfs

pytestmark = [pytest.mark.pxe, pytest.mark.libvirt]

GUESTS = int(os.environ.get("PXE_GUESTS", "2"))
ARGUMENTS = (
    "console=ttyS0 loglevel=6 panic=-1 mitigations=off nokaslr tsc=reliable no_timer_check"
    " lpj=4000000"
)
NETBOOT = """
extends = "netboot"
memory = "256MiB"
ready = 'console:vmcloner-ready name={{{{ name }}}} '
[[nics]]
kind = "bridge"
source = "{bridge}"
"""
BY_ROM = """
extends = "netboot"
hypervisors = ["kvm"]
boot = "network"
"""
INSTALLER = """#!/bin/busybox sh
# Stands for an installer: puts a system on the disk, says so, and reboots.
export PATH=/bin
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
while read -r module; do insmod "/modules/$module"; done </modules/kvm
echo stub-begins
gunzip -c /disk.gz | dd of=/dev/vda bs=1M conv=fsync 2>/dev/null
sync
echo "stub-installed on $(cat /sys/block/vda/size)"
sleep 3 # the log is begun anew by the next start
reboot -f
"""


@attrs.frozen
class Lab:
    """A site of vmcloner's with a network to boot from."""

    site: Site
    net: Network

    def macs(self, fleet: str) -> dict[str, str]:
        return {str(row["name"]): str(row["mac"]) for row in self.site.rows(fleet)}

    def leases(self) -> str:
        return "".join(path.read_text() for path in self.net.folder.glob("leases-*[0-9]"))

    def log(self, name: str) -> str:
        return self.site.run("console", name, "--log")


@pytest.fixture(scope="module")
def lab():
    folder = Path(tempfile.mkdtemp(prefix="vmcloner-pxe-"))
    folder.chmod(0o755)
    site = make_site("qemu:///system")
    bridge = f"vmc{site.prefix}"
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        stack.callback(shutil.rmtree, site.folder)
        net = stack.enter_context(network(folder, bridge=bridge, rooted=True))
        net.dnsmasq(
            f"--dhcp-range={net.subnet}.50,{net.subnet}.150,255.255.255.0,1h",
            "--dhcp-userclass=set:ipxe,iPXE",
            "--dhcp-boot=tag:!ipxe,pxelinux.0",
            "--dhcp-boot=tag:ipxe,boot.ipxe",  # for the guest's own ROM, which is iPXE
            "--enable-tftp",
            f"--tftp-root={net.tftp}",
        )
        for name, text in {"netboot": NETBOOT.format(bridge=bridge), "rom": BY_ROM}.items():
            (site.folder / "templates" / f"{name}.toml").write_text(text)
        site.run("template", "import", "tiny", timeout=600)
        built = site.folder / "state" / "templates" / "tiny"
        for name in ("vmlinuz", "initrd.img"):
            shutil.copyfile(built / name, net.tftp / name)
            (net.tftp / name).chmod(0o644)
        yield Lab(site, net)


@pytest.fixture
def clones(lab):
    """The lab; what is left of its clones at the test's end is an error."""
    yield lab
    fleets = {str(row["fleet"]) for row in lab.site.rows()}
    lab.site.run(
        "delete", "--yes", "--missing-ok", *(fleets or {lab.site.fleet("none")}), timeout=300
    )
    assert lab.site.remains() == []
    files = (lab.site.folder / "state" / "boot").glob("*/*")
    assert [path for path in files if path.parent.name != "shared"] == []


def planned(lab, fleet, count):
    """Return the MAC addresses that clones will have, before anything of them exists."""
    words = ("create", fleet, "-t", "netboot", "-n", str(count), "--dry-run", "-f", "json")
    return {row["name"]: row["mac"] for row in json.loads(lab.site.run(*words))}


def configuration(mac, *initrds):
    return (
        f"DEFAULT linux\nLABEL linux\nKERNEL vmlinuz\nINITRD {','.join(['initrd.img', *initrds])}\n"
        f"APPEND {ARGUMENTS} own={mac}\nIPAPPEND 3\n"
    )


@pytest.mark.timeout(900)
def test_one_command_boots_many_with_what_their_own_files_say(clones):
    """Each has an address of its own, and says its name and its own file's arguments."""
    fleet = clones.site.fleet("pxe")
    macs = planned(clones, fleet, GUESTS)
    for mac in macs.values():
        clones.net.config(mac, configuration(mac))
    create = ("create", fleet, "-t", "netboot", "-n", str(GUESTS), "--start", "--wait")
    clones.site.run(*create, "--timeout", "600", timeout=800)
    assert clones.macs(fleet) == macs
    addresses = set()
    for name, mac in macs.items():
        log = clones.log(name)
        [line] = re.findall(r"vmcloner-ready .*", log)
        assert f"name={name} mac={mac} " in line
        [cmdline] = re.findall(r"Kernel command line: (.*)", log)
        assert f" own={mac} " in cmdline
        assert cmdline.endswith(f" hostname={name} systemd.hostname={name}")
        assert f" BOOTIF=01-{mac.replace(':', '-')}" in cmdline
        address = re.search(r" ip=([0-9.]+):", cmdline)[1]
        with pytest.raises(ConnectionRefusedError):  # somebody is there, with nothing to offer
            socket.create_connection((address, 7), timeout=60)
        addresses.add(address)
    assert len(addresses) == GUESTS


@pytest.mark.timeout(300)
def test_what_clones_would_boot_is_shown_without_a_lease(clones):
    fleet = clones.site.fleet("dry")
    clones.site.run("create", fleet, "-t", "netboot", "-n", "2")
    macs = clones.macs(fleet)
    for mac in macs.values():
        clones.net.config(mac, configuration(mac))
    for row in json.loads(clones.site.run("boot", "resolve", fleet, "-f", "json")):
        assert row["kernel"] == f"tftp://{clones.net.subnet}.1/vmlinuz"
        assert row["initrd"] == f"tftp://{clones.net.subnet}.1/initrd.img"
        assert f" own={macs[row['name']]} " in row["cmdline"]
        assert f"pxelinux.cfg/01-{macs[row['name']].replace(':', '-')}" in row["source"]
    assert not any(mac in clones.leases() for mac in macs.values())


@pytest.mark.timeout(900)
def test_a_clone_boots_by_its_own_rom(clones):
    fleet = clones.site.fleet("rom")
    clones.site.run("create", fleet, "-t", "rom", "-n", "1", timeout=300)
    [(name, mac)] = clones.macs(fleet).items()
    (clones.net.tftp / "boot.ipxe").write_text(
        f"#!ipxe\nkernel vmlinuz {ARGUMENTS} host={name} own=${{net0/mac}}\n"
        "initrd initrd.img\nboot\n"
    )
    clones.site.run("start", fleet, "--wait", timeout=600)
    log = clones.log(name)
    assert f"vmcloner-ready name={name} mac={mac} " in log
    assert f" own={mac}" in re.findall(r"Kernel command line: (.*)", log)[-1]


@pytest.mark.timeout(600)
def test_a_clone_that_gets_nothing_says_so_and_is_not_started(clones):
    fleet = clones.site.fleet("none")
    clones.site.run("create", fleet, "-t", "netboot", "-n", "1")
    with clones.site.popen("start", fleet) as process:
        stdout, _stderr = process.communicate(timeout=120)
    assert process.returncode == 10
    assert "pxelinux.cfg/default" in stdout
    assert [row["state"] for row in clones.site.rows(fleet)] == ["stopped"]


@pytest.mark.timeout(900)
def test_an_installer_is_booted_once_then_the_disk(clones, tmp_path):
    """One command waits for all of it: install, reboot, and the system on the disk."""
    fleet = clones.site.fleet("inst")
    [(name, mac)] = planned(clones, fleet, 1).items()
    stub = [
        initramfs.executable("init", INSTALLER.encode()),
        initramfs.file("disk.gz", gzip.compress(system(tmp_path, clones.net.tftp, name), 1)),
    ]
    (clones.net.tftp / "stub.img").write_bytes(initramfs.pack(stub))
    clones.net.config(mac, configuration(mac, "stub.img"))
    words = ("create", fleet, "-t", "netboot", "-n", "1", "--start", "--wait", "--timeout", "600")
    with clones.site.popen(*words) as process:
        until_said(clones, name, "stub-begins")
        # What servers say after an installation.
        clones.net.config(mac, "DEFAULT local\nLABEL local\nLOCALBOOT 0\n")
        said = until_said(clones, name, "stub-installed")
        stdout, stderr = process.communicate(timeout=700)
    assert process.returncode == 0, f"{stdout}{stderr}"
    assert "stub-installed on 16777216" in said
    log = clones.log(name)
    assert "stub-" not in log
    assert f"vmcloner-ready name={name} " in log
    assert " booted=disk" in re.findall(r"Kernel command line: (.*)", log)[-1]
    assert [row["state"] for row in clones.site.rows(fleet)] == ["running"]


def until_said(lab, name, words):
    """Wait until a clone's console has said something that is on a line by now; return it all."""
    file = lab.site.folder / "state" / "console" / f"{name}.log"
    deadline = time.monotonic() + 400
    said = ""
    while not re.search(f"{words}.*\n", said):
        assert time.monotonic() < deadline, said[-2000:]
        time.sleep(0.2)
        said = file.read_text(errors="replace") if file.exists() else ""
    return said


def system(folder: Path, files: Path, name: str) -> bytes:
    """The bytes of a disk with a boot menu on it."""
    root = folder / "root"
    (root / "boot" / "grub").mkdir(parents=True)
    for file in ("vmlinuz", "initrd.img"):
        shutil.copyfile(files / file, root / "boot" / file)
    (root / "boot" / "grub" / "grub.cfg").write_text(
        "set default=0\nset timeout=0\nmenuentry 'Installed' {\n"
        f"  linux /boot/vmlinuz {ARGUMENTS} host={name} booted=disk\n"
        "  initrd /boot/initrd.img\n}\n"
    )
    image = folder / "disk.raw"
    subprocess.run(
        ["mke2fs", "-q", "-t", "ext4", "-d", root, image, "32M"], check=True, capture_output=True
    )
    return image.read_bytes()
