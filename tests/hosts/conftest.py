"""Three hosts in this process: an engine on the reference drivers for each."""

from importlib import metadata

import attrs
import pytest

from tests.conftest import TEMPLATE
from vmcloner_core.engine import Engine
from vmcloner_core.hosts.beside import Beside
from vmcloner_core.hosts.carrier import InProcess
from vmcloner_core.hosts.controller import Controller
from vmcloner_core.model import Host, RemoteHost
from vmcloner_core.plugins import PluginHost
from vmcloner_core.settings import Settings
from vmcloner_core.testing.reference import BootPlugin, HypervisorPlugin, StoragePlugin

VERSION = metadata.version("vmcloner")


@attrs.frozen
class Site:
    """A host of the tests: its engine, and the drivers behind that."""

    folder: object
    engine: Engine
    storage_plugin: StoragePlugin
    hypervisor_plugin: HypervisorPlugin

    @property
    def pool(self):
        return self.storage_plugin.driver

    @property
    def machines(self):
        return self.hypervisor_plugin.driver


@attrs.frozen
class Hosts:
    """Hosts, what carries calls to them, and how to open controllers of them."""

    folder: object
    sites: dict
    carrier: InProcess

    def controller(self, *plugins, without=(), carrier=None, version=VERSION, only=None):
        return Controller(
            Settings(),
            PluginHost(plugins),
            carrier or self.carrier,
            [RemoteHost(name=name, ssh=name, python="python3") for name in only or self.sites],
            Host(name="all", state=self.folder / "controller"),
            version=version,
            without=without,
        )


@pytest.fixture
def hosts(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    templates = tmp_path / "config/vmcloner/templates"
    templates.mkdir(parents=True)
    (templates / "t1.toml").write_text(TEMPLATE)
    (templates / "image.raw").write_bytes(bytes(1024**2))
    sites, besides = {}, {}
    for name in ("h1", "h2", "h3"):
        sites[name], besides[name] = site(tmp_path / name, name)
    hosts = Hosts(tmp_path, sites, InProcess(besides))
    yield hosts
    hosts.carrier.close()


def site(folder, name, storage="reference", options=""):
    folder.mkdir()
    config = folder / "vmcloner.toml"
    config.write_text(
        f"""
        [defaults]
        hypervisor = "reference"
        storage = "{storage}"
        [limits]
        boot_jobs = 256
        [hosts.local]
        state = "{folder}/state"
        seed = "{name}"
        """
        + (f"[hosts.local.storage.{storage}]\n{options}\n" if options else "")
    )
    storage, hypervisor = StoragePlugin(), HypervisorPlugin()

    def opened(*plugins):
        return Engine.open(config=config, plugins=[storage, hypervisor, BootPlugin(), *plugins])

    engine = opened()
    engine.list()
    return Site(folder, engine, storage, hypervisor), Beside(opened)
