"""The loopback ports of guests in user mode: in the XML, and in QEMU's own words."""

import pytest

libvirt = pytest.importorskip("libvirt")

from vmcloner_core.errors import HostCommandError, InvalidRequest  # noqa: E402
from vmcloner_core.model import Nic, NicSpec, forwarded_address  # noqa: E402
from vmcloner_libvirt import forwarding  # noqa: E402
from vmcloner_libvirt.metadata import parse  # noqa: E402

MAC = "52:54:00:0a:ff:07"
LIVE = """
<domain id="{run}"><uuid>u</uuid><metadata/>
  <devices>
    <interface type="user"><mac address="52:54:00:00:00:01"/><alias name="net0"/></interface>
    <interface type="user"><mac address="{mac}"/><alias name="net1"/></interface>
  </devices>
</domain>
"""


def live(run: int = 1, **spec: object) -> object:
    root = parse(LIVE.format(mac=MAC, run=run))
    cards = [Nic(spec=NicSpec(), mac="52:54:00:00:00:01"), Nic(spec=NicSpec(**spec), mac=MAC)]
    forwarding.describe(root, cards)
    return root


class Monitor:
    """QEMU's monitor, with the forwardings that it has."""

    def __init__(self, answer: str = "") -> None:
        self.rules: list[str] = []
        self.answer = answer

    def lookupByName(self, name):  # noqa: N802 - libvirt's name
        return self

    def say(self, _domain, command):
        if command == "info usernet":
            table = (f"  TCP[HOST_FORWARD]  20  {rule}  2222  10.0.2.15  22" for rule in self.rules)
            return "\r\n".join(["Hub -1 (hostnet1):", *table])
        word, netdev, rule = command.split(" ")
        assert (word, netdev) == ("hostfwd_add", "hostnet1")
        if not self.answer:
            assert rule == "tcp:127.10.255.7:2222-:22"
            self.rules.append(rule.split(":")[1])
        return self.answer


def test_the_address_is_made_from_what_differs_between_macs():
    assert forwarded_address(MAC) == "127.10.255.7"


def test_the_card_with_a_forwarded_port_is_found_again():
    (found,) = forwarding.described(live(forward=22))
    assert (found.mac, found.netdev, found.port, found.address) == (
        MAC, "hostnet1", 22, "127.10.255.7",
    )  # fmt: skip
    (later,) = forwarding.described(live(run=2, forward=22))
    assert later != found, "QEMU must be told at each start"
    assert list(forwarding.described(live())) == []


@pytest.mark.parametrize("port", ["", "0", "65536", "22 x", "-1", "9" * 5000, "٢٢"])
def test_metadata_that_somebody_changed(port):
    root = live(forward=22)
    root.find("metadata")[0].set("port", port)
    assert list(forwarding.described(root)) == []


def test_qemu_is_told_once(monkeypatch):
    monitor = Monitor()
    monkeypatch.setattr(forwarding, "_monitor", monitor.say)
    (forward,) = forwarding.described(live(forward=22))
    for _ in range(2):
        forwarding.ensure(monitor, "web-1", forward)
    assert monitor.rules == ["127.10.255.7"]


def test_a_port_in_use(monkeypatch):
    monitor = Monitor("could not set up host forwarding rule 'tcp:…'")
    monkeypatch.setattr(forwarding, "_monitor", monitor.say)
    (forward,) = forwarding.described(live(forward=22))
    with pytest.raises(HostCommandError, match=r"web-1: .*127.10.255.7:2222: could not"):
        forwarding.ensure(monitor, "web-1", forward)


@pytest.mark.parametrize(
    "spec",
    [{"forward": 0}, {"forward": 65536}, {"kind": "bridge", "source": "br0", "forward": 22}],
)
def test_what_cannot_be_forwarded(spec):
    with pytest.raises(InvalidRequest, match="forward is a TCP port"):
        NicSpec(**spec)
