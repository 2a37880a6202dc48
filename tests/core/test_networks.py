"""What is checked of networks before clones are made on them."""

import attrs
import pytest

from vmcloner_core.drivers import NetworkInterface
from vmcloner_core.engine import Engine
from vmcloner_core.errors import (
    BackendError,
    InvalidRequest,
    NotEnoughResources,
    NotFound,
    WrongState,
)
from vmcloner_core.model import Network, NetworkRequest

from ..conftest import TEMPLATE

ON_NETWORK = (
    TEMPLATE
    + """
[[nics]]
kind = "network"
source = "lan"
"""
)
LAN = Network(name="lan", active=True, addresses=5)


ON_BRIDGE = ON_NETWORK.replace('"network"', '"bridge"')
OWN = Network(name="lan", kind="bridge", active=True, ours=True, addresses=5)


class Networks(NetworkInterface):
    """The host has these, and none is made or removed."""

    def __init__(self, networks):
        self.networks = networks

    def inspect(self):
        return self.networks

    def prepare(self, request):
        raise AssertionError

    def remove(self, request):
        raise AssertionError


@pytest.fixture
def on_network(lab, monkeypatch):
    lab.template("t1", ON_NETWORK)

    def set_networks(*networks):
        monkeypatch.setattr(lab.machines, "networks", Networks(networks))

    return set_networks


def test_as_many_as_there_are_addresses_for(lab, on_network):
    on_network(attrs.evolve(LAN, leases={"52:54:00:aa:aa:aa"}))
    with pytest.raises(NotEnoughResources, match="5 addresses for DHCP, 4 of them free") as caught:
        lab.engine.create("web", "t1", count=5)
    assert "4 clones would fit" in caught.value.hint
    assert lab.engine.list() == ()
    assert lab.engine.create("web", "t1", count=4).ok


def test_clones_that_hold_an_address_need_no_other(lab, on_network):
    on_network(LAN)
    lab.engine.create("web", "t1", count=3)
    macs = {clone.mac for clone in lab.engine.list()}
    on_network(attrs.evolve(LAN, leases=macs))
    assert lab.engine.create("web", "t1", count=5).ok
    with pytest.raises(NotEnoughResources, match="0 of them free"):
        lab.engine.create("web", "t1", count=6)
    assert lab.engine.create("web", "t1", count=5, start=True).ok


def test_clones_with_addresses_of_their_own_take_none(lab, on_network):
    static = (
        'provider = "cloud-init"\nauthorized_keys = []\naddresses = ["10.0.0.{{ index }}/16"]\n'
    )
    lab.template("t2", f"{ON_NETWORK}[identity]\n{static}")
    on_network(LAN)
    assert lab.engine.create("fixed", "t2", count=10).ok
    with pytest.raises(NotEnoughResources, match="5 of them free: 6"):
        lab.engine.create("web", "t1", count=6)
    assert lab.engine.create("web", "t1", count=5).ok


def test_no_two_clones_of_a_fleet_have_one_address(lab, on_network):
    on_network(LAN)
    static = '[identity]\nprovider = "cloud-init"\nauthorized_keys = []\n'
    lab.template("t1", ON_NETWORK + static + 'addresses = ["10.0.0.5/24"]\n')
    with pytest.raises(InvalidRequest, match=r"web-1 and web-2 .* 10\.0\.0\.5") as caught:
        lab.engine.create("web", "t1", count=2)
    assert "{{ 10 + index }}" in caught.value.hint
    assert lab.engine.list() == ()
    assert lab.engine.create("web", "t1", count=1).ok
    with pytest.raises(InvalidRequest, match="web-1 and web-2"):
        lab.engine.create("web", "t1", count=2)
    assert lab.engine.create("web", "t1", count=2, values={2: {"address": "10.0.0.6/24"}}).ok
    lab.template("t2", TEMPLATE + static + 'addresses = ["10.0.2.15/24"]\n')  # in user mode
    assert lab.engine.create("alone", "t2", count=2).ok


def test_a_network_that_gives_no_addresses_sets_no_limit(lab, on_network):
    on_network(attrs.evolve(LAN, addresses=None))
    assert lab.engine.create("web", "t1", count=20).ok


@pytest.mark.parametrize(
    ("network", "error", "hint"),
    [
        (attrs.evolve(LAN, name="other"), NotFound, "host prepare network --name lan"),
        (attrs.evolve(LAN, active=False), WrongState, "virsh net-start lan"),
        (attrs.evolve(LAN, active=False, ours=True), WrongState, "host prepare network --name lan"),
    ],
)
def test_a_network_has_to_be_there_and_run(lab, on_network, network, error, hint):
    on_network(network)
    with pytest.raises(error, match="lan") as caught:
        lab.engine.create("web", "t1", count=1)
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "a b"},
        {"name": "-x"},
        {"subnet": "10.0.0.1/24"},
        {"subnet": "x"},
        {"subnet": "fd00::/64"},
        {"subnet": "224.0.0.0/24"},
        {"subnet": "127.9.0.0/24"},
        {"subnet": "0.0.0.0/0"},
    ],
)
def test_what_makes_no_network_is_refused(wrong):
    with pytest.raises(InvalidRequest):
        NetworkRequest(**wrong)


def test_a_network_that_clones_are_defined_on_is_not_removed(lab, on_network):
    on_network(LAN)
    lab.engine.create("web", "t1", count=2)
    with pytest.raises(WrongState, match=r"2 clones are on it \(web-1"):
        lab.engine.remove_network(NetworkRequest(name="lan"))


def test_a_bridge_of_ours_has_so_many_addresses_another_any_number(lab, on_network):
    lab.template("t1", ON_BRIDGE)
    on_network(LAN)  # of the same name, but no bridge
    assert lab.engine.create("web", "t1", count=7).ok
    on_network(LAN, OWN)
    with pytest.raises(NotEnoughResources, match="'bridge:lan' has 5 addresses") as caught:
        lab.engine.create("db", "t1", count=1)
    assert "host prepare network --bridge --count N" in caught.value.hint
    with pytest.raises(WrongState, match="7 clones are on it"):
        lab.engine.remove_network(NetworkRequest(name="lan", bridge=True))
    on_network(attrs.evolve(OWN, active=False))
    with pytest.raises(WrongState) as stopped:
        lab.engine.create("db", "t1", count=1)
    assert stopped.value.hint == "vmcloner host prepare network --bridge --name lan"


def test_a_hypervisor_that_makes_no_networks_says_so(lab):
    for call in (lab.engine.prepare_network, lab.engine.remove_network):
        with pytest.raises(BackendError) as caught:
            call(NetworkRequest(name="lan"))
        assert str(caught.value) == (
            "network 'lan': hypervisor 'reference' makes no networks"
            " (choose another with --hypervisor)"
        )


@pytest.mark.parametrize("call", [Engine.prepare_network, Engine.remove_network])
def test_a_dry_run_makes_no_state_folder(lab, monkeypatch, call):
    class Networks:
        def prepare(self, request):
            return request

        remove = prepare

    monkeypatch.setattr(lab.machines, "networks", Networks(), raising=False)
    request = NetworkRequest(name="lan", dry_run=True)
    assert call(lab.engine, request) == request
    assert not lab.engine.host.state.exists()
    call(lab.engine, NetworkRequest(name="lan"))
    assert (lab.engine.host.state / "lock").exists()


def test_networks_that_are_unknown_set_no_limit(lab):
    lab.template("t1", ON_NETWORK)
    assert lab.engine.create("web", "t1", count=9).ok
