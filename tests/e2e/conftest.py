"""The command itself, as a user runs it, on a host's state of its own."""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import attrs
import pytest

VMCLONER = Path(sys.executable).with_name("vmcloner")
TEMPLATE = """
hypervisors = ["kvm"]
memory = "32MiB"
[image]
path = "image.raw"
"""


@attrs.frozen
class Site:
    """A folder with settings, templates and a pool; and a prefix for its fleets' names."""

    folder: Path
    prefix: str

    def argv(self, *words: str) -> list[str]:
        return [str(VMCLONER), "--config", str(self.folder / "vmcloner.toml"), *words]

    def popen(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.argv(*words),
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *words: str, code: int = 0, timeout: float = 200) -> str:
        """Run a command, check its exit code, return what it printed (its errors, if it failed)."""
        with self.popen(*words) as process:
            try:
                stdout, stderr = process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGABRT)
                raise
        assert process.returncode == code, f"{words}: {process.returncode}\n{stdout}\n{stderr}"
        assert "Traceback" not in stderr
        return stderr if code else stdout

    def rows(self, *words: str) -> list[dict[str, object]]:
        """Return this site's clones: others on the same libvirtd are none of its business."""
        rows = json.loads(self.run("list", *words, "-f", "json"))
        return [row for row in rows if row["name"].startswith(self.prefix)]

    def fleet(self, name: str) -> str:
        return f"{self.prefix}{name}"

    def remains(self) -> list[str]:
        """Return whatever of this site's clones is on the host."""
        files = [
            path for path in self.folder.rglob("*") if path.is_file() and self.prefix in path.name
        ]
        domains = subprocess.run(
            ["virsh", "-q", "-c", "qemu:///system", "list", "--all", "--name"],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout.split()
        processes = [
            words
            for pid in Path("/proc").iterdir()
            if pid.name.isdigit()
            for words in [_cmdline(pid)]
            if "qemu-system" in words.split("\0")[0] and self.prefix in words
        ]
        return [*map(str, files), *(d for d in domains if d.startswith(self.prefix)), *processes]


def _cmdline(pid: Path) -> str:
    try:
        return (pid / "cmdline").read_text(errors="replace")
    except OSError:
        return ""


def make_site(uri: str, **limits: float) -> Site:
    # Not pytest's own folder: QEMU runs as another user and has to get through.
    folder = Path(tempfile.mkdtemp(prefix="vmcloner-test-", dir="/var/tmp"))
    folder.chmod(0o755)
    (folder / "vmcloner.toml").write_text(
        f"""
        [hosts.local]
        state = "{folder}/state"
        [hosts.local.hypervisor.kvm]
        uri = "{uri}"
        """
    )
    (folder / "templates").mkdir()
    (folder / "templates" / "plain.toml").write_text(TEMPLATE)
    (folder / "templates" / "image.raw").write_bytes(os.urandom(4096) + bytes(1024**2 - 4096))
    return Site(folder, f"t{secrets.token_hex(3)}x")


@pytest.fixture(scope="session")
def real_site():
    """A site on the real libvirtd, for the session: what is probed and imported once stays so."""
    site = make_site("qemu:///system")
    yield site
    shutil.rmtree(site.folder)


@pytest.fixture
def site(real_site):
    """The real site with fleets of the test's own; what is left of them at its end is an error."""
    site = attrs.evolve(real_site, prefix=f"t{secrets.token_hex(3)}x")
    yield site
    if site.remains():
        fleets = {str(row["fleet"]) for row in site.rows()}
        site.run("delete", "--yes", "--missing-ok", *(fleets or {site.fleet("none")}), timeout=300)
        assert site.remains() == []


@pytest.fixture
def paper_site():
    """A site on libvirt's own test driver: domains that are kept, but never run."""
    site = make_site("test:///default")
    yield site
    shutil.rmtree(site.folder)
