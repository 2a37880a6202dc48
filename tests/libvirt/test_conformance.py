"""The contract of hypervisor drivers, on libvirt's test driver and on the real daemon."""

from collections.abc import Callable

import pytest

from vmcloner_core.model import DomainSpec, Labels
from vmcloner_core.testing.hypervisor import HypervisorConformance
from vmcloner_libvirt.kvm import KvmDriver


class TestPaper(HypervisorConformance):
    @pytest.fixture
    def driver(self, paper: KvmDriver) -> KvmDriver:
        return paper

    @pytest.fixture
    def make_spec(self, new_spec: Callable[[Labels], DomainSpec]) -> Callable[..., DomainSpec]:
        return new_spec


@pytest.mark.libvirt
class TestReal(HypervisorConformance):
    @pytest.fixture
    def driver(self, make_driver: Callable[..., KvmDriver]) -> KvmDriver:
        return make_driver("qemu:///system", accel="tcg")

    @pytest.fixture
    def make_spec(self, new_guest: Callable[[Labels], DomainSpec]) -> Callable[..., DomainSpec]:
        return new_guest
