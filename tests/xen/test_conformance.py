"""The contract of hypervisor drivers, and what a crash, a reboot and a console are, on real Xen."""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import attrs
import pytest

from tests.xen.conftest import GUEST
from vmcloner_core.errors import Conflict
from vmcloner_core.model import (
    BootConfig,
    DomainSpec,
    Labels,
    Nic,
    NicSpec,
    State,
    Volume,
    clone_mac,
    clone_uuid,
)
from vmcloner_core.testing.hypervisor import HypervisorConformance
from vmcloner_core.testing.samples import make_context
from vmcloner_libvirt.settings import XenSettings
from vmcloner_libvirt.xen import XenDriver

pytestmark = [pytest.mark.xen, pytest.mark.timeout(600)]


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[XenDriver]:
    driver = XenDriver(make_context(tmp_path, "xen"), XenSettings())
    yield driver
    driver.close()


@pytest.fixture
def make_spec(tmp_path: Path) -> Callable[[Labels], DomainSpec]:
    def make(labels: Labels) -> DomainSpec:
        disk = tmp_path / f"{labels.clone}-disk0"
        shutil.copyfile(GUEST / "disk.raw", disk)
        volume = Volume(
            name=disk.name, pool="p", labels=labels, path=disk, size=disk.stat().st_size
        )
        mac = clone_mac("00:16:3e", "local", labels.fleet, labels.index, 0)
        return DomainSpec(
            labels=labels,
            uuid=clone_uuid("local", labels.fleet, labels.index, labels.template),
            memory=32 * 1024**2,
            vcpus=1,
            boot=BootConfig(
                kernel=GUEST / "vmlinuz",
                initrd=GUEST / "initrd.img",
                cmdline="console=hvc0",
            ),
            volumes=(volume,),
            nics=(Nic(spec=NicSpec(kind="bridge", source="xenbr0"), mac=mac),),
        )

    return make


class TestXen(HypervisorConformance):
    """With a kernel of the host: pygrub has tests of its own."""


# --- what only a real guest can show ------------------------------------------------------------


@pytest.fixture
def guest(driver: XenDriver, make_spec: Callable[[Labels], DomainSpec]) -> Iterator[DomainSpec]:
    labels = Labels(
        fleet=f"guest{os.getpid()}",
        index=1,
        template="t",
        run="r1",
        owner="tester",
        created="2026-01-02T03:04:05Z",
        storage="files",
        hypervisor="xen",
    )
    spec = make_spec(labels)
    yield spec
    list(driver.destroy([spec.name]))
    list(driver.undefine([spec.name]))


def begin(driver: XenDriver, spec: DomainSpec) -> None:
    for outcome in (*driver.define([spec]), *driver.start([spec.name])):
        outcome.unwrap()


def until(condition: Callable[[], bool], seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it didn't come to that"
        time.sleep(0.5)


def said(driver: XenDriver, spec: DomainSpec, text: str, times: int = 1) -> Callable[[], bool]:
    return lambda: driver.consoles.read(spec.name, 0, 1 << 20)[0].count(text.encode()) >= times


def test_a_guest_that_panics_has_crashed(driver: XenDriver, guest: DomainSpec) -> None:
    boot = attrs.evolve(guest.boot, cmdline="console=hvc0 rdinit=/none root=/dev/none")
    begin(driver, attrs.evolve(guest, boot=boot))
    until(lambda: driver.states()[guest.name] is State.CRASHED)
    assert said(driver, guest, "Kernel panic")()
    (outcome,) = driver.start([guest.name])
    assert outcome.ok
    assert outcome.changed


def test_a_console_is_typed_into(driver: XenDriver, guest: DomainSpec) -> None:
    begin(driver, guest)
    until(said(driver, guest, f"{guest.name}# "))  # its shell hears nothing before its prompt
    keyboard, typed = os.pipe()
    screen, shown = os.pipe()

    def attach() -> None:
        try:
            driver.consoles.attach(guest.name, keyboard, shown)
        finally:
            os.close(shown)

    with ThreadPoolExecutor(1) as pool:
        session = pool.submit(attach)
        os.write(typed, b"echo typed-$((6 * 7))\n")
        seen = b""
        while b"typed-42" not in seen and (data := os.read(screen, 4096)):
            seen += data
        os.write(typed, b"\x1d")
        session.result(30)
    for end in (keyboard, typed, screen):
        os.close(end)
    assert b"typed-42" in seen


def test_domain_0_is_never_ours(driver: XenDriver) -> None:
    inventory = driver.inspect()
    assert "Domain-0" in inventory.foreign_names
    assert "Domain-0" not in driver.states()
    for outcome in (
        *driver.destroy(["Domain-0"]),
        *driver.shutdown(["Domain-0"], timeout=0),
        *driver.undefine(["Domain-0"]),
        *driver.start(["Domain-0"]),
    ):
        assert isinstance(outcome.error, Conflict)
