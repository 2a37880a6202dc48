"""A guest for tests in the lab: a kernel of its own, busybox, and a disk that pygrub boots.

Debian's kernel takes 128 MiB and more than a minute as an emulated PV guest; this one takes 32 MiB
and a quarter of that. It boots as a Xen PV, PVH or HVM guest, and on KVM.
"""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

from contrib.lab import cache, debian
from contrib.lab.proc import run, say
from vmcloner_tiny import initramfs

HERE = Path(__file__).parent / "guest"
DISK_SIZE = 16 * 1024**2
"""Bytes."""
DISK_MARK = b"vmcloner-tiny 0 -\n"
"""The disk's first line, before the file system, as the template "tiny" has it: boots, name."""
BUILD_PACKAGES = (
    *("linux-source-6.1", "gcc", "libc6-dev", "make", "flex", "bison", "bc", "libelf-dev"),
    *("xz-utils", "busybox-static"),
)
_FOLDERS = ("bin", "sbin", "dev", "proc", "sys", "mnt", "root")
_POWER = {"sbin/poweroff": "poweroff", "sbin/reboot": "reboot", "sbin/halt": "halt"}
"""What the kernel runs when Xen asks it to (Linux, kernel/reboot.c, poweroff_cmd)."""


def key() -> str:
    """Return a hash of all that the guest is made of."""
    own = [path for path in HERE.iterdir() if path.is_file()]
    return cache.digest(cache.digest_files(own, HERE), Path(__file__).read_bytes())


def kernel() -> Path:
    """Return the folder with ``vmlinuz`` and ``busybox``; built if it isn't in the cache."""
    own = [HERE / "config", HERE / "build-kernel"]
    made_of = cache.digest(cache.digest_files(own, HERE), *BUILD_PACKAGES)
    return cache.entry("kernel", made_of, _build_kernel)


def _build_kernel(folder: Path) -> None:
    say("building the guests' kernel (about 8 min, once)")
    hooks = [
        '--customize-hook=mkdir "$1/build"; cp "$LAB_GUEST/config" "$1/lab-config"',
        '--customize-hook=cp "$LAB_GUEST/build-kernel" "$1/build-kernel"',
        '--customize-hook=chroot "$1" /build-kernel >&2',
        '--customize-hook=cp "$1/build/vmlinuz" "$1/bin/busybox" "$LAB_OUT/"',
    ]
    work = folder / "work"
    work.mkdir()
    variables = {"LAB_GUEST": str(HERE), "LAB_OUT": str(folder), "TMPDIR": str(work)}
    debian.install(Path("/dev/null"), BUILD_PACKAGES, hooks, variables, seconds=5400)
    shutil.rmtree(work)


def build(folder: Path) -> None:
    """Fill a folder with ``vmlinuz``, ``initrd.img`` and ``disk.raw``."""
    made = kernel()
    shutil.copy(made / "vmlinuz", folder / "vmlinuz")
    root = initramfs.pack(
        [
            *(initramfs.folder(path) for path in _FOLDERS),
            initramfs.executable("init", (HERE / "init").read_bytes()),
            initramfs.executable("bin/busybox", (made / "busybox").read_bytes()),
            *(
                initramfs.executable(path, f"#!/bin/busybox sh\nexec busybox {name} -f\n".encode())
                for path, name in _POWER.items()
            ),
        ]
    )
    (folder / "initrd.img").write_bytes(gzip.compress(root, mtime=0))
    _make_disk(folder)


def _make_disk(folder: Path) -> None:
    content, disk = folder / "content", folder / "disk.raw"
    boot = content / "boot/grub"
    boot.mkdir(parents=True)
    (content / "etc").mkdir()
    (content / "etc/hostname").write_text("template\n")
    shutil.copy(HERE / "grub.cfg", boot)
    shutil.copy(folder / "vmlinuz", content / "boot")
    shutil.copy(folder / "initrd.img", content / "boot")
    options = ["-t", "ext4", "-O", "^has_journal", "-m", "0", "-E", "root_owner=0:0"]
    run(["mke2fs", "-q", *options, "-d", content, disk, f"{DISK_SIZE // 1024}k"])
    with disk.open("r+b") as stream:  # a file system leaves the first kilobyte to boot loaders
        stream.write(DISK_MARK)
    shutil.rmtree(content)
