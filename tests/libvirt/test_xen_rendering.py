"""Xen's domain XML: golden files that libvirt's own schema accepts, and what is refused."""

import uuid
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest
from lxml import etree

from vmcloner_core.errors import BackendError, InvalidRequest
from vmcloner_core.model import (
    BootConfig,
    DomainOptions,
    DomainSpec,
    ImageSource,
    Labels,
    NetworkSource,
    Nic,
    NicSpec,
    Template,
    Volume,
)
from vmcloner_libvirt.rendering import Rendered
from vmcloner_libvirt.xen import XenDriver

GOLDEN = Path(__file__).parent / "golden" / "xen"
SCHEMA = Path("/usr/share/libvirt/schemas/domain.rng")
MIB = 1024**2
PYGRUB = BootConfig(bootloader=Path("pygrub"), devices=())
KERNEL = BootConfig(kernel=Path("/boot/guest"), initrd=Path("/boot/initrd"), cmdline="a=<&>")


@pytest.fixture
def render(make_xen: Callable[..., XenDriver]) -> Callable[[DomainSpec], Rendered]:
    """Render as on a host whose libvirt drives Xen 4.17."""

    def on_xen(spec: DomainSpec) -> Rendered:
        driver = make_xen()
        driver.__dict__["_kind_and_version"] = ("Xen", "4.17")
        return driver.prepare(spec)

    return on_xen


@pytest.fixture
def plain(new_labels: Callable[..., Labels]) -> DomainSpec:
    labels = new_labels(hypervisor="xen")
    return DomainSpec(
        labels=labels,
        uuid=uuid.UUID("6f1cbc1e-5b1f-5a39-8d4f-3f2f0e6d1c01"),
        memory=32 * MIB,
        vcpus=1,
        boot=PYGRUB,
        volumes=(volume(labels, "/dev/vg/web-1-disk0", kind="block"),),
        nics=(Nic(spec=NicSpec(kind="bridge", source="xenbr0"), mac="00:16:3e:00:00:01"),),
    )


def volume(labels: Labels, path: str, **values: str) -> Volume:
    return Volume(name="web-1-disk0", pool="p", labels=labels, path=Path(path), size=MIB, **values)


def pv(spec: DomainSpec) -> DomainSpec:
    return spec


def pv_arguments(spec: DomainSpec) -> DomainSpec:
    boot = BootConfig(
        bootloader=Path("/usr/bin/pypxeboot"),
        bootloader_args=("--mac=00:16:3e:00:00:01", "--label=<&> b"),
        cmdline="quiet single",
        on_reboot="destroy",
    )
    return attrs.evolve(spec, boot=boot)


def pvh_kernel(spec: DomainSpec) -> DomainSpec:
    files = (
        volume(spec.labels, "/srv/web-1-disk0"),
        volume(spec.labels, "/srv/web-1-disk1", format="qcow2"),
    )
    options = DomainOptions(type="pvh", on_crash="preserve")
    seed = Path("/var/lib/vmcloner/identity/web-1/seed.iso")
    return attrs.evolve(spec, boot=KERNEL, volumes=files, options=options, vcpus=2, seed=seed)


def hvm_disk(spec: DomainSpec) -> DomainSpec:
    nics = (
        Nic(spec=NicSpec(kind="network", source="default", model="e1000"), mac="00:16:3e:00:00:01"),
    )
    return attrs.evolve(spec, boot=BootConfig(devices=("network", "hd")), nics=nics)


def hvm_efi(spec: DomainSpec) -> DomainSpec:
    options = DomainOptions(type="hvm", firmware="efi", cpu="host-passthrough", disk_bus="ide")
    return attrs.evolve(spec, boot=KERNEL, nics=(), options=options)


SHAPES = (pv, pv_arguments, pvh_kernel, hvm_disk, hvm_efi)


@pytest.mark.parametrize("shape", SHAPES)
def test_golden(
    shape: Callable[[DomainSpec], DomainSpec],
    plain: DomainSpec,
    render: Callable[[DomainSpec], Rendered],
    xen_root: Path,
) -> None:
    assert (
        render(shape(plain)).xml.replace(str(xen_root), "")
        == (GOLDEN / f"{shape.__name__}.xml").read_text()
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_golden_files_are_valid(shape: Callable[[DomainSpec], DomainSpec]) -> None:
    etree.RelaxNG(etree.parse(SCHEMA)).assertValid(etree.parse(GOLDEN / f"{shape.__name__}.xml"))


def test_every_golden_file_is_tested() -> None:
    assert {file.stem for file in GOLDEN.glob("*.xml")} == {shape.__name__ for shape in SHAPES}


def test_arguments_are_parted_by_what_libvirt_takes_for_a_delimiter(
    plain: DomainSpec, render: Callable[[DomainSpec], Rendered]
) -> None:
    root = etree.fromstring(render(pv_arguments(plain)).xml)
    assert root.findtext("bootloader_args").split(" \t\n") == [
        "--mac=00:16:3e:00:00:01",
        "--label=<&> b",
    ]


def test_a_template_may_extend_it(
    plain: DomainSpec, render: Callable[[DomainSpec], Rendered], tmp_path: Path
) -> None:
    file = tmp_path / "own.xml"
    file.write_text(
        """{% extends "xen.xml.j2" %}
        {% block features %}<features><xen><e820_host state="on"/></xen></features>{% endblock %}"""
    )
    root = etree.fromstring(render(attrs.evolve(plain, options=DomainOptions(xml=file))).xml)
    assert root.find("features/xen/e820_host").get("state") == "on"


# --- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "boot", "reason"),
    [
        (DomainOptions(type="pv"), BootConfig(), "a pv guest has no firmware"),
        (DomainOptions(type="pvh"), BootConfig(), "a pvh guest has no firmware"),
        (DomainOptions(type="hvm"), PYGRUB, "boots by its firmware, not by pygrub"),
    ],
)
def test_boots_that_a_guest_cannot(
    plain: DomainSpec,
    render: Callable[[DomainSpec], Rendered],
    options: DomainOptions,
    boot: BootConfig,
    reason: str,
) -> None:
    with pytest.raises(InvalidRequest, match=f"^web-1: .*{reason}"):
        render(attrs.evolve(plain, options=options, boot=boot))


def test_a_boot_loader_that_is_not_installed(
    plain: DomainSpec, render: Callable[[DomainSpec], Rendered]
) -> None:
    boot = BootConfig(bootloader=Path("pvgrub"))
    with pytest.raises(BackendError, match=r"web-1: this host's Xen 4\.17 has no pvgrub"):
        render(attrs.evolve(plain, boot=boot))


def template(**values: object) -> Template:
    bridge = NicSpec(kind="bridge", source="xenbr0")
    given = {"name": "t", "image": ImageSource(builder="tiny"), "boot": "pygrub", "nics": (bridge,)}
    return Template(**(given | values))


def test_templates_are_checked_before_anything_is_made(make_xen: Callable[..., XenDriver]) -> None:
    driver = make_xen()
    driver.check(template())
    driver.check(template(boot="disk", domain=DomainOptions(type="hvm")))
    with pytest.raises(
        InvalidRequest, match=r"^template t: nics\[1\]\.kind: Xen has no user-mode network"
    ):
        driver.check(template(nics=(NicSpec(kind="bridge", source="b"), NicSpec())))
    with pytest.raises(InvalidRequest, match=r"^template t: a pvh guest has no firmware"):
        driver.check(template(boot="disk", domain=DomainOptions(type="pvh")))


def test_disks_on_the_network_are_refused(
    plain: DomainSpec, render: Callable[[DomainSpec], Rendered]
) -> None:
    source = NetworkSource(protocol="rbd", name="vms/x", user="u", key=Path("/key"))
    volume = attrs.evolve(plain.volumes[0], kind="network", network=source)
    with pytest.raises(InvalidRequest, match="backend xen has no rbd disks"):
        render(attrs.evolve(plain, volumes=(volume,)))
