"""What is released of this checkout, built once."""

from pathlib import Path

import pytest

from contrib.packaging import sources


@pytest.fixture(scope="session")
def built(tmp_path_factory) -> Path:
    """A folder with the source distribution and the wheel."""
    folder = tmp_path_factory.mktemp("built")
    sources.build(folder)
    return folder


@pytest.fixture(scope="session")
def wheel(built) -> Path:
    (wheel,) = built.glob("*.whl")
    return wheel
