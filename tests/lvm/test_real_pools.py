"""The command on real volume groups: pools that were made anew, and disks that grow."""

import os
import shutil
import subprocess
import time

import pytest

from tests.e2e.conftest import make_site
from tests.lvm.conftest import lvm

pytestmark = [pytest.mark.lvm, pytest.mark.timeout(900)]
DEVICE = os.environ.get("VMCLONER_EMPTY_DEVICE", "")
"""The lab has one; it is empty before and after each test."""
VG = "anew"
POOLS = {"lvm-thin": 'lvm-thin]\nvg = "{}"\nthinpool = "pool"', "dd": 'dd]\nvg = "{}"'}
MIB = 2**20


@pytest.fixture(params=POOLS)
def kind(request):
    return request.param


@pytest.fixture
def open_site(kind):
    """Return a function that makes a site on a volume group; leaves none of its clones."""
    sites = []

    def opened(group):
        site = make_site("qemu:///system")
        sites.append(site)
        settings = site.folder / "vmcloner.toml"
        table = POOLS[kind].format(group)
        text = f"[defaults]\nstorage = '{kind}'\n{settings.read_text()}\n"
        settings.write_text(f"{text}[hosts.local.storage.{table}\n")
        return site

    yield opened
    for site in sites:
        site.run("delete", site.fleet("web"), "--yes", "--missing-ok", timeout=400)
        assert site.rows() == []
        for template in ("plain", "tiny"):
            with site.popen("template", "delete", template) as process:
                process.communicate(timeout=400)
        shutil.rmtree(site.folder)


# --- pools that were made anew --------------------------------------------------------------------


@pytest.fixture
def group():
    """Have a volume group of the test's own, with a thin pool; returns what makes it anew."""
    if not DEVICE:
        pytest.skip("VMCLONER_EMPTY_DEVICE names no device")

    def anew():
        remove()
        lvm("vgcreate", VG, DEVICE)
        lvm("lvcreate", "-y", "-L", "512m", "-T", f"{VG}/pool")

    def remove():
        if subprocess.run(["vgs", VG], check=False, capture_output=True).returncode == 0:
            lvm("vgremove", "-qff", "-y", VG)

    anew()
    yield anew
    remove()
    lvm("wipefs", "--quiet", "--all", DEVICE)


def test_a_group_that_was_made_anew_is_refused(kind, group, open_site):
    """It has the name of the one that has the clones, which may be on disks that aren't there."""
    site = open_site(VG)
    web = site.fleet("web")
    site.run("create", web, "-t", "plain", "-n", "2", timeout=400)
    group()
    said = site.run("create", web, "-t", "plain", "-n", "3", code=8, timeout=400)
    assert f"is not the one that storage '{kind}' was before: it has another id" in said
    said = site.run("delete", f"{web}-1", "--yes", code=8, timeout=400)
    assert "it has another id" in said
    assert not [name for name in lvm("lvs", "--noheadings", "-o", "lv_name", VG) if web in name]
    site.run("list", web, code=10, timeout=400)
    (site.folder / "state" / "pools" / kind).unlink()  # as the message says
    site.run("delete", web, "--yes", timeout=400)
    site.run("create", web, "-t", "plain", "-n", "1", timeout=400)


# --- disks that grow ------------------------------------------------------------------------------


def size_of(volume):
    return int(lvm("lvs", "--noheadings", "--units", "b", "--nosuffix", "-o", "lv_size", volume)[0])


def virsh(*words):
    argv = ["virsh", "-q", "-c", "qemu:///system", *words]
    return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=120).stdout


def test_disks_are_made_larger(open_site):
    """Of a stopped guest, and of a running one, which sees it at once; a reset keeps the size."""
    site = open_site("vg")
    web = site.fleet("web")
    clone = f"{web}-1"
    create = ("create", web, "-t", "plain", "-n", "2", "--disk-size", "6MiB")
    site.run(*create, timeout=400)
    disk = f"vg/{clone}-disk0"
    assert size_of(disk) == 8 * MIB
    site.run(*create, timeout=400)
    for _ in range(2):
        site.run("set", web, "--disk-size", "14MiB", timeout=400)
        assert size_of(disk) == 16 * MIB
    site.run("start", web, timeout=400)
    for _ in range(2):
        site.run("set", clone, "--disk-size", "22MiB", timeout=400)
        assert size_of(disk) == 24 * MIB
        assert virsh("domblkinfo", clone, "vda").split()[1] == str(24 * MIB)
    device = lvm("blockdev", "--getsize64", f"/dev/{disk}")
    assert device == [str(24 * MIB)]
    site.run("set", clone, "--disk-size", "10MiB", code=10, timeout=400)
    site.run("reset", web, timeout=400)
    assert (size_of(disk), size_of(f"vg/{web}-2-disk0")) == (24 * MIB, 16 * MIB)


def test_a_guest_sees_its_larger_disk(open_site):
    site = open_site("vg")
    web = site.fleet("web")
    site.run("create", web, "-t", "tiny", "-n", "1", "--start", "--wait", timeout=800)
    before = _said(site, web)
    site.run("set", web, "--disk-size", "80MiB", timeout=400)
    site.run("restart", web, "--kill", "--wait", timeout=800)
    time.sleep(1)
    after = _said(site, web)
    assert after != before
    assert after == 80 * MIB // 512


def _said(site, web):
    """Return the sectors of its disk that a guest said last."""
    text = site.run("console", f"{web}-1", "--log")
    [line] = [line for line in text.splitlines() if line.startswith("vmcloner-ready")][-1:]
    return int(line.split("disk=")[1].split()[0])
