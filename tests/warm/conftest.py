"""An engine with a reference hypervisor that forks, and real files."""

import attrs
import pytest

from tests.warm.forking import LAB, TEMPLATE, killed
from vmcloner_core import Engine
from vmcloner_core.errors import BackendError
from vmcloner_core.labs import read_lab
from vmcloner_core.testing.reference import BootPlugin


@pytest.fixture
def warm(lab, monkeypatch):
    lab.template("warm", TEMPLATE)
    settings = lab.engine.settings
    defaults = attrs.evolve(settings.defaults, storage="files")
    with Engine.open(
        settings=attrs.evolve(settings, defaults=defaults),
        plugins=[lab.hypervisor_plugin, BootPlugin()],
    ) as engine:
        monkeypatch.setattr("vmcloner_core.warm_forks.PATIENCE", 0.5)
        monkeypatch.setattr("vmcloner_core.warm_calls.ANSWER", 0.5)
        monkeypatch.setattr("vmcloner_core.reseeding.POLL", 0.01)
        engine.list()
        yield engine


@pytest.fixture
def mute(lab, monkeypatch):
    """Have guests say that they have booted, and nothing of a seed."""
    boot = lab.machines.warm.boot

    def silent(name, folder):
        boot(name, folder)
        lab.machines.said[name] = b"here is the parent\n"

    monkeypatch.setattr(lab.machines.warm, "boot", silent)


@pytest.fixture
def shop(tmp_path):
    def write(more=""):
        file = tmp_path / "lab.toml"
        file.write_text(LAB + more)
        return read_lab(file)

    return write


@pytest.fixture
def killed_saving(warm, lab, monkeypatch):
    """A making of an origin is killed when it has saved the memory."""
    monkeypatch.setattr("vmcloner_core.warm_calls._Making._undo", lambda _self: None)
    with monkeypatch.context() as patch:
        patch.setattr(lab.machines.warm, "save", killed(lab.machines.warm.save))
        with pytest.raises(BackendError, match="Killed"):
            warm.warm_template("warm")
