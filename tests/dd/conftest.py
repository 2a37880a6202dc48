"""Pools of copies in folders of the tests' own."""

from collections.abc import Callable
from pathlib import Path

import pytest

from vmcloner_core.drivers import DriverContext
from vmcloner_core.model import Host
from vmcloner_core.process import LocalRunner
from vmcloner_dd.folder import FolderDriver
from vmcloner_dd.settings import DdSettings

MakeDriver = Callable[..., FolderDriver]


@pytest.fixture
def make_driver() -> MakeDriver:
    """Return a function that opens a driver on a folder."""

    def make(folder: Path, **settings: object) -> FolderDriver:
        context = DriverContext(
            host=Host(name="local", state=folder / "state"), name="pool", runner=LocalRunner()
        )
        return FolderDriver(context, DdSettings(path=folder / "pool", **settings))

    return make
