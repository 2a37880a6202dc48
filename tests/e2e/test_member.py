"""A member of the group libvirt who isn't root, with a pool and a state folder of their own.

The libvirtd of this machine may let only root in, or ask polkit. So the test has one of its own, in
namespaces of its own, that lets in who may use its socket, as Debian's does with its polkit rule.
"""

import json
import secrets
import shutil
import subprocess
import time
from pathlib import Path

import attrs
import pytest

from tests.e2e.conftest import Site, make_site

pytestmark = pytest.mark.libvirt

CHECKOUT = Path(__file__).parents[2]
DAEMONS = """
set -e
for folder in /run/libvirt /etc/libvirt/qemu /var/lib/libvirt; do mount -t tmpfs tmpfs $folder; done
case $1 in /root/*)  # nobody but root gets through: this namespace has another /root
    mkdir /run/libvirt/checkout
    mount --bind $1 /run/libvirt/checkout
    mount -t tmpfs -o mode=755 tmpfs /root
    mkdir -p $1
    mount --move /run/libvirt/checkout $1
esac
mkdir -p /run/libvirt/common
chmod 755 /run/libvirt /var/lib/libvirt
cat > /run/libvirt/libvirtd.conf <<END
unix_sock_group = "libvirt"
unix_sock_rw_perms = "0770"
auth_unix_rw = "none"
END
virtlogd -d -p /run/libvirt/virtlogd.pid
libvirtd -f /run/libvirt/libvirtd.conf -p /run/libvirt/libvirtd.pid
exit $?  # the shell stays, and reaps guests: libvirt waits until they have vanished
"""


@attrs.frozen
class MembersSite(Site):
    """A site of another user, with another libvirtd; ``enter`` is the command that gets there."""

    enter: tuple[str, ...]
    user: str

    def argv(self, *words: str) -> list[str]:
        return [
            *self.enter,
            f"--wdns={self.folder}",
            "runuser",
            "-u",
            self.user,
            "--",
            *super().argv(*words),
        ]

    def domains(self) -> list[str]:
        argv = [*self.enter, "virsh", "-q", "-c", "qemu:///system", "list", "--all", "--name"]
        done = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=60)
        return done.stdout.split()

    def states(self) -> dict[str, str]:
        return {str(row["name"]): str(row["state"]) for row in self.rows()}


@pytest.fixture
def user():
    """Make a user as a host's administrator does."""
    name = f"whose{secrets.token_hex(3)}"
    subprocess.run(["useradd", "-M", "-G", "libvirt", name], check=True, timeout=60)
    yield name
    subprocess.run(["userdel", name], check=True, timeout=60)


@pytest.fixture
def enter():
    """Run a libvirtd in namespaces that end with it; return the command that gets there."""
    argv = ["unshare", "-m", "-n", "-p", "--fork", "--kill-child", "--mount-proc", "sh", "-c"]
    argv += [DAEMONS, "sh", str(CHECKOUT)]
    with subprocess.Popen(argv, stderr=subprocess.DEVNULL) as process:
        try:
            children = f"/proc/{process.pid}/task/{process.pid}/children"
            deadline = time.monotonic() + 180
            while True:
                assert process.poll() is None
                assert time.monotonic() < deadline
                pid = Path(children).read_text().strip()
                command = ("nsenter", "-t", pid, "-m", "-n", "-p")
                virsh = [*command, "virsh", "-c", "qemu:///system", "uri"]
                asked = subprocess.run(virsh, check=False, capture_output=True, timeout=180)
                if pid and asked.returncode == 0:
                    break
                time.sleep(0.5)
            yield command
        finally:
            process.kill()


@pytest.fixture
def member(user, enter):
    plain = make_site("qemu:///system")
    for path in (plain.folder, *plain.folder.rglob("*")):
        shutil.chown(path, user, user)
    site = MembersSite(plain.folder, plain.prefix, enter, user)
    yield site
    site.run("delete", "--all", "--yes")
    assert site.remains() == []
    shutil.rmtree(site.folder)


def test_a_members_fleet(member):
    fleet = member.fleet("web")
    one, two, three = (f"{fleet}-{index}" for index in (1, 2, 3))
    member.run("create", fleet, "-t", "plain", "-n", "2", "--start")
    disk = member.folder / "state" / "pool" / "volumes" / f"{one}-disk0"
    assert disk.owner() != member.user, "libvirt gave it to QEMU's user"
    assert member.states() == {one: "running", two: "running"}
    assert json.loads(member.run("create", fleet, "-t", "plain", "-n", "3", "-f", "json"))
    assert member.states() == {one: "running", two: "running", three: "stopped"}
    member.run("stop", one, "-k")
    member.run("reset", one)
    member.run("start", one)
    member.run("reset", fleet)
    assert member.states() == {one: "running", two: "running", three: "stopped"}
    member.run("delete", fleet, "--yes")
    assert member.domains() == member.remains() == []


def test_a_disk_that_libvirt_never_gave_back(member):
    """libvirtd was killed with its guest, say: it belongs to QEMU's user, who has left it."""
    fleet = member.fleet("db")
    member.run("create", fleet, "-t", "plain", "-n", "2")
    volumes = member.folder / "state" / "pool" / "volumes"
    for index in (1, 2):
        shutil.chown(volumes / f"{fleet}-{index}-disk0", "libvirt-qemu", "libvirt-qemu")
    assert set(member.states().values()) == {"stopped"}
    with subprocess.Popen(
        ["qemu-io", "-f", "qcow2", volumes / f"{fleet}-1-disk0"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    ) as other:
        try:
            deadline = time.monotonic() + 30
            inode = f":{(volumes / f'{fleet}-1-disk0').stat().st_ino} "
            while inode not in Path("/proc/locks").read_text():
                assert time.monotonic() < deadline
            member.run("delete", fleet, "--yes", code=10)
        finally:
            other.stdin.close()
    assert [path.name for path in volumes.iterdir()] == [f"{fleet}-1-disk0"]
    assert list(member.states()) == [f"{fleet}-1"]
