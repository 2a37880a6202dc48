"""A Ceph cluster of one monitor, one manager and one OSD, in a folder, on one address.

It needs root, since the daemons would change to the user ``ceph`` else, and neither systemd nor
kernel modules. ``python -m tests.rbd.cluster FOLDER`` starts one, and stops it at the end of input.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path

PROGRAMS = ("ceph-mon", "ceph-mgr", "ceph-osd", "ceph", "rbd")
DISK = 8 * 1024**3
CONF = """
[global]
fsid = {fsid}
mon_host = {monitors}
auth_cluster_required = cephx
auth_service_required = cephx
auth_client_required = cephx
auth_allow_insecure_global_id_reclaim = false
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
mon_allow_pool_size_one = true
mon_allow_pool_delete = true

[client]
rbd_default_features = 61
{private}
keyring = {folder}/keyring

[mon]
{private}
{public}
mon_initial_members = a
mon_data = {folder}/mon
mon_data_avail_warn = 2
mon_data_avail_crit = 1
keyring = {folder}/keyring

[mgr]
{private}
{public}
mgr_data = {folder}/mgr
mgr_initial_modules =
mgr_stats_period = 1
keyring = {folder}/keyring

[osd]
{private}
{public}
osd_data = {folder}/osd
osd_objectstore = bluestore
bluestore_block_size = {disk}
bluestore_cache_autotune = false
bluestore_cache_size = 67108864
osd_memory_target = 939524096
osd_class_update_on_start = false
# A client that was killed is forgotten after 30 s by default: tests would wait for that.
osd_client_watch_timeout = 5
osd_crush_update_on_start = false
osd_scrub_load_threshold = 0.01
"""


class Cluster:
    """The cluster: its configuration, and what starts and stops it."""

    def __init__(self, folder: Path, address: str = "127.0.0.1") -> None:
        self.folder = folder
        self.address = address
        self.conf = folder / "ceph.conf"
        self.keyring = folder / "keyring"

    def start(self) -> None:
        """Start it; returns once it has taken a write."""
        folder = self.folder
        for part in ("mon", "mgr", "osd", "run", "log"):
            (folder / part).mkdir(parents=True)
        fsid = str(uuid.uuid4())
        v1, v2 = free_port(), free_port()
        self.monitor = f"{self.address}:{v1}"
        monitors = f"[v2:{self.address}:{v2},v1:{self.address}:{v1}]"
        private = "\n".join(
            (
                f"run_dir = {folder}/run",
                f"admin_socket = {folder}/run/$name.$pid.asok",
                f"log_file = {folder}/log/$name.log",
                f"pid_file = {folder}/run/$name.pid",
                f"crash_dir = {folder}/log",
            )
        )
        public = "\n".join(
            (
                f"public_addr = {self.address}",
                f"cluster_addr = {self.address}",
                "ms_bind_ipv6 = false",
            )
        )
        self.conf.write_text(
            CONF.format(
                fsid=fsid,
                monitors=monitors,
                folder=folder,
                disk=DISK,
                private=private,
                public=public,
            )
        )
        key = self.keyring
        every = ["--cap", "mon", "allow *", "--cap", "osd", "allow *", "--cap", "mgr", "allow *"]
        run(
            "ceph-authtool",
            "--create-keyring",
            key,
            "--gen-key",
            "-n",
            "mon.",
            *every[:2],
            "allow *",
        )
        for name in ("client.admin", "mgr.x"):
            run("ceph-authtool", key, "--gen-key", "-n", name, *every)
        key.chmod(0o600)
        new = ("--create", "--clobber", "--fsid", fsid, "--addv", "a", monitors)
        run("monmaptool", *new, folder / "monmap")
        run("ceph-mon", "-c", self.conf, "-i", "a", "--mkfs", "--monmap", folder / "monmap",
            "--keyring", key)  # fmt: skip
        run("ceph-mon", "-c", self.conf, "-i", "a")
        run("ceph-mgr", "-c", self.conf, "-i", "x")
        self._make_osd()
        self.make_pool("vms")

    def _make_osd(self) -> None:
        osd, name = self.folder / "osd", str(uuid.uuid4())
        secret = run("ceph-authtool", "--gen-print-key").strip()
        self.ceph("osd", "new", name, "-i", "-", stdin=json.dumps({"cephx_secret": secret}))
        own = osd / "keyring"
        run("ceph-authtool", "--create-keyring", own, "-n", "osd.0", "--add-key", secret)
        self.ceph("osd", "crush", "add", "osd.0", "1.0", "host=lab", "root=default")
        start = ("ceph-osd", "-c", self.conf, "-i", "0", "--keyring", own)
        run(*start, "--mkfs", "--osd-uuid", name)
        run(*start)

    def make_pool(self, name: str, groups: int = 8) -> None:
        """Make a pool for images; returns once it has taken a write, and its space is known."""
        self.ceph("osd", "pool", "create", name, str(groups), str(groups), "replicated")
        run("rbd", "-c", self.conf, "pool", "init", name)
        deadline = time.monotonic() + 60
        while not self._is_counted(name):
            assert time.monotonic() < deadline, "the manager tells no statistics"
            time.sleep(0.2)

    def _is_counted(self, name: str) -> bool:
        pools = json.loads(self.ceph("df", "--format", "json"))["pools"]
        return any(pool["name"] == name and pool["stats"]["max_avail"] for pool in pools)

    def ceph(self, *words: str, stdin: str = "") -> str:
        """Run the command ``ceph``."""
        return run("ceph", "-c", self.conf, "--connect-timeout", "30", *words, stdin=stdin)

    def rbd(self, *words: str) -> str:
        """Run the command ``rbd``."""
        return run("rbd", "-c", self.conf, *words)

    def pid(self, daemon: str) -> int:
        """Return the process of a daemon: ``mon.a``, ``mgr.x`` or ``osd.0``."""
        return int((self.folder / "run" / f"{daemon}.pid").read_text())

    def stop(self) -> None:
        """Stop it, and remove its folder."""
        for daemon in ("osd.0", "mgr.x", "mon.a"):
            with contextlib.suppress(OSError, ValueError):
                os.kill(self.pid(daemon), signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)


def free_port() -> int:
    """Return a port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run(*argv: str | Path, stdin: str = "") -> str:
    """Run a command; returns its output."""
    done = subprocess.run(  # noqa: PLW1510 - the assertion says more
        [str(word) for word in argv], input=stdin, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, f"{argv[0]}: {done.stderr[-2000:]}"
    return done.stdout


def main() -> None:
    cluster = Cluster(Path(sys.argv[1]))
    before = time.monotonic()
    try:
        cluster.start()
        print(f"up after {time.monotonic() - before:.1f} s", flush=True)
        sys.stdin.read()
    finally:
        cluster.stop()


if __name__ == "__main__":
    main()
