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
hypervisors = ["xen"]
boot = "pypxeboot"
memory = "64MiB"
ready = 'console:vmcloner-ready name={{{{ name }}}} '
[image]
path = "empty.raw"
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
    """A bridge with a boot server, and a template of clones on it with an empty disk."""
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
        with (site.folder / "templates" / "empty.raw").open("wb") as stream:
            stream.truncate((GUEST / "disk.raw").stat().st_size)
        site.run("template", "import", site.template("pxe", TEMPLATE))
        yield made
        site.run("template", "delete", "pxe")


def macs(site, fleet):  # noqa: F811
    return {r["name"]: r["mac"] for r in json.loads(site.run("list", fleet, "-f", "json"))}


def configuration(mac, *initrds):
    files = ",".join(["initrd.img", *initrds])
    return (
        f"DEFAULT linux\nLABEL linux\nKERNEL vmlinuz\nINITRD {files}\n"
        f"APPEND console=hvc0 own={mac}\nIPAPPEND 2\n"
    )


def test_guests_boot_with_what_their_own_files_say(site, net, fleet):  # noqa: F811
    site.create(fleet, "pxe", GUESTS)
    for name, mac in macs(site, fleet).items():
        net.config(mac, configuration(mac))
        assert name.startswith(fleet)
    site.run("start", fleet, "--wait")
    found = macs(site, fleet)
    said = last_lines(list(found), site)
    for name, mac in found.items():
        assert f"name={name} mac={mac} " in said[name]
        log = site.run("console", name, "--log")
        [cmdline] = re.findall(r"[Cc]ommand line: (.*)", log)[:1]
        assert f"own={mac} BOOTIF=01-{mac.replace(':', '-')}" in cmdline
    leases = "".join(path.read_text() for path in net.folder.glob("leases-*[0-9]"))
    addresses = {
        line.split()[2] for line in leases.splitlines() if line.split()[1] in found.values()
    }
    assert len(addresses) == GUESTS


def test_an_installer_reboots_into_the_disk_by_pygrub(site, net, fleet):  # noqa: F811
    site.create(fleet, "pxe", 1)
    [(name, mac)] = macs(site, fleet).items()
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
