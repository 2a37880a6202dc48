"""The wheel of this checkout, built once."""

from pathlib import Path

import pytest

from tests.packaging.building import ROOT, build


@pytest.fixture(scope="session")
def wheel(tmp_path_factory) -> Path:
    return build(ROOT, tmp_path_factory.mktemp("wheel"))
