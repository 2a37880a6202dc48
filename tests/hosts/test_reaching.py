"""How guests behind a host are reached; what a host says of them is checked."""

from pathlib import Path

import attrs
import pytest

from vmcloner_core import ssh
from vmcloner_core.errors import InvalidRequest, NotFound
from vmcloner_core.hosts import reaching
from vmcloner_core.hosts.calls import Reached
from vmcloner_core.hosts.groups import named
from vmcloner_core.model import Access
from vmcloner_core.settings import Settings

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHxT3bTVJcSpzHnCkUQ9FHcwwXyZyZ0jcbD3rQZQpTyZ"


def reached(known_hosts, name="web-1"):
    access = Access(
        name=name, address="10.0.0.7", user="root", port=22, known_hosts=Path("/there"),
        key=Path("/root/key-of-the-host"),
    )  # fmt: skip
    return Reached(name=name, access=access, known_hosts=known_hosts)


def test_a_guest_is_reached_through_its_host(tmp_path):
    access = reaching.access(reached(f"web-1 {KEY}\n"), "root@lab1", tmp_path).unwrap()
    assert access.key is None
    assert access.known_hosts.read_text() == f"web-1 {KEY}\n"
    argv = ssh.command(access, "id")
    assert "ProxyCommand=ssh -o BatchMode=yes -W [%h]:%p -- root@lab1" in argv
    assert "HostKeyAlias=web-1" in argv


@pytest.mark.parametrize(
    "text",
    [
        f"* {KEY}\n", f"web-2 {KEY}\n", f"@cert-authority web-1 {KEY}\n", "web-1 nonsense\n",
        f"web-1 {KEY}\nother {KEY}\n", f"web-1 {KEY} \x1b[0m\n", f"web-1 {KEY}\n" * 1000,
    ],
)  # fmt: skip
def test_host_keys_of_anything_else_are_refused(tmp_path, text):
    outcome = reaching.access(reached(text), "lab1", tmp_path)
    assert "no plain host keys" in str(outcome.error)
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_is_no_clone_is_refused(tmp_path):
    outcome = reaching.access(reached(f"../x {KEY}\n", name="../x"), "lab1", tmp_path)
    assert not outcome.ok


def test_an_error_of_the_host_is_the_answer(tmp_path):
    error = NotFound("no address")
    outcome = reaching.access(Reached(name="web-1", error=error), "lab1", tmp_path)
    assert outcome.error is error


def test_hosts_are_named_by_names_node_sets_and_groups():
    settings = Settings(groups={"lab": "lab[1-3]", "odd": "lab1,lab3"})
    assert named(settings, ["@lab"]) == ("lab1", "lab2", "lab3")
    assert named(settings, ["lab[2-3],x", "@odd"]) == ("lab2", "lab3", "x", "lab1")
    with pytest.raises(NotFound, match="unknown group '@nope'"):
        named(settings, ["@nope"])
    with pytest.raises(InvalidRequest, match="more than 10000 hosts"):
        named(settings, ["lab[1-99999]"])
    with pytest.raises(InvalidRequest, match="not hosts"):
        named(settings, ["lab[1-"])


@pytest.mark.parametrize("destination", ["-oProxyCommand=x", "a b", "a;b", "$(x)", "a%h", ""])
def test_a_destination_is_no_option_and_no_shell(destination):
    from vmcloner_core.settings import HostSettings

    with pytest.raises(InvalidRequest, match="not a destination for ssh"):
        HostSettings(ssh=destination)


@pytest.mark.parametrize(
    "wrong",
    [
        {"address": "10.0.0.7]; touch x; ["}, {"address": "10.0.0.7\nProxyCommand x"},
        {"address": "fe80::1%$(x)"}, {"address": "host.example"}, {"user": "root\nx"},
        {"user": "-o"}, {"port": 0}, {"port": 70000},
    ],
)  # fmt: skip
def test_an_address_of_a_host_is_no_command_of_a_shell(tmp_path, wrong):
    """ssh gives the address to a shell on this machine, in its ProxyCommand."""
    good = reached(f"web-1 {KEY}\n")
    bad = attrs.evolve(good, access=attrs.evolve(good.access, **wrong))
    outcome = reaching.access(bad, "lab1", tmp_path)
    assert "no plain address, user and port" in str(outcome.error)


@pytest.mark.parametrize("between", ["\u2028", "\x0b", "\x85", "\r"])
def test_host_keys_are_lines_as_ssh_reads_them(tmp_path, between):
    outcome = reaching.access(reached(f"web-1 {KEY}{between}web-1 {KEY}\n"), "lab1", tmp_path)
    assert "no plain host keys" in str(outcome.error)
