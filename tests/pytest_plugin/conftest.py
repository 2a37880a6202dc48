"""A user's project with tests of its own, on drivers that all its processes share."""

import os
from pathlib import Path

import attrs
import pytest

from tests import child_pytest
from tests.conftest import TEMPLATE
from vmcloner_core import Engine

ROOT = Path(__file__).parents[2]
CONFTEST = """
import pytest
from tests.pytest_plugin.shared import PLUGINS
from vmcloner_core import Engine

@pytest.fixture(scope="session")
def vmcloner():
    with Engine.open(plugins=PLUGINS) as engine:
        yield engine
"""
QUIET = ("-p", "no:rerunfailures", "-p", "no:randomly")


@attrs.frozen
class Project:
    """The project, and an engine on its host."""

    pytester: pytest.Pytester
    engine: Engine

    @property
    def folder(self) -> Path:
        return self.pytester.path

    def settings(self, text: str) -> None:
        (self.folder / "pyproject.toml").write_text(f"[tool.pytest.ini_options]\n{text}\n")

    def tests(self, text: str) -> None:
        self.pytester.makepyfile(test_it=text)

    def argv(self, *words: str) -> list[str]:
        return child_pytest.argv("-v", *QUIET, *words)

    def run(self, *words: str) -> pytest.RunResult:
        return self.pytester.run(*self.argv(*words), timeout=200)

    def names(self) -> list[str]:
        return [clone.name for clone in self.engine.list()]


@pytest.fixture
def project(pytester, monkeypatch):
    folder = pytester.path
    monkeypatch.setenv("SHARED_REFERENCE", str(folder / "host"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "plugins")]))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder / "config"))
    monkeypatch.delenv("VMCLONER_CONFIG", raising=False)
    for name in [name for name in os.environ if name.startswith(("PYTEST_XDIST", "COV_CORE"))]:
        monkeypatch.delenv(name)
    (folder / "vmcloner.toml").write_text(
        f"""
        [defaults]
        hypervisor = "reference"
        storage = "reference"
        [limits]
        boot_jobs = 256
        [hosts.local]
        state = "{folder}/state"
        """
    )
    (folder / "templates").mkdir()
    (folder / "templates" / "t1.toml").write_text(TEMPLATE)
    (folder / "templates" / "image.raw").write_bytes(bytes(1024**2))
    pytester.makeconftest(CONFTEST)
    from tests.pytest_plugin import shared

    monkeypatch.setattr(shared, "FOLDER", folder / "host")
    with Engine.open(plugins=shared.PLUGINS) as engine:
        yield Project(pytester, engine)
