"""Forks of a Debian that is built here: one boot, then machines of their own, in both ways."""

import json

import pytest

from tests.identity.debians import debians
from vmcloner_core.audit import FACTS, SCRIPT

pytestmark = [
    pytest.mark.libvirt,
    pytest.mark.guests,
    pytest.mark.slow,
    pytest.mark.timeout(5400),
]

TEMPLATE = """
extends = "deb"
ready = "{ready}"
[domain]
agent = {agent}
"""
WAIT = ("--start", "--wait", "--timeout", "1800")
LONG = ("--timeout", "600")
SAYS = (
    "uname -n; cat /sys/class/net/eth0/address; head -c 16 /dev/urandom | md5sum | cut -c 1-32;"
    " systemctl is-system-running; exit 0"
)
PERSON = ("hostname", "machine_id", "host_key", "mac", "address", "client_id", "uuid")


@pytest.fixture(scope="module")
def made():
    with debians() as made:
        for name, agent, ready in (("asked", "true", "ssh"), ("alone", "false", "cloud-init")):
            text = TEMPLATE.format(agent=agent, ready=ready)
            (made.site.folder / "templates" / f"{name}.toml").write_text(text)
        yield made


@pytest.mark.parametrize(("template", "count"), [("asked", 20), ("alone", 3)])
def test_forks_are_as_many_machines(made, template, count):
    """By an agent, and by the unit in the image; and a boot changes nobody."""
    site, fleet = made.site, made.site.fleet(template)
    site.run("template", "warm", template, timeout=2000)
    site.run("create", fleet, "-t", template, "-n", str(count), "--warm", *WAIT, timeout=2000)
    rows = site.rows(fleet)
    assert len({row["mac"] for row in rows}) == count
    verdicts = json.loads(site.run("audit", fleet, *LONG, "-f", "json", timeout=1800))
    found = {row["fact"]: (row["read"], row["distinct"]) for row in verdicts}
    assert found == dict.fromkeys(FACTS, (count, count))
    argv = ("exec", fleet, *LONG, "-f", "json", "--", SAYS)
    said = json.loads(site.run(*argv, timeout=1800))
    names = [str(row["name"]) for row in rows]
    told = [row["stdout"].split() for row in said]
    assert [each[0] for each in told] == names
    assert [each[1] for each in told] == [row["mac"] for row in rows]
    assert len({each[2] for each in told}) == count, "forks have drawn the same random number"
    assert {each[3] for each in told} == {"running"}, "a unit of the parent or a fork has failed"
    made.assert_pongs(fleet, count)

    first, last = rows[0], rows[-1]
    before = facts(made, first)
    site.run("stop", names[0], names[-1], timeout=600)
    site.run("start", names[0], names[-1], "--wait", "--timeout", "1800", timeout=2000)
    after = {str(row["name"]): row for row in site.rows(fleet)}
    assert [after[str(row["name"])]["ip"] for row in (first, last)] == [first["ip"], last["ip"]]
    assert facts(made, first) == before
    site.run("audit", fleet, *LONG, timeout=1800)
    site.run("delete", fleet, "--yes", timeout=600)


def facts(made, row):
    """Return what a guest is known by, as an audit reads it."""
    said = made.ssh(row, SCRIPT).splitlines()
    told = [line.split(maxsplit=2)[1:] for line in said if line.startswith("vmcloner-fact ")]
    return [fact for fact in told if fact[0] in PERSON]
