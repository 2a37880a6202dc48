"""The boot provider `pygrub`: on KVM disks are read here, on Xen by its own program."""

import errno
import os
import stat
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import attrs
import pytest

from tests.boot.disks import BZIMAGE, MIB, disk, ext, run
from vmcloner_boot import disk_image, extraction, pygrub
from vmcloner_core.bootfiles import fresh
from vmcloner_core.drivers import BootProvider, BootRequest, DriverContext
from vmcloner_core.errors import InvalidRequest, NotEnoughResources, WrongState
from vmcloner_core.model import (
    BootConfig,
    Host,
    ImageSource,
    KernelSpec,
    Nic,
    NicSpec,
    Template,
    Volume,
    clone_uuid,
)
from vmcloner_core.process import LocalRunner
from vmcloner_core.testing.samples import make_labels

CONFIG = """
set default=0
menuentry 'Linux' {
    linux /boot/vmlinuz root=/dev/vda1 ro
    initrd /boot/initrd.img
}
"""
FILES = {
    "boot/vmlinuz": BZIMAGE,
    "boot/initrd.img": b"070701 an archive",
    "boot/grub/grub.cfg": CONFIG,
}
Ask = Callable[..., BootRequest]


@pytest.fixture
def context(tmp_path: Path) -> DriverContext:
    host = Host(name="local", state=tmp_path / "state")
    return DriverContext(host=host, name="pygrub", runner=LocalRunner())


@pytest.fixture
def provider(context: DriverContext) -> BootProvider:
    return pygrub.vmcloner_boot_provider().factory(context)


@pytest.fixture
def template(tmp_path: Path) -> Template:
    return Template(name="t", boot="pygrub", image=ImageSource(path=tmp_path / "image.raw"))


@pytest.fixture
def ask(context: DriverContext, template: Template) -> Ask:
    """Make the request for a clone with that disk, as at a start."""

    def make(path: Path, index: int = 1, **changes: object) -> BootRequest:
        labels = make_labels(index=index, template="t", boot="pygrub")
        volume = Volume(
            name=f"web-{index}-disk0", pool="files", labels=labels, path=path,
            size=path.stat().st_size, format="qcow2" if path.suffix == ".qcow2" else "raw",
        )  # fmt: skip
        request = BootRequest(
            labels=labels,
            template=template,
            hypervisor="kvm",
            uuid=clone_uuid("local", "web", index, "t"),
            volumes=(volume,),
            nics=(Nic(spec=NicSpec(), mac=f"52:54:00:00:00:{index:02x}"),),
            folder=fresh(context.host.boots, labels.clone),
        )
        return attrs.evolve(request, **changes)

    return make


def boots(provider: BootProvider, request: BootRequest) -> BootConfig:
    (outcome,) = provider.resolve_start([request])
    return outcome.unwrap()


def test_it_is_asked_at_each_start_on_kvm_alone() -> None:
    backend = pygrub.vmcloner_boot_provider()
    assert backend.at_start == {"kvm"}
    assert backend.hypervisors == {"kvm", "xen"}


def test_a_disk(provider: BootProvider, ask: Ask, tmp_path: Path) -> None:
    path = disk(tmp_path / "disk", "gpt", [None, ext(tmp_path / "fs", FILES)])
    request = ask(path)
    config = boots(provider, request)
    assert request.folder is not None
    assert config == BootConfig(
        kernel=request.folder / "kernel",
        initrd=request.folder / "initrd",
        cmdline="root=/dev/vda1 ro",
        devices=(),
    )
    assert config.source == "entry 'Linux' of /boot/grub/grub.cfg on partition 2"
    assert (request.folder / "kernel").read_bytes() == BZIMAGE
    assert (request.folder / "initrd").read_bytes() == b"070701 an archive\0\0\0"
    assert stat.S_IMODE((request.folder / "initrd").stat().st_mode) == 0o600


def test_an_overlay(provider: BootProvider, ask: Ask, tmp_path: Path) -> None:
    base = ext(tmp_path / "fs", FILES)
    overlay = tmp_path / "clone.qcow2"
    run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", base, overlay)
    assert boots(provider, ask(overlay)).cmdline == "root=/dev/vda1 ro"


def test_the_templates_words_are_added(
    provider: BootProvider, ask: Ask, template: Template, tmp_path: Path
) -> None:
    own = attrs.evolve(template, kernel=KernelSpec(cmdline="console=ttyS0 host={{ name }}"))
    provider.check(own)
    request = ask(ext(tmp_path / "fs", FILES), template=own)
    assert boots(provider, request).cmdline == "root=/dev/vda1 ro console=ttyS0 host=web-1"


def test_what_changes_in_the_disk_is_followed(
    provider: BootProvider, ask: Ask, tmp_path: Path
) -> None:
    """An upgrade by the guest: another kernel of the same size, then one of another size."""
    path = ext(tmp_path / "fs", FILES)
    for kernel in (BZIMAGE, BZIMAGE[:-1] + b"2", BZIMAGE + b"larger"):
        (tmp_path / "kernel").write_bytes(kernel)
        for command in ("rm /boot/vmlinuz", f"write {tmp_path / 'kernel'} /boot/vmlinuz"):
            run("debugfs", "-w", "-R", command, path)
        config = boots(provider, ask(path))
        assert config.kernel is not None
        assert config.kernel.read_bytes() == kernel


def test_clones_share_what_is_the_same_and_nothing_else(
    provider: BootProvider, ask: Ask, tmp_path: Path, context: DriverContext
) -> None:
    same = ext(tmp_path / "same", FILES)
    other = ext(tmp_path / "other", {**FILES, "boot/vmlinuz": BZIMAGE[:-1] + b"2"})
    paths = [same, same, other, same]
    with ThreadPoolExecutor(4) as pool:
        configs = list(
            pool.map(lambda item: boots(provider, ask(item[1], item[0])), enumerate(paths, 1))
        )
    again = boots(provider, ask(same, 5)), boots(provider, ask(same, 6))
    kernels = [config.kernel for config in (*configs, *again) if config.kernel is not None]
    assert kernels[2].read_bytes() == BZIMAGE[:-1] + b"2"
    assert {kernel.read_bytes() for n, kernel in enumerate(kernels) if n != 2} == {BZIMAGE}
    assert kernels[4].samefile(kernels[5])
    assert not kernels[2].samefile(kernels[5])


def test_what_no_clone_uses_any_more_goes(
    provider: BootProvider, ask: Ask, template: Template, tmp_path: Path, context: DriverContext
) -> None:
    path = ext(tmp_path / "fs", FILES)
    boots(provider, ask(path))
    fresh(context.host.boots, "web-1")
    boots(provider, ask(path, 2, template=attrs.evolve(template, name="other")))
    shared = {file.name.split(".")[0] for file in (context.host.boots / "shared").iterdir()}
    assert shared == {"other"}


def test_drafts_of_the_dead_go(
    provider: BootProvider, ask: Ask, tmp_path: Path, context: DriverContext
) -> None:
    shared = context.host.boots / "shared"
    shared.mkdir(parents=True)
    for name, age in ((".young", 10), (".old", 7200)):
        (shared / name).touch()
        os.utime(shared / name, (time.time() - age,) * 2)
    boots(provider, ask(ext(tmp_path / "fs", FILES)))
    assert (shared / ".young").exists()
    assert not (shared / ".old").exists()


@pytest.mark.filesystems
def test_a_block_device(provider: BootProvider, ask: Ask, tmp_path: Path) -> None:
    path = disk(tmp_path / "disk", "gpt", [ext(tmp_path / "fs", FILES)])
    argv = ["losetup", "--show", "-f", "-r", str(path)]
    device = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()
    try:
        request = ask(path)
        volume = attrs.evolve(request.volumes[0], path=Path(device), kind="block")
        config = boots(provider, attrs.evolve(request, volumes=(volume,)))
        assert config.cmdline == "root=/dev/vda1 ro"
    finally:
        run("losetup", "-d", device)


def test_a_shared_file_that_was_changed_is_not_believed(
    provider: BootProvider, ask: Ask, tmp_path: Path
) -> None:
    path = ext(tmp_path / "fs", FILES)
    first = boots(provider, ask(path)).kernel
    assert first is not None
    first.write_bytes(BZIMAGE[:-1] + b"!")
    second = boots(provider, ask(path, 2)).kernel
    assert second is not None
    assert second.read_bytes() == BZIMAGE


def test_a_dry_run_takes_nothing_out(
    provider: BootProvider, ask: Ask, tmp_path: Path, context: DriverContext
) -> None:
    for hypervisor in ("kvm", "xen"):
        request = ask(ext(tmp_path / hypervisor, FILES), hypervisor=hypervisor)
        config = boots(provider, attrs.evolve(request, folder=None, dry_run=True))
        assert (config.kernel, config.initrd) == (None, None)
        assert config.origins == ("/boot/vmlinuz on the disk", "/boot/initrd.img on the disk")
        assert config.cmdline == "root=/dev/vda1 ro"
    bad = ask(ext(tmp_path / "bad", {**FILES, "boot/vmlinuz": b"text" * 1000}), 2)
    (outcome,) = provider.resolve_start([attrs.evolve(bad, folder=None, dry_run=True)])
    assert "is no kernel" in str(outcome.error)
    assert not (context.host.boots / "shared").exists()


# --- disks that are no good ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({}, "no boot menu and no kernel on its disk"),
        ({**FILES, "boot/grub/grub.cfg": "menuentry a {"}, "grub.cfg:1: what begins here"),
        ({**FILES, "boot/vmlinuz": None}, "/boot/vmlinuz isn't a file"),
        ({**FILES, "boot/vmlinuz": b"text" * 1000}, "is no kernel"),
        ({**FILES, "boot/vmlinuz": b""}, "is empty"),
        ({**FILES, "boot/vmlinuz": Path("/etc/hostname")}, "/boot/vmlinuz isn't a file"),
        ({**FILES, "boot/vmlinuz": Path("../../../../../etc/hostname")}, "isn't a file"),
        ({**FILES, "boot/vmlinuz": Path("vmlinuz")}, "too many links"),
        ({**FILES, "boot/grub/grub.cfg": CONFIG.replace("ro", "x" * 2048)}, "of 2047 at most"),
        ({**FILES, "boot/grub/grub.cfg": CONFIG.replace("ro", "a\x01b")}, "control character"),
    ],
    ids=[
        "nothing",
        "broken",
        "folder",
        "text",
        "empty",
        "host",
        "above",
        "loop",
        "long",
        "control",
    ],
)
def test_bad_disks(
    provider: BootProvider, ask: Ask, tmp_path: Path, files: dict[str, object], reason: str
) -> None:
    """Each is an error that names the clone; the others of the batch are none the worse."""
    good = ext(tmp_path / "good", FILES)
    bad = ext(tmp_path / "bad", files)
    outcomes = list(provider.resolve_start([ask(bad, 1), ask(good, 2)]))
    assert [outcome.ok for outcome in outcomes] == [False, True]
    assert isinstance(outcomes[0].error, WrongState | InvalidRequest)
    assert reason in outcomes[0].error.message
    assert outcomes[0].error.message.startswith("web-1: ")


def test_an_initrd_of_a_gibibyte(provider: BootProvider, ask: Ask, tmp_path: Path) -> None:
    root = tmp_path / "fs.d" / "boot"
    root.mkdir(parents=True)
    with (root / "initrd.img").open("wb") as stream:
        stream.truncate(1024 * MIB)
    files = {name: content for name, content in FILES.items() if "initrd" not in name}
    request = ask(ext(tmp_path / "fs", files, size=32))
    (outcome,) = provider.resolve_start([request])
    assert "1024 MiB is too much for an initrd (512 MiB)" in str(outcome.error)
    assert request.folder is not None
    assert list(request.folder.iterdir()) == []


def test_one_that_takes_too_long(
    provider: BootProvider, ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    past = time.monotonic() - 1
    monkeypatch.setattr(pygrub, "Budget", lambda: disk_image.Budget(deadline=past))
    (outcome,) = provider.resolve_start([ask(ext(tmp_path / "fs", FILES))])
    assert "web-1: reading what it boots takes too long" in str(outcome.error)


def test_a_full_disk_of_the_host(
    provider: BootProvider, ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    request = ask(ext(tmp_path / "fs", FILES))
    monkeypatch.setattr(extraction.os, "link", full)
    (outcome,) = provider.resolve_start([request])
    assert isinstance(outcome.error, NotEnoughResources)
    assert "No space left on device" in outcome.error.message
    shared = tmp_path / "state/boot/shared"
    assert list(shared.iterdir()) == []


def test_a_disk_of_another_kind_is_named(provider: BootProvider, ask: Ask, tmp_path: Path) -> None:
    luks = tmp_path / "luks"
    luks.write_bytes(b"LUKS\xba\xbe".ljust(MIB, b"\0"))
    (outcome,) = provider.resolve_start([ask(disk(tmp_path / "disk", "gpt", [luks]))])
    assert "not read: partition 1: LUKS" in str(outcome.error)


def test_no_disk(provider: BootProvider, ask: Ask, tmp_path: Path) -> None:
    (outcome,) = provider.resolve_start([ask(ext(tmp_path / "fs", {}), volumes=())])
    assert "web-1: it has no disk" in str(outcome.error)


# --- the template, and Xen ----------------------------------------------------------------------


def test_a_kernel_of_the_host_is_refused(provider: BootProvider, template: Template) -> None:
    provider.check(template)
    with pytest.raises(InvalidRequest, match=r"not kernel\.path"):
        provider.check(attrs.evolve(template, kernel=KernelSpec(path=Path("vmlinuz"))))
    with pytest.raises(InvalidRequest, match=r"kernel\.cmdline"):
        provider.check(attrs.evolve(template, kernel=KernelSpec(cmdline="{{ nope }}")))


def test_the_definition_on_kvm(provider: BootProvider, ask: Ask, tmp_path: Path) -> None:
    request = ask(ext(tmp_path / "fs", {}), folder=None)
    (outcome,) = provider.resolve([request])
    assert outcome.unwrap() == BootConfig(devices=("hd",))


def test_xen_runs_its_own(provider: BootProvider, ask: Ask, template: Template) -> None:
    own = attrs.evolve(template, kernel=KernelSpec(cmdline="console=hvc0 host={{ name }}"))
    request = ask(Path("/dev/null"), hypervisor="xen", template=own, folder=None)
    (outcome,) = provider.resolve([request])
    assert outcome.unwrap() == BootConfig(
        bootloader=Path("pygrub"), cmdline="console=hvc0 host=web-1", devices=()
    )
