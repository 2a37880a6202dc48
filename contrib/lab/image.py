"""The lab's image: Debian 12 that boots as a KVM host and as a Xen host.

mmdebstrap installs the packages into a folder, a script inside turns them into a lab, and mke2fs
writes the folder to a file system: nothing is mounted, no loop device is used.
"""

from __future__ import annotations

import gzip
import shutil
import tempfile
from pathlib import Path

import attrs

from contrib.lab import cache, debian
from contrib.lab.proc import need, run, say

HERE = Path(__file__).parent
SIZE = "8G"
"""Of the root file system; sparse."""


@attrs.frozen
class Image:
    """A built image."""

    folder: Path

    @property
    def disk(self) -> Path:
        """The root disk, qcow2; never written to."""
        return self.folder / "root.qcow2"

    @property
    def key(self) -> Path:
        """The private key that opens the lab."""
        return self.folder / "id_ed25519"

    @property
    def known_hosts(self) -> Path:
        """What ssh knows of the lab: its host key, under the name "lab"."""
        return self.folder / "known_hosts"

    @property
    def kernel(self) -> Path:
        """Linux, for both modes."""
        return self.folder / "vmlinuz"

    @property
    def initrd(self) -> Path:
        """What mounts the root disk."""
        return self.folder / "initrd.img"

    @property
    def xen(self) -> Path:
        """The hypervisor, uncompressed as QEMU wants it."""
        return self.folder / "xen"


def packages() -> list[str]:
    """Return the names of the image's Debian packages."""
    lines = (HERE / "packages.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def image() -> Image:
    """Return the image; built if it isn't in the cache."""
    own = [path for path in (HERE / "files").rglob("*") if path.is_file()]
    own += [HERE / name for name in ("debian.py", "image.py", "customize", "packages.txt")]
    return Image(cache.entry("image", cache.digest_files(own, HERE), _build))


def _build(folder: Path) -> None:
    need("mke2fs", "qemu-img", "ssh-keygen")
    say("building the image (about 4 min, once)")
    for name in ("id_ed25519", "host_ed25519"):
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f", folder / name])
    with tempfile.TemporaryDirectory(dir=folder) as work:
        root = Path(work) / "root"
        _install(root, _overlay(folder, Path(work) / "overlay"))
        _pack(root, Path(work) / "root.ext4", folder)
    public = (folder / "host_ed25519.pub").read_text()
    (folder / "known_hosts").write_text(f"lab {public}")
    (folder / "host_ed25519").unlink()


def _overlay(folder: Path, overlay: Path) -> Path:
    """Return a folder of what is laid over the packages: our own files, and the keys."""
    shutil.copytree(HERE / "files", overlay, symlinks=True)
    ssh = overlay / "root/.ssh"
    ssh.mkdir(parents=True)
    shutil.copy(folder / "id_ed25519.pub", ssh / "authorized_keys")
    shutil.copy(folder / "host_ed25519", overlay / "etc/ssh/ssh_host_ed25519_key")
    shutil.copy(folder / "host_ed25519.pub", overlay / "etc/ssh/ssh_host_ed25519_key.pub")
    shutil.copy(HERE / "customize", overlay / "customize")
    return overlay


def _install(root: Path, overlay: Path) -> None:
    hooks = [
        # An initramfs is made at once: of few modules, quickly.
        '--setup-hook=mkdir -p "$1/etc/initramfs-tools/conf.d"',
        '--setup-hook=cp "$LAB_OVERLAY/etc/initramfs-tools/conf.d/lab" '
        '"$1/etc/initramfs-tools/conf.d/"',
        '--customize-hook=cp -r --no-preserve=ownership "$LAB_OVERLAY/." "$1/"',
        '--customize-hook=chroot "$1" /customize >&2',
        '--customize-hook=rm "$1/customize"',
    ]
    debian.install(root, packages(), hooks, {"LAB_OVERLAY": str(overlay)}, seconds=1800)


def _pack(root: Path, ext4: Path, folder: Path) -> None:
    boot = root / "boot"
    (kernel,) = boot.glob("vmlinuz-*")
    (initrd,) = boot.glob("initrd.img-*")
    (xen,) = boot.glob("xen-*-amd64.gz")
    shutil.copy(kernel, folder / "vmlinuz")
    shutil.copy(initrd, folder / "initrd.img")
    (folder / "xen").write_bytes(gzip.decompress(xen.read_bytes()))
    run(
        [
            *("mke2fs", "-q", "-t", "ext4", "-O", "^has_journal,^metadata_csum", "-m", "0"),
            *("-E", "lazy_itable_init=1", "-L", "lab", "-d", root, ext4, SIZE),
        ],
        timeout=300,
    )
    run(
        [
            *("qemu-img", "convert", "-c", "-O", "qcow2", "-o", "compression_type=zstd"),
            *(ext4, folder / "root.qcow2"),
        ],
        timeout=300,
    )
