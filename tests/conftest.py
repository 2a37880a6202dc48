"""An engine on the reference drivers, in a folder of its own."""

import io
import json
import logging
import signal
import sys
import textwrap
from pathlib import Path

import attrs
import hypothesis
import pytest
from stevedore import ExtensionManager

from tests.skipping import pytest_make_collect_report, pytest_runtest_makereport  # noqa: F401
from vmcloner_core import Engine
from vmcloner_core.cli.app import main
from vmcloner_core.testing.reference import (
    BootPlugin,
    HypervisorPlugin,
    ReferenceHypervisor,
    ReferenceStorage,
    StoragePlugin,
)

# How long an example takes is a matter of what else the machine does; pytest's own limit holds.
hypothesis.settings.register_profile("vmcloner", deadline=None)
hypothesis.settings.load_profile("vmcloner")

TEMPLATE = """
hypervisors = ["reference"]
boot = "reference"
memory = "256MiB"
ready = 'console:ready name={{ name }} '
[image]
path = "image.raw"
"""


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # So it is where a script started us in the background; what we start would ignore it too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    # So it is under nohup(1). A handler that does nothing keeps us running, and isn't inherited.
    signal.signal(signal.SIGHUP, lambda *_: None)


@attrs.frozen
class Lab:
    """The engine, and the two drivers behind it."""

    engine: Engine
    folder: Path
    storage_plugin: StoragePlugin
    hypervisor_plugin: HypervisorPlugin

    @property
    def pool(self) -> ReferenceStorage:
        return self.storage_plugin.driver

    @property
    def machines(self) -> ReferenceHypervisor:
        return self.hypervisor_plugin.driver

    def template(self, name: str, text: str = TEMPLATE) -> None:
        (self.folder / "templates").mkdir(exist_ok=True)
        (self.folder / "templates" / f"{name}.toml").write_text(text)
        (self.folder / "templates" / "image.raw").write_bytes(bytes(1024**2))


def forget_templates(state: Path) -> None:
    """Make a state folder's records those of a version that didn't keep templates in them."""
    for file in state.glob("identity/*/record.json"):
        record = json.loads(file.read_text())
        del record["template"]
        file.write_text(json.dumps(record))


@pytest.fixture
def lab(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VMCLONER_CONFIG", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    config = tmp_path / "vmcloner.toml"
    config.write_text(
        f"""
        [defaults]
        hypervisor = "reference"
        storage = "reference"
        [limits]
        boot_jobs = 256
        [hosts.local]
        state = "{tmp_path}/state"
        """
    )
    storage, hypervisor = StoragePlugin(), HypervisorPlugin()
    with Engine.open(plugins=[storage, hypervisor, BootPlugin()]) as engine:
        lab = Lab(engine, tmp_path, storage, hypervisor)
        lab.template("t1")
        lab.template("t2")
        engine.list()  # makes the drivers
        yield lab


@pytest.fixture
def run(lab, monkeypatch, capsys):
    """Return a function that runs a command line: (exit code, output, errors)."""

    def opened(_cls, plugins=(), **_options):
        for plugin in plugins:
            lab.engine.plugins.watch(plugin)
        return lab.engine

    monkeypatch.setattr(Engine, "open", classmethod(opened))

    def run(*words, stdin=None):
        monkeypatch.setattr(sys, "stdin", stdin or io.StringIO())
        code = main(words)
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return code, captured.out, captured.err

    return run


@pytest.fixture(autouse=True)
def handlers():
    """Remove the log handlers that cliff adds for a command: their stream was this test's."""
    root = logging.getLogger()
    before = list(root.handlers)
    yield
    for handler in [each for each in root.handlers if type(each) is logging.StreamHandler]:
        if handler not in before:
            root.removeHandler(handler)


@pytest.fixture
def distribution(tmp_path, monkeypatch):
    """Return a function that puts a distribution with plugins on sys.path.

    Each plugin is a module, given by its source; one of the group ``vmcloner.cli`` is the class
    ``Command`` in it.
    """
    modules = set(sys.modules)
    monkeypatch.setattr(ExtensionManager, "ENTRY_POINT_CACHE", {})

    def make(dist, group="vmcloner.storage", **plugins):
        folder = tmp_path / dist
        info = folder / f"{dist}-1.2.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {dist}\nVersion: 1.2\n")
        attribute = ":Command" if group == "vmcloner.cli" else ""
        lines = []
        for name, source in plugins.items():
            module = f"{dist}_{name}".replace("-", "_")
            (folder / f"{module}.py").write_text(textwrap.dedent(source.replace("{name}", name)))
            lines.append(f"{name} = {module}{attribute}")
        (info / "entry_points.txt").write_text(f"[{group}]\n" + "\n".join(lines))
        monkeypatch.syspath_prepend(str(folder))

    yield make
    for name in set(sys.modules) - modules:
        del sys.modules[name]
