"""The contract of hypervisor drivers, on libvirt's test driver and on the real daemon."""

from collections.abc import Callable
from pathlib import Path

import pytest

from vmcloner_core.errors import BackendError
from vmcloner_core.model import BootConfig, DomainSpec, Labels, Nic, NicSpec, clone_mac
from vmcloner_core.testing.hypervisor import HypervisorConformance
from vmcloner_libvirt.kvm import KvmDriver
from vmcloner_libvirt.xen import XenDriver


class TestPaper(HypervisorConformance):
    @pytest.fixture
    def driver(self, paper: KvmDriver) -> KvmDriver:
        return paper

    @pytest.fixture
    def make_spec(self, new_spec: Callable[[Labels], DomainSpec]) -> Callable[..., DomainSpec]:
        return new_spec


class TestPaperXen(HypervisorConformance):
    """Xen's driver on libvirt's test driver, which has PV guests too."""

    @pytest.fixture
    def driver(self, make_xen: Callable[..., XenDriver]) -> XenDriver:
        return make_xen()

    @pytest.fixture
    def make_spec(self, new_spec: Callable[..., DomainSpec]) -> Callable[..., DomainSpec]:
        boot = BootConfig(bootloader=Path("pygrub"), devices=())
        return lambda labels: new_spec(labels, boot=boot, nics=(nic(labels),))

    def test_probe(self, driver: XenDriver) -> None:
        """The test driver is no Xen: the doctor looks no further. (It does in test_libxl.)"""
        assert [check.name for check in driver.probe()] == ["libvirt-python", "daemon"]

    def test_native_format(self, driver: XenDriver, specs: tuple[DomainSpec, ...]) -> None:
        """The test driver converts no XML; what libxl's converts is in tests of a real Xen."""
        with pytest.raises(BackendError, match="VIR_ERR_NO_SUPPORT"):
            driver.native.render(specs[0])


def nic(labels: Labels) -> Nic:
    mac = clone_mac("00:16:3e", "local", labels.fleet, labels.index, 0)
    return Nic(spec=NicSpec(kind="bridge", source="xenbr0"), mac=mac)


@pytest.mark.libvirt
class TestReal(HypervisorConformance):
    @pytest.fixture
    def driver(self, make_driver: Callable[..., KvmDriver]) -> KvmDriver:
        return make_driver("qemu:///system", accel="tcg")

    @pytest.fixture
    def make_spec(self, new_guest: Callable[[Labels], DomainSpec]) -> Callable[..., DomainSpec]:
        return new_guest
