"""Guests that have booted as nobody become who a plugged seed disk names, as forks do."""

import contextlib
import re
import shutil
import subprocess
import time
import uuid
from pathlib import Path

import pytest

from tests.e2e.conftest import Site, make_site
from vmcloner_core import reseeding
from vmcloner_core.drivers import DriverContext
from vmcloner_core.model import Host, Identity, Interface
from vmcloner_core.process import LocalRunner
from vmcloner_core.records import new_host_key
from vmcloner_identity import cloud_init, documents, iso
from vmcloner_libvirt.kvm import KvmDriver
from vmcloner_libvirt.settings import KvmSettings

pytestmark = [pytest.mark.libvirt, pytest.mark.timeout(900)]

TINY = """
extends = "tiny"
nics = []
[domain]
machine = "pc"
"""
DISK = """
<disk type="file" device="disk">
  <driver name="qemu" type="raw"/><source file="{image}"/><target dev="vdz" bus="virtio"/>
  <readonly/><serial>vmcloner-seed</serial>
</disk>
"""
CARD = """
<interface type="{kind}">{source}<mac address="{mac}"/><model type="virtio"/></interface>
"""


@contextlib.contextmanager
def driver_of(site: Site):
    host = Host(name="local", state=site.folder / "state")
    context = DriverContext(host=host, name="kvm", runner=LocalRunner())
    driver = KvmDriver(context, KvmSettings(uri="qemu:///system"))
    yield driver
    driver.close()


def identity_of(name: str, number: int, **settings: object) -> Identity:
    return Identity(
        hostname=name,
        machine_id=f"{number:032x}",
        uuid=uuid.UUID(int=number),
        generation=uuid.uuid4(),
        interfaces=(Interface(mac=f"52:54:00:7e:5e:{number:02x}"),),
        **settings,
    )


def seed(folder: Path, identity: Identity) -> tuple[Path, str]:
    """Write a seed as the provider cloud-init does; returns it and the public host key."""
    private, public = new_host_key(identity.hostname)
    image = folder / f"{identity.hostname}.iso"
    files = {
        "meta-data": documents.meta_data(identity),
        "network-config": documents.network_config(identity),
        "vendor-data": documents.vendor_data(identity, private, public),
        "user-data": cloud_init._NOTHING,
        reseeding.FILE: reseeding.identity_file(identity, private, public),
    }
    iso.write(image, "cidata", files)
    return image, public


def plug(site: Site, name: str, device: str) -> None:
    """Plug a device into a running domain, and into its definition."""
    file = site.folder / "device.xml"
    file.write_text(device)
    argv = ["virsh", "-q", "-c", "qemu:///system", "attach-device", name, str(file)]
    subprocess.run([*argv, "--live", "--config"], check=True, timeout=60)


def until(found, seconds: float = 300.0):
    """Wait until a call returns something, and return that."""
    deadline = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    return value


def reseed(driver: KvmDriver, name: str, seconds: float = 300.0) -> None:
    [outcome] = reseeding.reseed(driver, [name], timeout=seconds)
    outcome.unwrap()


def test_tiny_says_again_who_it_is():
    site = make_site("qemu:///system")
    fleet = site.fleet("re")
    try:
        (site.folder / "templates" / "small.toml").write_text(TINY)
        site.run("create", fleet, "-t", "small", "-n", "1", "--start", "--wait", timeout=400)
        name = f"{fleet}-1"
        identity = identity_of(f"{name}-fork", 1)
        with driver_of(site) as driver:
            reseeding.check(driver, name, "small", timeout=60.0)
            plug(site, name, DISK.format(image=seed(site.folder, identity)[0]))
            reseed(driver, name)
            mac = identity.interfaces[0].mac
            plug(site, name, CARD.format(kind="user", source="", mac=mac))
            said = until(
                lambda: re.findall(
                    rf"vmcloner-ready name={name}-fork mac=(\S+) .* random=(\S+)",
                    site.run("console", name, "--log"),
                )
            )
        [(told, random)] = said
        assert told == mac
        assert f"random={random}" not in site.run("console", name, "--log").partition(told)[0]
    finally:
        site.run("delete", fleet, "--yes", "--missing-ok")
        shutil.rmtree(site.folder)
