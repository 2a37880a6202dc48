"""gc on a real host: beside a create, after creates and deletes that were killed."""

import json
import random
import subprocess
import time

import pytest

pytestmark = pytest.mark.libvirt


def collect(site, *words):
    """Run gc; returns what it collected."""
    return json.loads(site.run("gc", *words, "-f", "json"))


def incomplete(site):
    return [row["name"] for row in site.rows() if row["state"] in ("allocated", "orphan")]


@pytest.mark.timeout(600)
def test_gc_beside_a_create_takes_nothing_of_it(site):
    web = site.fleet("web")
    rounds = 0
    with site.popen("create", web, "-t", "plain", "-n", "12", "--start") as create:
        while create.poll() is None:
            collect(site, "--orphans", "--yes")
            rounds += 1
        assert create.returncode == 0, create.stderr.read()
    assert rounds > 0
    assert [row["state"] for row in site.rows(web)] == ["running"] * 12
    collect(site, "--orphans", "--yes")
    assert len(site.rows(web)) == 12


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.timeout(600)
def test_gc_after_kill_9_in_mid_create(site, seed):
    web = site.fleet("web")
    with site.popen("create", web, "-t", "plain", "-n", "12", "--start") as create:
        time.sleep(random.Random(seed).uniform(0.3, 6))
        create.kill()
    planned = collect(site, "--orphans", "--dry-run")
    broken = incomplete(site)
    done = collect(site, "--orphans", "--yes")
    assert [(row["kind"], row["name"]) for row in done] == [
        (row["kind"], row["name"]) for row in planned
    ]
    assert all(row["error"] is None for row in done)
    assert incomplete(site) == []
    left = site.remains()
    assert not [path for path in left for name in broken if f"{name}-disk" in path]
    assert collect(site, "--orphans", "--yes") == []
    site.run("create", web, "-t", "plain", "-n", "12", "--start")
    assert [row["state"] for row in site.rows(web)] == ["running"] * 12


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.timeout(600)
def test_gc_after_kill_9_in_mid_delete(site, seed):
    web = site.fleet("web")
    site.run("create", web, "-t", "plain", "-n", "8", "--start")
    with site.popen("delete", web, "--yes") as delete:
        time.sleep(random.Random(seed).uniform(0.3, 2))
        delete.kill()
    collect(site, "--orphans", "--yes")
    assert incomplete(site) == []
    site.run("delete", web, "--yes")
    collect(site, "--yes")
    assert site.remains() == []


@pytest.mark.timeout(300)
def test_domains_and_disks_without_the_other(site):
    web = site.fleet("web")
    site.run("create", web, "-t", "plain", "-n", "3")
    subprocess.run(
        ["virsh", "-q", "-c", "qemu:///system", "undefine", f"{web}-1"], check=True, timeout=60
    )
    (disk,) = (path for path in site.remains() if path.endswith(f"{web}-2-disk0"))
    subprocess.run(["rm", disk], check=True)
    found = {(row["kind"], row["name"]) for row in collect(site, "--orphans", "--yes")}
    assert ("domain", f"{web}-2") in found
    assert {kind for kind, _ in found} == {"domain", "disk", "record"}
    assert [row["name"] for row in site.rows(web)] == [f"{web}-3"]
