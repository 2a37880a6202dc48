"""Pools of files keep the storage contract on real NFS mounts."""

import secrets

import pytest

from vmcloner_core.testing.samples import make_context
from vmcloner_core.testing.storage import STATE_ID, StorageConformance
from vmcloner_files.driver import FilesDriver
from vmcloner_files.settings import FilesSettings

pytestmark = [pytest.mark.nfs, pytest.mark.slow]


class OnNfs(StorageConformance):
    """On an export of a file system of some kind, mounted with some options."""

    kind, options = "ext4", "vers=4.2"

    @pytest.fixture(scope="class")
    @classmethod
    def mounted(cls, shared_of):
        with shared_of(cls.kind, cls.options, "512M") as shared:
            yield shared.point

    @pytest.fixture
    def open_driver(self, mounted, tmp_path):
        context = make_context(tmp_path)
        context.host.state_id.parent.mkdir()
        context.host.state_id.write_text(STATE_ID)  # another's clones would not be seen
        settings = FilesSettings(path=mounted / secrets.token_hex(4))
        return lambda: FilesDriver(context, settings)


class TestNfs42(OnNfs):
    pass


class TestNfs42Reflinks(OnNfs):
    kind = "xfs"


class TestNfs41(OnNfs):
    options = "vers=4.1"


class TestNfs3(OnNfs):
    options = "vers=3"
