"""Networks of our own, and their ranges, on libvirt's test driver."""

import ipaddress
import json

import attrs
import pytest

libvirt = pytest.importorskip("libvirt")

from vmcloner_core.errors import Conflict, NotEnoughResources, WrongState  # noqa: E402
from vmcloner_core.model import NetworkRequest  # noqa: E402
from vmcloner_core.process import CommandResult  # noqa: E402
from vmcloner_libvirt import networks  # noqa: E402

ROUTES = [{"dst": "default"}, {"dst": "192.168.150.0/24"}, {"dst": "10.100.0.0/16"}]


@attrs.frozen
class Runner:
    """Answers ``ip`` as a host with :data:`ROUTES` does."""

    neighbours: tuple[dict[str, object], ...] = ()

    def run(self, argv, **_):
        assert argv[0] == "ip"
        answer = ROUTES if "route" in argv else self.neighbours
        return CommandResult(stdout=json.dumps(answer).encode(), stderr=b"")

    def which(self, program):
        return f"/sbin/{program}"


@pytest.fixture
def connection():
    with_networks = libvirt.open("test:///default")
    yield with_networks
    for network in with_networks.listAllNetworks():
        if network.name() != "default":
            if network.isActive():
                network.destroy()
            network.undefine()


def prepared(connection, **request):
    return networks.prepare(connection, Runner(), NetworkRequest(**request))


def test_a_network_is_made_once(connection):
    first = prepared(connection)
    assert first.steps == ("define", "start")
    assert first.network.addresses == 253
    again = prepared(connection)
    assert again.steps == ()
    assert again.network == first.network
    named = {network.name: network for network in networks.networks(connection)}
    found = named["vmcloner"]
    assert (found.active, found.ours, found.addresses) == (True, True, 253)
    assert named["default"].bridge == "virbr0"


def test_a_network_keeps_the_lab_that_it_was_made_for(connection):
    prepared(connection, name="shop", count=10, lab="shop")
    prepared(connection)

    def labs():
        return {n.name: n.lab for n in networks.networks(connection)}

    assert labs() == {"default": None, "shop": "shop", "vmcloner": None}
    prepared(connection, name="shop", count=1000)
    prepared(connection, name="vmcloner", count=1000, lab="other")
    assert labs() == {"default": None, "shop": "shop", "vmcloner": None}


def test_what_a_killed_run_left_is_started(connection):
    prepared(connection)
    connection.networkLookupByName("vmcloner").destroy()
    assert prepared(connection).steps == ("start",)
    assert connection.networkLookupByName("vmcloner").isActive()


def test_a_dry_run_changes_nothing(connection):
    assert prepared(connection, dry_run=True).steps == ("define", "start")
    assert [n.name() for n in connection.listAllNetworks()] == ["default"]


def test_a_larger_range_while_nobody_is_on_it(connection):
    prepared(connection, count=10)
    before = connection.networkLookupByName("vmcloner").UUIDString()
    change = prepared(connection, count=1000)
    assert change.steps == ("redefine", "start")
    assert change.network.addresses == 1021
    after = connection.networkLookupByName("vmcloner")
    assert (after.UUIDString(), after.isActive()) == (before, True)


def test_names_are_resolved_on_a_network_of_an_earlier_version_too(connection):
    old = networks.document("vmcloner", networks.Subnet("10.200.0.0/24"))
    root = networks.parse(old)
    root.remove(root.find("domain"))
    text = networks.etree.tostring(root, encoding="unicode")
    connection.networkDefineXML(text).create()
    assert prepared(connection).steps == ("redefine", "start")
    found = networks.parse(connection.networkLookupByName("vmcloner").XMLDesc(0))
    assert found.find("domain").attrib == {"name": "internal", "localOnly": "yes"}
    assert found.find("ip").get("address") == "10.200.0.1", "the same subnet"
    assert prepared(connection).steps == ()


def test_a_network_with_guests_keeps_running_without_names(connection, monkeypatch):
    root = networks.parse(networks.document("vmcloner", networks.Subnet("10.200.0.0/24")))
    root.remove(root.find("domain"))
    connection.networkDefineXML(networks.etree.tostring(root, encoding="unicode")).create()
    monkeypatch.setattr(networks, "_users", lambda _network: 1)
    assert prepared(connection).steps == ()


def test_what_is_not_ours_is_left(connection):
    before = connection.networkLookupByName("default").XMLDesc(0)
    with pytest.raises(Conflict, match="isn't vmcloner's"):
        prepared(connection, name="default")
    assert connection.networkLookupByName("default").XMLDesc(0) == before


def test_a_subnet_in_use_is_not_taken(connection):
    change = prepared(connection)
    assert change.network.address == "192.168.151.1/24"  # 150 is routed
    large = prepared(connection, name="large", count=5000)
    assert large.network.address == "10.101.0.1/19"
    with pytest.raises(Conflict, match=r"192\.168\.150\.0/24"):
        prepared(connection, name="third", subnet="192.168.150.128/25", count=9)
    with pytest.raises(Conflict, match="overlaps"):  # with the test driver's own network
        prepared(connection, name="third", subnet="192.168.122.0/24")


@pytest.mark.parametrize(
    "asked",
    [
        {"count": 70000},
        {"subnet": "172.20.0.0/28", "count": 14},
        {"subnet": "172.20.0.0/31", "count": 1},
    ],
)
def test_more_than_fit_is_refused_with_the_number_that_does(connection, asked):
    with pytest.raises(NotEnoughResources, match="fit in"):
        prepared(connection, **asked)
    assert [n.name() for n in connection.listAllNetworks()] == ["default"]


def test_a_range_is_not_changed_under_guests(connection, monkeypatch):
    prepared(connection)
    held = connection.networkLookupByName("vmcloner")
    # The test driver keeps no ports; a host does, one for each card of a guest that runs.
    monkeypatch.setattr(type(held), "listAllPorts", lambda _self: [object()] * 3)
    with pytest.raises(WrongState, match="3 guests are on it"):
        prepared(connection, count=1000)


@pytest.mark.parametrize("prefix", [8, 16, 24, 29])
def test_all_addresses_but_the_hosts_and_the_ends_are_given_out(prefix):
    subnet = ipaddress.IPv4Network(f"10.0.0.0/{prefix}")
    root = networks.parse(networks.document("n", subnet))
    given = root.find("ip/dhcp/range")
    first, last = (ipaddress.IPv4Address(given.get(key)) for key in ("start", "end"))
    assert first in subnet
    assert last in subnet
    # libvirt refuses larger ranges than of 65535 addresses.
    assert int(last) - int(first) + 1 == min(2 ** (32 - prefix) - 3, 65535)
    assert str(ipaddress.IPv4Address(root.find("ip").get("address"))) not in (str(first), str(last))


def test_neighbours_that_answered_count():
    runner = Runner(
        (
            {"dst": "10.0.0.7", "lladdr": "52:54:00:00:00:07", "state": ["STALE"]},
            {"dst": "10.0.0.8", "state": ["FAILED"]},
            {"dst": "10.0.0.9", "lladdr": "52:54:00:00:00:09", "state": ["FAILED"]},
        )
    )
    assert networks.neighbours(runner) == {"52:54:00:00:00:07": ("10.0.0.7",)}


def removed(connection, **request):
    return networks.remove(connection, NetworkRequest(**request))


def test_a_network_of_ours_is_removed_once(connection, monkeypatch):
    assert removed(connection).steps == ()
    prepared(connection)
    assert removed(connection, dry_run=True).steps == ("stop", "undefine")
    held = connection.networkLookupByName("vmcloner")
    with monkeypatch.context() as patch:
        patch.setattr(type(held), "listAllPorts", lambda _self: [object()] * 3)
        with pytest.raises(WrongState, match="3 guests are on"):
            removed(connection)
    assert removed(connection).steps == ("stop", "undefine")
    assert [n.name() for n in connection.listAllNetworks()] == ["default"]
    with pytest.raises(Conflict, match="isn't vmcloner's"):
        removed(connection, name="default")
