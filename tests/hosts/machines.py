"""Three machines on one: namespaces with a libvirtd, an sshd and a state folder of their own each.

Each also has a worker of a Dask cluster, if that is installed. A machine's first process is the
init of its process namespace: killing that is a power failure.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import time
import uuid
from importlib.util import find_spec
from pathlib import Path

import attrs

from tests.hosts.cluster import UNPROFILED, Cluster, certify

ENGINES = "mitogen:|vmcloner_dask.engine"
"""The processes on a machine that work for a controller, for pgrep(1)."""
CACHE = Path("/var/cache/libvirt/qemu/capabilities")
"""What libvirt found out about QEMU here: finding it out again takes 80 s on each machine."""
LIBVIRTD = """\
host_uuid = "{uuid}"
unix_sock_group = "root"
auth_unix_rw = "none"
log_outputs = "3:file:/var/log/libvirt/libvirtd.log"
"""
QEMU = """\
user = "root"
group = "root"
security_driver = "none"
cgroup_controllers = []
remember_owner = 0
namespaces = []
"""
INIT = """\
#!/bin/bash
# The first process of a machine; it reaps what the others leave.
set -e
hostname {name}
mount --make-rprivate /
mount -t proc proc /proc
mount --bind {folder}/run /run
mkdir -p /run/lock /run/sshd /run/libvirt
for pair in etc:/etc/libvirt lib:/var/lib/libvirt log:/var/log/libvirt cache:/var/cache/libvirt \\
    state:/var/lib/vmcloner settings:/etc/vmcloner home:{home}/.config; do
    mkdir -p "${{pair#*:}}"
    mount --bind "{folder}/${{pair%%:*}}" "${{pair#*:}}"
done
mount --bind {folder}/machine-id /etc/machine-id
mkdir -p /var/lib/libvirt/qemu /var/lib/libvirt/images /var/lib/libvirt/boot /etc/libvirt/nwfilter
cp -n /usr/share/libvirt/nwfilter/*.xml /etc/libvirt/nwfilter/ 2>/dev/null || true
/usr/sbin/sshd -f {folder}/sshd_config
/usr/sbin/virtlogd -d
/usr/sbin/libvirtd -d
touch {folder}/up
if [ -x {folder}/worker ]; then
    while :; do {folder}/worker || sleep 1; done >{folder}/log/worker 2>&1 &
fi
while :; do sleep 1; done
"""
SSHD = """\
Port 22
ListenAddress {address}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized_keys
PidFile /run/sshd.pid
UsePAM no
StrictModes no
PasswordAuthentication no
MaxStartups 100
Subsystem sftp internal-sftp
"""


def run(*argv, **more):
    return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=60, **more)


@attrs.define
class Machine:
    """One of the machines."""

    name: str
    address: str
    folder: Path
    netns: str
    process: subprocess.Popen | None = None

    def boot(self):
        """Switch it on; returns when its libvirtd answers."""
        (self.folder / "up").unlink(missing_ok=True)
        shutil.rmtree(self.folder / "run", ignore_errors=True)
        (self.folder / "run").mkdir()
        self.process = subprocess.Popen(
            [
                *("ip", "netns", "exec", self.netns, "unshare", "--mount", "--uts", "--ipc"),
                *("--pid", "--fork", "--kill-child", str(self.folder / "init")),
            ],
            stdin=subprocess.DEVNULL,
            stdout=(self.folder / "log/init.out").open("w"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        deadline = time.monotonic() + 120
        while not self._answers():
            assert self.process.poll() is None, (self.folder / "log/init.out").read_text()
            assert time.monotonic() < deadline, "libvirtd does not answer"
            time.sleep(0.2)
        self.wait_for_worker()

    def wait_for_worker(self):
        """Return when its worker of the Dask cluster can be used, if it has one."""
        deadline = time.monotonic() + 60
        while (self.folder / "worker").exists() and not self._works():
            assert time.monotonic() < deadline, (self.folder / "log/worker").read_text()
            time.sleep(0.2)

    def _works(self):
        """Tell whether its worker's last start got as far as the scheduler."""
        log = (self.folder / "log/worker").read_text()
        return "Registered to" in log.rpartition("Waiting to connect to")[2]

    def unplug(self):
        """Take it off the network, as by pulling a cable out of a switch far away."""
        run("ip", "link", "set", self.link, "nomaster")

    def plug(self):
        """Connect it again."""
        run("ip", "link", "set", self.link, "master", self.netns.partition("-")[0])

    @property
    def link(self):
        """The name of its network interface outside."""
        return f"{self.netns.partition('-')[0]}{self.address.rpartition('.')[2]}"

    def _answers(self):
        socket = self.folder / "run/libvirt/libvirt-sock"
        if not socket.exists():
            return False
        uri = f"qemu:///system?socket={socket}"
        done = subprocess.run(["virsh", "-c", uri, "uri"], capture_output=True, check=False)
        return done.returncode == 0

    def power_off(self):
        """Take its power away: every process there is gone at once."""
        if self.process is not None and self.process.poll() is None:
            with contextlib.suppress(IndexError):
                os.kill(self.init, signal.SIGKILL)
            self.process.kill()
            self.process.wait(timeout=30)

    @property
    def init(self):
        """The process id of its first process."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return int(children.read_text().split()[0])

    def run(self, *argv, check=True):
        """Run a command there."""
        return subprocess.run(
            ["nsenter", "-t", str(self.init), "--all", *argv],
            check=check, capture_output=True, text=True, timeout=120,
        )  # fmt: skip

    def domains(self):
        """Return the names of its domains."""
        return sorted(self.run("virsh", "-q", "list", "--all", "--name").stdout.split())

    def engines(self):
        """Return the processes there that work for a controller."""
        return [int(pid) for pid in self.run("pgrep", "-f", ENGINES, check=False).stdout.split()]

    def kill_engines(self, how="KILL"):
        """Send these processes a signal."""
        self.run("pkill", f"-{how}", "-f", ENGINES, check=False)


@attrs.define
class Lab:
    """The machines, and the controller's settings and ssh for them."""

    folder: Path
    machines: dict[str, Machine]
    bridge: str
    cluster: Cluster | None = None
    carrier: str = "mitogen"

    @property
    def environment(self):
        return {
            **os.environ,
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "VMCLONER_CONFIG": str(self.folder / f"{self.carrier}.toml"),
            "XDG_CONFIG_HOME": str(self.folder / "config"),
        }

    def popen(self, *words):
        """Start a command on the controller."""
        return subprocess.Popen(
            [Path(sys.executable).parent / "vmcloner", *words],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *words, code=0, timeout=250):
        """Run a command on the controller; returns what it printed (its errors, if it failed)."""
        with self.popen(*words) as process:
            try:
                out, err = process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        assert process.returncode == code, f"{words}: {process.returncode}\n{out}\n{err}"
        assert "Traceback" not in err
        return out if code == 0 else err

    def rows(self, *words):
        return json.loads(self.run("list", *words, "-f", "json"))

    def close(self):
        for machine in self.machines.values():
            machine.power_off()
            subprocess.run(["ip", "netns", "del", machine.netns], check=False)
        if self.cluster is not None:
            self.cluster.close()
        subprocess.run(["ip", "link", "del", self.bridge], check=False)


def make(folder: Path, names, templates: dict[str, str]) -> Lab:
    """Make and boot machines, with templates in their settings."""
    bridge = f"vmc{secrets.token_hex(3)}"
    run("ip", "link", "add", bridge, "type", "bridge")
    subnet = f"10.231.{secrets.randbelow(256)}"
    run("ip", "addr", "add", f"{subnet}.1/24", "dev", bridge)
    run("ip", "link", "set", bridge, "up")
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "key"))
    lab = Lab(folder, {}, bridge)
    try:
        for number, name in enumerate(names):
            lab.machines[name] = _made(folder / name, name, f"{subnet}.{10 + number}", bridge)
        if find_spec("distributed"):
            _cluster(lab, f"{subnet}.1")
        _controller(lab, templates)
        for machine in lab.machines.values():
            machine.boot()
    except BaseException:
        lab.close()
        raise
    return lab


def _made(folder: Path, name: str, address: str, bridge: str) -> Machine:
    machine = Machine(name, address, folder, f"{bridge}-{name}")
    for each in ("run", "etc", "lib", "log", "cache", "state", "settings", "home"):
        (folder / each).mkdir(parents=True)
    (folder / "cache/qemu/capabilities").mkdir(parents=True)
    for file in CACHE.glob("*.xml"):
        shutil.copy2(file, folder / "cache/qemu/capabilities")
    (folder / "etc/libvirtd.conf").write_text(LIBVIRTD.format(uuid=uuid.uuid4()))
    (folder / "etc/qemu.conf").write_text(QEMU)
    (folder / "machine-id").write_text(f"{secrets.token_hex(16)}\n")
    (folder / "settings/vmcloner.toml").write_text("")
    (folder / "settings/templates").mkdir()
    (folder / "sshd_config").write_text(SSHD.format(address=address, folder=folder))
    (folder / "authorized_keys").write_text((folder.parent / "key.pub").read_text())
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "host_key"))
    (folder / "init").write_text(INIT.format(name=name, folder=folder, home=Path.home()))
    (folder / "init").chmod(0o755)
    link = machine.link
    run("ip", "netns", "add", machine.netns)
    run("ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", machine.netns)
    run("ip", "link", "set", link, "master", bridge, "up")
    run("ip", "-n", machine.netns, "link", "set", "lo", "up")
    run("ip", "-n", machine.netns, "addr", "add", f"{address}/24", "dev", "eth0")
    run("ip", "-n", machine.netns, "link", "set", "eth0", "up")
    return machine


def _cluster(lab: Lab, address: str) -> None:
    """Start a Dask scheduler on the controller; the machines get what starts their workers."""
    certify(lab.folder / "tls", "scheduler", "worker", "controller")
    lab.cluster = Cluster(lab.folder, address, lab.folder / "tls")
    lab.cluster.start()
    for name, machine in lab.machines.items():
        words = ["--host", machine.address, "--local-directory", "/run/dask"]
        worker = machine.folder / "worker"
        profile = [f"{k}={UNPROFILED[k]}" for k in UNPROFILED if k.startswith("DASK_")]
        words = shlex.join(map(str, ["env", *profile, *lab.cluster.worker(name, *words)]))
        worker.write_text(f"#!/bin/sh\nexec {words}\n")
        worker.chmod(0o755)


def _controller(lab: Lab, templates: dict[str, str]) -> None:
    folder = lab.folder
    (folder / "bin").mkdir()
    (folder / "config").mkdir()
    known = folder / "known_hosts"
    blocks = []
    for name, machine in lab.machines.items():
        key = (machine.folder / "host_key.pub").read_text().split()
        with known.open("a") as file:
            file.write(f"{machine.address} {key[0]} {key[1]}\n")
        blocks.append(
            f"Host {name}\n  HostName {machine.address}\n  User root\n"
            f"  IdentityFile {folder / 'key'}\n  UserKnownHostsFile {known}\n"
        )
        for title, text in templates.items():
            (machine.folder / f"settings/templates/{title}.toml").write_text(text)
    (folder / "ssh_config").write_text("".join(blocks))
    ssh = folder / "bin/ssh"
    ssh.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {folder}/ssh_config "$@"\n')
    ssh.chmod(0o755)
    tables = "".join(
        f'[hosts.{name}]\nssh = "{name}"\npython = "{sys.executable}"\n' for name in lab.machines
    )
    tables += '[groups]\nlab = "h[1-3]"\n'
    (folder / "mitogen.toml").write_text(tables)
    if lab.cluster is not None:
        (folder / "dask.toml").write_text(tables + lab.cluster.settings())
