"""The example of somebody else's distribution: built, installed, and used on the real libvirtd."""

import json
import secrets
import shutil
import subprocess
import sys
import tempfile
import venv
from importlib import metadata
from pathlib import Path

import attrs
import pytest

from tests.e2e.conftest import Site
from tests.packaging.building import ROOT, build, repack, run

EXAMPLE = ROOT / "contrib/examples/vmcloner-libvirt-pool"
URI = "qemu:///system"


def test_its_backend_has_at_most_150_lines():
    assert len((EXAMPLE / "vmcloner_libvirt_pool.py").read_text().splitlines()) <= 150


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """An environment with the two wheels, pytest, and nothing that they don't ask for.

    pip may download nothing: libvirt's binding takes long to compile. What they depend on becomes
    wheels again, of what is installed here.
    """
    folder, wheels = tmp_path_factory.mktemp("environment"), tmp_path_factory.mktemp("wheels")
    example = build(EXAMPLE, tmp_path_factory.mktemp("example"), "--no-isolation")
    repack([*metadata.requires("vmcloner"), "libvirt-python", "pytest"], wheels)
    venv.create(folder)
    pip = (sys.executable, "-m", "pip", "--python", folder / "bin/python", "install", "--quiet")
    done = run(*pip, "--no-index", "--find-links", wheels, wheel, example, "pytest")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.libvirt
def test_it_is_listed(installed, tmp_path):
    done = run(
        *(installed / "bin/vmcloner", "plugin", "list", "-f", "json"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    (row,) = (row for row in json.loads(done.stdout) if row["name"] == "libvirt-pool")
    assert row["distribution"] == "vmcloner-libvirt-pool"
    assert (row["kind"], row["version"], row["state"]) == ("storage", "0.1.0", "ok")
    assert not row["error"]


@pytest.mark.libvirt
def test_its_own_tests_are_green_there(installed, tmp_path):
    """Also: it is the installed one that they test, not the checkout's."""
    shutil.copytree(EXAMPLE / "tests", tmp_path / "tests")
    done = run(
        *(installed / "bin/python", "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider"),
        *("-W", "error", "tests"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout
    skipped = [line for line in done.stdout.splitlines() if line.startswith("SKIPPED")]
    assert all(": the backend declares that it " in line for line in skipped), skipped


@attrs.frozen
class OtherSite(Site):
    """A site of the environment with the plugin."""

    program: Path

    def argv(self, *words: str) -> list[str]:
        return [str(self.program), "--config", str(self.folder / "vmcloner.toml"), *words]


def virsh(*words: object) -> str:
    argv = ["virsh", "-q", "-c", URI, *map(str, words)]
    return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=60).stdout


def listed(site: Site) -> set[str]:
    """Return the names of the volumes that libvirt shows."""
    return {line.split()[0] for line in virsh("vol-list", site.folder.name).splitlines()}


@pytest.fixture
def site(installed):
    """A site whose clones are in a pool that virsh made, with somebody's own volume."""
    folder = Path(tempfile.mkdtemp(prefix="vmcloner-test-", dir="/var/tmp"))
    folder.chmod(0o755)
    name = folder.name
    virsh("pool-create-as", name, "dir", "--target", folder / "pool", "--build")
    virsh("vol-create-as", name, "own.raw", "1M")
    (folder / "vmcloner.toml").write_text(
        f"""
        [defaults]
        storage = "fast"
        [hosts.local]
        state = "{folder}/state"
        [hosts.local.storage.fast]
        driver = "libvirt-pool"
        pool = "{name}"
        """
    )
    site = OtherSite(folder, f"t{secrets.token_hex(3)}x", installed / "bin/vmcloner")
    try:
        yield site
        site.run("delete", "--yes", "--missing-ok", site.fleet("web"))
    finally:
        virsh("pool-destroy", name)
        shutil.rmtree(folder)


@pytest.mark.libvirt
def test_guests_boot_from_its_volumes(site):
    """A fleet is made, boots, is reset and goes; the pool keeps what was there before."""
    web = site.fleet("web")
    assert "ok" in site.run("host", "check", "fast")
    site.run("create", web, "-t", "tiny", "-n", "2", "--start", "--wait")
    rows = site.rows(web)
    assert [(row["state"], row["storage"]) for row in rows] == [("running", "fast")] * 2
    disks = {f"{web}-{n}-disk0" for n in (1, 2)} | {"tiny.image"}
    assert listed(site) == {"own.raw", *disks, *(f"{disk}.vmcloner" for disk in disks)}
    site.run("stop", f"{web}-1", "--kill")
    site.run("reset", f"{web}-1")
    site.run("delete", web, "--yes")
    site.run("template", "delete", "tiny")
    assert site.rows() == []
    assert site.remains() == []
    assert listed(site) == {"own.raw"}
