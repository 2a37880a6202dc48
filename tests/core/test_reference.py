"""The reference drivers keep the contracts that others are proven by."""

import contextlib

import pytest

from vmcloner_core.drivers import DriverContext
from vmcloner_core.hooks import NoSettings
from vmcloner_core.model import BootConfig, DomainSpec, Host, Nic, NicSpec, clone_mac, clone_uuid
from vmcloner_core.process import LocalRunner
from vmcloner_core.testing.hypervisor import HypervisorConformance
from vmcloner_core.testing.reference import ReferenceHypervisor, ReferenceStorage
from vmcloner_core.testing.storage import StorageConformance


class TestReference(HypervisorConformance):
    made = ReferenceHypervisor

    @pytest.fixture
    def driver(self, tmp_path):
        host = Host(name="local", state=tmp_path)
        context = DriverContext(host=host, name="reference", runner=LocalRunner())
        return self.made(context, NoSettings())

    @pytest.fixture
    def make_spec(self):
        def make(labels):
            mac = clone_mac("52:54:00", "local", labels.fleet, labels.index, 0)
            return DomainSpec(
                labels=labels,
                uuid=clone_uuid("local", labels.fleet, labels.index, labels.template),
                memory=1024**2,
                vcpus=1,
                boot=BootConfig(),
                volumes=(),
                nics=(Nic(spec=NicSpec(), mac=mac),),
            )

        return make


class TestReferenceStorage(StorageConformance):
    """Its volumes are bytes of its own, not files."""

    made = ReferenceStorage

    @pytest.fixture(autouse=True)
    def pool(self, tmp_path):
        host = Host(name="local", state=tmp_path)
        context = DriverContext(host=host, name="pool", runner=LocalRunner())
        self.storage = self.made(context, NoSettings())

    @pytest.fixture
    def open_driver(self):
        return lambda: self.storage

    def read(self, volume):
        return self.storage.contents[volume.name].ljust(volume.size, b"\0")

    def write(self, volume, offset, data):
        content = self.read(volume)
        self.storage.contents[volume.name] = content[:offset] + data + content[offset + len(data) :]

    def put_foreign(self, volume):
        self.storage.foreign.add(volume.name)

    def check_foreign(self, volume):
        assert volume.name in self.storage.foreign
        assert volume.name not in self.storage.disks

    @contextlib.contextmanager
    def busy(self, volume):
        self.storage.busy.add(volume.name)
        yield 1
        self.storage.busy.clear()
