"""The pytest plugin of the conformance suites; pytest loads it where vmcloner is installed.

It has the suites' assertions rewritten, so that failures show the compared values, and adds the
fixture ``vmcloner_context``. Nothing else: the suites are imported by those who use them.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from vmcloner_core import testing

if TYPE_CHECKING:
    from vmcloner_core.drivers import DriverContext

# By module: the package itself has been imported already.
pytest.register_assert_rewrite(
    *(
        f"{testing.__name__}.{module.name}"
        for module in pkgutil.iter_modules(testing.__path__)
        if module.name != "pytest_plugin"
    )
)


@pytest.fixture
def vmcloner_context(tmp_path: Path) -> Callable[[str], DriverContext]:
    """Return a function that makes the context of a driver on this host, by its name."""
    from vmcloner_core.testing.samples import make_context

    return lambda name: make_context(tmp_path, name)
