"""What clones need of their host is found missing before any is made, on the real libvirt."""

import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import pytest

from vmcloner_core.errors import BackendError, InvalidRequest, NotFound, VmclonerError, WrongState
from vmcloner_core.model import BootConfig, DomainOptions, DomainSpec, Labels, Needs, Nic, NicSpec
from vmcloner_libvirt import needs
from vmcloner_libvirt.acceleration import Acceleration, KvmProbe
from vmcloner_libvirt.kvm import KvmDriver

pytestmark = pytest.mark.libvirt
ISO = (
    '<disk type="file" device="cdrom"><source file="/nonexistent.iso"{}/>'
    '<target dev="sda" bus="sata"/></disk>'
)
CARD = '<interface type="{}"><source {}/>{}</interface>'
SHARE = (
    '<filesystem type="mount"><driver type="virtiofs"/><source dir="/tmp"/><target dir="t"/>'
    "</filesystem>"
)
TPM = '<tpm model="tpm-crb"><backend type="emulator" version="2.0"/></tpm>'


@pytest.fixture
def driver(make_driver: Callable[..., KvmDriver]) -> KvmDriver:
    return make_driver("qemu:///system", accel="tcg")


@pytest.fixture
def spec(new_spec: Callable[..., DomainSpec], new_labels: Callable[..., Labels]) -> DomainSpec:
    return new_spec(new_labels())


@pytest.fixture
def forwarded() -> Iterator[tuple[str, str]]:
    """A network whose packets the host forwards, and its bridge."""
    name = f"preflight-{uuid.uuid4().hex[:8]}"
    bridge = f"pf{uuid.uuid4().hex[:8]}"
    xml = (
        f"<network><name>{name}</name><forward mode='open'/><bridge name='{bridge}'/>"
        "<dns enable='no'/><ip address='198.18.77.1' prefix='30'/></network>"
    )
    virsh = ["virsh", "-q", "-c", "qemu:///system"]
    create = [*virsh, "net-create", "/dev/stdin"]
    subprocess.run(create, input=xml.encode(), check=True, timeout=30)
    yield name, bridge
    subprocess.run([*virsh, "net-destroy", name], check=True, timeout=30)


@pytest.fixture
def stopped() -> Iterator[str]:
    """A network that is defined and doesn't run."""
    name = f"preflight-{uuid.uuid4().hex[:8]}"
    xml = f"<network><name>{name}</name><forward mode='bridge'/><bridge name='nobr0'/></network>"
    virsh = ["virsh", "-q", "-c", "qemu:///system"]
    subprocess.run([*virsh, "net-define", "/dev/stdin"], input=xml.encode(), check=True, timeout=30)
    yield name
    subprocess.run([*virsh, "net-destroy", name], check=False, timeout=30, capture_output=True)
    subprocess.run([*virsh, "net-undefine", name], check=True, timeout=30)


def with_devices(spec: DomainSpec, *devices: str) -> DomainSpec:
    options = attrs.evolve(spec.options, devices="".join(devices))
    return attrs.evolve(spec, options=options)


def refusal(driver: KvmDriver, spec: DomainSpec) -> VmclonerError:
    with pytest.raises(VmclonerError) as caught:
        driver.check_domain(spec)
    assert caught.value.message.startswith(f"template {spec.labels.template}: ")
    assert "\n" not in str(caught.value)
    assert caught.value.hint
    return caught.value


def test_a_plain_domain_needs_nothing_that_is_missing(driver: KvmDriver, spec: DomainSpec) -> None:
    assert driver.check_domain(spec) == Needs()
    boot = BootConfig(kernel=Path("/not/built/yet"), initrd=Path("/nor/this"), devices=())
    assert driver.check_domain(attrs.evolve(spec, boot=boot)) == Needs()


@pytest.mark.parametrize(
    ("devices", "error", "message"),
    [
        (CARD.format("bridge", 'bridge="nobr0"', ""), NotFound, "no bridge 'nobr0'"),
        (CARD.format("bridge", 'bridge="lo"', ""), InvalidRequest, "'lo' is no Linux bridge"),
        (CARD.format("direct", 'dev="eth77"', ""), NotFound, "no network interface 'eth77'"),
        (CARD.format("network", 'network="none-such"', ""), NotFound, "no network 'none-such'"),
        (
            CARD.format("bridge", 'bridge="ovs0"', '<virtualport type="openvswitch"/>'),
            (BackendError, NotFound),
            "Open vSwitch",
        ),
        (
            CARD.format("network", 'network="none-such"', '<filterref filter="x"/>'),
            NotFound,
            "no network",
        ),
        (ISO.format(""), NotFound, "/nonexistent.iso, named by <disk>, doesn't exist"),
        (
            '<interface type="user"><rom file="/nonexistent.rom"/></interface>',
            NotFound,
            "/nonexistent.rom, named by <rom>",
        ),
        (
            '<rng model="virtio"><backend model="random">/dev/none</backend></rng>',
            NotFound,
            "<rng>",
        ),
        ("<emulator>/usr/bin/no-qemu</emulator>", BackendError, "no emulator /usr/bin/no-qemu"),
        (SHARE, InvalidRequest, "requires shared memory"),
        ("<nonsense/>", InvalidRequest, "schema refuses its domain XML, in <nonsense>"),
        ('<input type="tablet" bus="nubus"/>', InvalidRequest, "in <input>"),
        (
            '<controller type="sata" index="0" model="x"/>',
            InvalidRequest,
            "schema|can't be started",
        ),
    ],
)
def test_devices(
    driver: KvmDriver,
    spec: DomainSpec,
    devices: str,
    error: type[VmclonerError],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(needs, "_virtiofsds", lambda: iter(("/bin/true",)))  # as if it's installed
    found = refusal(driver, with_devices(spec, devices))
    assert isinstance(found, error)
    assert any(part in found.message for part in message.split("|"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (DomainOptions(machine="q36"), "no machine type 'q36'"),
        (DomainOptions(cpu="Haswel"), "no CPU model 'Haswel'"),
        (DomainOptions(disk_bus="ide"), "IDE"),
    ],
)
def test_what_qemu_does_not_know(
    driver: KvmDriver, spec: DomainSpec, options: DomainOptions, message: str
) -> None:
    found = refusal(driver, attrs.evolve(spec, options=options))
    assert isinstance(found, InvalidRequest)
    assert message in found.message


def test_firmware_and_tpm(
    driver: KvmDriver, spec: DomainSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever this host has: what libvirt doesn't list is missing."""
    efi = attrs.evolve(spec, options=DomainOptions(firmware="efi"))
    tpm = with_devices(spec, TPM)
    bare = "<domainCapabilities><os/><cpu/><devices/></domainCapabilities>"
    monkeypatch.setattr(needs.Requirements, "_features", lambda _self, *_key: bare)
    for asked, missing, way in ((efi, "UEFI firmware (OVMF)", "ovmf"), (tpm, "(swtpm)", "swtpm")):
        found = refusal(driver, asked)
        assert isinstance(found, BackendError)
        assert missing in found.message
        assert f"apt-get install {way}" in (found.hint or "")


def test_virtiofsd(driver: KvmDriver, spec: DomainSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(needs, "VHOST_USER", ())
    found = refusal(driver, with_devices(spec, SHARE))
    assert (type(found), found.hint) == (BackendError, "apt-get install virtiofsd")


def test_files_of_a_domain_xml_of_ones_own(
    driver: KvmDriver, spec: DomainSpec, tmp_path: Path
) -> None:
    file = tmp_path / "own.xml"
    for text in (
        '<loader readonly="yes" type="pflash">/nonexistent.fd</loader>',
        '<nvram template="/nonexistent.fd"/>',
        "<kernel>/nonexistent.fd</kernel>",
    ):
        file.write_text(
            '{% extends "domain.xml.j2" %}{% block os %}<os><type machine="q35">hvm</type>'
            f"{text}</os>{{% endblock %}}"
        )
        found = refusal(driver, attrs.evolve(spec, options=DomainOptions(xml=file)))
        assert "/nonexistent.fd, named by <" in found.message


def test_a_cd_that_may_be_missing(driver: KvmDriver, spec: DomainSpec) -> None:
    optional = ISO.format(' startupPolicy="optional"')
    assert driver.check_domain(with_devices(spec, optional)) == Needs()


def test_a_template_that_insists_on_kvm(
    make_driver: Callable[..., KvmDriver], spec: DomainSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = Acceleration(reason="/dev/kvm is missing", fix="modprobe kvm_intel")
    monkeypatch.setattr(KvmProbe, "cached", lambda _self, **_: broken)
    found = refusal(make_driver("qemu:///system", accel="kvm"), spec)
    assert isinstance(found, BackendError)
    assert "it needs KVM: /dev/kvm is missing" in found.message
    assert found.hint == "modprobe kvm_intel"


def test_a_network_that_does_not_run_and_one_without_its_bridge(
    driver: KvmDriver, spec: DomainSpec, stopped: str, make_driver: Callable[..., KvmDriver]
) -> None:
    nic = Nic(spec=NicSpec(kind="network", source=stopped), mac="52:54:00:00:00:77")
    asked = attrs.evolve(spec, nics=(nic,))
    found = refusal(driver, asked)
    assert isinstance(found, WrongState)
    assert found.hint == f"virsh net-start {stopped}"
    subprocess.run(
        ["virsh", "-q", "-c", "qemu:///system", "net-start", stopped], check=True, timeout=30
    )
    found = refusal(make_driver("qemu:///system", accel="tcg"), asked)  # asks anew
    assert f"network '{stopped}': this host has no bridge 'nobr0'" in found.message


def test_a_network_whose_packets_are_dropped_is_a_warning(
    driver: KvmDriver,
    spec: DomainSpec,
    forwarded: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name, bridge = forwarded
    nic = Nic(spec=NicSpec(kind="network", source=name), mac="52:54:00:00:00:77")
    asked = attrs.evolve(spec, nics=(nic,))
    assert driver.check_domain(asked) == Needs()
    monkeypatch.setattr(needs.firewall, "dropped", lambda _runner, bridges: tuple(bridges))
    (warning,) = driver.check_domain(asked).warnings
    assert f"drops packets that it forwards for {bridge}" in warning
    assert f"iptables -I FORWARD -i {bridge} -j ACCEPT" in warning


@pytest.mark.skipif(os.geteuid() != 0, reason="rules take root")
def test_rules_as_the_kernel_has_them() -> None:
    """In a network namespace of its own."""
    program = (
        "from vmcloner_core.process import LocalRunner; from vmcloner_libvirt import firewall;"
        "print(firewall.dropped(LocalRunner(), ['br0', 'br1']))"
    )
    for rules, found in (
        ("true", "()"),
        ("iptables -P FORWARD DROP", "('br0', 'br1')"),
        ("iptables -P FORWARD DROP; iptables -I FORWARD -i br0 -j ACCEPT", "('br1',)"),
        (
            "nft 'add table inet f; add chain inet f c { type filter hook forward priority 0; "
            'policy drop; }; add rule inet f c iifname { "br0", "x" } accept\'',
            "('br1',)",
        ),
    ):
        script = f'set -e; {rules}; exec {sys.executable} -c "{program}"'
        argv = ["unshare", "--net", "sh", "-c", script]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True)
        assert done.stdout.strip() == found


def test_a_clones_own_files_are_not_looked_at_for_the_others(
    driver: KvmDriver, spec: DomainSpec
) -> None:
    seed = driver.context.host.state / "identity/web-1/seed.iso"
    asked = attrs.evolve(spec, labels=attrs.evolve(spec.labels, fleet="preflight"), seed=seed)
    (outcome,) = driver.define([asked])
    outcome.unwrap()
    try:
        assert driver.check_defined(asked.name) == Needs()
    finally:
        list(driver.undefine([asked.name]))
    assert driver.check_defined("preflight-7") == Needs()


def test_huge_pages_are_said(
    driver: KvmDriver, spec: DomainSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(needs.Requirements, "_rehearse", lambda *_: None)  # none are mounted here
    monkeypatch.setattr(needs, "MOUNTS", tmp_path / "mounts")
    (tmp_path / "mounts").write_text("hugetlbfs /dev/hugepages hugetlbfs rw 0 0\n")
    for pages, size in (
        ("<hugepages/>", 0),
        ('<hugepages><page size="1" unit="GiB"/></hugepages>', 1024**3),
        ('<hugepages><page size="2048"/></hugepages>', 2048 * 1024),
    ):
        file = tmp_path / f"{size}.xml"
        file.write_text(
            '{% extends "domain.xml.j2" %}{% block features %}{{ super() }}'
            f"<memoryBacking>{pages}</memoryBacking>{{% endblock %}}"
        )
        asked = attrs.evolve(spec, options=DomainOptions(xml=file))
        assert driver.check_domain(asked) == Needs(page=size)
    (tmp_path / "mounts").write_text("proc /proc proc rw 0 0\n")
    assert "hugetlbfs is not mounted" in refusal(driver, asked).message


@pytest.mark.parametrize(
    "devices",
    [
        '<input type="tablet" bus="usb"/>',
        '<controller type="usb" model="qemu-xhci"/>',
        '<controller type="usb" model="qemu-xhci"/><input type="keyboard" bus="usb"/>',
        '<redirdev bus="usb" type="tcp"><source mode="connect" host="localhost" service="4000"/>'
        "</redirdev>",
        '<sound model="usb"/>',
        '<hub type="usb"/>',
        '<memballoon model="virtio"/>',
        '<memballoon model="virtio"><stats period="10"/></memballoon>',
        '<panic model="isa"/>',
        '<video><model type="virtio"/></video><graphics type="vnc"/>',
        '<rng model="virtio"><backend model="random">/dev/random</backend></rng>',
        '<watchdog model="i6300esb" action="reset"/>',
    ],
)
@pytest.mark.parametrize("disk_bus", ["virtio", "scsi"])
def test_any_device_can_be_added(
    driver: KvmDriver, spec: DomainSpec, devices: str, disk_bus: str
) -> None:
    asked = attrs.evolve(spec, options=DomainOptions(disk_bus=disk_bus))
    assert driver.check_domain(with_devices(asked, devices)) == Needs()


def test_a_scsi_controller_of_ones_own(driver: KvmDriver, spec: DomainSpec) -> None:
    asked = attrs.evolve(spec, options=DomainOptions(disk_bus="scsi"))
    own = '<controller type="scsi" index="0" model="virtio-scsi"><driver queues="2"/></controller>'
    assert driver.check_domain(with_devices(asked, own)) == Needs()
