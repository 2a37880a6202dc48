"""The storage conformance suite on copies in a folder."""

from pathlib import Path

import pytest

from vmcloner_core.testing.storage import StorageConformance
from vmcloner_files import drafts, features


class TestFolder(StorageConformance):
    @pytest.fixture
    def open_driver(self, tmp_path, make_driver):
        return lambda: make_driver(tmp_path)


class TestVerified(StorageConformance):
    @pytest.fixture
    def open_driver(self, tmp_path, make_driver):
        return lambda: make_driver(tmp_path, verify=True)


class TestPlain(StorageConformance):
    """On a file system that has neither unnamed files nor extended attributes."""

    @pytest.fixture(autouse=True)
    def without(self, monkeypatch):
        def refuse(folder: Path):
            raise OSError(95, "Operation not supported")

        monkeypatch.setattr(drafts, "unnamed", refuse)
        monkeypatch.setattr("vmcloner_files.pool.has_attributes", lambda _folder: False)
        assert features.has_attributes

    @pytest.fixture
    def open_driver(self, tmp_path, make_driver):
        return lambda: make_driver(tmp_path)
