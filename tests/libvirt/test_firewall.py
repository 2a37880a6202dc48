"""Whether a host drops what it forwards: rules as iptables and nft print them."""

import json

import pytest

from vmcloner_core.errors import HostCommandError
from vmcloner_core.process import CommandResult
from vmcloner_libvirt import firewall

DOCKER = """-P INPUT ACCEPT
-P FORWARD DROP
-P OUTPUT ACCEPT
-N DOCKER-USER
-N LIBVIRT_FWO
-N LIBVIRT_FWX
-A FORWARD -j LIBVIRT_FWX
-A FORWARD -j LIBVIRT_FWO
-A FORWARD -j DOCKER-USER
-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
-A LIBVIRT_FWX -i virbr1 -o virbr1 -j ACCEPT
-A LIBVIRT_FWO -s 192.168.122.0/24 -i virbr0 -j ACCEPT
-A UNREACHED -i virbr2 -j ACCEPT
"""


class Runner:
    """Prints what it is given for a program; a program without output fails."""

    def __init__(self, **outputs):
        self.outputs = outputs

    def which(self, program):
        return program if program in self.outputs else None

    def run(self, argv, **_):
        if self.outputs[argv[0]] is None:
            raise HostCommandError("no permission")
        return CommandResult(stdout=self.outputs[argv[0]].encode(), stderr=b"")


def match(key, right, op="=="):
    return {"match": {"op": op, "left": {"meta": {"key": key}}, "right": right}}


def nft(*rules, policy="drop", family="ip", name="FORWARD"):
    chain = {"family": family, "table": "filter", "name": name}
    objects = [{"chain": chain | {"type": "filter", "hook": "forward", "policy": policy}}]
    for where, *expressions in rules:
        rule = {"family": family, "table": "filter", "chain": where, "expr": list(expressions)}
        objects.append({"rule": rule})
    return json.dumps({"nftables": objects})


ACCEPT = {"accept": None}
RULES = nft(
    ("FORWARD", {"jump": {"target": "LIBVIRT_FWO"}}),
    ("FORWARD", {"xt": {"type": "match", "name": "conntrack"}}, ACCEPT),
    ("FORWARD", match("iifname", "docker0"), match("oifname", "docker0", "!="), ACCEPT),
    ("LIBVIRT_FWO", match("iifname", "virbr0"), ACCEPT),
    ("LIBVIRT_FWO", match("iifname", "virbr1"), match("oifname", "virbr1"), ACCEPT),
    ("UNREACHED", match("iifname", "virbr2"), ACCEPT),
)
BRIDGES = ("virbr0", "virbr1", "virbr2", "docker0", "br0")


@pytest.mark.parametrize(
    "runner", [Runner(iptables=DOCKER), Runner(nft=RULES), Runner(nft=None, iptables=DOCKER)]
)
def test_bridges_without_an_accepting_rule_are_cut_off(runner):
    assert firewall.drops(runner)
    assert firewall.dropped(runner, BRIDGES) == ("virbr1", "virbr2", "br0")


@pytest.mark.parametrize(
    "runner",
    [
        Runner(),
        Runner(nft=None, iptables=None),
        Runner(nft="not JSON"),
        Runner(iptables=DOCKER.replace("FORWARD DROP", "FORWARD ACCEPT")),
        Runner(nft=nft(policy="accept")),
        Runner(nft=nft(family="ip6")),
    ],
)
def test_where_nothing_is_dropped_or_known_nothing_is_said(runner):
    assert not firewall.drops(runner)
    assert firewall.dropped(runner, BRIDGES) == ()


@pytest.mark.parametrize(
    ("runner", "bridges"),
    [
        (Runner(iptables=DOCKER + "-A FORWARD -i vir+ -j ACCEPT\n"), ("br0",)),
        (Runner(iptables=DOCKER + "-A DOCKER-USER -j ACCEPT\n"), ()),
        (Runner(nft=nft(("FORWARD", ACCEPT))), ()),
        (Runner(nft=nft(("FORWARD", match("iifname", {"set": ["br0", "virbr1"]}), ACCEPT))),
         ("virbr0", "virbr2", "docker0")),
        (Runner(nft=nft(name="custom", family="inet")), BRIDGES),
    ],
)  # fmt: skip
def test_rules_for_several_bridges(runner, bridges):
    assert firewall.dropped(runner, BRIDGES) == bridges
