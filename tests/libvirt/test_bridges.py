"""Bridges with NAT and DHCP, in network namespaces of the tests' own.

host    where vmcloner runs; its way out is eth0, 203.0.113.2
world   203.0.113.1, which knows no way to the guests
guest   what is plugged into the bridge
"""

import contextlib
import json
import os
import secrets
import subprocess
import sys
from pathlib import Path

import attrs
import pytest

from tests.pxe.network import ip

pytestmark = pytest.mark.pxe

VMCLONER = Path(sys.executable).with_name("vmcloner")
MAC = "52:54:00:00:00:07"
LEASE = """
import sys, time
from vmcloner_pxe.dhcp import Client, open_socket
client = Client(open_socket("eth0"), sys.argv[1], deadline=time.monotonic() + 30)
lease = client.lease()
print(lease.address, lease.router)
"""
NAMED = """
import socket, struct, sys

def option(code, value):
    return bytes([code, len(value)]) + value

def message(kind, *more):
    mac = bytes.fromhex(sys.argv[1].replace(":", ""))
    head = struct.pack("!BBBBIHH16x16s192x", 1, 1, 6, 0, 7, 0, 0x8000, mac)
    options = [option(53, bytes([kind])), option(12, sys.argv[2].encode()), *more]
    return head + bytes([99, 130, 83, 99]) + b"".join(options) + bytes([255])

with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stream:
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
    stream.settimeout(30)
    stream.bind(("", 68))
    stream.sendto(message(1), ("255.255.255.255", 67))
    offer = stream.recv(2000)[16:20]
    stream.sendto(message(3, option(50, offer)), ("255.255.255.255", 67))
    print(socket.inet_ntoa(stream.recv(2000)[16:20]))
"""
ASK = """
import socket, struct, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stream:
    stream.settimeout(10)
    words = sys.argv[2].split(".")
    name = b"".join(bytes([len(word)]) + word.encode() for word in words) + bytes(1)
    stream.sendto(struct.pack("!6H", 1, 256, 1, 0, 0, 0) + name + struct.pack("!2H", 1, 1),
                  (sys.argv[1], 53))
    answer = stream.recv(2000)
    code, count = answer[3] & 15, answer[7]
    print(socket.inet_ntoa(answer[-4:]) if count else f"error {code}")
"""
SERVE = """
import socket
with socket.create_server(("203.0.113.1", 7000)) as server:
    print("listens", flush=True)
    print(server.accept()[1][0], flush=True)
"""
CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], 7000), timeout=5)"


@attrs.frozen
class Place:
    """The namespaces, and a state folder."""

    tag: str
    folder: Path

    def space(self, name: str) -> str:
        return f"{self.tag}-{name}"

    def inside(self, name: str, *argv: str) -> list[str]:
        return ["ip", "netns", "exec", self.space(name), *map(str, argv)]

    def run(self, name: str, *argv: str, check: bool = True) -> str:
        done = subprocess.run(
            self.inside(name, *argv), check=False, capture_output=True, text=True, timeout=60
        )
        assert not check or done.returncode == 0, done.stderr
        return done.stdout

    def network(self, verb: str, *words: str, code: int = 0) -> dict[str, object]:
        argv = [VMCLONER, "--config", self.folder / "s.toml", "host", verb, "network", "--bridge"]
        done = subprocess.run(
            self.inside("host", *argv, "--name", "vmcbr", *words, "-f", "json"),
            check=False, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        return json.loads(done.stdout) if code == 0 else {"error": done.stderr}

    def traces(self) -> list[str]:
        """What there is of a network, seen from outside of vmcloner."""
        found = self.run("host", "ip", "-br", "link").splitlines()
        found += self.run("host", "nft", "list", "tables").splitlines()
        files = self.folder / "state" / "networks"
        found += map(str, files.glob("*")) if files.exists() else []
        for pid in Path("/proc").iterdir():
            with contextlib.suppress(OSError):  # no process, or it ended
                words = (pid / "cmdline").read_text(errors="replace").split("\0")
                found += [words[0]] if f"--pid-file={files}/vmcbr.pid" in words else []
        return sorted(found)

    def plug(self) -> None:
        ip("-n", self.space("guest"), "link", "add", "eth0", "address", MAC, "type", "veth",
           "peer", "name", "port", "netns", self.space("host"))  # fmt: skip
        ip("-n", self.space("host"), "link", "set", "port", "master", "vmcbr", "up")
        ip("-n", self.space("guest"), "link", "set", "eth0", "up")


@pytest.fixture
def place(tmp_path):
    made = Place(f"vmcbr{os.getpid() % 10000}{secrets.token_hex(2)}", tmp_path)
    (tmp_path / "s.toml").write_text(f'[hosts.local]\nstate = "{tmp_path}/state"\n')
    try:
        for name in ("host", "world", "guest"):
            ip("netns", "add", made.space(name))
            ip("-n", made.space(name), "link", "set", "lo", "up")
        ip("-n", made.space("host"), "link", "add", "eth0", "type", "veth", "peer", "name", "eth0",
           "netns", made.space("world"))  # fmt: skip
        for name, address in (("host", "203.0.113.2/24"), ("world", "203.0.113.1/24")):
            ip("-n", made.space(name), "address", "add", address, "dev", "eth0")
            ip("-n", made.space(name), "link", "set", "eth0", "up")
        # A new namespace takes over what the machine does.
        made.run("host", "sh", "-c", "echo 0 >/proc/sys/net/ipv4/ip_forward")
        yield made
        made.run("host", "ip", "link", "delete", "port", check=False)
        made.network("remove")  # its server too
    finally:
        for file in (tmp_path / "state" / "networks").glob("*.pid"):  # of a test that failed
            subprocess.run(["kill", file.read_text().strip()], check=False)
        for name in ("host", "world", "guest"):
            subprocess.run(["ip", "netns", "delete", made.space(name)], check=False)


ALL = ["bridge", "forwarding", "nat", "dhcp"]


def test_a_bridge_is_made_once_and_removed(place):
    before = place.traces()
    planned = place.network("prepare", "--count", "1000", "--dry-run")
    assert planned["steps"] == ALL
    assert place.traces() == before
    made = place.network("prepare", "--count", "1000")
    assert (made["steps"], made["addresses"]) == (ALL, 1021)
    assert place.network("prepare", "--count", "1000")["steps"] == []
    assert place.network("prepare", "--count", "10")["steps"] == []
    assert len(place.traces()) > len(before)
    assert place.network("remove", "--dry-run")["steps"] == ["dhcp", "nat", "bridge"]
    assert place.network("remove")["steps"] == ["dhcp", "nat", "bridge"]
    assert place.traces() == before
    assert place.network("remove")["steps"] == []


def test_a_guest_gets_an_address_and_out_but_nobody_in(place):
    made = place.network("prepare", "--subnet", "10.77.1.0/24")
    place.plug()
    assert place.network("prepare", "--subnet", "10.77.1.0/255.255.255.0")["steps"] == []
    address, router = place.run("guest", sys.executable, "-c", LEASE, MAC).split()
    assert f"{router}/24" == made["address"] == "10.77.1.1/24"
    leases = (place.folder / "state" / "networks" / "vmcbr.leases").read_text()
    assert f" {MAC} {address} " in leases
    ip("-n", place.space("guest"), "address", "add", f"{address}/24", "dev", "eth0")
    ip("-n", place.space("guest"), "route", "add", "default", "via", router)
    argv = place.inside("world", sys.executable, "-c", SERVE)
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout.readline() == "listens\n"
        place.run("guest", sys.executable, "-c", CONNECT, "203.0.113.1")
        assert server.stdout.readline() == "203.0.113.2\n"
    ip("-n", place.space("world"), "route", "add", "10.77.1.0/24", "via", "203.0.113.2")
    refused = f"try:\n {CONNECT}\nexcept ConnectionRefusedError: print('refused')"
    assert place.run("world", sys.executable, "-c", refused, address) == "refused\n"


def test_guests_resolve_each_others_names(place):
    """By the names that they tell when they ask for their addresses."""
    place.network("prepare", "--subnet", "10.77.1.0/24")
    place.plug()
    address = place.run("guest", sys.executable, "-c", NAMED, MAC, "web-7").strip()
    ip("-n", place.space("guest"), "address", "add", f"{address}/24", "dev", "eth0")

    def ask(name):
        return place.run("guest", sys.executable, "-c", ASK, "10.77.1.1", name).strip()

    assert ask("web-7") == ask("web-7.internal") == address
    assert ask("web-8.internal") == "error 3", "no such name, and nobody else is asked"


def test_what_is_lost_is_mended(place):
    place.network("prepare")
    place.run("host", "nft", "flush", "ruleset")
    assert place.network("prepare")["steps"] == ["nat"]
    pid = (place.folder / "state" / "networks" / "vmcbr.pid").read_text()
    subprocess.run(["kill", "-9", pid.strip()], check=True)
    assert place.network("prepare")["steps"] == ["dhcp"]
    place.run("host", "ip", "link", "delete", "vmcbr")  # as a boot of the host does
    assert place.network("prepare")["steps"] == ["bridge", "dhcp"]
    assert place.network("prepare")["steps"] == []


def test_a_range_grows_while_nobody_is_on_it(place):
    first = place.network("prepare", "--count", "100")
    place.plug()
    assert (
        "guests are on it (ports: 1)"
        in place.network("prepare", "--count", "5000", code=6)["error"]
    )
    assert "guests are on it (ports: 1)" in place.network("remove", code=6)["error"]
    place.run("host", "ip", "link", "delete", "port")
    grown = place.network("prepare", "--count", "5000")
    assert (grown["addresses"], grown["steps"]) == (8189, ["bridge", "nat", "dhcp"])
    assert grown["address"] != first["address"]
    assert place.network("prepare", "--count", "5000")["steps"] == []


def test_what_is_not_ours_is_left(place):
    place.run("host", "ip", "link", "add", "vmcbr", "type", "bridge")
    place.run("host", "ip", "address", "add", "10.9.9.1/24", "dev", "vmcbr")
    before = place.traces()
    for verb in ("prepare", "remove"):
        assert "isn't vmcloner's" in place.network(verb, code=5)["error"]
    assert place.traces() == before
    place.run("host", "ip", "link", "delete", "vmcbr")


def test_what_a_killed_run_left_is_taken_over(place):
    place.run("host", "ip", "link", "add", "vmcbr", "type", "bridge")
    assert place.network("prepare")["steps"] == ALL


def test_a_name_that_is_no_bridges_is_refused(place):
    said = place.network("prepare", "--name", "a-name-that-is-too-long", code=3)["error"]
    assert "not a valid bridge name" in said


def test_a_bridge_keeps_the_lab_that_it_was_made_for(place):
    for count, lab in ((10, "shop"), (1000, "other")):
        code = (
            "from vmcloner_core import Engine; from vmcloner_core.model import NetworkRequest; "
            f"from pathlib import Path; e = Engine.open(config=Path('{place.folder}/s.toml')); "
            f"e.prepare_network(NetworkRequest(name='vmcbr', count={count}, bridge=True, "
            f"lab='{lab}')); "
            "d = e._host.drivers.hypervisor('kvm').networks._bridges; "
            "print([(n.name, n.lab, n.addresses >= "
            f"{count}) for n in d.inspect()])"
        )
        out = place.run("host", sys.executable, "-c", code)
        assert out.strip() == "[('vmcbr', 'shop', True)]"
