"""Two clones of a Debian that is built here, on the real libvirtd: two different machines."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import attrs
import pytest

from tests.e2e.conftest import Site, make_site
from vmcloner_core.audit import FACTS

pytestmark = [pytest.mark.libvirt, pytest.mark.timeout(1800)]

TEMPLATE = """
extends = "debian-12-built"
[[nics]]
kind = "network"
source = "{network}"
[ssh]
key = "{folder}/key"
[identity]
authorized_keys = ["{folder}/key.pub"]
user_data = "{folder}/user-data.j2"
[values]
role = "replica"
"""
USER_DATA = """#cloud-config
write_files:
- path: /etc/role
  content: "{{ name }} is {{ role }}: it's \\"quoted\\"\\n"
"""


@attrs.frozen
class Guests:
    """Two clones that run, and how to talk to them."""

    site: Site
    rows: list[dict[str, object]]

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


@pytest.fixture(scope="module")
def guests():
    site = make_site("qemu:///system")
    key = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(site.folder / "key")]
    subprocess.run(key, check=True)
    network, fleet = f"{site.prefix}n", site.fleet("id")
    (site.folder / "templates" / "deb.toml").write_text(
        TEMPLATE.format(network=network, folder=site.folder)
    )
    (site.folder / "user-data.j2").write_text(USER_DATA)
    (site.folder / "values.csv").write_text("clone,role,memory\n2,primary,320MiB\n")
    site.run("host", "prepare", "network", "--name", network, "--count", "20")
    try:
        create = ["create", fleet, "-t", "deb", "-c", "2", "--values", f"{site.folder}/values.csv"]
        site.run(*create, "--start", "--wait", "--timeout", "900", timeout=1700)
        yield Guests(site, site.rows(fleet))
        site.run("delete", fleet, "--yes")
        assert site.remains() == []
        assert list((site.folder / "state" / "identity").iterdir()) == []
    finally:
        site.run("delete", fleet, "--yes")
        for command in ("net-destroy", "net-undefine"):
            subprocess.run(["virsh", "-q", "-c", "qemu:///system", command, network], check=True)
        shutil.rmtree(site.folder)


def test_each_is_who_it_was_planned_to_be(guests):
    said = "hostname; cat /etc/machine-id /sys/class/net/eth0/address; cat /etc/role"
    machines = []
    for row in guests.rows:
        name, machine, mac, role = guests.ssh(row, said).splitlines()
        shown = json.loads(guests.site.run("show", name, "-f", "json"))
        assert (name, mac) == (row["name"], row["mac"])
        assert machine == shown["uuid"].replace("-", "")
        kind = "primary" if name.endswith("-2") else "replica"
        assert role == f'{name} is {kind}: it\'s "quoted"'
        machines.append(machine)
    assert len(set(machines)) == 2


def test_each_has_its_own_host_key_and_no_other(guests):
    keys = [guests.ssh(row, "cat /etc/ssh/ssh_host_*_key.pub").split() for row in guests.rows]
    assert [key[0] for key in keys] == ["ssh-ed25519"] * 2
    assert all(len(key) <= 3 for key in keys)
    assert keys[0][1] != keys[1][1]


def test_each_has_an_address_of_the_network(guests):
    addresses = [str(row["ip"]) for row in guests.rows]
    assert len(set(addresses)) == 2
    for row in guests.rows:
        assert f"inet {row['ip']}/" in guests.ssh(row, "ip -4 addr show dev eth0")


def test_a_value_of_one_clone_is_its_own(guests):
    total = [
        int(guests.ssh(row, "awk '/MemTotal/ {print $2}' /proc/meminfo")) for row in guests.rows
    ]
    assert total[1] - total[0] > 48 * 1024


def test_more_than_the_network_has_addresses_for_is_refused(guests):
    said = guests.site.run("create", guests.site.fleet("many"), "-t", "deb", "-c", "300", code=7)
    assert "addresses for DHCP" in said
    assert "would fit" in said


def test_each_is_reached_by_command(guests):
    """By ssh without a question, many at once, and by Ansible; the guest agent reports too."""
    site, fleet = guests.site, guests.site.fleet("id")
    site.run("wait", fleet, "--for", "agent", "--timeout", "600", timeout=700)
    assert site.run("ssh", f"{fleet}-1", "--", "uname", "-n") == f"{fleet}-1\n"
    said = json.loads(site.run("exec", fleet, "-f", "json", "--", "uname -n; exit 0"))
    assert [row["stdout"] for row in said] == [f"{fleet}-1\n", f"{fleet}-2\n"]
    hosts = site.folder / "hosts.yml"
    hosts.write_text(site.run("inventory", fleet))
    ansible = str(Path(sys.executable).with_name("ansible"))
    argv = [ansible, "-i", str(hosts), "all", "-m", "ping"]
    environment = {
        **os.environ,
        "ANSIBLE_PYTHON_INTERPRETER": "/usr/bin/python3",
        "ANSIBLE_TIMEOUT": "60",
        "ANSIBLE_HOME": str(site.folder / "ansible"),
    }
    done = subprocess.run(
        argv, env=environment, check=False, capture_output=True, text=True, timeout=600
    )
    assert done.stdout.count('"ping": "pong"') == 2, done.stdout + done.stderr


def test_an_audit_finds_what_two_share_and_a_reset_mends_it(guests):
    site, fleet = guests.site, guests.site.fleet("id")
    verdicts = json.loads(site.run("audit", fleet, "-f", "json"))
    found = {row["fact"]: (row["read"], row["distinct"]) for row in verdicts}
    assert found == dict.fromkeys(FACTS, (2, 2))
    machine = guests.ssh(guests.rows[0], "cat /etc/machine-id").strip()
    guests.ssh(guests.rows[1], f"echo {machine} > /etc/machine-id; touch /was-here")
    error = site.run("audit", fleet, code=10)
    assert "2 of 2 clones" in error
    site.run("reset", f"{fleet}-2", "--wait", "--timeout", "900", timeout=1000)
    rows = site.rows(fleet)
    assert [row["mac"] for row in rows] == [row["mac"] for row in guests.rows]
    site.run("audit", fleet)
    guests.ssh(rows[1], "test ! -e /was-here")
