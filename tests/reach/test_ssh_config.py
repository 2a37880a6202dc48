"""``vmcloner ssh-config``: plain ssh reaches clones by name, against real sshd's."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from vmcloner_core import ssh_config
from vmcloner_core.cli.ssh_config import SshConfig
from vmcloner_core.errors import InvalidRequest
from vmcloner_core.settings import Settings
from vmcloner_core.ssh_config import UserConfig

BIN = Path(sys.executable).parent


@pytest.fixture
def home(tmp_path, monkeypatch):
    place = tmp_path / "home of a user"
    place.mkdir()
    monkeypatch.setenv("HOME", str(place))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    return place


@pytest.fixture
def installed(web, run, home, monkeypatch):
    """Installed with a program that only notes who was asked for: tests refresh before."""
    program = home / "asked.sh"
    program.write_text(f'#!/bin/sh\necho "$1" >> {shlex.quote(str(home / "asked"))}\n')
    program.chmod(0o755)
    monkeypatch.setattr(SshConfig, "_program", lambda _self: [str(program)])
    assert run("ssh-config", "--install")[0] == 0
    return home


def plain(home, *words):
    argv = ["ssh", "-F", str(home / ".ssh" / "config"), "-oBatchMode=yes", *words]
    return subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)


def asked(home):
    file = home / "asked"
    return file.read_text().split() if file.exists() else []


def test_plain_ssh_reaches_a_clone(installed, run):
    assert run("ssh-config", "--refresh", "web-3")[0] == 0
    done = plain(installed, "web-3", "echo $VMCLONER_GUEST")
    assert (done.stdout, done.returncode) == ("web-3\n", 0), done.stderr
    assert asked(installed) == ["web-3"]


def test_a_machine_with_another_host_key_is_refused(installed, run):
    run("ssh-config", "--refresh", "web-4")
    done = plain(installed, "web-4", "true")
    assert done.returncode == 255
    assert "Host key verification failed" in done.stderr


@pytest.mark.parametrize("name", ["web", "db-1", "web-30", "my-host.example", "web-3.example"])
def test_strangers_are_not_asked_for(installed, run, name):
    run("ssh-config", "--refresh", "web-3")
    before = plain(installed, "-G", name).stdout
    assert asked(installed) == []
    assert f"hostname {name}\n" in before
    assert "hostkeyalias" not in before


@pytest.mark.parametrize("name", ["web-3';touch${IFS}x;'", "web-$(touch x)", "web-`touch x`"])
def test_names_are_no_shell_commands(installed, name, tmp_path):
    plain(installed, "-G", "--", name)
    assert asked(installed) == []
    assert not (tmp_path / "x").exists()


def test_a_clone_that_cannot_be_reached(installed, web, run):
    web.engine.stop("web-3")
    code, _, err = run("ssh-config", "--refresh", "web-3")
    assert code == 6
    assert "web-3 is stopped" in err


def test_it_is_installed_once_and_removed_whole(web, run, home):
    config = home / ".ssh" / "config"
    config.parent.mkdir(mode=0o700)
    own = b"Host \xff\n    User me"
    config.write_bytes(own)
    config.chmod(0o640)
    assert run("ssh-config", "--install")[2] == "vmcloner: installed: ssh reaches clones by name\n"
    first = config.read_bytes()
    assert first.endswith(b"\n\n" + own)
    assert config.stat().st_mode & 0o777 == 0o640
    assert run("ssh-config", "--install")[2] == "vmcloner: already installed\n"
    assert config.read_bytes() == first
    run("ssh-config", "--refresh", "web-3")
    assert run("ssh-config", "--remove")[2] == "vmcloner: removed\n"
    assert config.read_bytes() == own
    assert not (home / ".config" / "vmcloner" / "ssh").exists()
    assert run("ssh-config", "--remove")[2] == "vmcloner: it isn't installed\n"


def test_a_file_of_ours_alone_is_removed(web, run, home):
    run("ssh-config", "--install")
    assert (home / ".ssh").stat().st_mode & 0o777 == 0o700
    assert (home / ".ssh" / "config").stat().st_mode & 0o777 == 0o600
    run("ssh-config", "--remove")
    assert not (home / ".ssh" / "config").exists()


def test_a_link_to_the_configuration_stays_one(web, run, home):
    (home / ".ssh").mkdir()
    (home / "dotfile").write_text("Host x\n")
    (home / ".ssh" / "config").symlink_to(home / "dotfile")
    run("ssh-config", "--install")
    assert (home / ".ssh" / "config").is_symlink()
    assert (home / "dotfile").read_text().startswith(ssh_config._MARK)
    run("ssh-config", "--remove")
    assert (home / "dotfile").read_text() == "Host x\n"


def test_clones_that_are_gone_are_forgotten(installed, web, run):
    clones = installed / ".config" / "vmcloner" / "ssh" / "clones"
    for name in ("web-2", "web-3"):
        run("ssh-config", "--refresh", name)
    web.engine.delete("web-3")
    (clones / ".web-1.vmcloner").write_text("what a killed run left")
    run("ssh-config", "--refresh", "web-2")
    assert [file.name for file in clones.iterdir()] == ["web-2"]


@pytest.mark.parametrize("place", ['a"b', "a'b", "a*b", "a${b}", "a\nb"])
def test_a_path_that_ssh_would_change(tmp_path, place):
    config = UserConfig(tmp_path, tmp_path / place)
    with pytest.raises(InvalidRequest, match="would change it"):
        config.install(["vmcloner"], tmp_path / "records")
    assert not (tmp_path / ".ssh").exists()


def test_the_program_is_named_with_its_settings(web, run, home, tmp_path):
    run("--config", "vmcloner.toml", "--host", "local", "ssh-config", "--install")
    text = (home / ".config" / "vmcloner" / "ssh" / "config").read_text()
    assert f"/vmcloner --config {tmp_path}/vmcloner.toml --host local ssh-config --refresh" in text


def test_settings_that_were_found_are_named(web, run, home, tmp_path, monkeypatch):
    """ssh runs it in any folder, where ./vmcloner.toml is another file or none."""
    assert (tmp_path / "vmcloner.toml").exists()
    run("ssh-config", "--install")
    text = (home / ".config" / "vmcloner" / "ssh" / "config").read_text()
    assert f"cd / && exec {BIN}/vmcloner --config {tmp_path}/vmcloner.toml ssh-config" in text


def test_a_state_folder_is_relative_to_its_settings(tmp_path, monkeypatch):
    (tmp_path / "vmcloner.toml").write_text('[hosts.local]\nstate = "here"\n')
    monkeypatch.chdir("/")
    settings = Settings.load(tmp_path / "vmcloner.toml")
    assert settings.host().state == tmp_path / "here"


def test_one_thing_to_do(run, home):
    assert run("ssh-config")[0] == 2
    assert run("ssh-config", "--install", "--remove")[0] == 2
