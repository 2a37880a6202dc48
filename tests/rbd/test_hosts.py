"""Three machines that share a pool in Ceph: clones of one image on each, and one that is moved."""

import json
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import pytest

from tests.hosts import machines
from tests.hosts.test_machines import TINY, build_tiny
from tests.rbd.cluster import Cluster

pytestmark = [pytest.mark.ceph, pytest.mark.libvirt, pytest.mark.slow]
SETTINGS = """
[defaults]
storage = "ceph"
[hosts.local.storage.ceph]
driver = "rbd"
pool = "vms"
conf = "{conf}"
user = "admin"
keyring = "{keyring}"
"""


@pytest.fixture
def lab():
    folder = Path(tempfile.mkdtemp(prefix="vmcloner-test-", dir="/var/tmp"))
    folder.chmod(0o755)
    try:
        build_tiny(folder)
        lab = machines.make(
            folder, ("h1", "h2", "h3"), {"tinyish": TINY.replace("FOLDER", str(folder))}
        )
        try:
            yield lab
        finally:
            lab.close()
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def cluster(lab):
    """A cluster on the machine that the others reach, in the settings of all of them."""
    first = next(iter(lab.machines.values()))
    cluster = Cluster(lab.folder / "c", f"{first.address.rpartition('.')[0]}.1")
    try:
        cluster.start()
        for machine in lab.machines.values():
            text = SETTINGS.format(conf=cluster.conf, keyring=cluster.keyring)
            (machine.folder / "settings/vmcloner.toml").write_text(text)
        yield cluster
    finally:
        cluster.stop()


def images(cluster):
    names = json.loads(cluster.rbd("ls", "vms", "--format", "json"))
    return {name for name in names if not name.startswith("template.")}


@pytest.mark.timeout(900)
def test_three_hundred_clones_over_three_hosts(lab, cluster):
    lab.run("create", "web", "-t", "tinyish", "-n", "300", timeout=400)
    rows = lab.rows("web")
    assert Counter(row["host"] for row in rows) == {"h1": 100, "h2": 100, "h3": 100}
    assert {row["storage"] for row in rows} == {"ceph"}
    assert len({row["mac"] for row in rows}) == 300
    assert images(cluster) == {f"web-{number}-disk0" for number in range(1, 301)}

    first = {row["host"]: row["name"] for row in reversed(rows)}
    lab.run("start", *first.values(), "--wait", timeout=200)
    assert {row["state"] for row in lab.rows(*first.values())} == {"running"}

    moved = first["h1"]
    before = json.loads(cluster.rbd("info", f"vms/{moved}-disk0", "--format", "json"))["id"]
    lab.run("stop", moved, "--kill")
    lab.run("move", moved, "h2")
    lab.run("start", moved, "--wait", timeout=200)
    (row,) = lab.rows(moved)
    assert (row["host"], row["state"]) == ("h2", "running")
    assert moved not in lab.machines["h1"].domains()
    after = json.loads(cluster.rbd("info", f"vms/{moved}-disk0", "--format", "json"))["id"]
    assert before == after  # no byte was copied

    lab.run("delete", "web", "--yes", timeout=400)
    assert images(cluster) == set()
    assert all(machine.domains() == [] for machine in lab.machines.values())
