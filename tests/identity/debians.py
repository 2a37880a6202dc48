"""Debians that are built here, cloned on a network of the tests' own, and how to talk to them."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import attrs

from tests.e2e.conftest import Site, make_site

TEMPLATE = """
extends = "debian-12-built"
[kernel]
cmdline = "{arguments}"
[[nics]]
kind = "network"
source = "{network}"
[ssh]
key = "{folder}/key"
[identity]
authorized_keys = ["{folder}/key.pub"]
gateway = "{prefix}.1"
nameservers = ["{prefix}.1"]
"""
# Mitigations are dear where processors are emulated.
ARGUMENTS = (
    "root=LABEL=root rw console=hvc0 console=ttyS0,115200 net.ifnames=0 quiet no_timer_check"
    " mitigations=off"
)


@attrs.frozen
class Debians:
    """A site with the template ``deb``, and the first three bytes of its network's addresses."""

    site: Site
    prefix: str

    def ssh(self, row: dict[str, object], command: str) -> str:
        """Run a command in a guest that is who its ``known_hosts`` says, or fail."""
        home = self.site.folder / "state" / "identity" / str(row["name"])
        options = {
            "HostKeyAlias": row["name"],
            "UserKnownHostsFile": home / "known_hosts",
            "GlobalKnownHostsFile": "/dev/null",
            "StrictHostKeyChecking": "yes",
            "BatchMode": "yes",
            "ConnectTimeout": "60",
        }
        words = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
        argv = ["ssh", "-F", "none", "-i", str(self.site.folder / "key"), *words]
        argv += [f"root@{row['ip']}", command]
        done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def assert_pongs(self, fleet: str, count: int) -> None:
        """Have Ansible, which has our inventory of them, ping that many clones."""
        hosts = self.site.folder / "hosts.yml"
        hosts.write_text(self.site.run("inventory", fleet))
        ansible = str(Path(sys.executable).with_name("ansible"))
        argv = [ansible, "-i", str(hosts), "all", "-m", "ping"]
        environment = {
            **os.environ,
            "ANSIBLE_PYTHON_INTERPRETER": "/usr/bin/python3",
            "ANSIBLE_TIMEOUT": "120",
            "ANSIBLE_HOME": str(self.site.folder / "ansible"),
        }
        done = subprocess.run(
            argv, env=environment, check=False, capture_output=True, text=True, timeout=1200
        )
        assert done.stdout.count('"ping": "pong"') == count, done.stdout + done.stderr


@contextlib.contextmanager
def debians(arguments: str = "") -> Iterator[Debians]:
    """Have the site, and see that nothing is left of the clones that were on it.

    :param arguments: for the kernel, beside the usual ones.
    """
    site = make_site("qemu:///system")
    network = ("--name", f"{site.prefix}n")
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, site.folder)
        stack.callback(site.run, "host", "remove", "network", *network)
        stack.callback(_delete_all, site)
        key = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(site.folder / "key")]
        subprocess.run(key, check=True)
        prepare = ("host", "prepare", "network", *network, "--count", "40", "-f", "json")
        prefix = json.loads(site.run(*prepare))["address"].rpartition(".")[0]
        text = TEMPLATE.format(
            arguments=f"{ARGUMENTS} {arguments}".strip(),
            network=network[1],
            folder=site.folder,
            prefix=prefix,
        )
        (site.folder / "templates" / "deb.toml").write_text(text)
        yield Debians(site, prefix)
        _delete_all(site)
        assert site.remains() == []
        assert list((site.folder / "state" / "identity").iterdir()) == []


def _delete_all(site: Site) -> None:
    for fleet in {str(row["fleet"]) for row in site.rows()}:
        site.run("delete", fleet, "--yes", "--missing-ok", timeout=600)
