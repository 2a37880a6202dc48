"""The boot providers `disk` and `kernel`."""

from collections.abc import Callable
from pathlib import Path

import attrs
import pytest

from vmcloner_boot import disk as disk_plugin
from vmcloner_boot import kernel as kernel_plugin
from vmcloner_boot.cmdline import MAX_CMDLINE
from vmcloner_core.drivers import BootProvider, BootRequest, DriverContext
from vmcloner_core.errors import InvalidRequest
from vmcloner_core.model import (
    BootConfig,
    Host,
    ImageSource,
    KernelSpec,
    Nic,
    NicSpec,
    Template,
    clone_uuid,
)
from vmcloner_core.process import LocalRunner
from vmcloner_core.testing.samples import make_labels

BZIMAGE = bytes(0x202) + b"HdrS" + bytes(600)


@pytest.fixture
def context(tmp_path: Path) -> DriverContext:
    return DriverContext(
        host=Host(name="local", state=tmp_path), name="kernel", runner=LocalRunner()
    )


@pytest.fixture
def provider(context: DriverContext) -> BootProvider:
    return kernel_plugin.vmcloner_boot_provider().factory(context)


@pytest.fixture
def template(tmp_path: Path) -> Template:
    folder = tmp_path / "template"
    folder.mkdir()
    (folder / "vmlinuz").write_bytes(BZIMAGE)
    (folder / "initrd").write_bytes(b"cpio")
    return Template(
        name="t",
        boot="kernel",
        image=ImageSource(path=Path("image.raw")),
        kernel=KernelSpec(
            path=Path("vmlinuz"), initrd=Path("initrd"), cmdline="hostname={{ name }} mac={{ mac }}"
        ),
        folder=folder,
    )


def request(template: Template, index: int = 1) -> BootRequest:
    labels = make_labels(index=index, template=template.name)
    nic = Nic(spec=NicSpec(), mac=f"52:54:00:00:00:{index:02x}")
    return BootRequest(
        labels=labels,
        template=template,
        hypervisor="kvm",
        uuid=clone_uuid("local", "web", index, template.name),
        volumes=(),
        nics=(nic,),
    )


def with_kernel(template: Template, **changes: object) -> Template:
    return attrs.evolve(template, kernel=attrs.evolve(template.kernel, **changes))


# --- disk -------------------------------------------------------------------------------------


def test_disk_boots_the_disk(context: DriverContext, template: Template) -> None:
    provider = disk_plugin.vmcloner_boot_provider().factory(context)
    plain = attrs.evolve(template, kernel=None)
    provider.check(plain)
    outcomes = list(provider.resolve([request(plain, 1), request(plain, 2)]))
    assert [outcome.key for outcome in outcomes] == ["web-1", "web-2"]
    assert {outcome.unwrap() for outcome in outcomes} == {BootConfig(devices=("hd",))}


# --- kernel -----------------------------------------------------------------------------------


def test_each_clone_has_its_own_command_line(provider: BootProvider, template: Template) -> None:
    provider.check(template)
    first, second = provider.resolve([request(template, 1), request(template, 2)])
    assert first.unwrap() == BootConfig(
        kernel=template.folder / "vmlinuz",
        initrd=template.folder / "initrd",
        cmdline="hostname=web-1 mac=52:54:00:00:00:01",
        devices=(),
    )
    assert second.unwrap().cmdline == "hostname=web-2 mac=52:54:00:00:00:02"


def test_initrd_and_command_line_may_be_missing(provider: BootProvider, template: Template) -> None:
    bare = with_kernel(template, initrd=None, cmdline="")
    provider.check(bare)
    (outcome,) = provider.resolve([request(bare)])
    assert outcome.unwrap().initrd is None


def test_relative_folders_become_absolute(
    provider: BootProvider, template: Template, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(template.folder.parent)
    (outcome,) = provider.resolve([request(attrs.evolve(template, folder=Path("template")))])
    assert outcome.unwrap().kernel == template.folder / "vmlinuz"


@pytest.mark.parametrize(
    "head", [BZIMAGE, b"\x7fELF\x02", b"\x1f\x8b\x08"], ids=["bz", "elf", "gz"]
)
def test_kernels(provider: BootProvider, template: Template, head: bytes) -> None:
    (template.folder / "vmlinuz").write_bytes(head)
    provider.check(template)


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def replace(name: str, data: bytes) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).write_bytes(data)

    return damage


def as_folder(folder: Path) -> None:
    (folder / "vmlinuz").unlink()
    (folder / "vmlinuz").mkdir()


def as_device(folder: Path) -> None:
    (folder / "initrd").unlink()
    (folder / "initrd").symlink_to("/dev/zero")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (remove("vmlinuz"), "kernel.path: .*vmlinuz doesn't exist"),
        (remove("initrd"), "kernel.initrd: .*initrd doesn't exist"),
        (replace("vmlinuz", b"#!/bin/sh"), "vmlinuz is no kernel"),
        (replace("vmlinuz", b""), "vmlinuz is no kernel"),
        (replace("initrd", b""), "initrd is empty"),
        (as_folder, "vmlinuz is not a file"),
        (as_device, "initrd is not a file"),
    ],
)
def test_files_are_checked_before_anything_is_made(
    provider: BootProvider, template: Template, damage: Callable[[Path], None], reason: str
) -> None:
    damage(template.folder)
    with pytest.raises(InvalidRequest, match=f"^template t: .*{reason}"):
        provider.check(template)
    (outcome,) = provider.resolve([request(template)])
    assert isinstance(outcome.error, InvalidRequest)


def test_a_template_without_a_kernel(provider: BootProvider, template: Template) -> None:
    with pytest.raises(
        InvalidRequest, match=r"template t: boot = 'kernel' needs a table \[kernel\]"
    ):
        provider.check(attrs.evolve(template, kernel=None))


@pytest.mark.parametrize(
    ("cmdline", "reason"),
    [
        ("hostname={{ nmae }}", "'nmae' is undefined"),
        ("a\nb", "control character"),
        ("a\x00b", "control character"),
        ("a\x9bb", "control character"),
        ("a\uffffb", "control character"),
        ("a{{ '\\t' }}b", "control character"),
        ("x" * (MAX_CMDLINE + 1), "2048 bytes for check-1, of 2047 at most"),
        ("ü" * 1024, "2048 bytes"),
    ],
)
def test_command_lines_are_checked(
    provider: BootProvider, template: Template, cmdline: str, reason: str
) -> None:
    bad = with_kernel(template, cmdline=cmdline)
    with pytest.raises(InvalidRequest, match=reason) as caught:
        provider.check(bad)
    assert caught.value.message.startswith("template t: kernel.cmdline: ")
    (outcome,) = provider.resolve([request(bad)])
    assert isinstance(outcome.error, InvalidRequest)


def test_the_longest_command_line(provider: BootProvider, template: Template) -> None:
    longest = with_kernel(template, cmdline="x" * MAX_CMDLINE)
    provider.check(longest)
    (outcome,) = provider.resolve([request(longest)])
    assert outcome.unwrap().cmdline == "x" * MAX_CMDLINE


def test_a_line_that_is_too_long_for_one_clone_only(
    provider: BootProvider, template: Template
) -> None:
    text = "x" * (MAX_CMDLINE - 1) + "{{ index }}"
    long = with_kernel(template, cmdline=text)
    first, tenth = provider.resolve([request(long, 1), request(long, 10)])
    assert first.ok
    assert isinstance(tenth.error, InvalidRequest)
    assert "web-10" in tenth.error.message


def test_what_a_builder_makes_need_not_be_there_yet(
    provider: BootProvider, template: Template, tmp_path: Path
) -> None:
    built = attrs.evolve(template, image=ImageSource(builder="tiny"), folder=tmp_path / "not-built")
    provider.check(built)
    with pytest.raises(InvalidRequest, match="nmae"):
        provider.check(with_kernel(built, cmdline="{{ nmae }}"))
    (outcome,) = provider.resolve([request(built)])
    assert isinstance(outcome.error, InvalidRequest)
    built.folder.mkdir()
    with pytest.raises(InvalidRequest, match="vmlinuz doesn't exist"):
        provider.check(built)
