"""Pools of copies in folders of the tests' own."""

from collections.abc import Callable
from pathlib import Path

import pytest

from vmcloner_core.drivers import StorageDriver
from vmcloner_core.testing.samples import make_context
from vmcloner_dd.plugin import vmcloner_storage_backend
from vmcloner_dd.settings import DdSettings

MakeDriver = Callable[..., StorageDriver]


@pytest.fixture
def make_driver() -> MakeDriver:
    """Return a function that opens a driver on a folder, as the plugin does."""

    def make(folder: Path, **settings: object) -> StorageDriver:
        context = make_context(folder, "pool")
        factory = vmcloner_storage_backend().factory
        return factory(context, DdSettings(path=folder / "pool", **settings))

    return make
