"""lvm-thin keeps the storage contract, on a real device-mapper."""

import contextlib

import pytest

from tests.lvm.conftest import VG, lvm
from vmcloner_core.model import CloneMode
from vmcloner_core.testing.storage import StorageConformance

pytestmark = pytest.mark.lvm


class TestLvmThin(StorageConformance):
    @pytest.fixture
    def open_driver(self, open_driver):
        return open_driver

    @pytest.fixture(params=[CloneMode.LINKED], ids=["linked"])
    def mode(self, request):
        """Say so by the class: a test would make its template before it is skipped."""
        return request.param

    def put_foreign(self, volume):
        lvm("lvcreate", "-V", "8m", "-T", f"{VG}/pool", "-n", volume.name)
        volume.path.write_bytes(b"foreign")
        lvm("lvchange", "-an", f"{VG}/{volume.name}")

    def check_foreign(self, volume):
        lvm("lvchange", "-ay", f"{VG}/{volume.name}")
        with volume.path.open("rb") as stream:
            assert stream.read(7) == b"foreign"
        with contextlib.suppress(OSError):
            lvm("lvchange", "-an", f"{VG}/{volume.name}")
