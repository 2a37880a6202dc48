"""Create a disk with one bootable ext4 partition, without mounts, loop devices or an installer.

Layout: the MBR with GRUB's ``boot.img`` in it, GRUB's core image in the track after it (where
``boot.img`` looks for it by default), the partition from 1 MiB on.
https://www.gnu.org/software/grub/manual/grub/html_node/BIOS-installation.html
"""

from __future__ import annotations

import struct
import uuid
from pathlib import Path

from vmcloner_core.errors import BackendError
from vmcloner_core.process import CommandRunner
from vmcloner_debian.overlay import ROOT_LABEL

SECTOR = 512
START = 1024**2
"""Offset of the partition."""
GRUB = Path("/usr/lib/grub/i386-pc")
_MODULES = ("biosdisk", "part_msdos", "ext2", "normal", "linux", "configfile")
_BOOT_CODE = 440
"""Bytes of the MBR before the disk signature."""
_CHS = b"\xfe\xff\xff"  # out of range for CHS addresses: use the LBA
_LINUX = 0x83


def make(runner: CommandRunner, root: Path, disk: Path, size: int) -> None:
    """Write a disk of ``size`` bytes with the files under ``root``, including their owners.

    :raises HostCommandError: the files do not fit, or a tool failed.
    """
    with disk.open("wb") as stream:
        stream.truncate(size)
    runner.run(
        [
            "mke2fs", "-q", "-F", "-t", "ext4",
            "-L", ROOT_LABEL,
            "-U", str(uuid.uuid4()),
            # Initialize everything in the image, so that no clone has to do it.
            "-E", f"offset={START},lazy_itable_init=0,lazy_journal_init=0,nodiscard",
            "-d", str(root),
            str(disk),
            f"{(size - START) // 1024}k",
        ],
        timeout=600,
    )  # fmt: skip
    _install_grub(runner, disk, size)


def _install_grub(runner: CommandRunner, disk: Path, size: int) -> None:
    core = disk.with_suffix(".core")
    runner.run(
        [
            "grub-mkimage", "-O", "i386-pc",
            "-p", "(hd0,msdos1)/boot/grub",
            "-o", str(core),
            *_MODULES,
        ]
    )  # fmt: skip
    image = core.read_bytes()
    core.unlink()
    if len(image) > START - SECTOR:
        raise BackendError(f"GRUB's core image has {len(image)} bytes, only {START - SECTOR} fit")
    with disk.open("r+b") as stream:
        stream.write(boot_record((GRUB / "boot.img").read_bytes(), size))
        stream.write(image)


def boot_record(code: bytes, size: int) -> bytes:
    """Return the first sector of a disk of ``size`` bytes with the boot code ``code``."""
    first, count = START // SECTOR, (size - START) // SECTOR
    active = struct.pack("<B3sB3sII", 0x80, _CHS, _LINUX, _CHS, first, count)
    signature = uuid.uuid4().bytes[:4]
    return code[:_BOOT_CODE] + signature + b"\0\0" + active + bytes(48) + b"\x55\xaa"
