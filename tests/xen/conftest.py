"""A Xen host, as contrib/lab has one: its small guest, templates of it, the command on it."""

import importlib.metadata
import json
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs
import pytest

GUEST = Path("/opt/lab/guest")
VMCLONER = Path(sys.executable).with_name("vmcloner")
LIBXL = tuple(
    map(
        Path,
        (
            *("/var/log/xen", "/var/lib/xen", "/var/log/libvirt/libxl", "/var/lib/libvirt/libxl"),
            *("/etc/libvirt/libxl", "/run/libvirt/libxl"),
        ),
    )
)
"""Where libxl, xenconsoled and libvirt's driver of libxl keep files of domains."""
SHARED = {"xen-hotplug.log", "xenstored-access.log", "libxl-driver.log"}
"""Logs there that are of no one domain."""
TEMPLATE = f"""
hypervisors = ["xen"]
boot = "pygrub"
memory = "32MiB"
ready = 'console:vmcloner-ready name={{{{ name }}}} '
[image]
path = "{GUEST}/disk.raw"
[[nics]]
kind = "bridge"
source = "xenbr0"
"""


def output(*words: str) -> str:
    """Return what a command of the host prints."""
    result = subprocess.run(
        words, capture_output=True, text=True, timeout=120, check=True, stdin=subprocess.DEVNULL
    )
    return result.stdout


def traces() -> set[str]:
    """Return all that there is of guests on this host: domains, volumes, files of libxl."""
    files = {
        str(path)
        for folder in LIBXL
        for path in folder.rglob("*")
        if path.is_file() and path.name.rstrip(".0123456789") not in SHARED  # rotated, some
    }
    domains = output("xl", "list").splitlines()[1:]
    return {
        *files,
        *(f"xl: {line.split()[0]}" for line in domains),
        *(f"virsh: {name}" for name in output(*VIRSH, "list", "--all", "--name").split()),
        *(
            f"lvm: {name.strip()}"
            for name in output("lvs", "--noheadings", "-o", "lv_name").split()
        ),
    }


VIRSH = ("virsh", "-q", "-c", "xen:///system")


@attrs.frozen
class Site:
    """A folder with settings and templates, and a pool."""

    folder: Path
    linked: bool

    def run(self, *words: str, code: int = 0, timeout: float = 900) -> str:
        """Run a command, check its exit code, return what it printed (errors too, if it failed)."""
        result = subprocess.run(
            [VMCLONER, "--config", self.folder / "vmcloner.toml", *words],
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert result.returncode == code, (
            f"{words}: {result.returncode}\n{result.stdout}{result.stderr}"
        )
        assert "Traceback" not in result.stderr
        return result.stdout + result.stderr if code else result.stdout

    def create(self, fleet: str, template: str, count: int, *words: str, code: int = 0) -> str:
        how = () if self.linked else ("--full",)
        return self.run(
            *("create", fleet, "--template", template, "--count", str(count), *how, *words),
            code=code,
            timeout=600 + 120 * count,
        )

    def states(self, fleet: str) -> dict[str, str]:
        rows = json.loads(self.run("list", fleet, "-f", "json"))
        return {row["name"]: row["state"] for row in rows}

    def disk(self, clone: str) -> Path:
        """Return a stopped clone's disk, ready to be written to."""
        (disk, *_) = json.loads(self.run("show", clone, "-f", "json"))["disks"]
        if disk["path"].startswith("/dev/"):
            output("lvchange", "-ay", "-K", disk["path"])
        return Path(disk["path"])

    def template(self, name: str, text: str) -> str:
        (self.folder / "templates" / f"{name}.toml").write_text(text)
        return name


def alter(disk: Path, *requests: str) -> None:
    """Change a guest's file system, as debugfs(8) does."""
    with tempfile.NamedTemporaryFile("w", suffix=".debugfs") as script:
        script.write("\n".join(requests) + "\n")
        script.flush()
        words = ["debugfs", "-w", "-f", script.name, str(disk)]
        result = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True)
        assert result.stderr.count("\n") == 1, result.stderr  # its version; it has no exit code
    if str(disk).startswith("/dev/"):
        output("lvchange", "-an", str(disk))


@pytest.fixture(scope="session")
def site() -> Iterator[Site]:
    """A site on this host; its template's image is imported once."""
    folder = Path(tempfile.mkdtemp(prefix="vmcloner-test-", dir="/var/tmp"))
    folder.chmod(0o755)
    storages = {e.name for e in importlib.metadata.entry_points(group="vmcloner.storage")}
    linked = "lvm-thin" in storages
    pool = (
        'driver = "lvm-thin"\nvg = "vg"\nthinpool = "pool"'
        if linked
        else f'driver = "files"\npath = "{folder}/pool"'
    )
    (folder / "vmcloner.toml").write_text(
        f"""
        [defaults]
        hypervisor = "xen"
        storage = "disks"
        [hosts.local]
        state = "{folder}/state"
        [hosts.local.hypervisor.xen]
        starts = 1    # libxl gives its scripts 40 s, whatever else this machine has to do
        stops = 4
        [hosts.local.storage.disks]
        {pool}
        """
    )
    (folder / "templates").mkdir()
    site = Site(folder, linked)
    site.run("template", "import", site.template("guest", TEMPLATE))
    yield site
    site.run("template", "delete", "guest")
    shutil.rmtree(folder)


@pytest.fixture
def fleet(site: Site) -> Iterator[str]:
    """Name a fleet of which, when the test ends, nothing may be left."""
    before = traces()
    name = f"t{secrets.token_hex(3)}"
    yield name
    site.run("delete", name, "--yes", "--missing-ok")
    assert sorted(traces() - before) == []


def last_lines(names: Sequence[str], site: Site) -> dict[str, str]:
    """Return what each clone's console said last about who it is."""
    said = {}
    for name in names:
        lines = site.run("console", name, "--log").splitlines()
        said[name] = next(line for line in reversed(lines) if "vmcloner-ready" in line)
    return said
