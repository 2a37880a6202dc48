"""A user's own libvirtd, qemu:///session: an ordinary user works without root from end to end."""

import contextlib
import os
import pwd
import re
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import attrs
import pytest

from tests.e2e.conftest import VMCLONER, Site
from tests.e2e.ssh_guest import make_template

pytestmark = [
    pytest.mark.libvirt,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a user"),
]
SETTINGS = """
[hosts.local.hypervisor.kvm]
uri = "qemu:///session"
"""

TERMINALS = 'mount -t devpts -o newinstance,ptmxmode=666 devpts /dev/pts; exec "$@"'


@attrs.frozen
class User(Site):
    """A site in the home folder of a user, who runs the commands."""

    name: str

    @property
    def uid(self) -> int:
        return pwd.getpwnam(self.name).pw_uid

    def argv(self, *words: str) -> list[str]:
        home = f"HOME={self.folder}"
        runtime = f"XDG_RUNTIME_DIR={self.folder}/run"
        login = ["setpriv", f"--reuid={self.name}", f"--regid={self.name}", "--init-groups"]
        # In containers, not everybody may open a terminal of the machine's own.
        terminals = ["unshare", "--mount", "sh", "-ec", TERMINALS, "sh"]
        path = f"PATH={os.environ['PATH']}"
        return [*terminals, *login, "env", "-i", path, home, runtime, *words]

    def own(self, *words: str, **options: object) -> str:
        return self.run(str(VMCLONER), *words, **options)

    def processes(self) -> dict[int, str]:
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if folder.stat().st_uid == self.uid:
                    words = (folder / "cmdline").read_bytes().split(b"\0")
                    found[int(folder.name)] = words[0].decode()
        return {pid: program for pid, program in found.items() if program}


@pytest.fixture
def user():
    """A new user with a home; nothing of it stays."""
    name = f"vmc{secrets.token_hex(3)}"
    home = Path(tempfile.mkdtemp(prefix="vmc-", dir="/var/tmp"))
    home.chmod(0o700)
    subprocess.run(
        ["useradd", "--no-create-home", "--home-dir", home, name], check=True, timeout=60
    )
    made = User(home, f"s{secrets.token_hex(3)}x", name)
    try:
        for folder in (home / "run", home / "templates", home / ".config/vmcloner"):
            folder.mkdir(mode=0o700, parents=True)
        (home / ".config/vmcloner/vmcloner.toml").write_text(SETTINGS)
        subprocess.run(["chown", "-R", f"{name}:{name}", home], check=True, timeout=60)
        with made.popen(str(VMCLONER), "--version") as process:
            if process.wait(60):
                pytest.skip(
                    f"another user can't run {VMCLONER}: keep the checkout where all may read"
                )
        yield made
    finally:
        for pid in made.processes():  # its libvirtd, which ends by itself after a while
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + 30
        while made.processes() and time.monotonic() < deadline:
            time.sleep(0.1)
        for pid in made.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        subprocess.run(["userdel", "--force", name], check=True, timeout=60)
        shutil.rmtree(home)


def test_from_a_template_to_nothing_left(user, real_site):
    real_site.run("template", "import", "tiny")  # of which only kernel and initrd are used
    make_template(real_site, "sshd", user.folder / "templates")
    templates = ["chown", "-R", f"{user.name}:", user.folder / "templates"]
    subprocess.run(templates, check=True, timeout=60)
    fleet = user.fleet("web")
    user.own("create", fleet, "-t", "sshd", "-n", "2", "--start", "--wait")
    rows = user.own("list", fleet, "-f", "value", "-c", "state", "-c", "ip").splitlines()
    assert [re.fullmatch(r"running 127\.[0-9.]+", row) is not None for row in rows] == [True] * 2
    said = user.own("exec", fleet, "-f", "value", "-c", "stdout", "--", "touch /mark; ls /mark")
    assert said.count("/mark") == 2
    assert user.own("ssh", f"{fleet}-2", "echo", "here") == "here\n"
    disks = list((user.folder / ".local/state/vmcloner/pool").rglob(f"*{fleet}*"))
    assert {disk.owner() for disk in disks} == {user.name}
    user.own("reset", f"{fleet}-1", "--wait")
    user.own("exec", f"{fleet}-1", "--", "ls /mark", code=10)  # it was in memory: it is another run
    assert "boots=2" not in user.own("console", f"{fleet}-1", "--log"), "its disk is new"
    assert [name for name in user.processes().values() if "qemu" in name]
    user.own("delete", fleet, "--yes")
    assert user.own("list", "-f", "value") == ""
    assert [name for name in user.processes().values() if "qemu" in name] == []
    assert [p for p in user.folder.rglob("*") if user.prefix in p.name] == []
