"""Pools of copies in folders of the tests' own."""

from collections.abc import Callable
from pathlib import Path

import pytest

from vmcloner_core.testing.samples import make_context
from vmcloner_dd.folder import FolderDriver
from vmcloner_dd.settings import DdSettings

MakeDriver = Callable[..., FolderDriver]


@pytest.fixture
def make_driver() -> MakeDriver:
    """Return a function that opens a driver on a folder."""

    def make(folder: Path, **settings: object) -> FolderDriver:
        context = make_context(folder, "pool")
        return FolderDriver(context, DdSettings(path=folder / "pool", **settings))

    return make
