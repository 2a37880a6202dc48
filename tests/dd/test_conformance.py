"""The storage conformance suite on copies in a folder, and in a faked volume group."""

from pathlib import Path

import pytest

from tests.dd.fakes import FakeGroup, Volume, open_driver
from vmcloner_core.drivers import DriverContext
from vmcloner_core.model import CloneMode, Host
from vmcloner_core.testing.storage import StorageConformance
from vmcloner_files import drafts


class Full(StorageConformance):
    """There are no linked clones here."""

    @pytest.fixture(params=[CloneMode.FULL], ids=["full"])
    def mode(self, request):
        return request.param


class TestFolder(Full):
    @pytest.fixture
    def open_driver(self, tmp_path, make_driver):
        return lambda: make_driver(tmp_path)


class TestVerified(Full):
    @pytest.fixture
    def open_driver(self, tmp_path, make_driver):
        return lambda: make_driver(tmp_path, verify=True)


class TestPlain(Full):
    """On a file system that has neither unnamed files nor extended attributes."""

    @pytest.fixture(autouse=True)
    def without(self, monkeypatch):
        def refuse(folder: Path):
            raise OSError(95, "Operation not supported")

        monkeypatch.setattr(drafts, "unnamed", refuse)
        monkeypatch.setattr("vmcloner_files.pool.has_attributes", lambda _folder: False)

    @pytest.fixture
    def open_driver(self, tmp_path, make_driver):
        return lambda: make_driver(tmp_path)


class TestGroup(Full):
    """In a volume group, on a faked host."""

    @pytest.fixture(autouse=True)
    def host(self, tmp_path):
        folder = tmp_path / "dev"
        folder.mkdir()
        self.host = FakeGroup(folder)

    @pytest.fixture
    def open_driver(self, tmp_path):
        host = Host(name="local", state=tmp_path)
        context = DriverContext(host=host, name="pool", runner=self.host)
        return lambda: open_driver(context)

    def put_foreign(self, volume):
        self.host.volumes[volume.name] = Volume("foreign", 4096, [])
        volume.path.write_bytes(b"foreign")
