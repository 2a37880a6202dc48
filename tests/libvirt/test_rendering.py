"""Domain XML: golden files that libvirt's own schema accepts, users' templates, hostile values."""

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lxml import etree

from vmcloner_core.errors import InvalidRequest
from vmcloner_core.model import (
    BootConfig,
    DomainOptions,
    DomainSpec,
    Host,
    Labels,
    NetworkSource,
    Nic,
    NicSpec,
    Volume,
)
from vmcloner_core.testing.samples import make_labels
from vmcloner_libvirt import kvm, metadata
from vmcloner_libvirt.booting import once
from vmcloner_libvirt.rendering import Rendered, Renderer

GOLDEN = Path(__file__).parent / "golden"
HOST = Host(name="local", state=Path("/var/lib/vmcloner"))
SCHEMA = Path("/usr/share/libvirt/schemas/domain.rng")
MIB = 1024**2


@pytest.fixture(scope="module")
def schema() -> etree.RelaxNG:
    return etree.RelaxNG(etree.parse(SCHEMA))


@pytest.fixture
def plain(new_labels: Callable[..., Labels]) -> DomainSpec:
    labels = new_labels()
    return DomainSpec(
        labels=labels,
        uuid=uuid.UUID("6f1cbc1e-5b1f-5a39-8d4f-3f2f0e6d1c01"),
        memory=512 * MIB,
        vcpus=1,
        boot=BootConfig(),
        volumes=(volume(labels, "/srv/pool/web-1-disk0"),),
        nics=(Nic(spec=NicSpec(), mac="52:54:00:00:00:01"),),
    )


def volume(labels: Labels, path: str, **values: Any) -> Volume:
    return Volume(name="disk", pool="p", labels=labels, path=Path(path), size=MIB, **values)


def render(spec: DomainSpec, domain_type: str = "qemu") -> Rendered:
    renderer = Renderer("domain.xml.j2")
    log = HOST.consoles / f"{spec.name}.log"
    return renderer.render(spec, kvm.template_values(spec, domain_type, log, 128 * MIB))


def disk(spec: DomainSpec) -> tuple[DomainSpec, str]:
    return spec, "kvm"


def emulated(spec: DomainSpec) -> tuple[DomainSpec, str]:
    return spec, "qemu"


def kernel(spec: DomainSpec) -> tuple[DomainSpec, str]:
    boot = BootConfig(
        kernel=Path("/boot/vmlinuz"),
        initrd=Path("/boot/initrd"),
        cmdline="console=ttyS0 a='<&>\"' hostname=web-1",
    )
    overlay = volume(
        spec.labels,
        "/srv/pool/web-1-disk0",
        format="qcow2",
        backing=Path("/srv/pool/tiny.raw"),
    )
    return attrs.evolve(spec, boot=boot, volumes=(overlay,)), "qemu"


def server(spec: DomainSpec) -> tuple[DomainSpec, str]:
    volumes = (
        volume(spec.labels, "/dev/vg/web-1-disk0", kind="block"),
        volume(spec.labels, "/srv/pool/web-1-disk1"),
        volume(spec.labels, "/srv/pool/web-1-disk2", format="qcow2"),
    )
    nics = (
        Nic(spec=NicSpec(kind="bridge", source="br0", model="e1000e"), mac="52:54:00:00:00:01"),
        Nic(spec=NicSpec(kind="network", source="default"), mac="52:54:00:00:00:02"),
    )
    options = DomainOptions(firmware="efi", cpu="Haswell-noTSX", machine="q35", disk_bus="scsi")
    boot = BootConfig(devices=("network", "hd"))
    return (
        attrs.evolve(spec, volumes=volumes, nics=nics, options=options, boot=boot, vcpus=4),
        "kvm",
    )


def nothing(spec: DomainSpec) -> tuple[DomainSpec, str]:
    options = DomainOptions(cpu="host-passthrough", disk_bus="usb")
    return attrs.evolve(spec, nics=(), options=options), "qemu"


def seeded(spec: DomainSpec) -> tuple[DomainSpec, str]:
    devices = '<watchdog model="i6300esb" action="{{ action }}"/>'
    options = DomainOptions(devices=devices, on_reboot="destroy", on_crash="preserve", agent=True)
    seed = Path("/var/lib/vmcloner/identity/web-1/seed.iso")
    return attrs.evolve(spec, seed=seed, options=options, values={"action": "reset"}), "qemu"


def ceph(spec: DomainSpec) -> tuple[DomainSpec, str]:
    source = NetworkSource(
        protocol="rbd",
        name="vms/web-1-disk0",
        hosts=("mon1", "192.0.2.1:3300", "[2001:db8::1]:6789", "[2001:db8::2]"),
        config=Path("/etc/ceph/lab & more.conf"),
        user="vmcloner",
        key=Path("/etc/ceph/ceph.client.vmcloner.keyring"),
    )
    known = attrs.evolve(
        source, hosts=(), config=None, secret="6f1cbc1e-5b1f-5a39-8d4f-3f2f0e6d1c01"
    )
    volumes = tuple(
        volume(spec.labels, "/dev/rbd/vms/web-1-disk0", kind="network", network=each)
        for each in (source, known)
    )
    return attrs.evolve(spec, volumes=volumes), "kvm"


SHAPES = (disk, emulated, kernel, server, nothing, seeded, ceph)


@pytest.mark.parametrize("shape", SHAPES)
def test_golden(shape: Callable[[DomainSpec], tuple[DomainSpec, str]], plain: DomainSpec) -> None:
    assert render(*shape(plain)).xml == (GOLDEN / f"{shape.__name__}.xml").read_text()


@pytest.mark.parametrize("file", sorted(GOLDEN.glob("*.xml")), ids=lambda file: file.stem)
def test_golden_files_are_valid(file: Path, schema: etree.RelaxNG) -> None:
    schema.assertValid(etree.parse(file))


def test_every_golden_file_is_tested() -> None:
    assert {file.stem for file in GOLDEN.glob("*.xml")} == {shape.__name__ for shape in SHAPES}


def test_the_schema_finds_faults(plain: DomainSpec, schema: etree.RelaxNG) -> None:
    root = etree.fromstring(render(plain).xml)
    etree.SubElement(root.find("devices"), "disc")
    assert not schema.validate(root)


# --- shapes -----------------------------------------------------------------------------------


def test_clones_of_one_template_have_one_shape(new_labels: Callable, new_spec: Callable) -> None:
    boots = [BootConfig(kernel=Path("/k"), cmdline=f"name=web-{n} a='\"<") for n in (1, 2)]
    shapes = {
        render(new_spec(new_labels(n), boot=boot)).shape
        for n, boot in zip((1, 2), boots, strict=True)
    }
    assert len(shapes) == 1


@pytest.mark.parametrize(
    "change", [{"vcpus": 2}, {"nics": ()}, {"options": DomainOptions(disk_bus="virtoi")}]
)
def test_what_is_built_otherwise_has_another_shape(plain: DomainSpec, change: dict) -> None:
    assert render(plain).shape != render(attrs.evolve(plain, **change)).shape


# --- a template's own XML ---------------------------------------------------------------------


def own(plain: DomainSpec, file: Path, text: str) -> DomainSpec:
    file.write_text(text)
    return attrs.evolve(plain, options=DomainOptions(xml=file))


def test_a_template_may_extend_the_shipped_one(
    plain: DomainSpec, tmp_path: Path, schema: etree.RelaxNG
) -> None:
    text = """{% extends "domain.xml.j2" %}
    {% block extra_devices %}<watchdog model="i6300esb" action="reset"/>{% endblock %}"""
    root = etree.fromstring(render(own(plain, tmp_path / "own.xml", text)).xml)
    assert root.find("devices/watchdog").get("model") == "i6300esb"
    assert root.findtext("name") == "web-1"
    schema.assertValid(root)


def test_a_template_may_stand_alone_and_still_has_labels(plain: DomainSpec, tmp_path: Path) -> None:
    text = """<domain type="{{ domain_type }}"><name>{{ name }}</name><uuid>{{ uuid }}</uuid>
    <metadata><x:app xmlns:x="https://example.org/x">{{ owner }} {{ index }}</x:app></metadata>
    <memory unit="b">{{ memory }}</memory><os><type>hvm</type></os></domain>"""
    root = etree.fromstring(render(own(plain, tmp_path / "own.xml", text)).xml)
    assert metadata.labels_in(root) == plain.labels
    assert root.findtext("metadata/{https://example.org/x}app") == "tester 1"


def test_a_template_cannot_forge_labels(plain: DomainSpec, tmp_path: Path) -> None:
    text = f"""<domain><name>{{{{ name }}}}</name><uuid>{{{{ uuid }}}}</uuid><metadata>
    <v:clone xmlns:v="{metadata.NAMESPACE}" version="1" fleet="other"/></metadata></domain>"""
    root = etree.fromstring(render(own(plain, tmp_path / "own.xml", text)).xml)
    assert metadata.labels_in(root) == plain.labels
    assert len(root.find("metadata")) == 1


@pytest.mark.parametrize(
    ("text", "place", "reason"),
    [
        ("<domain>\n{{ nmae }}\n</domain>", ":2", "'nmae' is undefined"),
        ("<domain>\n\n{% if %}</domain>", ":3", "Expected an expression"),
        ("<domain>\n{{ 1 / 0 }}</domain>", ":2", "division by zero"),
        ("<domain>\n{{ disks[7].path }}</domain>", ":2", "no element 7"),
        ("<domain>\n{{ name.__class__.__mro__ }}</domain>", ":2", "unsafe"),
        ("<domain>{% for i in range(10**9) %}x{% endfor %}</domain>", ":1", "too big"),
        ("{% include '/etc/passwd' %}", ":1", "/etc/passwd"),
        ("<domain>", "", "line 1"),
        ("<domain/>", "", "own name and uuid"),
        ("<domain><name>other-1</name><uuid>{{ uuid }}</uuid></domain>", "", "own name and uuid"),
        (
            "<!DOCTYPE d [<!ENTITY e SYSTEM 'file:///etc/passwd'>]><domain>&e;</domain>",
            "",
            "own name",
        ),
        ("{% for i in range(9999) %}{{ 'x' * 9999 }}{% endfor %}", "", "renders to more than"),
    ],
)
def test_what_is_wrong_with_it_is_said_with_its_place(
    plain: DomainSpec, tmp_path: Path, text: str, place: str, reason: str
) -> None:
    file = tmp_path / "own.xml"
    with pytest.raises(InvalidRequest) as caught:
        render(own(plain, file, text))
    assert caught.value.message.startswith(f"{file}{place}:")
    assert reason in caught.value.message
    assert "\n" not in str(caught.value)


def test_a_file_that_is_missing(plain: DomainSpec, tmp_path: Path) -> None:
    spec = attrs.evolve(plain, options=DomainOptions(xml=tmp_path / "none.xml"))
    with pytest.raises(InvalidRequest, match=r"can't read .*none\.xml: No such file"):
        render(spec)


# --- values that mean something in XML --------------------------------------------------------

TEXT = st.text(st.characters(codec="utf-8"), max_size=60)


@given(TEXT, TEXT, TEXT)
def test_labels_come_back_to_the_letter(owner: str, run: str, storage: str) -> None:
    labels = make_labels("web", 7, run=run, owner=owner, storage=storage)
    root = etree.fromstring("<domain><name>web-7</name></domain>")
    metadata.add_labels(root, labels)
    assert metadata.labels_in(metadata.parse(etree.tostring(root, encoding="unicode"))) == labels


PRINTABLE = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Cn", "Cs"]), min_size=1, max_size=40
)


@given(PRINTABLE, PRINTABLE.filter(lambda text: "/" not in text))
def test_values_never_become_markup(cmdline: str, file: str) -> None:
    labels = make_labels()
    spec = DomainSpec(
        labels=labels,
        uuid=uuid.UUID(int=1),
        memory=MIB,
        vcpus=1,
        boot=BootConfig(kernel=Path("/k"), cmdline=cmdline),
        volumes=(volume(labels, f"/srv/{file}"),),
        nics=(),
    )
    root = etree.fromstring(render(spec).xml)
    harmless = attrs.evolve(spec, boot=BootConfig(kernel=Path("/k"), cmdline="quiet"))
    assert [e.tag for e in root.iter()] == [
        e.tag for e in etree.fromstring(render(harmless).xml).iter()
    ]
    assert root.findtext("os/cmdline") == cmdline
    assert metadata.disks(root) == (Path(f"/srv/{file}"),)


def test_control_characters_are_refused(plain: DomainSpec) -> None:
    boot = BootConfig(kernel=Path("/k"), cmdline="a\x01b")
    with pytest.raises(InvalidRequest, match="not well-formed"):
        render(attrs.evolve(plain, boot=boot))


def test_a_reboot_may_end_the_domain(plain: DomainSpec) -> None:
    xml = render(attrs.evolve(plain, boot=BootConfig(on_reboot="destroy"))).xml
    assert etree.fromstring(xml).findtext("on_reboot") == "destroy"


def test_once_boots_a_kernel_in_place_of_what_the_definition_says(
    plain: DomainSpec, schema: etree.RelaxNG
) -> None:
    definition = render(plain).xml
    boot = BootConfig(
        kernel=Path("/k & <k>"), cmdline="a=\"1\" b='&'", devices=(), on_reboot="destroy"
    )
    root = etree.fromstring(once(definition, boot))
    assert [(e.tag, e.text) for e in root.find("os")] == [
        ("type", "hvm"),
        ("kernel", "/k & <k>"),
        ("cmdline", "a=\"1\" b='&'"),
    ]
    assert root.findtext("on_reboot") == "destroy"
    assert metadata.labels_in(root) == plain.labels
    schema.assertValid(root)


def test_once_boots_devices_in_place_of_a_kernel(plain: DomainSpec, schema: etree.RelaxNG) -> None:
    kernel = BootConfig(kernel=Path("/k"), initrd=Path("/i"), cmdline="c", devices=())
    definition = render(attrs.evolve(plain, boot=kernel)).xml
    ordered = definition.replace("<target dev=", '<boot order="1"/><target dev=')
    root = etree.fromstring(once(ordered, BootConfig(devices=("network", "hd"))))
    assert [(e.tag, e.get("dev")) for e in root.find("os")][1:] == [
        ("boot", "network"),
        ("boot", "hd"),
    ]
    assert root.find("devices/disk/boot") is None
    schema.assertValid(root)


def test_a_boot_loader_of_the_host(plain: DomainSpec) -> None:
    loader = BootConfig(bootloader=Path("/usr/lib/xen-4.17/bin/pygrub"))
    with pytest.raises(InvalidRequest, match="one start only"):
        once(render(plain).xml, loader)


# --- devices that a template adds ----------------------------------------------------------------


def test_a_seed_is_a_cd_where_disks_are_not_virtio(plain: DomainSpec) -> None:
    spec = attrs.evolve(plain, seed=Path("/s.iso"), options=DomainOptions(disk_bus="sata"))
    seed = etree.fromstring(render(spec).xml).findall("devices/disk")[-1]
    assert seed.get("device") == "cdrom"
    assert seed.find("readonly") is not None


def test_a_value_in_devices_stays_a_value(plain: DomainSpec) -> None:
    options = DomainOptions(devices='<tpm model="{{ model }}"/>')
    spec = attrs.evolve(plain, options=options, values={"model": '"/><disk type="&'})
    root = etree.fromstring(render(spec).xml)
    assert root.find("devices/tpm").get("model") == '"/><disk type="&'
    assert len(root.findall("devices/disk")) == 1


@pytest.mark.parametrize("devices", ["<tpm>", "</devices><x/><devices>", "{{ nobody }}"])
def test_devices_that_are_none_are_refused(plain: DomainSpec, devices: str) -> None:
    spec = attrs.evolve(plain, options=DomainOptions(devices=devices))
    with pytest.raises(InvalidRequest, match=r"domain\.devices"):
        render(spec)
