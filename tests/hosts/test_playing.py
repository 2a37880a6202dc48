"""Playbooks on the clones of several hosts: run by the controller, noted on the hosts."""

import json
import os
import textwrap
import threading
import time

import pytest

from tests.hosts.test_moving import Spy
from vmcloner_core.errors import BackendError, HostCommandError, Interrupted, PartialFailure
from vmcloner_core.labs import read_lab
from vmcloner_core.model import Script
from vmcloner_core.request import TargetRequest

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHxT3bTVJcSpzHnCkUQ9FHcwwXyZyZ0jcbD3rQZQpTyZ"
ANSIBLE = """\
#!/usr/bin/env python3
import json, os, pathlib, sys
(group,) = json.load(open(sys.argv[2]))["all"]["children"].items()
((name, known),) = group[1]["hosts"].items()
folder = pathlib.Path(__file__).parent
with (folder / "played").open("a") as stream:
    stream.write(json.dumps([name, group[0], sys.argv[3], os.getcwd(), known]) + "\\n")
print("played on", name)
if (folder / f"fails-{name}").exists():
    sys.exit("no such task")
if (folder / "hangs").exists():
    (folder / f"began-{name}").touch()
    os.read(os.open(folder / "hangs", os.O_RDONLY), 1)
"""


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """A program called ansible-playbook, which writes down what it is given."""
    folder = tmp_path / "tools"
    folder.mkdir()
    program = folder / "ansible-playbook"
    program.write_text(ANSIBLE)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


@pytest.fixture
def fleet(hosts, tmp_path):
    """Three running clones, one on each host, that have addresses and host keys."""
    all_hosts = hosts.controller()
    all_hosts.create("web", "t1", count=3, start=True)
    for clone in all_hosts.list():
        site = hosts.sites[clone.host]
        site.machines.found[clone.name] = (f"10.0.0.{clone.index}",)
        home = site.engine.host.records / clone.name
        (home / "known_hosts").write_text(f"{clone.name} {KEY}\n")
    (tmp_path / "site.yml").write_text("- hosts: web\n")
    return hosts


def provision(controller, folder, *, changed=False):
    book = folder / "site.yml"
    script = Script(name="site.yml", content=book.read_bytes(), playbook=book)
    request = TargetRequest(
        action="provision", targets=("web",), scripts=(script,), changed_scripts=changed
    )
    return controller.run(request)


def played(tools):
    """Return what the program was given, by the clones' names."""
    file = tools / "played"
    lines = file.read_text().splitlines() if file.exists() else []
    file.unlink(missing_ok=True)
    return {name: rest for name, *rest in map(json.loads, lines)}


def test_a_playbook_is_run_once_on_each_clone_through_its_host(fleet, tools, tmp_path):
    all_hosts = fleet.controller()
    result = provision(all_hosts, tmp_path)
    assert result.ok
    assert {each.name: each.changed for each in result.results} == {
        f"web-{n}": ("provision",) for n in (1, 2, 3)
    }
    there = {clone.name: clone.host for clone in all_hosts.list()}
    found = played(tools)
    assert found.keys() == there.keys()
    for name, (group, book, folder, known) in found.items():
        assert (group, book, folder) == ("web", str(tmp_path / "site.yml"), str(tmp_path))
        assert f"-- {there[name]}" in known["ansible_ssh_common_args"]
        assert known["ansible_host"] == f"10.0.0.{name[-1]}"
        assert known["vmcloner_index"] == int(name[-1])
    assert not any(each.changed for each in provision(all_hosts, tmp_path).results)
    assert played(tools) == {}
    (tmp_path / "site.yml").write_text("- hosts: all\n")
    provision(all_hosts, tmp_path)
    assert played(tools) == {}
    provision(all_hosts, tmp_path, changed=True)
    assert played(tools).keys() == there.keys()


def test_where_a_playbook_fails_it_runs_again(fleet, tools, tmp_path):
    (tools / "fails-web-2").touch()
    result = provision(fleet.controller(), tmp_path)
    ((name, error),) = [(each.name, each.error) for each in result.results if each.error]
    assert (name, type(error)) == ("web-2", HostCommandError)
    assert error.message == "web-2: site.yml: failed with 1: no such task"
    log = fleet.folder / "controller/hosts/h2/web-2.log"
    assert error.hint == f"its output: {log}"
    assert log.read_text() == "== site.yml\nplayed on web-2\nno such task\n"
    played(tools)
    (tools / "fails-web-2").unlink()
    assert provision(fleet.controller(), tmp_path).ok
    assert played(tools).keys() == {"web-2"}


def test_a_clone_that_can_not_be_reached_fails_alone(fleet, tools, tmp_path):
    fleet.sites["h1"].machines.found.clear()
    result = provision(fleet.controller(), tmp_path)
    assert [each.name for each in result.results if each.error is not None] == ["web-1"]
    assert played(tools).keys() == {"web-2", "web-3"}


@pytest.mark.parametrize("call", ["records", "reach"])
def test_a_host_that_is_lost_when_its_scripts_have_run(fleet, tools, tmp_path, call):
    spy = Spy(fleet.carrier)

    def fault(_host, name, when):
        if name == call and when == "before":
            fleet.carrier.lose("h2")

    spy.fault = fault
    result = provision(fleet.controller(carrier=spy), tmp_path)
    assert "web-2" in {each.name for each in result.results if each.error is not None}
    fleet.carrier._lost.discard("h2")
    fleet.carrier._besides["h2"]._release()
    played(tools)
    assert provision(fleet.controller(), tmp_path).ok
    assert "web-2" in played(tools)


def test_a_playbook_ends_with_its_run(fleet, tools, tmp_path):
    os.mkfifo(tools / "hangs")
    all_hosts = fleet.controller()

    def stop():
        while len(list(tools.glob("began-*"))) < 3:
            time.sleep(0.01)
        all_hosts.cancel()

    stopper = threading.Thread(target=stop, daemon=True)
    stopper.start()
    result = provision(all_hosts, tmp_path)
    stopper.join()
    assert result.interrupted
    assert {type(each.error) for each in result.results} == {Interrupted}
    assert not any(
        site.engine._local.records.find(name).ran
        for site in fleet.sites.values()
        for name in site.engine._local.records.names()
    )


def test_without_ansible_nothing_is_begun(fleet, tools, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BackendError, match="ansible-playbook isn't installed"):
        provision(fleet.controller(), tmp_path)


def test_a_lab_with_a_playbook(fleet, tools, tmp_path, monkeypatch):
    """Its clones are made and wait for ssh first; here they are taken to be ready."""
    monkeypatch.setattr("vmcloner_core.labs.apply.OVER_SSH", ("running", "console"))
    all_hosts = fleet.controller()
    all_hosts.delete("web")
    file = tmp_path / "lab.toml"
    file.write_text(
        textwrap.dedent(
            """
            name = "shop"
            [fleets.web]
            template = "t1"
            count = 3
            ready = "running"
            playbook = "site.yml"
            """
        )
    )
    with pytest.raises(PartialFailure) as caught:  # no addresses yet
        all_hosts.apply_lab(read_lab(file))
    assert {name for name, _ in caught.value.failures} == {"web-1", "web-2", "web-3"}
    assert {(c.action, c.why) for c in all_hosts.diff_lab(read_lab(file))} == {
        ("provision", "site.yml")
    }
    for clone in all_hosts.list():
        site = fleet.sites[clone.host]
        site.machines.found[clone.name] = (f"10.0.0.{clone.index}",)
        (site.engine.host.records / clone.name / "known_hosts").write_text(f"{clone.name} {KEY}\n")
    all_hosts.apply_lab(read_lab(file))
    assert played(tools).keys() == {"web-1", "web-2", "web-3"}
    assert all_hosts.diff_lab(read_lab(file)) == ()
