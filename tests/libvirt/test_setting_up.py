"""`host setup`: what is missing is planned as commands, and nothing runs before a yes."""

import io
import json
import os
import pwd
import socket
import sys
from pathlib import Path

import pytest

from vmcloner_core import Engine
from vmcloner_core.cli.app import main
from vmcloner_core.errors import BackendError, HostCommandError
from vmcloner_core.model import BackendTable, Host
from vmcloner_core.process import CommandResult, LocalRunner
from vmcloner_libvirt import setting_up

BARE = {"dpkg-query", "apt-get"}


class Machine:
    """A machine with some programs and packages; keeps the commands that were run."""

    def __init__(self, programs=(), packages=(), fails=""):
        self.programs, self.packages, self.fails = set(programs), set(packages), fails
        self.ran, self.answers = [], False

    def which(self, program):
        return f"/usr/bin/{program}" if program in self.programs else None

    def run(self, argv, **_options):
        if argv[0] == "dpkg-query":
            if argv[-1] not in self.packages:
                raise HostCommandError(f"no packages found matching {argv[-1]}")
            return CommandResult(stdout=b"installed", stderr=b"")
        if argv[0] == "virsh" and not self.answers:
            raise BackendError("virsh: not installed")
        if argv[0] == "virsh":
            return CommandResult(stdout=b"qemu:///system", stderr=b"")
        if self.fails and self.fails in argv:
            raise HostCommandError("apt-get failed with 100: no space", output="")
        self.ran.append(tuple(argv))
        return CommandResult(stdout=b"", stderr=b"")


@pytest.fixture
def host(tmp_path):
    table = BackendTable(name="files", driver="files", values={}, where="")
    return Host(name="local", state=tmp_path / "state", storage={"files": table})


@pytest.fixture(autouse=True)
def no_path(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")  # a program is only run by the runner, which has its own
    monkeypatch.setattr(setting_up, "has_binding", lambda: True)
    monkeypatch.delenv("SUDO_UID", raising=False)


def planned(host, machine, user=None):
    return {step.name: step for step in setting_up.plan(host, machine, user)}


def test_a_bare_machine(host):
    steps = planned(host, Machine(BARE), "nobody")
    assert list(steps) == [
        "package lists",
        "packages",
        "groups",
        "state folder",
        "pool",
        "libvirtd",
    ]
    assert all(step.argv for step in steps.values())
    assert set(setting_up.PACKAGES) < set(steps["packages"].argv)
    assert steps["groups"].argv == ("usermod", "-aG", "libvirt,kvm", "nobody")
    assert steps["pool"].argv == ("install", "-d", "-m", "0755", str(host.state / "pool"))


def test_a_machine_that_is_set_up(host, monkeypatch):
    monkeypatch.setattr(setting_up, "_members", lambda _group: ["ann"])
    (host.state / "pool").mkdir(parents=True)
    machine = Machine(BARE, setting_up.PACKAGES)
    machine.answers = True
    steps = planned(host, machine, "ann")
    assert [step.name for step in steps.values() if not step.done] == []


def test_only_what_is_missing(host):
    (host.state / "pool").mkdir(parents=True)
    host.state.chmod(0o700)  # as QEMU's user couldn't enter it
    steps = planned(host, Machine(BARE, {*setting_up.PACKAGES} - {"seabios"}))
    assert steps["packages"].argv[-2:] == ("--no-install-recommends", "seabios")
    assert steps["groups"].done
    assert [name for name in ("state folder", "pool") if not steps[name].done] == ["state folder"]


def test_a_folder_that_is_there_only_lets_others_enter(host):
    """Its mode is not made another one: a group may have to write there."""
    (host.state / "pool").mkdir(parents=True)
    (host.state / "pool").chmod(0o2770)
    pool = host.state / "pool"
    assert planned(host, Machine())["pool"].argv == ("chmod", "o+x", str(pool))


@pytest.mark.parametrize("path", ["pool", "-x", "", 7, ["/srv"]])
def test_a_pool_whose_path_is_none(machine, tmp_path, capsys, path):
    """Commands run in another folder than the settings' file is in."""
    with (tmp_path / "vmcloner.toml").open("a") as file:
        file.write(f"[hosts.local.storage.files]\npath = {json.dumps(path)}\n")
    assert main(["host", "setup", "--yes"]) == 3
    assert f"path of a pool must be absolute, not {path!r}" in capsys.readouterr().err
    assert machine.ran == []


def test_folders_that_this_user_may_not_look_into(host, monkeypatch):
    there = Path.stat

    def stat(path, **options):
        if path.is_relative_to(host.state):
            raise PermissionError(13, "Permission denied")
        return there(path, **options)

    monkeypatch.setattr(Path, "stat", stat)
    pool = planned(host, Machine())["pool"]
    assert (pool.unknown, pool.detail) == (True, "this user can't tell: Permission denied")
    assert pool.argv[:2] == ("install", "-d")


def test_who_comes_into_the_groups(monkeypatch):
    """The one who runs a dry run, as it shows what sudo would do; root believes only a number."""
    nobody = pwd.getpwnam("nobody")
    monkeypatch.setattr(os, "geteuid", lambda: nobody.pw_uid)
    assert setting_up.caller() == "nobody"
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("SUDO_USER", "--root=/tmp")
    assert setting_up.caller() is None
    said = {str(nobody.pw_uid): "nobody", "0": None, "": None, "-p": None, "4000000": None}
    for text, user in {**said, "9" * 30: None}.items():
        monkeypatch.setenv("SUDO_UID", text)
        assert setting_up.caller() == user


def test_where_there_is_no_apt(host):
    steps = planned(host, Machine({"qemu-img"}))
    assert "package lists" not in steps
    assert steps["packages"].by_hand
    assert "QEMU for x86" in steps["packages"].detail
    assert "images" not in steps["packages"].detail
    assert planned(host, Machine(setting_up.PROGRAMS))["packages"].done


def test_a_checkout_installs_these_packages_too():
    listed = (Path(__file__).parents[2] / "contrib/setup/packages.txt").read_text().split()
    assert {*setting_up.PACKAGES, *setting_up.BUILDING} <= set(listed)


def test_without_the_binding(host, monkeypatch):
    monkeypatch.setattr(setting_up, "has_binding", lambda: False)
    steps = planned(host, Machine(BARE))
    assert "libvirt-dev" in steps["packages"].argv
    assert steps["libvirt-python"].by_hand


def test_with_and_without_systemd(host, tmp_path, monkeypatch):
    for there in (True, False):
        monkeypatch.setattr(setting_up, "SYSTEMD", tmp_path if there else tmp_path / "none")
        step = planned(host, Machine(BARE))["libvirtd"]
        assert (step.argv[0] == "systemctl") is there
        assert ("no systemd" in step.detail) is not there


def test_a_step_that_fails_is_named():
    step = setting_up.Step(name="packages", argv=("apt-get", "install"))
    with pytest.raises(HostCommandError, match="packages: apt-get failed with 100: no space"):
        setting_up.carry_out(step, Machine(fails="install"))


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A bare machine, whose commands and networks are only kept; settings of its own."""
    config = tmp_path / "vmcloner.toml"
    config.write_text(f'[hosts.local]\nstate = "{tmp_path}/state"\n')
    monkeypatch.setenv("VMCLONER_CONFIG", str(config))
    found = Machine(BARE)
    monkeypatch.setattr(LocalRunner, "run", lambda _self, argv, **_options: found.run(argv))
    monkeypatch.setattr(LocalRunner, "which", lambda _self, program: found.which(program))
    monkeypatch.setattr(os, "geteuid", lambda: 0)

    def prepare(_self, request):
        found.ran.append(("network", request.name))

    monkeypatch.setattr(Engine, "prepare_network", prepare)
    return found


def test_a_dry_run_changes_nothing(machine, capsys, tmp_path):
    assert main(["host", "setup", "--dry-run", "-f", "json"]) == 0
    said = capsys.readouterr()
    assert '"to do"' in said.out
    assert machine.ran == []
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(
    ("who", "daemon", "network"),
    [
        ("refused after it answered", "already done", "unknown"),
        ("not let in", "unknown", "unknown"),
        ("without a daemon", "to do", "to do"),
    ],
)
def test_an_ordinary_user_learns_what_is_known(
    machine, capsys, tmp_path, monkeypatch, who, daemon, network
):
    def closed(_socket, _address):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(setting_up, "SOCKET", tmp_path / "socket")
    if who == "not let in":
        monkeypatch.setattr(socket.socket, "connect", closed)
    with socket.socket(socket.AF_UNIX) as server:
        if who == "refused after it answered":
            server.bind(str(tmp_path / "socket"))
            server.listen()
        assert main(["host", "setup", "--dry-run", "-f", "json"]) == 0
    said = capsys.readouterr()
    status = {row["step"]: row["status"] for row in json.loads(said.out)}
    assert (status["libvirtd"], status["network"]) == (daemon, network)
    assert ("sudo vmcloner host setup --dry-run" in said.err) is ("unknown" in (daemon, network))
    assert main(["host", "setup", "--yes"]) == 8  # what is unknown is root's to do
    assert machine.ran == []


@pytest.mark.parametrize("quiet", [[], ["--quiet"]])
def test_nothing_is_done_without_a_yes(machine, capsys, monkeypatch, quiet):
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    assert main([*quiet, "host", "setup"]) == 2
    capsys.readouterr()
    answers = io.StringIO("n\n")
    answers.isatty = lambda: True
    monkeypatch.setattr(sys, "stdin", answers)
    assert main([*quiet, "host", "setup"]) == 130
    assert machine.ran == []
    assert "seabios" in capsys.readouterr().err, "what is asked for is named"


def test_the_steps_are_done_in_order(machine, capsys):
    assert main(["host", "setup", "--yes"]) == 0
    done = [" ".join(argv) for argv in machine.ran]
    words = ("apt-get", "apt-get", "install -d", "install -d")
    assert [text.startswith(word) for text, word in zip(done, words, strict=False)] == [True] * 4
    assert "libvirtd" in done[4]
    assert done[5] == "network vmcloner"
    assert len(done) == 6


def test_only_root_sets_up(machine, capsys, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert main(["host", "setup", "--yes"]) == 8
    assert "sudo vmcloner host setup" in capsys.readouterr().err
    assert machine.ran == []


def test_what_is_left_to_do_by_hand_is_an_error(machine, capsys):
    """Without apt: what takes libvirt's daemon isn't tried before the user has installed that."""
    machine.programs.clear()
    assert main(["host", "setup", "--yes"]) == 8
    said = capsys.readouterr()
    assert "to do by hand: packages, libvirtd, network (install with this system's package " in (
        said.err
    )
    assert "after packages" in said.out
    assert [argv[0] for argv in machine.ran] == ["install", "install"]


def test_a_daemon_that_is_installed_without_apt_is_started(machine, host):
    machine.programs = {"libvirtd"}
    assert planned(host, machine)["libvirtd"].argv
