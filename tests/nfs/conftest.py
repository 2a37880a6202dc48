"""This kernel's NFS server, and hosts that mount what it exports: two, by namespaces."""

import contextlib
import os
import secrets
import shutil
import subprocess
import tempfile
from pathlib import Path

import attrs
import pytest

from tests.files.sharing_work import opened

SERVER, OTHER = "10.77.0.1", "10.77.0.2"
SETTINGS = Path("/etc/nfs.conf.d/vmcloner-tests.conf")
EXPORTS = Path("/etc/exports.d/vmcloner-tests.exports")
MKFS = {
    "ext4": ["mkfs.ext4", "-q", "-m", "0"],
    "xfs": ["mkfs.xfs", "-q", "-m", "reflink=1"],
}
# A host's name is how the server knows an NFS client again.
HOST = """\
hostname {name}
mount --make-rprivate /
echo ready
exec sleep infinity
"""


def run(*argv, check=True, timeout=100, **more):
    words = [str(word) for word in argv]
    done = subprocess.run(
        words, check=False, capture_output=True, text=True, timeout=timeout, **more
    )
    assert not check or done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done


@attrs.frozen
class Host:
    """A host: this one, or one of namespaces (mounts, network, name) that a process holds."""

    name: str
    holder: subprocess.Popen | None = None

    def argv(self, *argv):
        words = [str(word) for word in argv]
        if self.holder is None:
            return words
        return ["nsenter", "-t", str(self.holder.pid), "--mount", "--net", "--uts", "--", *words]

    def run(self, *argv, **more):
        return run(*self.argv(*argv), **more)

    def mount(self, export, point, options="vers=4.2"):
        self.run("mount", "-t", "nfs", "-o", options, f"{SERVER}:{export}", point)

    def popen(self, *argv):
        pipe = subprocess.PIPE
        return subprocess.Popen(self.argv(*argv), stdin=pipe, stdout=pipe, stderr=pipe)


@attrs.frozen
class Server:
    """The server. ``folder``: where the file systems are that it exports, with their options."""

    folder: Path
    exports: dict[Path, str] = attrs.field(factory=dict)

    def make(self, name, kind="ext4", size="96M"):
        """Make a file system; returns where it is."""
        point = self.folder / name
        point.mkdir()
        device = self.folder / f"{name}.raw"
        run("truncate", "-s", size, device)
        run(*MKFS[kind], device)
        run("mount", "-o", "loop", device, point)
        return point

    def export(self, point, options="no_root_squash"):
        """Export a file system, or export it otherwise."""
        self.exports[point] = f"{point} *(rw,sync,no_subtree_check,{options})\n"
        self._publish()

    def unexport(self, point):
        del self.exports[point]
        self._publish()

    def _publish(self):
        EXPORTS.write_text("".join(self.exports.values()))  # read again when it is restarted
        run("exportfs", "-r")

    def restart(self):
        """End it and start it: clients have to reclaim their locks."""
        run("systemctl", "restart", "nfs-server")


@pytest.fixture(scope="session")
def server():
    """Have the server run; skip where the kernel has none, or it is used for something else."""
    if os.geteuid() != 0 or run("modprobe", "nfsd", check=False).returncode != 0:
        pytest.skip("no NFS server in this kernel, or not root")
    if run("exportfs", "-s").stdout.strip():
        pytest.skip("this host exports something by NFS")
    with contextlib.ExitStack() as stack:
        # The least: how long clients of a server that was restarted may take to come back.
        SETTINGS.parent.mkdir(exist_ok=True)
        SETTINGS.write_text("[nfsd]\ngrace-time=10\nlease-time=10\nthreads=4\n")
        stack.callback(SETTINGS.unlink)
        EXPORTS.parent.mkdir(exist_ok=True)
        stack.callback(EXPORTS.unlink, missing_ok=True)
        folder = Path(tempfile.mkdtemp(prefix="vmcloner-nfs-", dir="/var/tmp"))
        folder.chmod(0o755)
        stack.callback(shutil.rmtree, folder)
        stack.callback(_unmount, folder)
        run("systemctl", "start", "nfs-server")
        stack.callback(run, "systemctl", "stop", "nfs-server")
        stack.callback(run, "exportfs", "-ua")
        yield Server(folder)


def _unmount(folder):
    for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
        if line.split()[4].startswith(f"{folder}/"):
            run("umount", line.split()[4])


@pytest.fixture(scope="session")
def hosts(server):
    """Yield two hosts, each an NFS client of its own: this one, and one beside it."""
    with contextlib.ExitStack() as stack:
        name = f"vmcloner-{secrets.token_hex(2)}"
        run("ip", "netns", "add", name)
        stack.callback(run, "ip", "netns", "delete", name)
        run("ip", "link", "add", "vmcnfs0", "type", "veth", "peer", "vmcnfs1", "netns", name)
        run("ip", "address", "add", f"{SERVER}/24", "dev", "vmcnfs0")
        run("ip", "link", "set", "vmcnfs0", "up")
        run("ip", "-n", name, "address", "add", f"{OTHER}/24", "dev", "vmcnfs1")
        for link in ("lo", "vmcnfs1"):
            run("ip", "-n", name, "link", "set", link, "up")
        words = ["unshare", "--mount", "--uts", "sh", "-c", HOST.format(name=name)]
        holder = stack.enter_context(
            subprocess.Popen(["ip", "netns", "exec", name, *words], stdout=subprocess.PIPE)
        )
        stack.callback(holder.kill)
        assert holder.stdout.readline() == b"ready\n"
        yield Host("here"), Host(name, holder)


@attrs.frozen
class Shared:
    """An export that hosts mount at the same place."""

    back: Path
    point: Path
    hosts: tuple[Host, ...]

    @property
    def states(self):
        """Where hosts' state folders are: not in what they share."""
        return self.back.parent / "states"

    def opened(self, name, clone="overlay"):
        """Return a driver on this host, of a state folder of its own, and that folder's id."""
        return opened(self.states / name, self.point / "pool", clone)


@pytest.fixture(scope="session")
def shared_of(server, hosts):
    """Return a function that makes an export and mounts it; unmounted when the context ends."""

    @contextlib.contextmanager
    def make(kind="ext4", options="vers=4.2", size="96M", export="no_root_squash"):
        name = secrets.token_hex(3)
        back = server.make(f"{name}-{kind}", kind, size)
        server.export(back, export)
        (server.folder / "states").mkdir(exist_ok=True)
        point = server.folder / f"{name}-mount"
        point.mkdir()
        with contextlib.ExitStack() as stack:
            for host in hosts:
                host.mount(back, point, options)
                stack.callback(host.run, "umount", "-f", point)
            yield Shared(back, point, hosts)
        server.unexport(back)

    return make


@pytest.fixture(scope="module")
def shared(shared_of):
    """Yield an export on NFSv4.2, mounted by two hosts."""
    with shared_of() as made:
        yield made
