"""Words on the kernel command line that make clones somebody: small guests on a real libvirtd."""

import json
import re
import shutil
import socket
import subprocess

import pytest

from tests.e2e.conftest import make_site

pytestmark = [pytest.mark.libvirt, pytest.mark.timeout(900)]

TEMPLATE = """
extends = "tiny"
ready = 'console:vmcloner-ready name={{{{ name }}}}-own '
[kernel]
path = "vmlinuz"
initrd = "initrd.img"
cmdline = "console=ttyS0 quiet panic=-1 mitigations=off nokaslr tsc=reliable no_timer_check lpj=4000000"
[[nics]]
kind = "network"
source = "{network}"
[identity]
provider = "kernel-args"
hostname = "{{{{ name }}}}-own"
authorized_keys = []
addresses = ["{prefix}.{{{{ 10 + index }}}}/24"]
gateway = "{prefix}.1"
kernel_args = "hostname={{{{ hostname }}}} ip={{{{ address.split('/')[0] }}}}::{{{{ gateway }}}}:255.255.255.0:{{{{ hostname }}}}:eth0:off"
"""  # noqa: E501 - as long as they are


def test_kernel_arguments_name_guests_and_give_them_addresses():
    site = make_site("qemu:///system")
    network, fleet = f"{site.prefix}k", site.fleet("args")
    words = ("network", "--name", network)
    try:
        made = json.loads(site.run("host", "prepare", *words, "-f", "json"))
        prefix = made["address"].rpartition(".")[0]
        text = TEMPLATE.format(network=network, prefix=prefix)
        (site.folder / "templates" / "args.toml").write_text(text)
        create = ("create", fleet, "-t", "args", "-n", "2", "--start", "--wait")
        site.run(*create, "--timeout", "600", timeout=800)
        rows = site.rows(fleet)
        assert [row["ip"] for row in rows] == [f"{prefix}.11", f"{prefix}.12"]
        for row in rows:
            # Somebody is there, with nothing to offer, and it is this clone.
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((row["ip"], 7), timeout=60)
            show = ["ip", "-j", "neigh", "show", row["ip"]]
            seen = json.loads(subprocess.check_output(show))
            assert [entry["lladdr"] for entry in seen] == [row["mac"]]
            log = site.run("console", str(row["name"]), "--log")
            assert re.findall(r"vmcloner-ready name=(\S+)", log) == [f"{row['name']}-own"]
        assert "2 clones are on it" in site.run("host", "remove", *words, code=6)
        site.run("delete", fleet, "--yes")
        site.run("host", "remove", *words)
        assert json.loads(site.run("host", "remove", *words, "-f", "json"))["steps"] == []
        listed = ["virsh", "-q", "-c", "qemu:///system", "net-list", "--all", "--name"]
        assert network not in subprocess.check_output(listed, text=True).split()
        assert site.remains() == []
    finally:
        site.run("delete", fleet, "--yes", "--missing-ok")
        site.run("host", "remove", *words)
        shutil.rmtree(site.folder)
