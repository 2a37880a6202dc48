"""Where guests are: what is taken of what hosts and agents say."""

import threading

import attrs
import pytest

libvirt = pytest.importorskip("libvirt")

from vmcloner_libvirt import whereabouts  # noqa: E402
from vmcloner_libvirt.metadata import parse  # noqa: E402

MAC = "52:54:00:00:00:01"
DOMAIN = whereabouts.Located(name="web-1", macs=(MAC,), agent=True)
CARDS = f"""
<domain><devices>
  <interface type="user"><mac address="52:54:00:00:00:09"/></interface>
  <interface type="network"><mac address="{MAC.upper()}"/></interface>
  <channel type="unix"><target type="virtio" name="NAME" state="STATE"/></channel>
</devices></domain>
"""


@pytest.mark.parametrize(
    ("name", "state", "agent"),
    [
        ("org.qemu.guest_agent.0", "connected", True),
        ("org.qemu.guest_agent.0", "disconnected", False),
        ("com.redhat.spice.0", "connected", False),
    ],
)
def test_cards_that_others_can_reach_and_an_agent_that_reported(name, state, agent):
    root = parse(CARDS.replace("NAME", name).replace("STATE", state))
    channel = name == whereabouts.CHANNEL
    expected = attrs.evolve(DOMAIN, agent=agent, channel=channel)
    assert whereabouts._located("web-1", root) == expected


def test_leases_come_before_neighbours():
    leases, neighbours = {MAC: ("10.0.0.2",)}, {MAC: ("10.0.0.9", "10.0.0.2")}
    assert whereabouts.known(DOMAIN, [leases, neighbours]) == ("10.0.0.2", "10.0.0.9")
    assert whereabouts.known(DOMAIN, [{}, {}]) == ()


class Connection:
    """One domain, whose agent answers as it is told to."""

    def __init__(self, answer):
        self.answer = answer

    def lookupByName(self, _name):  # noqa: N802
        return self

    def agentSetResponseTimeout(self, seconds, _flags):  # noqa: N802
        assert seconds > 0

    def interfaceAddresses(self, source, _flags):  # noqa: N802
        assert source == libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_AGENT
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def test_an_agents_word_counts_for_the_guests_own_cards_only():
    answer = {
        "lo": {"hwaddr": "00:00:00:00:00:00", "addrs": [{"addr": "127.0.0.1"}]},
        "eth0": {
            "hwaddr": MAC,
            "addrs": [{"addr": "fe80::1"}, {"addr": "10.0.0.7"}, {"addr": "nonsense; rm"}, {}],
        },
        "eth1": {"hwaddr": "52:54:00:ff:ff:ff", "addrs": [{"addr": "10.0.0.1"}]},
        "eth2": {"hwaddr": MAC, "addrs": None},
    }
    assert whereabouts.told(Connection(answer), DOMAIN) == ("10.0.0.7",)


def test_an_agent_that_is_silent_or_says_too_much():
    assert whereabouts.told(Connection(libvirt.libvirtError("no answer")), DOMAIN) == ()
    many = {"eth0": {"hwaddr": MAC, "addrs": [{"addr": f"10.0.{n}.1"} for n in range(200)]}}
    assert len(whereabouts.told(Connection(many), DOMAIN)) == whereabouts.MAX_ADDRESSES


def test_silent_agents_are_waited_for_together(paper, monkeypatch):
    guests = [
        attrs.evolve(DOMAIN, name=f"web-{n}", macs=(f"52:54:00:00:01:{n:02x}",)) for n in range(6)
    ]
    all_at_once = threading.Barrier(len(guests))

    def told(_connection, domain):
        all_at_once.wait(10)
        return ("10.0.0.5",) if domain.name == "web-3" else ()

    monkeypatch.setattr(whereabouts, "running", lambda _connection: guests)
    monkeypatch.setattr(whereabouts, "told", told)
    assert paper.addresses() == {"web-3": ("10.0.0.5",)}
