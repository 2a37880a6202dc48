"""Hosts make other UUIDs and MAC addresses than each other, and the same ones again."""

import socket
from pathlib import Path

import pytest

from vmcloner_core import local_host
from vmcloner_core.errors import InvalidRequest
from vmcloner_core.local_host import LocalHost
from vmcloner_core.model import Host
from vmcloner_core.plugins import PluginHost
from vmcloner_core.settings import Settings

ONE, TWO = "1" * 32, "2" * 32


@pytest.fixture
def seed(tmp_path, monkeypatch):
    def seed(machine_id: str | None, name: str = "host", state: str = "state", given=None) -> str:
        file = tmp_path / "machine-id"
        file.unlink(missing_ok=True)
        if machine_id is not None:
            file.write_text(f"{machine_id}\n")
        monkeypatch.setattr(local_host, "MACHINE_ID", file)
        monkeypatch.setattr(socket, "gethostname", lambda: name)
        host = LocalHost(Host(name="local", state=tmp_path / state, seed=given), PluginHost([]))
        host.keep_state_id()
        return host.seed

    return seed


def test_each_host_has_its_own(seed):
    assert seed(ONE) == seed(ONE, state="other")
    assert seed(ONE) != seed(TWO)
    assert seed(ONE) != seed(ONE, "another host"), "a clone of the host, with its machine-id"


@pytest.mark.parametrize("none", [None, "", "uninitialized", "0123"])
def test_without_a_machine_id_the_state_folder_has_it(seed, none):
    """As in containers, and in images that have not been booted."""
    assert seed(none) == seed(none)
    assert seed(none) != seed(none, state="other")
    assert seed(none) != seed(ONE)


def test_settings_can_say(seed):
    assert seed(ONE, given="rack 7") == seed(TWO, "another name", given="rack 7")
    assert seed(ONE, given="rack 7") != seed(ONE, given="rack 8")
    assert seed(ONE, given="rack 7") != seed(ONE)


def test_the_machine_id_is_not_in_it(seed):
    assert ONE not in seed(ONE)


def test_the_setting(tmp_path):
    file = tmp_path / "vmcloner.toml"
    file.write_text('[hosts.local]\nseed = "rack 7"\n')
    assert Settings.load(file).host().seed == "rack 7"
    for wrong in ('""', '" "', "7"):
        file.write_text(f"[hosts.local]\nseed = {wrong}\n")
        with pytest.raises(InvalidRequest, match="seed"):
            Settings.load(file)
    assert Settings.load(_empty(tmp_path)).host().seed is None


def _empty(folder: Path) -> Path:
    file = folder / "empty.toml"
    file.touch()
    return file
