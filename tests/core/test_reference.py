"""The reference hypervisor keeps the contract that others are proven by."""

import pytest

from vmcloner_core.drivers import DriverContext
from vmcloner_core.hooks import NoSettings
from vmcloner_core.model import BootConfig, DomainSpec, Host, Nic, NicSpec, clone_mac, clone_uuid
from vmcloner_core.process import LocalRunner
from vmcloner_core.testing.hypervisor import HypervisorConformance
from vmcloner_core.testing.reference import ReferenceHypervisor


class TestReference(HypervisorConformance):
    @pytest.fixture
    def driver(self, tmp_path):
        host = Host(name="local", state=tmp_path)
        context = DriverContext(host=host, name="reference", runner=LocalRunner())
        return ReferenceHypervisor(context, NoSettings())

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
