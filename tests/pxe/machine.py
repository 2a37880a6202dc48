"""A machine in QEMU that boots from the network, and tells what it boots.

Its kernels aren't Linux: each only says where in memory it is. Command line and initrds are then
read out of that memory.
"""

from __future__ import annotations

import json
import re
import socket
import struct
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

import attrs

FIRMWARE = Path("/usr/lib/PXELINUX/pxelinux.0")
MODULES = Path("/usr/lib/syslinux/modules/bios")
MAC = "52:54:00:12:34:56"
SECONDS = 20
_NAME_AT = 0x300
_SETUP_SECTORS = 4
_SAY = 0xE9
"""The port of QEMU's debug console."""


def _says(*code: bytes) -> bytes:
    return b"".join(code) + b"\xfa\xf4\xeb\xfd"  # cli; hlt; and again


def kernel(name: str) -> bytes:
    """Return a kernel by Linux's boot protocol that says K and its segment, and halts."""
    code = _says(
        b"\x8c\xcb",  # mov bx, cs
        *(b"\xb0" + byte + b"\xe6\xe9" for byte in (b"K",)),  # mov al, "K"; out 0xe9, al
        b"\x88\xd8\xe6\xe9",  # mov al, bl; out 0xe9, al
        b"\x88\xf8\xe6\xe9",  # mov al, bh; out 0xe9, al
    )
    setup = bytearray((1 + _SETUP_SECTORS) * 512)
    setup[0x1F1] = _SETUP_SECTORS
    struct.pack_into("<I", setup, 0x1F4, 32)  # of 16 bytes, behind the setup
    setup[0x1FE:0x202] = b"\x55\xaa\xeb\x66"  # jmp 0x268
    setup[0x202:0x208] = b"HdrS\x06\x02"
    setup[0x211] = 1  # the rest is loaded above 1 MiB
    struct.pack_into("<I", setup, 0x214, 0x100000)
    struct.pack_into("<I", setup, 0x22C, 0x7FFFFFF)
    struct.pack_into("<I", setup, 0x238, 4000)
    setup[0x268 : 0x268 + len(code)] = code
    setup[_NAME_AT : _NAME_AT + len(name) + 2] = f"<{name}>".encode()
    return bytes(setup) + bytes(512)


def initrd(name: str) -> bytes:
    """Return an initrd that can be recognized in memory."""
    text = f"<{name}>".encode()
    return text + bytes(-len(text) % 4)


def boot_sector() -> bytes:
    """Return a disk that says D."""
    return _says(b"\xb0D\xe6\xe9").ljust(510, b"\0") + b"\x55\xaa"


@attrs.frozen(kw_only=True)
class Booted:
    """What was booted. ``kernel`` is None for the machine's own disk."""

    kernel: str | None = None
    arguments: str = ""
    initrds: tuple[str, ...] = ()
    ramdisk: bytes = b""


def boot(folder: Path, boot_file: str, files: Mapping[str, bytes]) -> Booted:
    """Return what a machine boots from a TFTP server that has these files.

    :param folder: an empty one. :raises TimeoutError: it boots nothing.
    """
    served = folder / "tftp"
    for name, content in files.items():
        path = served / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    disk = folder / "disk"
    disk.write_bytes(boot_sector().ljust(1024**2, b"\0"))
    (said, says), (monitor, monitored) = socket.socketpair(), socket.socketpair()
    argv = [
        "qemu-system-x86_64", "-M", "pc,accel=tcg", "-cpu", "qemu64", "-m", "64",
        "-nodefaults", "-no-user-config", "-display", "none",
        "-icount", "shift=6,sleep=off",  # its clock needn't wait for ours
        "-boot", "order=nc",
        "-netdev", f"user,id=net,tftp={served},bootfile={boot_file}",
        "-device", f"virtio-net-pci,netdev=net,mac={MAC}",
        "-drive", f"file={disk},format=raw,if=ide",
        "-chardev", f"socket,id=said,fd={says.fileno()}",
        "-device", f"isa-debugcon,iobase={_SAY:#x},chardev=said",
        "-chardev", f"socket,id=monitor,fd={monitored.fileno()}",
        "-mon", "chardev=monitor,mode=control",
    ]  # fmt: skip
    with said, says, monitor, monitored:
        said.settimeout(SECONDS)
        monitor.settimeout(SECONDS)
        descriptors = (says.fileno(), monitored.fileno())
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, pass_fds=descriptors)
        try:
            if said.recv(1) == b"D":
                return Booted()
            (segment,) = struct.unpack("<H", said.recv(1) + said.recv(1))
            return _loaded(Memory(monitor.makefile("rw"), folder / "memory"), segment * 16 - 0x200)
        finally:
            process.kill()
            process.wait()


@attrs.frozen
class Memory:
    """The memory of a running machine, by QEMU's monitor."""

    monitor: TextIO
    path: Path

    def __call__(self, at: int, size: int) -> bytes:
        for name, arguments in (
            ("qmp_capabilities", {}),
            ("pmemsave", {"val": at, "size": size, "filename": str(self.path)}),
        ):
            self.monitor.write(json.dumps({"execute": name, "arguments": arguments}))
            self.monitor.flush()
            while not {"return", "error"} & json.loads(self.monitor.readline()).keys():
                pass
        return self.path.read_bytes()


def _loaded(memory: Memory, at: int) -> Booted:
    setup = memory(at, 0x400)
    place, size = struct.unpack_from("<II", setup, 0x218)
    (line,) = struct.unpack_from("<I", setup, 0x228)
    ramdisk = memory(place, size) if size else b""
    return Booted(
        kernel=setup[_NAME_AT + 1 :].partition(b">")[0].decode(),
        arguments=memory(line, 4096).partition(b"\0")[0].decode("utf-8", "surrogateescape"),
        initrds=tuple(name.decode() for name in re.findall(rb"<([^>]*)>", ramdisk)),
        ramdisk=ramdisk,
    )
