"""Machines whose disks are in a real Ceph cluster, by the command as a user types it."""

import contextlib
import json
import re
import secrets
import shutil
import subprocess
import time
from pathlib import Path

import attrs
import pytest
from lxml import etree

from tests.e2e.conftest import TEMPLATE, make_site

pytestmark = [pytest.mark.ceph, pytest.mark.libvirt]
RBD = ("--storage", "rbd")


@pytest.fixture(scope="module")
def ceph_site(cluster):
    """A site whose pool is the cluster's, with a user who may do no more than the docs say."""
    site = make_site("qemu:///system")
    key = site.folder / "ceph.client.vmcloner.keyring"
    cluster.ceph(
        "auth", "get-or-create", "client.vmcloner", "mon", "profile rbd", "osd",
        "profile rbd pool=vms", "mgr", "profile rbd pool=vms", "-o", str(key),
    )  # fmt: skip
    key.chmod(0o600)
    conf = site.folder / "ceph.conf"
    conf.write_text(f"[global]\nmon_host = {cluster.monitor}\n")
    with (site.folder / "vmcloner.toml").open("a") as settings:
        settings.write(
            f"""
            [hosts.local.storage.rbd]
            pool = "vms"
            conf = "{conf}"
            user = "vmcloner"
            keyring = "{key}"
            timeout = 20
            """
        )
    yield site
    shutil.rmtree(site.folder)


@pytest.fixture
def site(ceph_site, cluster):
    site = attrs.evolve(ceph_site, prefix=f"rbd{secrets.token_hex(3)}x")
    yield site
    site.run("delete", "--yes", "--missing-ok", site.fleet("web"), timeout=300)
    assert site.remains() == []
    # What a client that was killed had open stays until the cluster forgets that: seldom it
    # doesn't, if it was killed while it opened the image. Then gc knows of it.
    deadline = time.monotonic() + 20
    while images(cluster, site) and time.monotonic() < deadline:
        time.sleep(1)
        site.run("gc", "--yes")
    if left := images(cluster, site):
        known = site.run("gc", "--dry-run", "-f", "json")
        assert [name for name in left if f"vms/{name}" not in known] == []


def images(cluster, site):
    """Return what a site's clones have in the cluster: images, and their leftovers."""
    names = json.loads(cluster.rbd("ls", "vms", "--format", "json"))
    trash = json.loads(cluster.rbd("trash", "ls", "vms", "--format", "json"))
    drafts = [name for name in names if name.startswith("vmcloner-draft")]
    return [n for n in names if n.startswith(site.prefix)] + drafts + [t["name"] for t in trash]


@pytest.mark.timeout(600)
def test_a_fleet_boots_is_reset_and_goes(site, cluster):
    web = site.fleet("web")
    site.run("create", web, "-t", "tiny", "-n", "2", *RBD)
    site.run("start", web, "--wait", timeout=400)
    one, two = site.rows(web)
    for row in (one, two):
        assert (row["state"], row["storage"]) == ("running", "rbd")
        assert f"name={row['name']} " in site.run("console", row["name"], "--log")
        status = json.loads(cluster.rbd("status", f"vms/{row['name']}-disk0", "--format", "json"))
        assert len(status["watchers"]) == 1  # QEMU
        assert virsh("domblkinfo", row["name"], "vda")
    check_key_is_secret(site, one["name"])

    site.run("set", one["name"], "--disk-size", "64MiB")  # while it runs
    assert re.search(r"Capacity:\s+67108864", virsh("domblkinfo", one["name"], "vda"))

    site.run("stop", one["name"], "--kill")
    before = cluster.rbd("info", f"vms/{one['name']}-disk0", "--format", "json")
    virsh("define", foreign(site, one["name"]))
    assert f"is used by domain '{site.prefix}other'" in refused(site, "reset", one["name"])
    virsh("undefine", f"{site.prefix}other")
    site.run("reset", one["name"], "--start", "--wait")
    after = cluster.rbd("info", f"vms/{one['name']}-disk0", "--format", "json")
    assert json.loads(before)["id"] != json.loads(after)["id"]

    site.run("delete", web, "--yes")
    assert site.rows() == []


def check_key_is_secret(site, name):
    """What QEMU, its log and libvirt tell has no key in it."""
    keyring = (site.folder / "ceph.client.vmcloner.keyring").read_text()
    key = keyring.partition("key = ")[2].strip()
    assert len(key) == 40
    (qemu,) = [line for line in arguments() if f"guest={name}," in line]
    log = Path(f"/var/log/libvirt/qemu/{name}.log").read_text()
    logs = "".join(file.read_text() for file in (site.folder / "state/runs").iterdir())
    for text in (qemu, log, logs, virsh("dumpxml", "--security-info", name)):
        assert key not in text
    (known,) = re.findall(rf"(\S+)\s+ceph .*{site.folder.name}", virsh("secret-list"))
    description = virsh("secret-dumpxml", known)
    assert "ephemeral='yes' private='yes'" in description
    virsh("secret-get-value", known, code=1)


def foreign(site, name):
    """Return the file with a domain that isn't ours, on a clone's disk."""
    root = etree.fromstring(virsh("dumpxml", "--inactive", name))
    root.find("name").text = f"{site.prefix}other"
    for path in ("uuid", "metadata"):
        root.remove(root.find(path))
    file = site.folder / "other.xml"
    file.write_bytes(etree.tostring(root))
    return str(file)


def test_a_disk_in_ceph_is_not_read_for_a_kernel(site):
    """Refused before anything is made, with a way out."""
    template = site.folder / "templates" / "kernelless.toml"
    template.write_text('boot = "pygrub"\n' + TEMPLATE)
    error = refused(site, "create", site.fleet("web"), "-t", "kernelless", *RBD)
    assert "boot = 'pygrub' can't read a disk in pool rbd" in error


@pytest.mark.slow  # it waits for Ceph to forget clients that were killed
@pytest.mark.timeout(600)
def test_kill_9_in_mid_batch(site, cluster):
    """The same command again makes them all, or removes them: none twice, nothing else."""
    web = site.fleet("web")
    site.run("template", "import", "plain", *RBD)
    create = ("create", web, "-t", "plain", "-n", "24", *RBD)
    killed(site, lambda: len(images(cluster, site)) > 3, *create)  # as drafts, mostly
    killed(site, lambda: site.prefix in virsh("list", "--all", "--name"), *create)
    site.run(*create)
    assert [row["index"] for row in site.rows(web)] == list(range(1, 25))
    mine = [name for name in images(cluster, site) if name.startswith(site.prefix)]
    assert sorted(mine) == sorted(f"{web}-{n}-disk0" for n in range(1, 25))
    killed(site, lambda: len(images(cluster, site)) < 24, "delete", web, "--yes")
    deadline = time.monotonic() + 60
    while site.rows() and time.monotonic() < deadline:  # what a killed client has open is in use
        with site.popen("delete", web, "--yes", "--missing-ok") as process:
            process.communicate(timeout=200)
    assert site.rows() == []


def killed(site, moment, *words):
    """Run a command, and kill it at a moment."""
    with site.popen(*words) as process:
        while process.poll() is None and not moment():
            pass
        process.kill()
        process.communicate()


def refused(site, *words):
    """Run a command that fails for all clones; return what it says."""
    with site.popen(*words) as process:
        output = "".join(process.communicate(timeout=200))
    assert process.returncode == 10
    return output


def virsh(*words, code=0):
    done = subprocess.run(
        ["virsh", "-q", "-c", "qemu:///system", *words],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    return done.stdout


def arguments():
    """Yield what all processes were given."""
    for pid in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            yield (pid / "cmdline").read_text(errors="replace")
