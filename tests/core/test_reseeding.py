"""Guests become who their seeds name: by an agent, or by themselves, and else by nobody."""

import base64
import contextlib
import socketserver
import subprocess
import threading
import uuid

import attrs
import pytest

from vmcloner_core import reseeding
from vmcloner_core.errors import InvalidRequest, WrongState
from vmcloner_core.model import Identity, IdentitySpec, ImageSource, Interface, Template

IDENTITY = Identity(
    hostname="web-7.example.org",
    machine_id="a" * 32,
    uuid=uuid.UUID(int=1),
    generation=uuid.UUID(int=2),
    interfaces=(
        Interface(mac="52:54:00:00:00:01", address="192.0.2.7/24"),
        Interface(mac="52:54:00:00:00:02"),
    ),
    gateway="192.0.2.1",
    nameservers=("192.0.2.53",),
    authorized_keys=("ssh-ed25519 AAAA me", "ssh-rsa BBBB you"),
)


class Guests:
    """A hypervisor's agents and consoles: what guests say, and what their agents run."""

    def __init__(self):
        self.agents = self.consoles = self
        self.said, self.with_agent, self.ran = {}, set(), []
        self.failing = set()

    def reported(self, names):
        return self.with_agent & set(names)

    def run(self, name, script, *, timeout):
        assert timeout > 0
        self.ran.append((name, script))
        if name in self.failing:
            raise WrongState(f"{name}: a script in the guest failed: no disk")

    def read(self, name, offset, limit):
        data = self.said.get(name, b"")[offset : offset + limit]
        return data, offset + len(data)


@pytest.fixture
def guests():
    return Guests()


def reseed(guests, *names, timeout=0.0):
    return {o.key: o for o in reseeding.reseed(guests, names, timeout=timeout)}


def test_each_guest_is_reseeded_in_its_own_way(guests):
    guests.with_agent = {"web-1", "web-2"}
    guests.failing = {"web-2"}
    guests.said = {
        "web-3": b"boot\r\nold-3# \x1b[6nvmcloner-reseeded web-3 random=perl\r\n",
        "web-4": b"[ 1.2] vmcloner-reseed-failed the seed disk can't be mounted\r\n",
        "web-5": b"login: ",
    }
    done = reseed(guests, *(f"web-{n}" for n in range(1, 6)))
    assert {name for name, outcome in done.items() if outcome.ok} == {"web-1", "web-3"}
    assert "no disk" in done["web-2"].error.message
    assert done["web-4"].error.message.endswith("re-seeded: the seed disk can't be mounted")
    assert "didn't become web-5 within 0 s" in done["web-5"].error.message
    assert all(isinstance(o.error, WrongState) for o in done.values() if not o.ok)


def test_agents_get_other_random_bytes_for_each_guest_and_never_in_arguments(guests):
    guests.with_agent = {"web-1", "web-2"}
    reseed(guests, "web-1", "web-2")
    heads = {script.partition(b"\n")[0] for _, script in guests.ran}
    assert len(heads) == 2
    assert all(head.startswith(b"entropy=") and b" now=" in head for head in heads)
    assert all(script.partition(b"\n")[2] == reseeding.script() for _, script in guests.ran)


def test_no_guests_is_no_outcomes(guests):
    assert reseed(guests) == {}


def test_a_word_that_only_begins_like_the_answer_is_none(guests):
    guests.said = {"web-1": b"vmcloner-reseededx web-1\nvmcloner-reseed web-1\n"}
    assert not reseed(guests, "web-1")["web-1"].ok


def test_parents_of_forks_are_checked(guests):
    guests.said["web-1"] = b"vmcloner-waits-for-seed\r\n"
    guests.with_agent = {"web-2", "web-3"}
    guests.failing = {"web-3"}
    reseeding.check(guests, "web-1", "t", timeout=9.0)
    reseeding.check(guests, "web-2", "t", timeout=9.0)
    for name, reason in {"web-3": "no disk", "web-4": "no agent in it has reported"}.items():
        with pytest.raises(WrongState, match=f"template t: .*{reason}") as caught:
            reseeding.check(guests, name, "t", timeout=9.0)
        assert "without --warm" in caught.value.hint


def test_an_ssh_server_in_a_parent_is_asked_by_its_agent(guests):
    guests.with_agent = {"web-1", "web-2"}
    guests.failing = {"web-2"}
    guests.said["web-3"] = b"vmcloner-waits-for-seed\r\n"
    reseeding.check_ssh(guests, "web-1", "t", 2022, timeout=9.0)
    assert guests.ran == [("web-1", b"set -- settle 2022\n" + reseeding.script())]
    for name, reason in {"web-2": "no disk", "web-3": "no agent in it has reported"}.items():
        with pytest.raises(WrongState, match=f"template t: .* by ssh: .*{reason}"):
            reseeding.check_ssh(guests, name, "t", 2022, timeout=9.0)


@contextlib.contextmanager
def greeting(text):
    """Serve a text at a port of the loopback network, to each who asks."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self):
            self.request.sendall(text)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def settle(port):
    """Run the script as an agent does, without its pauses."""
    given = f"sleep() {{ :; }}\nset -- settle {port}\n".encode()
    return subprocess.run(
        ["/bin/sh", "-s"],
        input=given + reseeding.script(),
        check=False,
        capture_output=True,
        timeout=60,
    )


def test_the_script_knows_an_ssh_server_by_its_greeting():
    with greeting(b"SSH-2.0-OpenSSH_9.2p1\r\n") as port:
        done = settle(port)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    with greeting(b"220 mail SSH-2.0\r\n") as port:
        other = settle(port)
    for failed, asked in ((other, port), (settle(1), 1)):
        assert failed.returncode == 1
        assert failed.stderr.decode() == f"no SSH server answers at 127.0.0.1:{asked}\n"
        assert failed.stdout == b""


def test_templates_whose_files_forks_would_not_get(tmp_path):
    plain = Template(name="t", image=ImageSource(builder="b"), identity=IdentitySpec())
    reseeding.check_template(plain)
    for key in ("user_data", "network_config"):
        spec = IdentitySpec(provider="cloud-init", **{key: tmp_path / "x"})
        with pytest.raises(InvalidRequest, match=f"template t: identity.{key}"):
            reseeding.check_template(attrs.evolve(plain, identity=spec))


def test_the_file_says_all_that_a_shell_needs():
    lines = reseeding.identity_file(IDENTITY, "secret\nkey\n", "ssh-ed25519 CCCC web-7")
    assert lines.decode().splitlines() == [
        "name web-7.example.org",
        f"generation {uuid.UUID(int=2)}",
        f"machine-id {'a' * 32}",
        f"uuid {uuid.UUID(int=1)}",
        "user root",
        "key ssh-ed25519 AAAA me",
        "key ssh-rsa BBBB you",
        f"host-key {base64.b64encode(b'secret' + bytes([10]) + b'key' + bytes([10])).decode()}",
        "host-key-public ssh-ed25519 CCCC web-7",
        "card 52:54:00:00:00:01 192.0.2.7/24 192.0.2.1",
        "card 52:54:00:00:00:02 dhcp -",
        "nameserver 192.0.2.53",
        "end",
    ]


def test_a_gateway_of_another_network_is_not_said():
    identity = attrs.evolve(IDENTITY, gateway="198.51.100.1")
    assert b"192.0.2.7/24 -\n" in reseeding.identity_file(identity, "k", "p")
