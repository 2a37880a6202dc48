"""Guests that have booted as nobody become who a plugged seed disk names, as forks do."""

import contextlib
import re
import shutil
import socket
import subprocess
import time
import uuid
from pathlib import Path

import pytest

from tests.e2e.conftest import Site, make_site
from tests.identity.debians import ARGUMENTS, Debians, debians
from vmcloner_core import audit, reseeding
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
DEBIAN = """
extends = "debian-12-built"
nics = []
ready = "running"
[domain]
machine = "pc"
agent = {agent}
[identity]
provider = "none"
[kernel]
cmdline = "{arguments}"
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
            reseeding.check(driver, name, "small")
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


def facts(made: Debians, identity: Identity, public: str, address: str) -> audit.Facts:
    """Return the facts of a guest that has this host key, or fail."""
    folder, name = made.site.folder, identity.hostname
    home = folder / "state" / "identity" / name
    home.mkdir(parents=True, exist_ok=True)
    (home / "known_hosts").write_text(f"{name} {' '.join(public.split()[:2])}\n")
    said = made.ssh({"name": name, "ip": address}, audit.SCRIPT)
    found = re.findall(r"^vmcloner-fact (\S+) (.+)$", said, re.M)
    return {fact: tuple(v for f, v in found if f == fact) for fact, _ in found}


def assert_is(found: audit.Facts, identity: Identity, public: str, address: str) -> None:
    assert found["hostname"] == (identity.hostname,)
    assert found["machine_id"] == (identity.machine_id,)
    assert found["host_key"] == (" ".join(public.split()[:2]),)
    assert found["mac"] == (identity.interfaces[0].mac,)
    assert found["address"] == (address,)


def lease(driver: KvmDriver, network: str, mac: str) -> str | None:
    """Return the address that a network's DHCP server gave to a card."""
    argv = ["virsh", "-q", "-c", "qemu:///system", "net-dhcp-leases", network, mac]
    said = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=60).stdout
    found = re.findall(r"ipv4\s+([0-9.]+)/", said)
    return found[-1] if found else None


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_debians_become_others_by_their_agents_or_by_themselves():
    """And a cold boot afterwards does not change who they are."""
    with debians() as made, driver_of(made.site) as driver:
        site, network = made.site, f"{made.site.prefix}n"
        key = (site.folder / "key.pub").read_text().strip()
        ways = {"by-agent": "true", "by-unit": "false"}
        plans = {}
        for number, (way, agent) in enumerate(ways.items(), start=1):
            text = DEBIAN.format(agent=agent, arguments=ARGUMENTS)
            (site.folder / "templates" / f"{way}.toml").write_text(text)
            fleet = site.fleet(f"r{number}")
            site.run("create", fleet, "-t", way, "-n", "1", "--start", timeout=900)
            plans[f"{fleet}-1"] = identity_of(f"{fleet}-1-fork", number, authorized_keys=(key,))
        seen = {}
        for name, identity in plans.items():
            until(lambda name=name: ready(driver, name), 900)
            reseeding.check(driver, name, "t")
            image, public = seed(site.folder, identity)
            plug(site, name, DISK.format(image=image))
            reseed(driver, name)
            reseed(driver, name)  # a success, again
            source = f'<source network="{network}"/>'
            mac = identity.interfaces[0].mac
            plug(site, name, CARD.format(kind="network", source=source, mac=mac))
            address = until(lambda mac=mac: lease(driver, network, mac))
            found = facts(made, identity, public, address)
            assert_is(found, identity, public, address)
            said = made.ssh({"name": identity.hostname, "ip": address}, "journalctl -n 1; date +%s")
            assert abs(int(said.splitlines()[-1]) - time.time()) < 60
            seen[name] = (identity, public, address, found)
        first, second = (found for *_, found in seen.values())
        for fact in ("machine_id", "host_key", "client_id", "random_seed"):
            assert set(first[fact]).isdisjoint(second[fact]), fact
        for name, (identity, public, address, _) in seen.items():
            site.run("stop", name, timeout=300)
            site.run("start", name, timeout=300)
            until(lambda a=address: port_is_open(a), 900)
            assert_is(facts(made, identity, public, address), identity, public, address)
            shutil.rmtree(site.folder / "state" / "identity" / identity.hostname)


def ready(driver: KvmDriver, name: str) -> bool:
    """Whether a guest has an agent, or says that it waits."""
    waits = reseeding.WAITS.encode() in driver.consoles.read(name, 0, 1024**2)[0]
    return waits or bool(driver.agents.reported([name]))


def port_is_open(address: str) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((address, 22), timeout=5):
        return True
    return False
