"""Fill a folder with ``vmlinuz``, ``initrd.img`` and ``disk.raw``."""

from __future__ import annotations

import gzip
import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import resources
from pathlib import Path

from vmcloner_core.drivers import DriverContext, ImageBuilder
from vmcloner_core.model import Progress
from vmcloner_core.process import CommandRunner
from vmcloner_tiny import initramfs
from vmcloner_tiny.deb import Deb
from vmcloner_tiny.modules import ModuleTree
from vmcloner_tiny.packages import Apt

MODULES = {
    "kvm": ("virtio_pci", "virtio_net", "virtio_blk", "button", "evdev"),
    "xen": ("xen_netfront", "xen_blkfront"),
    "seed": ("isofs",),
}
"""Modules that the guest loads, by hypervisor, and for a seed disk; their dependencies are added.
evdev passes the power button to acpid; Xen does not use the power button."""
DISK_SIZE = 64 * 1024**2
"""Bytes of the disk; only the first sector contains data."""
DISK_MARK = b"vmcloner-tiny 0 -\n"
"""The first line of the disk, rewritten by ``init`` at each boot: mark, number of boots, name."""
MAX_KERNEL = 64 * 1024**2
MAX_BUSYBOX = 16 * 1024**2
_FOLDERS = (
    *(
        "bin",
        "dev",
        "etc",
        "etc/acpi",
        "etc/acpi/PWRF",
        "modules",
        "proc",
        "root",
        "sbin",
        "seed",
        "sys",
    ),
)
_POWER = {
    "etc/acpi/PWRF/00000080": "poweroff",
    "sbin/poweroff": "poweroff",
    "sbin/reboot": "reboot",
}
"""Programs that busybox's acpid runs when the power button is pressed (busybox, util-linux/acpid.c)
and that the kernel runs at Xen's request (Linux, kernel/reboot.c)."""


class TinyBuilder(ImageBuilder):
    """Builds the tiny image. Thread-safe: it keeps no state between calls."""

    def __init__(self, context: DriverContext) -> None:
        self._runner = context.runner

    def fingerprint(self) -> str:
        """Return the versions of the packages and a hash of this builder's own files."""
        return f"{versions(self._runner)} builder={own_hash()}"

    def build(self, folder: Path, progress: Progress) -> Path:
        """See :meth:`ImageBuilder.build`; ``progress`` counts the bytes of the packages."""
        with fetched(self._runner, folder, progress) as (vmlinuz, tree, busybox):
            root = _root(busybox=busybox, modules=_load(tree))
        (folder / "vmlinuz").write_bytes(vmlinuz)
        (folder / "initrd.img").write_bytes(gzip.compress(root, mtime=0))
        disk = folder / "disk.raw"
        with disk.open("wb") as stream:
            stream.write(DISK_MARK)
            stream.truncate(DISK_SIZE)
        return disk


def versions(runner: CommandRunner) -> str:
    """Return the packages that a guest is made of, with their versions."""
    with tempfile.TemporaryDirectory() as work:
        selection = Apt(runner, Path(work)).select()
    return " ".join(f"{package.name}={package.version}" for package in selection.packages)


@contextmanager
def fetched(
    runner: CommandRunner, folder: Path, progress: Progress
) -> Iterator[tuple[bytes, ModuleTree, bytes]]:
    """Fetch the packages, and yield the kernel, its modules, and busybox.

    :param folder: where they are kept until then. :param progress: counts their bytes.
    """
    with ExitStack() as stack:
        # Inside the folder, so that cleaning up after a killed build removes this too.
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=folder)))
        apt = Apt(runner, work)
        paths = apt.fetch(apt.select(), progress).values()
        *kernel, busybox = (stack.enter_context(Deb(path, work)) for path in paths)
        vmlinuz = kernel[0].read(kernel[0].find(r"boot/vmlinuz-[^/]+"), MAX_KERNEL)
        yield vmlinuz, ModuleTree(kernel), busybox.read(busybox.find("bin/busybox"), MAX_BUSYBOX)


def _load(tree: ModuleTree) -> dict[str, dict[str, bytes]]:
    return {kind: tree.load(names) for kind, names in MODULES.items()}


def _root(busybox: bytes, modules: dict[str, dict[str, bytes]]) -> bytes:
    """Return the guest's root file system, a cpio archive.

    :param modules: the modules for each hypervisor, in load order.
    """
    files = {name: content for loaded in modules.values() for name, content in loaded.items()}
    return initramfs.pack(
        [
            *(initramfs.folder(path) for path in _FOLDERS),
            initramfs.executable("init", own_files()["init"]),
            initramfs.executable("sbin/reseed", own_files()["reseed"]),
            initramfs.executable("bin/busybox", busybox),
            *(
                initramfs.executable(path, f"#!/bin/sh\nexec /bin/{program} -f\n".encode())
                for path, program in _POWER.items()
            ),
            *(
                initramfs.file(f"modules/{kind}", "".join(f"{n}.ko\n" for n in loaded).encode())
                for kind, loaded in modules.items()
            ),
            *(initramfs.file(f"modules/{name}.ko", content) for name, content in files.items()),
        ]
    )


def own_files() -> dict[str, bytes]:
    """Return the files that determine the image: the sources of this package, by name."""
    files = (path for path in resources.files(__package__).iterdir() if path.is_file())
    return {path.name: path.read_bytes() for path in files}


def own_hash() -> str:
    """Return a hash of these."""
    digest = hashlib.sha256()
    for name, content in sorted(own_files().items()):
        digest.update(f"{name} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:16]
