"""Guests on a real Xen host that boot from a network of the tests' own, by libxl and pypxeboot."""

import contextlib
import gzip
import json
import os
import re
import shutil
import tempfile
import time
from pathlib import Path

import pytest

from tests.pxe.network import network
from tests.xen.conftest import GUEST, fleet, last_lines, site  # noqa: F401 - fixtures, of this name
from vmcloner_tiny import initramfs

pytestmark = [pytest.mark.pxe, pytest.mark.xen, pytest.mark.timeout(1500)]

GUESTS = int(os.environ.get("PXE_GUESTS", "2"))
BRIDGE = "vmcpxe0"
TEMPLATE = f"""
extends = "netboot"
memory = "64MiB"
disk_size = "16MiB"
ready = 'console:vmcloner-ready name={{{{ name }}}} '
[[nics]]
kind = "bridge"
source = "{BRIDGE}"
"""
INSTALLER = """#!/bin/busybox sh
# Stands for an installer: puts a system on the disk, says so, and reboots.
export PATH=/bin:/sbin
/bin/busybox mount -t devtmpfs dev /dev
until [ -b /dev/xvda ]; do /bin/busybox sleep 0.1; done
/bin/busybox gunzip -c /disk.gz | /bin/busybox dd of=/dev/xvda bs=1M conv=fsync 2>/dev/null
/bin/busybox sync
echo "stub-installed by $own"
/bin/busybox reboot -f
"""


@pytest.fixture(scope="module")
def net(site):  # noqa: F811
    """A bridge with a boot server, and the template of machines that boot from it."""
    folder = Path(tempfile.mkdtemp(prefix="vmcloner-pxe-"))
    folder.chmod(0o755)
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        made = stack.enter_context(network(folder, bridge=BRIDGE, rooted=True))
        made.dnsmasq(
            f"--dhcp-range={made.subnet}.50,{made.subnet}.150,255.255.255.0,1h",
            "--dhcp-boot=pxelinux.0",
            "--enable-tftp",
            f"--tftp-root={made.tftp}",
        )
        for name in ("vmlinuz", "initrd.img"):
            shutil.copyfile(GUEST / name, made.tftp / name)
        site.run("template", "import", site.template("netboot", TEMPLATE))
        yield made
        site.run("template", "delete", "netboot")


def planned(site, fleet, count):  # noqa: F811
    """Return the MAC addresses that clones will have, before anything of them exists."""
    rows = json.loads(site.create(fleet, "netboot", count, "--dry-run", "-f", "json"))
    return {row["name"]: row["mac"] for row in rows}


def configuration(mac, *initrds):
    files = ",".join(["initrd.img", *initrds])
    return (
        f"DEFAULT linux\nLABEL linux\nKERNEL vmlinuz\nINITRD {files}\n"
        f"APPEND console=hvc0 own={mac}\nIPAPPEND 3\n"
    )


def test_one_command_boots_many_with_what_their_own_files_say(site, net, fleet):  # noqa: F811
    macs = planned(site, fleet, GUESTS)
    for mac in macs.values():
        net.config(mac, configuration(mac))
    site.create(fleet, "netboot", GUESTS, "--start", "--wait", "--timeout", "1200")
    said = last_lines(list(macs), site)
    leases = "".join(path.read_text() for path in net.folder.glob("leases-*[0-9]"))
    addresses = set()
    for name, mac in macs.items():
        assert f"name={name} mac={mac} " in said[name]
        log = site.run("console", name, "--log")
        [cmdline] = re.findall(r"[Cc]ommand line: (.*)", log)[:1]
        assert f" own={mac} " in cmdline
        assert f" BOOTIF=01-{mac.replace(':', '-')} " in cmdline
        assert cmdline.endswith(f" hostname={name} systemd.hostname={name}")
        address = re.search(r" ip=([0-9.]+):", cmdline)[1]
        assert f" {mac} {address} " in leases
        addresses.add(address)
    assert len(addresses) == GUESTS


def test_an_installer_reboots_into_the_disk_by_pygrub(site, net, fleet):  # noqa: F811
    [(name, mac)] = planned(site, fleet, 1).items()
    site.create(fleet, "netboot", 1)
    stub = [
        initramfs.executable("init", INSTALLER.encode()),
        initramfs.file("disk.gz", gzip.compress((GUEST / "disk.raw").read_bytes(), 6)),
    ]
    (net.tftp / "stub.img").write_bytes(initramfs.pack(stub))
    net.config(mac, configuration(mac, "stub.img"))
    site.run("start", fleet)
    # The kernel is fetched: from now on the server says what servers say after an installation.
    net.config(mac, "DEFAULT local\nLABEL local\nLOCALBOOT 0\n")
    deadline = time.monotonic() + 600
    log = ""
    while f"vmcloner-ready name={name} " not in log:
        assert time.monotonic() < deadline, log[-2000:]
        time.sleep(2)
        log += site.run("console", name, "--log")
    assert f"stub-installed by {mac}" in log
    assert site.states(fleet) == {name: "running"}
