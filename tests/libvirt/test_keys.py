"""Each key of a template changes a clone or is said to have no effect; none is dropped silently."""

import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest

from vmcloner_boot.disk import DiskBoot
from vmcloner_boot.kernel import KernelBoot
from vmcloner_core.birth import Birth
from vmcloner_core.booting import boot_request, domain_spec, told
from vmcloner_core.clone_spec import clone_spec
from vmcloner_core.disks import disk_numbers
from vmcloner_core.drivers import IdentityRequest
from vmcloner_core.errors import InvalidRequest
from vmcloner_core.identity_rules import authorized_keys, resolve
from vmcloner_core.model import (
    DiskSpec,
    DomainOptions,
    IdentitySpec,
    ImageSource,
    KernelSpec,
    Labels,
    NicSpec,
    Seed,
    SshSpec,
    Template,
    Volume,
)
from vmcloner_core.testing.samples import make_context
from vmcloner_identity import documents
from vmcloner_identity.cloud_init import CloudInit
from vmcloner_identity.kernel_args import KernelArgs
from vmcloner_identity.none import NoIdentity
from vmcloner_libvirt.kvm import KvmDriver

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBMYbmTPyZL5WU5sXwJqgJ4tLHcVNCxIjK3jWQdHOqtG a@b"
ELSEWHERE = {
    "description": "template list",
    "hypervisors": "the pairing of template and hypervisor",
    "image": "import",
    "disk_size": "the volume",
    "ready": "--wait",
    "seal": "tests/capture/test_small.py",
    "values": "placeholders",
    "ssh.port": "ssh",
    "ssh.key": "ssh",
    "disks.content": "the volume",
    "disks.size": "the volume",
    "domain.autostart": "libvirt's flag",
    "domain.xml": "tests/libvirt/test_rendering.py",
}
"""Keys whose effect isn't in the domain or the identity, and what it is in."""
TOP: dict[str, Any] = {
    "boot": "kernel",
    "memory": 1024**3,
    "vcpus": 3,
    "swap": 1024**2,
    "disks": (DiskSpec(size=1024**2),),
    "nics": (NicSpec(), NicSpec()),
}
TABLES: dict[str, dict[str, Any]] = {
    "nics": {"kind": "network", "source": "lan", "model": "e1000e", "forward": 22},
    "kernel": {"path": Path("vmlinuz"), "initrd": Path("initrd"), "cmdline": "quiet"},
    "domain": {
        "type": "pvh",
        "machine": "pc",
        "cpu": "Haswell",
        "firmware": "efi",
        "disk_bus": "scsi",
        "on_crash": "preserve",
        "on_reboot": "destroy",
        "agent": True,
        "graphics": "vnc",
        "devices": '<input type="tablet" bus="usb"/>',
    },
    "ssh": {"user": "admin"},
    "identity": {
        "provider": "none",
        "hostname": "host{{ index }}",
        "authorized_keys": (KEY,),
        "addresses": ("192.0.2.7/24",),
        "gateway": "192.0.2.1",
        "nameservers": ("192.0.2.53",),
        "machine_id": "f" * 32,
        "user_data": Path("user-data"),
        "network_config": Path("network-config"),
        "kernel_args": "more",
    },
}
PROVIDERS = {"cloud-init": CloudInit, "kernel-args": KernelArgs, "none": NoIdentity}
BOOTS = {"disk": DiskBoot, "kernel": KernelBoot}


def test_every_key_is_tried() -> None:
    def tried(prefix: str, table: type, keys: Mapping[str, Any]) -> None:
        fields = [f for f in attrs.fields(table) if f.metadata.get("key", True)]
        names = {f"{prefix}{field.name}" for field in fields}
        assert names - ELSEWHERE.keys() == {f"{prefix}{key}" for key in keys}, prefix

    tried("", Template, TOP | dict.fromkeys({"kernel", "domain", "ssh", "identity"}))
    for name, table in (
        ("nics", NicSpec),
        ("kernel", KernelSpec),
        ("domain", DomainOptions),
        ("ssh", SshSpec),
        ("identity", IdentitySpec),
    ):
        tried(f"{name}.", table, TABLES[name])
    tried("disks.", DiskSpec, {})


@pytest.fixture
def effects(
    make_driver: Callable[..., KvmDriver], place: Path, new_labels: Callable[..., Labels]
) -> Callable[[Template], tuple[str, tuple[str, ...]]]:
    """Return a function that gives what becomes of a template, and its keys without effect."""
    driver = make_driver("qemu:///system")
    driver.__dict__["_domain_type"] = "qemu"  # asks nobody
    context = make_context(place, "kvm")
    for name in ("vmlinuz", "initrd"):
        (place / name).write_bytes(b"\x7fELF" + bytes(1020))
    (place / "user-data").write_text("#cloud-config\npackages: [less]\n")
    (place / "network-config").write_text("version: 2\n")
    birth = Birth.now()

    def become(template: Template) -> tuple[str, tuple[str, ...]]:
        spec = template.identity
        for key in ("user_data", "network_config"):
            if getattr(spec, key) is not None:
                spec = attrs.evolve(spec, **{key: place / getattr(spec, key).name})
        template = attrs.evolve(template, identity=spec, folder=place)
        provider = PROVIDERS[spec.provider](context)
        boot = BOOTS[template.boot](context)
        labels = new_labels()
        macs = [f"52:54:00:00:00:0{n}" for n in range(len(template.nics))]
        clone = clone_spec(template, labels, uuid.UUID(int=9), macs)
        identity = resolve(clone, authorized_keys(template), birth.run)
        asked = IdentityRequest(
            labels=labels, template=template, identity=identity, nics=clone.nics, values={},
            folder=place, host_key="private", host_key_public="public",
        )  # fmt: skip
        provider.check(template)
        provider.check_seed(asked)
        seed = next(provider.seed([asked])).unwrap()
        volumes = tuple(
            Volume(name=f"v{n}", pool="p", labels=labels, path=place / f"v{n}", size=1024**2)
            for n in disk_numbers(template)
        )
        config = next(boot.resolve([boot_request(clone, driver, volumes)])).unwrap()
        domain = domain_spec(clone, told(labels.clone, config, seed.cmdline), volumes, Seed())
        parts = [driver.render(domain), seed.cmdline]
        if seed.image is not None:
            parts.append(documents.vendor_data(identity, "private", "public").decode())
            parts.append(documents.meta_data(identity).decode())
            own = [spec.network_config, spec.user_data]
            parts += [file.read_text() if file is not None else "" for file in own]
            if spec.network_config is None:
                parts.append(documents.network_config(identity).decode())
        unused = (*provider.unused(template), *boot.unused(template), *driver.unused(template))
        return "\n".join(parts), unused

    return become


def base(provider: str, boot: str) -> Template:
    """Return a template with a card that has a static address, so that a gateway can be reached."""
    kernel = KernelSpec(path=Path("vmlinuz")) if boot == "kernel" else None
    addresses = ("192.0.2.9/24",) if provider != "none" else ()
    return Template(
        name="t",
        image=ImageSource(path=Path("/i.raw")),
        boot=boot,
        kernel=kernel,
        identity=IdentitySpec(provider=provider, addresses=addresses, authorized_keys=()),
    )


def changed(template: Template, table: str, key: str, value: object) -> Template:
    if not table:
        kernel = KernelSpec(path=Path("vmlinuz")) if key == "boot" else template.kernel
        return attrs.evolve(template, **{key: value}, kernel=kernel)
    if table == "nics":
        values = {"kind": "network", "source": "lan"} if key in ("kind", "source") else {key: value}
        return attrs.evolve(template, nics=(NicSpec(**values),))
    old = getattr(template, table) or KernelSpec()
    return attrs.evolve(template, **{table: attrs.evolve(old, **{key: value})})


CASES = [("", key, value) for key, value in TOP.items()]
CASES += [(table, key, value) for table, keys in TABLES.items() for key, value in keys.items()]


@pytest.mark.parametrize(("provider", "boot"), [
    ("cloud-init", "disk"), ("cloud-init", "kernel"), ("kernel-args", "kernel"), ("none", "disk"),
])  # fmt: skip
@pytest.mark.parametrize(("table", "key", "value"), CASES)
def test_no_key_is_dropped_silently(
    effects: Callable[[Template], tuple[str, tuple[str, ...]]],
    provider: str,
    boot: str,
    table: str,
    key: str,
    value: object,
) -> None:
    template = base(provider, boot)
    if (key, value) == ("boot", boot):
        return  # it has that one already
    if (table, key) == ("identity", "provider") and provider == value:
        return
    before, _ = effects(template)
    try:
        after, unused = effects(changed(template, table, key, value))
    except InvalidRequest:
        return  # refused, and so not silent
    if (table, key) == ("kernel", "path") and boot == "kernel":
        return  # the same file
    if table == "ssh" and provider != "cloud-init":
        return  # who ssh logs in as
    assert (after != before) or f"{table}.{key}" in unused
