"""Machines as tests use them, on real sshd's; also by Testinfra and by Ansible's runner."""

import os
import sys
from pathlib import Path

import ansible_runner
import pytest
import testinfra

from vmcloner_core import Pool
from vmcloner_core.errors import HostCommandError, NotFound

BIN = Path(sys.executable).parent


@pytest.fixture
def machine(web):
    return web.engine.machines("web-1")[0]


def test_a_machine_runs_commands(machine):
    assert machine.ssh("echo $VMCLONER_GUEST") == "web-1\n"
    assert machine.exec("exit 3").code == 3
    with pytest.raises(HostCommandError, match=r"web-1: false \|\| .* exited with 1: gone wrong"):
        machine.ssh("false || { echo gone wrong >&2; exit 1; }")
    with pytest.raises(HostCommandError, match="not done within"):
        machine.exec("sleep 30", timeout=1)


def test_a_machine_that_is_another_one_is_refused(web):
    (other,) = web.engine.machines("web-4")
    with pytest.raises(HostCommandError, match="web-4: ssh: "):
        other.ssh("true")


def test_files_go_to_a_machine_and_come_back(machine, tmp_path):
    (tmp_path / "a file").write_text("text")
    there = tmp_path / "there"
    there.mkdir()
    assert machine.put(tmp_path / "a file", to=f"{there}/").files == 1
    assert (there / "a file").read_text() == "text"
    assert machine.get(f"{there}/a file", folder=tmp_path / "back").files == 1
    assert (tmp_path / "back" / "a file").read_text() == "text"
    with pytest.raises(NotFound):
        machine.put(tmp_path / "missing", to="/tmp/")
    with pytest.raises(HostCommandError):
        machine.get("/missing", folder=tmp_path / "back")


def test_a_taken_machine_is_reached_where_it_was_when_it_got_ready(web, guests, monkeypatch):
    web.engine.delete("web")
    web.machines.found["web-1"] = (guests.address("web-1"),)
    web.engine.fill_pool(Pool(template="t1", name="web", size=1))
    known = web.engine.host.records / "web-1" / "known_hosts"
    known.write_text((guests.folder / "web-1" / "known_hosts").read_text())
    monkeypatch.setattr(web.machines, "inspect", None)  # nobody asks the hypervisor
    (machine,) = web.engine.acquire("web")
    assert machine.ssh("echo $VMCLONER_GUEST") == "web-1\n"


def test_testinfra(web, tmp_path):
    config = tmp_path / "ssh_config"
    machines = web.engine.machines("web-[1-2]")
    config.write_text("".join(machine.ssh_config() for machine in machines))
    for machine in machines:
        host = testinfra.get_host(f"ssh://{machine.name}", ssh_config=str(config))
        assert host.check_output("echo $VMCLONER_GUEST") == machine.name
        assert host.file("/etc/passwd").contains("^root:")


def test_ansible_runner(web, tmp_path):
    machines = web.engine.machines("web-[1-2]")
    hosts = {machine.name: machine.ansible_vars() for machine in machines}
    run = ansible_runner.run(
        private_data_dir=str(tmp_path),
        inventory={"all": {"hosts": hosts}},
        host_pattern="all",
        module="ansible.builtin.raw",
        module_args="echo guest=$VMCLONER_GUEST",
        envvars={"ANSIBLE_HOME": str(tmp_path / "ansible"), "PATH": f"{BIN}:{os.environ['PATH']}"},
        quiet=True,
        timeout=120,
    )
    said = "".join(event["stdout"] for event in run.events)
    assert (run.status, run.rc) == ("successful", 0), said
    assert {name for name in hosts if f"guest={name}" in said} == {"web-1", "web-2"}
