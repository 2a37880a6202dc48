"""Twenty Debians that are built here, alive at once: each is somebody, and can be reached."""

import json

import pytest

from tests.identity.debians import debians
from vmcloner_core.audit import FACTS

pytestmark = [
    pytest.mark.libvirt,
    pytest.mark.guests,
    pytest.mark.slow,
    pytest.mark.timeout(5400),
]

COUNT = 20
AT_ONCE = 5
"""How many boot at once: emulated on few processors, more would run into systemd's limits."""
# What isn't needed here and takes an emulated processor long.
ARGUMENTS = (
    "systemd.default_timeout_start_sec=900 systemd.mask=getty@tty1.service"
    " systemd.mask=cloud-config.service systemd.mask=cloud-final.service"
)


def test_twenty_are_twenty():
    with debians(ARGUMENTS) as made:
        site = made.site
        fleet = site.fleet("id")
        for count in range(AT_ONCE, COUNT + 1, AT_ONCE):
            create = ("create", fleet, "-t", "deb", "-n", str(count))
            wait = ("--start", "--wait", "--for", "ssh", "--timeout", "1800")
            site.run(*create, *wait, timeout=2000)
        rows = site.rows(fleet)
        names = [str(row["name"]) for row in rows]
        assert [made.ssh(row, "uname -n").strip() for row in rows] == names

        verdicts = json.loads(site.run("audit", fleet, "-f", "json", timeout=900))
        found = {row["fact"]: (row["read"], row["distinct"]) for row in verdicts}
        assert found == dict.fromkeys(FACTS, (COUNT, COUNT))
        made.assert_pongs(fleet, COUNT)

        machine = made.ssh(rows[2], "cat /etc/machine-id").strip()
        made.ssh(rows[6], f"echo {machine} > /etc/machine-id")
        said = site.run("audit", fleet, code=10, timeout=900)
        assert "2 of 20 clones" in said
