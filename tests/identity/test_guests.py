"""Two clones of a Debian that is built here, on the real libvirtd: two different machines."""

import json
import shutil

import attrs
import pytest

from tests.identity.debians import Debians, debians
from vmcloner_core.audit import FACTS

pytestmark = [pytest.mark.libvirt, pytest.mark.timeout(1800)]

TEMPLATE = """
extends = "deb"
[identity]
user_data = "user-data.j2"
[values]
role = "replica"
"""
OWN_KERNEL = """
extends = "role"
boot = "pygrub"
[kernel]
cmdline = "quiet no_timer_check mitigations=off by=pygrub"
"""
USER_DATA = """#cloud-config
write_files:
- path: /etc/role
  content: "{{ name }} is {{ role }}: it's \\"quoted\\"\\n"
"""


@attrs.frozen
class Guests(Debians):
    """Two clones that run, the first with an address by DHCP."""

    rows: list[dict[str, object]]


@pytest.fixture(scope="module")
def guests():
    with debians() as made:
        site, prefix = made.site, made.prefix
        for name, text in {"role": TEMPLATE, "own-kernel": OWN_KERNEL}.items():
            (site.folder / "templates" / f"{name}.toml").write_text(text)
        (site.folder / "templates" / "user-data.j2").write_text(USER_DATA)
        values = site.folder / "values.csv"
        values.write_text(f"clone,role,memory,address\n2,primary,320MiB,{prefix}.200/24\n")
        fleet = site.fleet("id")
        create = ["create", fleet, "-t", "role", "-n", "2", "--values", str(values)]
        site.run(*create, "--start", "--wait", "--timeout", "900", timeout=1700)
        yield Guests(site, prefix, site.rows(fleet))


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
    """The first one by DHCP, the second one its own."""
    first, second = (str(row["ip"]) for row in guests.rows)
    assert first.startswith(f"{guests.prefix}.")
    assert second == f"{guests.prefix}.200"
    assert first != second
    for row, dynamic in zip(guests.rows, (True, False), strict=True):
        shown = guests.ssh(row, "ip -4 addr show dev eth0; ip route")
        assert f"inet {row['ip']}/24 " in shown
        assert (" dynamic " in shown) == dynamic
        assert f"default via {guests.prefix}.1 dev eth0" in shown


def test_a_value_of_one_clone_is_its_own(guests):
    total = [
        int(guests.ssh(row, "awk '/MemTotal/ {print $2}' /proc/meminfo")) for row in guests.rows
    ]
    assert total[1] - total[0] > 48 * 1024


def test_more_than_the_network_has_addresses_for_is_refused(guests):
    said = guests.site.run("create", guests.site.fleet("many"), "-t", "deb", "-n", "300", code=7)
    assert "addresses for DHCP" in said
    assert "would fit" in said


def test_each_is_reached_by_command(guests):
    """By ssh without a question, many at once, and by Ansible; the guest agent reports too."""
    site, fleet = guests.site, guests.site.fleet("id")
    site.run("wait", fleet, "--for", "agent", "--timeout", "600", timeout=700)
    assert site.run("ssh", f"{fleet}-1", "--", "uname", "-n") == f"{fleet}-1\n"
    said = json.loads(site.run("exec", fleet, "-f", "json", "--", "uname -n; exit 0"))
    assert [row["stdout"] for row in said] == [f"{fleet}-1\n", f"{fleet}-2\n"]
    guests.assert_pongs(fleet, 2)


def test_an_audit_finds_what_two_share_and_a_reset_mends_it(guests):
    site, fleet = guests.site, guests.site.fleet("id")
    verdicts = json.loads(site.run("audit", fleet, "-f", "json"))
    found = {row["fact"]: (row["read"], row["distinct"]) for row in verdicts}
    seeds = found["random_seed"]  # a distribution's init may store none
    assert seeds in {(2, 2), (0, 0)}
    expected = dict.fromkeys(FACTS, (2, 2)) | {"client_id": (1, 1), "random_seed": seeds}
    assert found == expected
    machine = guests.ssh(guests.rows[0], "cat /etc/machine-id").strip()
    guests.ssh(guests.rows[1], f"echo {machine} > /etc/machine-id; touch /was-here")
    error = site.run("audit", fleet, code=10)
    assert "2 of 2 clones" in error
    site.run("reset", f"{fleet}-2", "--wait", "--timeout", "900", timeout=1000)
    rows = site.rows(fleet)
    assert [row["mac"] for row in rows] == [row["mac"] for row in guests.rows]
    site.run("audit", fleet)
    guests.ssh(rows[1], "test ! -e /was-here")


@pytest.mark.slow
@pytest.mark.timeout(5400)
def test_the_kernel_on_its_own_disk_boots_with_words_added(guests):
    """And who lost its identity is made somebody again, whom it takes for a new start."""
    site, fleet = guests.site, guests.site.fleet("own")
    create = ("create", fleet, "-t", "own-kernel", "-n", "1")
    wait = ("--start", "--wait", "--timeout", "900")
    site.run(*create, *wait, timeout=1000)
    [row] = site.rows(fleet)
    cmdline = guests.ssh(row, "cat /proc/cmdline").split()
    assert "net.ifnames=0" in cmdline  # said by the disk's menu
    assert cmdline[-1] == "by=pygrub"
    [shown] = json.loads(site.run("boot", "resolve", fleet, "-f", "json"))
    assert shown["source"].startswith("entry 'Debian' of /boot/grub/grub.cfg")
    key = guests.ssh(row, "cat /etc/ssh/ssh_host_ed25519_key.pub")
    site.run("stop", fleet)
    shutil.rmtree(site.folder / "state" / "identity" / f"{fleet}-1")
    site.run(*create, *wait, timeout=1000)
    [again] = site.rows(fleet)
    assert again["mac"] == row["mac"]
    assert guests.ssh(again, "cat /etc/ssh/ssh_host_ed25519_key.pub") != key
    site.run("delete", fleet, "--yes")
