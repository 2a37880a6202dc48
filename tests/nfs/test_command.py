"""The command on two hosts whose pools are one folder on NFS; real guests."""

import shutil

import pytest

from tests.e2e.conftest import make_site

pytestmark = [pytest.mark.nfs, pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture
def sites(shared):
    """Two hosts by their state folders; they have the lab's libvirtd in common."""
    made = []
    for _ in range(2):
        site = make_site("qemu:///system")
        settings = site.folder / "vmcloner.toml"
        pool = f"[hosts.local.storage.files]\npath = '{shared.point}/pool'\n"
        settings.write_text(f"{settings.read_text()}\n{pool}")
        made.append(site)
    yield made
    for site in made:
        site.run("delete", site.fleet("web"), "--yes", "--missing-ok", timeout=400)
        shutil.rmtree(site.folder)


def test_two_hosts_with_one_folder(shared, sites):
    """An overlay boots from NFS; each host lists, resets and deletes its own only."""
    one, two = sites
    one.run("create", one.fleet("web"), "-t", "tiny", "-n", "1", "--start", "--wait", timeout=800)
    two.run("create", two.fleet("web"), "-t", "tiny", "-n", "2", timeout=400)
    assert [row["name"] for row in two.rows()] == [f"{two.prefix}web-{n}" for n in (1, 2)]
    volumes = shared.point / "pool/volumes"
    assert len(list(volumes.iterdir())) == 3
    assert len(list((shared.point / "pool/templates").iterdir())) == 1  # imported once for both
    two.run("reset", two.fleet("web"), "--yes", timeout=400)
    two.run("delete", two.fleet("web"), "--yes", timeout=400)
    assert [row["state"] for row in one.rows()] == ["running"]
    assert len(list(volumes.iterdir())) == 1
    assert "in use" in one.run("reset", one.fleet("web"), "--yes", code=10, timeout=400)
    one.run("delete", one.fleet("web"), "--yes", timeout=400)
    assert list(volumes.iterdir()) == []
