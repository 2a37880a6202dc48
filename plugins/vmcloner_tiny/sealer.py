"""Fill a folder with ``vmlinuz`` and ``initrd.img``: a guest that seals a captured disk, then ends.

See ``seal`` and ``apply``, and contrib/adr/0026.
"""

from __future__ import annotations

import gzip
from pathlib import Path

from vmcloner_core.drivers import DriverContext, ImageBuilder
from vmcloner_core.errors import BackendError
from vmcloner_core.model import Progress
from vmcloner_tiny import initramfs
from vmcloner_tiny.builder import fetched, own_files, own_hash
from vmcloner_tiny.modules import ModuleTree

MODULES = ("virtio_pci", "virtio_blk", "ext4", "xfs", "btrfs", "vfat")
HELPERS = ("crc32c_generic", "nls_cp437", "nls_ascii", "nls_iso8859_1", "nls_utf8")
"""Modules that the kernel looks for while it mounts, if it has them: they are no dependencies."""
_FOLDERS = ("bin", "dev", "mnt", "modules", "proc", "sys")


class Sealer(ImageBuilder):
    """Builds the guest. Thread-safe: it keeps no state between calls."""

    def __init__(self, context: DriverContext) -> None:
        self._runner = context.runner

    def fingerprint(self) -> str:
        """See :meth:`ImageBuilder.fingerprint`.

        Without the versions of its packages: a capture needs neither apt nor a network then.
        """
        return f"sealer={own_hash()}"

    def build(self, folder: Path, progress: Progress) -> Path:
        """See :meth:`ImageBuilder.build`; returns the initrd: the guest has no disk of its own."""
        with fetched(self._runner, folder, progress) as (vmlinuz, tree, busybox):
            root = _root(busybox, _modules(tree))
        (folder / "vmlinuz").write_bytes(vmlinuz)
        initrd = folder / "initrd.img"
        initrd.write_bytes(gzip.compress(root, mtime=0))
        return initrd


def _modules(tree: ModuleTree) -> dict[str, bytes]:
    """Return the guest's modules, in load order."""
    found: dict[str, bytes] = {}
    for name in HELPERS:
        try:
            found |= tree.load([name])
        except BackendError:
            continue  # this kernel has it otherwise, or not at all
    return found | tree.load(MODULES)


def _root(busybox: bytes, modules: dict[str, bytes]) -> bytes:
    """Return the guest's root file system, a cpio archive."""
    files = own_files()
    order = "".join(f"{name}.ko\n" for name in modules).encode()
    return initramfs.pack(
        [
            *(initramfs.folder(path) for path in _FOLDERS),
            initramfs.executable("init", files["seal"]),
            initramfs.file("apply", files["apply"]),
            initramfs.executable("bin/busybox", busybox),
            initramfs.file("modules/seal", order),
            *(initramfs.file(f"modules/{name}.ko", each) for name, each in modules.items()),
        ]
    )
