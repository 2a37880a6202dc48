"""Labs on the real libvirt: applied, edited, killed, applied again."""

import json
import random
import subprocess
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.libvirt

LAB = """
name = "{lab}"
[networks.{lab}]
count = 20
[fleets.{web}]
template = "plain"
count = {webs}
network = "{lab}"
after = ["{db}"]
[fleets.{db}]
template = "plain"
count = {dbs}
network = "{lab}"
"""
DIFFERS = 12


class Shop:
    """A lab's file on a site, and what of the lab is there."""

    def __init__(self, site):
        self.site, self.file = site, str(site.folder / "lab.toml")
        self.name, self.web, self.db = site.prefix, site.fleet("web"), site.fleet("db")

    def write(self, webs, dbs):
        text = LAB.format(lab=self.name, web=self.web, db=self.db, webs=webs, dbs=dbs)
        Path(self.file).write_text(text)

    def diff(self, code=0):
        with self.site.popen("diff", self.file, "-f", "json") as process:
            out, err = process.communicate(timeout=200)
        assert process.returncode == code, err
        return json.loads(out)

    def apply(self, *words):
        return json.loads(self.site.run("apply", self.file, *words, "-f", "json", timeout=400))

    def clones(self):
        rows = self.site.rows()
        assert all(row["state"] == "running" for row in rows)
        return sorted(row["name"].removeprefix(self.site.prefix) for row in rows)


def networks():
    argv = ["virsh", "-q", "-c", "qemu:///system", "net-list", "--all", "--name"]
    found = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=60)
    return found.stdout.split()


@pytest.fixture
def shop(site):
    shop = Shop(site)
    yield shop
    shop.write(1, 1)
    site.run("delete", "--lab", shop.file, "--yes", "--missing-ok", timeout=300)
    assert shop.name not in networks()


def numbered(webs, dbs):
    return [*(f"db-{n}" for n in range(1, dbs + 1)), *(f"web-{n}" for n in range(1, webs + 1))]


@pytest.mark.timeout(900)
def test_a_lab_from_birth_to_end(shop):
    shop.write(webs=3, dbs=2)
    assert len(shop.diff(DIFFERS)) == 6
    assert shop.site.rows() == []
    shop.apply()
    assert shop.clones() == numbered(3, 2)
    assert shop.name in networks()
    rows = {row["name"]: row for row in shop.site.rows()}
    created = [rows[f"{shop.db}-2"]["created"], rows[f"{shop.web}-1"]["created"]]
    assert created == sorted(created)
    assert shop.diff() == []
    assert shop.apply("--prune", "--recreate", "--yes") == []
    assert {row["name"]: row["created"] for row in shop.site.rows()} == {
        name: row["created"] for name, row in rows.items()
    }

    shop.write(webs=5, dbs=1)
    assert [(row["action"], row["option"]) for row in shop.diff(DIFFERS)] == [
        ("create", None),
        ("create", None),
        ("remove", "--prune"),
    ]
    shop.apply()
    assert shop.clones() == numbered(5, 2)
    shop.apply("--prune", "--yes")
    assert shop.clones() == numbered(5, 1)
    assert shop.diff() == []

    # A network that leaves the file goes with --prune, once nothing is on it.
    Path(shop.file).write_text(f'name = "{shop.name}"\n')
    assert {row["kind"] for row in shop.diff(DIFFERS)} == {"clone", "network"}
    shop.apply("--prune", "--yes")
    assert shop.site.rows() == []
    assert shop.name not in networks()
    assert shop.diff() == []


@pytest.mark.timeout(1800)
def test_killed_ten_times_at_random_the_same_command_converges(shop):
    choose = random.Random(11)
    sizes = [(3, 2), (5, 1)]
    for number in range(10):
        webs, dbs = sizes[number % 2]
        shop.write(webs, dbs)
        argv = ("apply", shop.file, "--prune", "--yes")
        with shop.site.popen(*argv) as process:
            time.sleep(choose.uniform(0.3, 4))
            process.kill()
            process.communicate()
        if number % 2:
            continue  # the next one finds what two left
        shop.apply("--prune", "--yes")
        assert shop.clones() == numbered(webs, dbs)
        assert shop.diff() == []
    shop.apply("--prune", "--yes")
    assert shop.clones() == numbered(*sizes[1])
    assert shop.diff() == []


@pytest.mark.timeout(600)
def test_what_the_lab_did_not_make_stays(shop):
    other = shop.site.fleet("other")
    shop.site.run("create", other, "-t", "plain")
    shop.write(1, 1)
    shop.apply("--prune", "--yes")
    shop.site.run("delete", "--lab", shop.file, "--yes")
    assert [row["name"] for row in shop.site.rows()] == [f"{other}-1"]


@pytest.mark.timeout(600)
def test_the_example_works(site):
    text = site.run("lab", "example")
    for name in ("shop-db", "shop-web"):
        text = text.replace(name, site.fleet(name))
    text = text.replace('"shop"', f'"{site.prefix}"').replace(
        "networks.shop", f"networks.{site.prefix}"
    )
    file = site.folder / "example.toml"
    file.write_text(text)
    try:
        site.run("apply", str(file), timeout=500)
        site.run("diff", str(file))
        assert len(site.rows()) == 5
    finally:
        site.run("delete", "--lab", str(file), "--yes", "--missing-ok", timeout=300)


@pytest.mark.timeout(300)
def test_more_than_the_host_has_room_for_is_refused_whole(shop):
    shop.write(2, 2)
    text = Path(shop.file).read_text()
    Path(shop.file).write_text(f'{text}memory = "900TiB"\n')
    err = shop.site.run("apply", shop.file, code=7)
    assert f"{shop.file}:12: fleets.{shop.db}.count" in err
    assert shop.site.rows() == []
    assert shop.name not in networks()
