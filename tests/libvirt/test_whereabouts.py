"""Where guests are: what is taken of what hosts and agents say."""

import threading
import time
from types import SimpleNamespace

import attrs
import pytest

libvirt = pytest.importorskip("libvirt")

from vmcloner_core.errors import WrongState  # noqa: E402
from vmcloner_libvirt import machines, whereabouts  # noqa: E402
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


def test_who_is_asked_for_is_looked_up_alone(monkeypatch):
    """Each of many forks asks for itself, again and again: all domains each time would be many."""
    root = CARDS.replace("NAME", whereabouts.CHANNEL)
    there = {
        "web-1": SimpleNamespace(
            name=lambda: "web-1", XMLDesc=lambda _flags: root.replace("STATE", "connected")
        ),
        "web-2": SimpleNamespace(name=lambda: "web-2", XMLDesc=lambda _flags: root),
    }
    monkeypatch.setattr(whereabouts, "lookup", lambda _connection, name: there.get(name))
    labels = SimpleNamespace(clone=None)
    monkeypatch.setattr(whereabouts, "labels_in", lambda _root: labels)
    agents = whereabouts.GuestAgents(SimpleNamespace(ask=lambda operation: operation(None)))
    assert agents.reported(["web-1"]) == frozenset()  # it is somebody else's
    for name in there:
        labels.clone = name
        assert agents.reported([name, "web-3"]) == ({"web-1"} & {name})


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


class Guest:
    """A domain whose agent sets the clock, as libvirt shows it: or says that it can't."""

    def __init__(self, *failures: str) -> None:
        self.failures, self.calls = list(failures), []

    def agentSetResponseTimeout(self, seconds, _flags):  # noqa: N802 - libvirt's
        assert seconds == whereabouts.AGENT_TIMEOUT

    def setTime(self, time, flags):  # noqa: N802
        self.calls.append((time, flags))
        if self.failures:
            error = libvirt.libvirtError("no")
            error.err = (getattr(libvirt, self.failures.pop(0)), 0, "no", 2, "", "", "", 0, 0)
            raise error

    def lookupByName(self, _name):  # noqa: N802 - it is its own connection
        return self


def test_a_clock_is_set_to_the_hardware_clock_or_to_the_hosts():
    guest = Guest()
    assert whereabouts.set_clock(guest, "web-1")
    assert guest.calls == [(None, libvirt.VIR_DOMAIN_TIME_SYNC)]
    guest = Guest("VIR_ERR_INTERNAL_ERROR")  # no /sbin/hwclock in the guest
    before = time.time()
    assert whereabouts.set_clock(guest, "web-1")
    given, flags = guest.calls[-1]
    assert (flags, before - 1 < given["seconds"] <= time.time()) == (0, True)
    assert not whereabouts.set_clock(Guest(*["VIR_ERR_AGENT_UNRESPONSIVE"] * 2), "web-1")


def test_clocks_are_set_where_there_is_an_agent_and_tried_again(monkeypatch):
    domains = [attrs.evolve(DOMAIN, name=f"web-{n}", channel=n < 3) for n in (1, 2, 3)]
    tried = []

    def set_clock(_connection, name):
        tried.append(name)
        return name == "web-1" or tried.count(name) > 1

    def located(_connection, names):  # others than these aren't looked at: they may be many
        return tuple(domain for domain in domains if domain.name in names)

    monkeypatch.setattr(whereabouts, "located", located)
    monkeypatch.setattr(whereabouts, "set_clock", set_clock)
    monkeypatch.setattr(whereabouts, "CLOCK_PAUSE", 0.0)
    connections = SimpleNamespace(
        ask=lambda call: call(None), call=lambda call, **_about: call(None)
    )
    whereabouts.GuestAgents(connections).set_clocks(["web-1", "web-2", "web-3"])
    assert sorted(tried) == ["web-1", "web-2", "web-2"]


class Agent(Connection):
    """A guest that has much to write: its agent takes that long to freeze or to thaw."""

    def __init__(self, seconds, fails=False):
        super().__init__(None)
        self.seconds, self.timeout, self.fails = seconds, 5, fails
        self.frozen = self.paused = False

    def agentSetResponseTimeout(self, seconds, _flags):  # noqa: N802
        self.timeout = seconds

    def _in_time(self):
        if self.seconds > self.timeout:
            raise libvirt.libvirtError("guest agent is not responding")

    def fsFreeze(self):  # noqa: N802
        if self.frozen:
            raise libvirt.libvirtError("command guest-fsfreeze-freeze has been disabled")
        self.frozen = True  # some of its file systems
        self._in_time()
        if self.fails:
            raise libvirt.libvirtError("failed to freeze /srv")

    def fsThaw(self):  # noqa: N802
        self._in_time()
        self.frozen = False

    def suspend(self):
        self.paused = True

    def resume(self):
        self.paused = False

    def isActive(self):  # noqa: N802
        return True

    def state(self):
        if self.paused:
            return [libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_USER]
        return [libvirt.VIR_DOMAIN_RUNNING, 0]


@pytest.mark.parametrize("left", [False, True])
def test_a_guest_has_time_to_write_before_its_disks_are_frozen(left, monkeypatch):
    monkeypatch.setattr(machines.operations, "find", lambda connection, _name: connection)
    for stop, go_on in (
        (machines.quiesce, machines.release),
        (whereabouts.freeze, whereabouts.thaw),
    ):
        guest = Agent(seconds=30)
        guest.frozen = left  # by a command that was killed
        stop(guest, "web-1")
        assert guest.frozen
        assert guest.paused is (stop is machines.quiesce)
        go_on(guest, "web-1")
        assert not guest.frozen
        assert not guest.paused


@pytest.mark.parametrize("stop", [machines.quiesce, whereabouts.freeze])
def test_what_could_not_be_frozen_as_a_whole_is_thawed(stop):
    guest = Agent(seconds=30, fails=True)
    with pytest.raises(WrongState, match="froze its disks: failed to freeze /srv"):
        stop(guest, "web-1")
    assert not guest.frozen
    assert not guest.paused
