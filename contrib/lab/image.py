"""The lab's image: Debian 12 that boots as a KVM host and as a Xen host.

mmdebstrap installs the packages into a folder, a script inside turns them into a lab, and mke2fs
writes the folder to a file system: nothing is mounted, no loop device is used.
"""

from __future__ import annotations

import gzip
import os
import shutil
import tempfile
from pathlib import Path

import attrs

from contrib.lab import cache
from contrib.lab.errors import LabError
from contrib.lab.proc import need, run, say

HERE = Path(__file__).parent
RELEASE = "bookworm"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
SIZE = "8G"
"""Of the root file system; sparse."""
_LEFT_OUT = ("doc", "man", "info", "locale", "bash-completion", "lintian")


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
    own += [HERE / name for name in ("image.py", "customize", "packages.txt")]
    return Image(cache.entry("image", cache.digest_files(own, HERE), _build))


def _build(folder: Path) -> None:
    if os.geteuid() != 0:
        raise LabError("building the image needs root; run: sudo contrib/lab/lab build")
    need("mmdebstrap", "mke2fs", "qemu-img", "ssh-keygen", "zstd")
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
    keyring = [f"--keyring={KEYRING}"] if KEYRING.exists() else []
    run(
        [
            # Namespaces of its own: what it mounts and starts ends with it, however it ends.
            *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
            *("mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", "--components=main"),
            *keyring,
            f"--include={','.join(packages())}",
            '--aptopt=APT::Install-Recommends "false"',
            *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in _LEFT_OUT),
            "--skip=cleanup/apt/lists,cleanup/reproducible",
            # The hooks are shell commands by design, with the root as "$1"; env names the rest.
            # An initramfs is made at once: of few modules, quickly.
            '--setup-hook=mkdir -p "$1/etc/initramfs-tools/conf.d"',
            '--setup-hook=cp "$LAB_OVERLAY/etc/initramfs-tools/conf.d/lab" '
            '"$1/etc/initramfs-tools/conf.d/"',
            '--customize-hook=cp -r --no-preserve=ownership "$LAB_OVERLAY/." "$1/"',
            '--customize-hook=chroot "$1" /customize >&2',
            '--customize-hook=rm "$1/customize"',
            RELEASE,
            root,
        ],
        timeout=1800,
        env={**os.environ, "LAB_OVERLAY": str(overlay), "LC_ALL": "C.UTF-8"},
    )


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
